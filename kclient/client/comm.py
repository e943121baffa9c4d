"""Comm: one conversation with an object in the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Protocol

from kclient.channels.base import last_look
from kclient.client.availability import Availability
from kclient.client.channel_set import ChannelSet
from kclient.concurrency.callbacks import CallbackQueue, check_callback
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import WARNING, log, log_soon
from kclient.concurrency.waiting import Parking
from kclient.errors import CommClosed, Failure, InvalidState, KernelRestarted, KernelTimeout, copies_of
from kclient.protocol.comms import Data, comm_message
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import Content, Message

INBOX_MESSAGES: Final = 1_000
INBOX_BYTES: Final = 64 * 2**20
"""Of messages that nobody has received yet, each comm keeps the newest: so many, and of so many bytes."""

OnMessage = Callable[[Message], object]
OnClose = Callable[[Exception], object]


class CommClient(Protocol):
    """The `Comms` of a client, as one of its comms sees it."""

    channels: ChannelSet
    availability: Availability
    callbacks: CallbackQueue

    def post(self, msg_type: str, content: Content, **more: Any) -> str:
        """Send a comm message; returns its msg_id."""

    def forget(self, comm_id: str) -> None:
        """Route nothing more to that comm."""


class Comm:
    """One comm, open until either side closes it or the kernel ends; `Comms` makes it.

    `open_message` is the comm_open by which the kernel opened it; None if it was opened here, or before we were there.
    Its messages go to `receive`, or to `on_message` if that is set. What nobody has received is kept in `inbox`, which
    is bounded and counts what it `dropped`. A `with` block closes the comm.
    """

    def __init__(self, comms: CommClient, comm_id: str, target_name: str, open_message: Message | None = None) -> None:
        self.comm_id = comm_id
        self.target_name = target_name
        self.open_message = open_message
        self.inbox = Inbox(INBOX_MESSAGES, INBOX_BYTES)
        # Its target, which has still to be called, may set on_message; that gets in its turn what comes meanwhile.
        self.is_new = open_message is not None
        self._name = target_name or comm_id  # one that was attached to may have no other
        self._comms = comms
        self._channels = comms.channels
        self._changed = Parking(comms.channels.owner)
        self._end: Failure | None = None
        self._is_closed_here = False
        self._was_heard_of = open_message is not None
        self._on_message: OnMessage | None = None
        self._on_close: OnClose | None = None

    def __repr__(self) -> str:
        return f"<Comm {self.comm_id} {self.target_name!r} {'open' if self._end is None else 'closed'}>"

    def __enter__(self) -> Comm:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Message]:
        """The messages as they arrive; ends when either side closes the comm, and raises what else ends it."""
        while True:
            try:
                message = self.receive()
            except CommClosed:
                return
            yield message

    @property
    def is_open(self) -> bool:
        """True until the end; takes in what has arrived, and does not wait."""
        self._channels.owner.check()
        self._channels.look()
        return self._end is None

    @property
    def on_message(self) -> OnMessage | None:
        """Called as `on_message(message)` for each comm_msg, those that wait in the inbox first.

        All callbacks of a client's comms run in one greenlet, in order of arrival; what they raise is logged.
        """
        return self._on_message

    @on_message.setter
    def on_message(self, on_message: OnMessage | None) -> None:
        self._channels.owner.check()  # callbacks run in the hub of who sets them
        self._on_message = check_callback(on_message, "on_message")
        for _ in range(len(self.inbox)):
            self._comms.callbacks.add(self._hand_over)
        self._changed.wake()

    @property
    def on_close(self) -> OnClose | None:
        """Called as `on_close(error)` when the comm has ended otherwise than by `close`, at once if it has already.

        `error` says why: CommClosed, whose `data` the kernel sent, or DeadKernelError, KernelRestarted, ChannelClosed.
        """
        return self._on_close

    @on_close.setter
    def on_close(self, on_close: OnClose | None) -> None:
        self._channels.owner.check()
        self._on_close = check_callback(on_close, "on_close")
        self._tell_of_end()

    def send(
        self,
        data: Data | None = None,
        *,
        metadata: Data | None = None,
        buffers: Sequence[Any] | None = None,
        subshell_id: str | None = None,
    ) -> str:
        """Send a comm_msg and return its msg_id at once, which is the `parent_id` of what the kernel answers.

        A subshell takes it while the main shell is busy; a kernel that has no such subshell drops it without a word.
        Raises InvalidArgument for what cannot be sent, and what ended the comm: CommClosed, DeadKernelError,
        KernelRestarted or ChannelClosed.
        """
        return self._send("comm_msg", data, metadata, buffers, subshell_id)

    def receive(self, timeout: float | None = None) -> Message:
        """The next message of the kernel, in order of arrival: its `content["data"]` and `buffers`.

        Raises KernelTimeout after `timeout` seconds and, when all is received, what ended the comm: CommClosed,
        DeadKernelError, KernelRestarted or ChannelClosed. InvalidState if `on_message` gets the messages.
        """
        deadline = Deadline(timeout)
        with self._channels.owner.call():
            if self._channels.spin:
                self._channels.spin_while(self._is_waiting, deadline.at_most(self._channels.spin))
            while True:
                if self._on_message is not None:
                    raise InvalidState("the messages of this comm go to its on_message, and cannot be received as well")
                if self.inbox:
                    return self.inbox.pop_oldest()
                self._check_open()
                if not self._changed.wait(deadline) and deadline.is_over:
                    last_look(self._channels.running(), deadline)
                    self._channels.look()
                    if self._is_waiting():
                        raise KernelTimeout(f"message on the comm {self._name!r}", deadline.timeout)

    def close(
        self, data: Data | None = None, *, metadata: Data | None = None, buffers: Sequence[Any] | None = None
    ) -> None:
        """Send a comm_close. Idempotent, and without effect in a forked child or on a comm that has ended."""
        if self._channels.owner.forked:
            return
        with self._channels.owner.call():
            if self._end is None:
                self._send("comm_close", data, metadata, buffers)
                self._is_closed_here = True
                self._end_with(f"the comm {self._name!r} was closed here")

    # What the routing calls, in whatever greenlet a message was taken in.

    def feed(self, message: Message) -> None:
        """Take in a comm_msg or a comm_close."""
        if message.header["msg_type"] == "comm_close":
            self._end_with(self._why_closed(), message.content.get("data"))
            return
        self._was_heard_of = True
        is_first = not self.inbox.dropped
        gone = self.inbox.append(message)
        if gone and is_first:
            log_soon(log(), WARNING, "nobody receives from %r: its inbox is full and drops the oldest messages", self)
        if (self._on_message is not None or self.is_new) and not gone:
            self._comms.callbacks.add(self._hand_over)
        self._changed.wake()

    def fail(self, failure: Failure) -> None:
        """The comm has ended, for whatever reason."""
        if self._end is None:
            self._end = failure
            self._changed.wake()
            self._tell_of_end()

    def _is_waiting(self) -> bool:
        return self._end is None and not self.inbox

    def _send(
        self,
        msg_type: str,
        data: Data | None,
        metadata: Data | None,
        buffers: Sequence[Any] | None,
        subshell_id: str | None = None,
    ) -> str:
        content = comm_message(self.comm_id, data)
        with self._channels.owner.call():
            if self._end is None:
                self._comms.availability.wait_until_usable(Deadline(None))  # a restart ends it meanwhile
            self._check_open()
            return self._comms.post(msg_type, content, metadata=metadata, buffers=buffers, subshell_id=subshell_id)

    def _check_open(self) -> None:
        error = self._error()
        if error is not None:
            raise error

    def _error(self) -> Exception | None:
        """Why the comm has ended, if it has."""
        error = None if self._end is None else self._end(None)
        if isinstance(error, KernelRestarted):
            error.args = ("the kernel was restarted, which ended the comm; open another",)
        return error

    def _why_closed(self) -> str:
        if self._was_heard_of:
            return f"the kernel closed the comm {self._name!r}"
        return f"the kernel has no comm target {self.target_name!r}, or closed the comm before it sent anything"

    def _end_with(self, why: str, data: Any = None) -> None:
        self._comms.forget(self.comm_id)
        self.fail(copies_of(CommClosed(why, comm_id=self.comm_id, target_name=self.target_name, data=data)))

    def _hand_over(self) -> None:
        if self._on_message is not None and self.inbox:
            self._on_message(self.inbox.pop_oldest())

    def _tell_of_end(self) -> None:
        error = self._error()
        if error is not None and self._on_close is not None and not self._is_closed_here:
            self._comms.callbacks.add(self._on_close, error)
