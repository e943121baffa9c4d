"""Messages that wait for a reader, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import islice
from typing import Final

from kclient.protocol.messages import Message

MESSAGE_NBYTES: Final = 2048
"""Memory that a message takes besides its content: mostly the dicts of its headers."""


class Inbox:
    """Unclaimed messages in order of arrival: the newest `max_messages`, of at most `max_bytes` together.

    The newest message is kept even if it alone is larger.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self.max_messages = max_messages
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.arrived = 0
        self.dropped = 0
        self._messages: OrderedDict[int, Message] = OrderedDict()

    def __len__(self) -> int:
        return len(self._messages)

    def __contains__(self, message: Message) -> bool:
        return id(message) in self._messages

    def append(self, message: Message) -> list[Message]:
        """Keep `message`; returns the oldest messages, which were dropped to make room."""
        self._messages[id(message)] = message
        self.arrived += 1
        self.nbytes += message.nbytes
        gone = []
        while len(self._messages) > self.max_messages or (self.nbytes > self.max_bytes and len(self._messages) > 1):
            gone.append(self.pop_oldest())
        self.dropped += len(gone)
        return gone

    def pop_oldest(self) -> Message:
        """The message that came first; raises KeyError if there is none."""
        _, message = self._messages.popitem(last=False)
        self.nbytes -= message.nbytes
        return message

    def take(self, is_wanted: Callable[[Message], bool], since: int = 0) -> Message | None:
        """Take out the oldest message that is wanted; None if there is none.

        `since` is an earlier value of `arrived`. Only messages that came after it are looked at, so a waiting caller
        need not look at all messages each time.
        """
        newest = list(islice(reversed(self._messages.values()), self.arrived - since))
        message = next(filter(is_wanted, reversed(newest)), None)
        if message is not None:
            self.remove(message)
        return message

    def remove(self, message: Message) -> None:
        """Take out `message`, if it is still there."""
        if self._messages.pop(id(message), None) is not None:
            self.nbytes -= message.nbytes

    def pop_all(self) -> list[Message]:
        """Take out all messages, in order of arrival."""
        messages = list(self._messages.values())
        self._messages.clear()
        self.nbytes = 0
        return messages


class Backlog:
    """Messages that one reader has not read yet, of at most `max_bytes` together (None: no bound).

    Each message counts MESSAGE_NBYTES besides its content.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = max_bytes
        self._nbytes = 0
        self._messages: deque[Message] = deque()

    def __len__(self) -> int:
        return len(self._messages)

    def append(self, message: Message) -> bool:
        """Keep `message`; False if there is no room for it."""
        nbytes = self._nbytes + message.nbytes + MESSAGE_NBYTES
        if self._max_bytes is not None and nbytes > self._max_bytes:
            return False
        self._messages.append(message)
        self._nbytes = nbytes
        return True

    def popleft(self) -> Message:
        """The message that came first; raises IndexError if there is none."""
        message = self._messages.popleft()
        self._nbytes -= message.nbytes + MESSAGE_NBYTES
        return message

    def clear(self) -> None:
        self._messages.clear()
        self._nbytes = 0
