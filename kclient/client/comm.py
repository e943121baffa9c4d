"""Comm: one conversation with an object in the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, Protocol

from kclient.channels.base import INBOX_BYTES, last_look
from kclient.client.availability import Availability
from kclient.client.channel_set import ChannelSet
from kclient.concurrency.callbacks import CallbackQueue, check_callback
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.half_made import half_made_too
from kclient.concurrency.log import WARNING, log, log_soon
from kclient.concurrency.waiting import Parking
from kclient.errors import CommClosed, Failure, InvalidState, KernelRestarted, KernelTimeout, copies_of
from kclient.protocol.comms import Data, comm_message
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import Content, Message

INBOX_MESSAGES_OF_A_COMM: Final = 1_000
"""Messages that wait in a comm's inbox until they are received. If there are more, the oldest are dropped."""

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

    `open_message` is the comm_open by which the kernel opened it; None if this client opened it, or attached to it.
    Its messages go to `receive`, or to `on_message` if that is set. Until then they wait in `inbox`, which is bounded
    and counts the messages that it `dropped`. A `with` block closes the comm.
    """

    def __init__(self, comms: CommClient, comm_id: str, target_name: str, open_message: Message | None = None) -> None:
        self.comm_id = comm_id
        self.target_name = target_name
        self.open_message = open_message
        self.inbox = Inbox(INBOX_MESSAGES_OF_A_COMM, INBOX_BYTES)
        # The callback of its target may still set on_message. Messages that come before that go to it, in order.
        self._is_new = open_message is not None
        self._name = target_name or comm_id  # an attached comm may have no target_name
        self._comms = comms
        self._channels = comms.channels
        self._changed = Parking(comms.channels.owner)
        self._end: Failure | None = None
        self._is_closed_here = False
        self._was_heard_of = open_message is not None
        self._on_message: OnMessage | None = None
        self._on_close: OnClose | None = None

    @half_made_too
    def __repr__(self) -> str:
        return f"<Comm {self.comm_id} {self.target_name!r} {'open' if self._end is None else 'closed'}>"

    def __enter__(self) -> Comm:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Message]:
        """The messages as they arrive. Ends when either side closes the comm; raises if something else ends it."""
        while True:
            try:
                message = self.receive()
            except CommClosed:
                return
            yield message

    @property
    def is_open(self) -> bool:
        """True until the comm has ended; takes in messages that have arrived, and does not wait."""
        self._channels.owner.check()
        self._channels.look()
        return self._end is None

    @property
    def on_message(self) -> OnMessage | None:
        """Called as `on_message(message)` for each comm_msg; those in the inbox come first.

        All callbacks of a client's comms run in one greenlet, in order of arrival. Their exceptions are logged.
        """
        return self._on_message

    @on_message.setter
    def on_message(self, on_message: OnMessage | None) -> None:
        self._channels.owner.check()  # callbacks run in the hub of the caller
        self._on_message = check_callback(on_message, "on_message")
        for _ in range(len(self.inbox)):
            self._comms.callbacks.add(self._hand_over)
        self._changed.wake()

    @property
    def on_close(self) -> OnClose | None:
        """Called as `on_close(error)` when the comm has ended, at once if it has already; not if `close` ended it.

        `error` is CommClosed, with the `data` that the kernel sent, DeadKernelError, KernelRestarted or ChannelClosed.
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
        """Send a comm_msg and return its msg_id at once. Answers of the kernel have it as `parent_id`.

        A subshell takes the message while the main shell is busy. A kernel that has no such subshell drops the message
        and sends no error. Raises InvalidArgument for data that cannot be sent. If the comm has ended, raises the
        error that ended it: CommClosed, DeadKernelError, KernelRestarted or ChannelClosed.
        """
        return self._send("comm_msg", data, metadata, buffers, subshell_id)

    def receive(self, timeout: float | None = None) -> Message:
        """The next message of the kernel, in order of arrival. Its data is in `content["data"]` and `buffers`.

        Raises KernelTimeout after `timeout` seconds, and InvalidState if `on_message` gets the messages. If the comm
        has ended and the inbox is empty, raises the error that ended it: CommClosed, DeadKernelError, KernelRestarted
        or ChannelClosed.
        """
        deadline = Deadline(timeout)
        with self._channels.owner.call():
            if self._channels.spin:
                self._channels.spin_while(self._is_waiting, deadline.at_most(self._channels.spin))
            while True:
                if self._on_message is not None:
                    raise InvalidState(
                        "the messages of this comm go to its on_message; they cannot be received as well"
                    )
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
        """Send a comm_close. Does nothing if the comm has ended, or in a forked child."""
        if self._channels.owner.forked:
            return
        with self._channels.owner.call():
            if self._end is None:
                self._send("comm_close", data, metadata, buffers)
                self._is_closed_here = True
                self._end_with(f"the comm {self._name!r} was closed here")

    # For the routing, which calls these in any greenlet

    def feed(self, message: Message) -> None:
        """Take in a comm_msg or a comm_close."""
        if message.header["msg_type"] == "comm_close":
            self._end_with(self._why_closed(), message.content.get("data"))
            return
        self._was_heard_of = True
        is_first = not self.inbox.dropped
        gone = self.inbox.append(message)
        if gone and is_first:
            log_soon(log(), WARNING, "no call receives from %r: its inbox is full and drops the oldest messages", self)
        if (self._on_message is not None or self._is_new) and not gone:
            self._comms.callbacks.add(self._hand_over)
        self._changed.wake()

    def welcomed(self) -> None:
        """The callback of its target has returned."""
        self._is_new = False

    def fail(self, failure: Failure) -> None:
        """The comm has ended, for any reason."""
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
                self._comms.availability.wait_until_usable(Deadline(None))  # a restart may end the comm meanwhile
            self._check_open()
            return self._comms.post(msg_type, content, metadata=metadata, buffers=buffers, subshell_id=subshell_id)

    def _check_open(self) -> None:
        error = self._error()
        if error is not None:
            raise error

    def _error(self) -> Exception | None:
        """The error that says why the comm has ended; None if it is open."""
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
