"""The iopub channel: what the kernel publishes, to every client alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kclient.channels.base import MessageChannel, last_look
from kclient.channels.shared import IOPubClient
from kclient.concurrency.callbacks import in_callback
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import WARNING, log, log_soon
from kclient.concurrency.waiting import Parking
from kclient.errors import Failure
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import Message, check_code, is_debug_event
from kclient.protocol.routing import Outputs

if TYPE_CHECKING:
    from kclient.protocol.session import Session

INBOX_MESSAGES: Final = 10_000
"""Of 2 KiB each and more, all of which Python's garbage collector goes over now and then, in some 20 ms."""

INBOX_BYTES: Final = 64 * 2**20


class IOPubChannel(MessageChannel):
    """Always drained. A message that bears the id of an execution goes to that execution, others to a bounded inbox.

    The inbox keeps the newest 10,000 messages of 64 MiB together, for `get_msg`, `get_msgs` and `flush`; that older
    ones had to go is said once in the log, and how many in `inbox.dropped`.
    """

    name = "iopub"

    def __init__(self, context: Any, session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        shared = self._shared
        self.outputs = Outputs(INBOX_MESSAGES, INBOX_BYTES, shared.pending, shared.comm_routes)
        self.changed = Parking(self._owner)
        self._client: IOPubClient = shared.client
        self._debug_event_came = Parking(self._owner)

    def flush(self, timeout: float = 1.0) -> list[Message]:
        """Take in what is pending and return, and remove, everything that no execution claimed.

        It waits, `timeout` seconds at most, until the idle status of every request of this client whose
        reply has come is in; not for requests that still run. From a callback it only drains.
        """
        deadline = Deadline(timeout)
        with self._owner.call():
            self.check_running()
            self._line.drain()
            pending = self.outputs.pending
            while pending.awaits_idle and self._failure is None and not in_callback():
                if not self.changed.wait(deadline) and deadline.is_over:
                    last_look([self], deadline)
                    pending.waive()
        return self.get_msgs()

    def get_msgs(self) -> list[Message]:
        """Every message that has arrived and that no execution claimed; does not wait."""
        self.check_running()
        self._line.drain()
        return self.outputs.inbox.pop_all()

    def wait_for_debug_event(self, event: str | None = None, *, timeout: float | None = None) -> Message:
        """The oldest debug_event in the inbox, or the oldest of the name `event`; waits for it, and takes it out.

        Its content is an event of the Debug Adapter Protocol: `event`, such as "stopped", and `body`. It may be part of
        any request, and is among the outputs of none. Raises KernelTimeout after `timeout` seconds.
        """
        if event is not None:
            check_code(event, "event")
        deadline = Deadline(timeout)
        seen = 0

        def take() -> Message | None:
            nonlocal seen
            since, seen = seen, self.inbox.arrived
            return self.inbox.take(lambda message: is_debug_event(message, event), since)

        with self._owner.call():
            return self._wait_for(take, self._debug_event_came, f"debug_event {event or ''}".rstrip(), deadline)

    @property
    def inbox(self) -> Inbox:
        """The newest of what no execution claimed."""
        return self.outputs.inbox

    def fail(self, failure: Failure) -> None:
        super().fail(failure)
        for sink in list(self.outputs.executions.values()):
            sink.fail(failure)
        self.outputs.comms.fail(failure)
        self.changed.wake()
        self._debug_event_came.wake()

    def stop(self) -> None:
        super().stop()
        if not self._owner.forked:
            self._stop_tracking()

    def reopen(self) -> None:
        self._stop_tracking()
        super().reopen()

    def _stop_tracking(self) -> None:
        self.outputs.pending.tracking = False
        self.outputs.pending.forget()
        self.outputs.forget_kernel()

    def _opened(self) -> None:
        self.outputs.pending.tracking = True

    def _route(self, message: Message) -> None:
        outputs = self.outputs
        dropped, kernels = outputs.inbox.dropped, outputs.kernels
        sink = outputs.route(message)
        if sink is not None:
            sink.feed(message)
        else:
            self._arrived.wake()
            if message.header["msg_type"] == "debug_event":
                self._debug_event_came.wake()
            if outputs.has_deleted_subshell:
                outputs.has_deleted_subshell = False
                self._client.subshell_deleted()
        self.changed.wake()
        if outputs.pending.unanswered:
            self._client.answer_is_owed()
        if outputs.kernels != kernels:
            self._client.reconnected()
        if outputs.inbox.dropped and not dropped:
            log_soon(log(), WARNING, "iopub is not read: its inbox is full and drops the oldest messages")

    def leave(self, message: Message) -> None:
        """Put a message that was claimed by mistake into the inbox."""
        self.outputs.inbox.append(message)
        self._arrived.wake()

    def _next_unclaimed(self) -> Message:
        return self.outputs.inbox.pop_oldest()
