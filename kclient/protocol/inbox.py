"""Messages that wait for a reader, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from kclient.protocol.memory import SPARE_NBYTES, memory_of
from kclient.protocol.messages import Message

MESSAGE_NBYTES: Final = 2048
"""Memory that a message takes besides its content: mostly the dicts of its headers."""

SHORT_BYTES: Final = 256
"""A content up to this size is counted as it came over the wire: in memory it is 6 KiB at most."""


def _size_of(message: Message) -> int:
    """Bytes of the content and buffers of `message`: on the wire or in memory, the larger."""
    nbytes = message.nbytes
    return nbytes if nbytes <= SHORT_BYTES else max(nbytes, memory_of(message.content))


class Inbox:
    """Unclaimed messages in order of arrival: the newest `max_messages`, of at most `max_bytes` together.

    A content counts as it came over the wire or by the memory that it takes, whichever is larger.
    The newest message is kept even if it alone is larger.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.arrived = 0
        self.dropped = 0
        self._messages: OrderedDict[int, tuple[Message, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._messages)

    def __contains__(self, message: Message) -> bool:
        return id(message) in self._messages

    def __iter__(self) -> Iterator[Message]:
        """The messages, oldest first, as they are now."""
        return iter([message for message, _ in self._messages.values()])

    def append(self, message: Message) -> list[Message]:
        """Keep `message`; returns the oldest messages, which were dropped to make room."""
        size = _size_of(message)
        self._messages[id(message)] = message, size
        self.arrived += 1
        self.nbytes += size
        gone = []
        while len(self._messages) > self.max_messages or (self.nbytes > self.max_bytes and len(self._messages) > 1):
            gone.append(self.pop_oldest())
        self.dropped += len(gone)
        return gone

    def pop_oldest(self) -> Message:
        """The message that came first; raises KeyError if there is none."""
        _, (message, size) = self._messages.popitem(last=False)
        self.nbytes -= size
        return message

    def take(self, is_wanted: Callable[[Message], bool], since: int = 0) -> Message | None:
        """Take out the oldest message that is wanted; None if there is none.

        `since` is an earlier value of `arrived`. Only messages that came after it are looked at, so a waiting caller
        need not look at all messages each time.
        """
        newest = list(islice(reversed(self._messages.values()), self.arrived - since))
        message = next((message for message, _ in reversed(newest) if is_wanted(message)), None)
        if message is not None:
            self.remove(message)
        return message

    def remove(self, message: Message) -> None:
        """Take out `message`, if it is still there."""
        kept = self._messages.pop(id(message), None)
        if kept is not None:
            self.nbytes -= kept[1]

    def pop_all(self) -> list[Message]:
        """Take out all messages, in order of arrival."""
        messages = [message for message, _ in self._messages.values()]
        self._messages.clear()
        self.nbytes = 0
        return messages


class Backlog:
    """Messages that one reader has not read yet, of at most `max_bytes` together (None: no bound).

    Each message counts MESSAGE_NBYTES besides its content, and SPARE_NBYTES are free. A message that waits alone counts
    as it came over the wire: it is in memory already.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._nbytes = 0
        self._messages: deque[tuple[Message, int]] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def append(self, message: Message) -> bool:
        """Keep `message`; False if there is no room for it."""
        size = _size_of(message) + MESSAGE_NBYTES
        if self._max_bytes is not None:
            nbytes = self._nbytes + size if self._messages else message.nbytes
            if nbytes > self._max_bytes + SPARE_NBYTES:
                return False
        self._messages.append((message, size))
        self._nbytes += size
        return True

    def popleft(self) -> Message:
        """The message that came first; raises IndexError if there is none."""
        message, size = self._messages.popleft()
        self._nbytes -= size
        return message

    def clear(self) -> None:
        self._messages.clear()
        self._nbytes = 0
