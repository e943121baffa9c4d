"""The iopub channel: the messages that the kernel publishes to all clients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kclient.channels.base import INBOX_BYTES, MessageChannel, last_look
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

INBOX_MESSAGES_OF_IOPUB: Final = 10_000
"""Each takes 2 KiB or more. The garbage collector visits all of them now and then, which takes some 20 ms."""


class IOPubChannel(MessageChannel):
    """Always drained. A message with the id of an execution goes to that execution, others go to a bounded inbox.

    The inbox keeps the newest messages, 10,000 or 64 MiB at most, for `get_msg`, `get_msgs` and `flush`. The log says
    once that older messages were dropped; `inbox.dropped` is their number.
    """

    name = "iopub"

    def __init__(self, context: Any, session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        shared = self._shared
        self.outputs = Outputs(INBOX_MESSAGES_OF_IOPUB, INBOX_BYTES, shared.pending, shared.comm_routes)
        self.changed = Parking(self._owner)
        self._client: IOPubClient = shared.client
        self._debug_event_came = Parking(self._owner)

    def flush(self, timeout: float = 1.0) -> list[Message]:
        """Take in messages, then return, and remove, all that no execution claimed.

        For each request of this client whose reply has come, it waits for the idle status, `timeout` seconds at most,
        or until that is known to be lost. It does not wait for requests that still run, and in a callback not at all.
        """
        deadline = Deadline(timeout)
        with self._owner.call():
            self.check_running()
            self._line.drain()
            pending = self.outputs.pending
            if pending.owed_idle and not in_callback():
                pending.seek()
                self._client.answer_is_owed()
                while pending.owed_idle and self._failure is None:
                    if not self.changed.wait(deadline) and deadline.is_over:
                        last_look([self], deadline)
                        break
        return self.get_msgs()

    def get_msgs(self) -> list[Message]:
        """Every message that has arrived and that no execution claimed; does not wait."""
        self.check_running()
        self._line.drain()
        return self.outputs.inbox.pop_all()

    def wait_for_debug_event(self, event: str | None = None, *, timeout: float | None = None) -> Message:
        """Take the oldest debug_event, or the oldest one named `event`, out of the inbox; waits until there is one.

        Its content is an event of the Debug Adapter Protocol: `event`, such as "stopped", and `body`. It may belong to
        any request, but is never among the outputs of an execution. Raises KernelTimeout after `timeout` seconds.
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
        """The newest messages that no execution claimed."""
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
            msg_type = message.header["msg_type"]
            if msg_type == "debug_event":
                self._debug_event_came.wake()
            elif msg_type == "shutdown_reply":  # perhaps to another client
                self._shared.peer.note_shutdown(message)
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
