"""Routing: which waiter gets a reply, and which execution gets an output.

Nothing here waits, or wakes a waiter. A channel passes each message in, and acts on the answer.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from kclient.errors import LocalProtocolError
from kclient.protocol.comms import COMM_TYPES, CommRoutes, OpenComm, Taker
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import DISPLAY_TYPES, GETS_NO_REPLY, LEFT_OUT, OUTPUT_TYPES, Message, reply_type
from kclient.protocol.output_widgets import taken_request
from kclient.protocol.pending_answers import PendingAnswers
from kclient.protocol.sink import Sink

MAX_UNCOLLECTED_REPLIES: Final = 10_000
"""At most so many replies are kept for a later get_reply, and so many abandoned requests are remembered."""

MAX_UNCOLLECTED_BYTES: Final = 256 * 2**20

_OF_AN_EXECUTION: Final = OUTPUT_TYPES | {"status", "execute_input", LEFT_OUT}

KEPT_SESSION_MESSAGES: Final = 3
"""A kernel keeps its session id if so many messages in a row after the first have the same one. One request causes
only two status messages, so these are of more than one request."""


OnSettled = Callable[["Slot"], None]


class Slot:
    """The place of one reply: the callback of its waiter, and then the reply or the error in its place."""

    __slots__ = ("abandoned", "error", "msg_id", "on_settled", "reply", "reply_type", "sent", "subshell_id")

    def __init__(self, msg_id: str, reply_type: str | None, subshell_id: str | None = None) -> None:
        self.msg_id = msg_id
        self.reply_type = reply_type
        self.subshell_id = subshell_id
        self.reply: Message | None = None
        self.error: Callable[[str | None], Exception] | None = None
        self.on_settled: OnSettled | None = None
        self.abandoned = False
        self.sent = 0.0

    @property
    def is_settled(self) -> bool:
        return self.reply is not None or self.error is not None

    def is_pending(self) -> bool:
        return not self.is_settled


class Requests:
    """The requests of one channel and the slots of their replies.

    A slot is open from the sending of its request until its reply is taken, once, by `claim` or out of
    the inbox. After `abandon` the reply is discarded when it comes.
    """

    def __init__(self, pending: PendingAnswers) -> None:
        self.pending = pending
        self.inbox = Inbox(MAX_UNCOLLECTED_REPLIES, MAX_UNCOLLECTED_BYTES)
        self._slots: dict[str, Slot] = {}
        self._abandoned: deque[str] | None = None  # until a request is abandoned: it takes 0.7 KiB

    def __len__(self) -> int:
        return len(self._slots)

    def __iter__(self) -> Iterator[Slot]:
        return iter(list(self._slots.values()))

    def get(self, msg_id: str) -> Slot | None:
        return self._slots.get(msg_id)

    def open(self, message: Message, on_settled: OnSettled | None = None) -> Slot:
        """A slot for the reply to `message`, which is about to be sent; raises LocalProtocolError if it was before."""
        header = message.header
        msg_id, msg_type = header["msg_id"], header["msg_type"]
        if msg_id in self._slots:
            raise LocalProtocolError(f"{msg_id!r} was sent already and awaits its reply; make a new message")
        slot = Slot(msg_id, reply_type(msg_type), header.get("subshell_id"))
        slot.on_settled = on_settled
        if msg_type not in GETS_NO_REPLY:
            self._slots[msg_id] = slot
            self.pending.unanswered.add(msg_id)
        return slot

    def claim(self, msg_id: str, on_settled: OnSettled | None = None) -> Slot:
        """The slot of a request that no other call awaits; raises LocalProtocolError."""
        slot = self._slots.get(msg_id) if isinstance(msg_id, str) else None
        if slot is None or slot.abandoned:
            raise LocalProtocolError(
                f"no reply can come for {msg_id!r}: it was never sent here, or its reply was already taken"
            )
        if slot.on_settled is not None:
            raise LocalProtocolError(f"another greenlet already awaits the reply to {msg_id!r}")
        slot.on_settled = on_settled
        return slot

    def take(self, slot: Slot) -> Message:
        """The reply in a settled slot, which this call closes; raises the error of the slot if it has one."""
        if slot.msg_id in self._slots:
            if slot.is_pending():
                raise LocalProtocolError(f"the reply to {slot.msg_id!r} is still awaited")
            self.discard(slot)
        if slot.reply is not None:
            return slot.reply
        raise slot.error(slot.msg_id)  # type: ignore[misc]  # a settled slot has one of both

    def release(self, slot: Slot) -> None:
        """The waiter of `slot` gave up. If the reply has just come, it can be asked for again."""
        slot.on_settled = None
        if slot.is_settled:
            self._slots[slot.msg_id] = slot
        if slot.reply is not None and slot.reply not in self.inbox:
            self._keep(slot.reply)

    def abandon(self, slot: Slot) -> None:
        """Discard the reply of `slot`, now or when it comes: no caller will take it."""
        if slot.is_settled:
            self.discard(slot)
            return
        slot.abandoned = True
        slot.on_settled = None
        abandoned = self._abandoned = self._abandoned or deque()
        abandoned.append(slot.msg_id)
        if len(abandoned) > MAX_UNCOLLECTED_REPLIES and (forgotten := self._slots.get(abandoned.popleft())):
            self.discard(forgotten)

    def discard(self, slot: Slot) -> None:
        """Close `slot` as if its request had never been sent."""
        self._slots.pop(slot.msg_id, None)
        self.pending.note_no_reply(slot.msg_id)
        if slot.reply is not None:
            self.inbox.remove(slot.reply)

    def route(self, message: Message) -> Slot | None:
        """The slot that awaits `message`, now settled; None if the message went to the inbox or was discarded.

        A reply of another type than the request's does not count as its reply.
        """
        parent_id = message.parent_header.get("msg_id")
        slot = self._slots.get(parent_id) if isinstance(parent_id, str) else None
        if (
            slot is None
            or slot.reply is not None
            or (slot.reply_type is not None and slot.reply_type != message.header["msg_type"])
        ):
            self._keep(message)
            return None
        self.pending.note_reply(slot.msg_id, message.received)
        if slot.abandoned:
            del self._slots[slot.msg_id]
            return None
        slot.reply = message
        if slot.on_settled is None:
            self._keep(message)
            return None
        del self._slots[slot.msg_id]
        return slot

    def next_unclaimed(self) -> Message:
        """Take the oldest message out of the inbox, and close its slot if it has one. Raises KeyError."""
        message = self.inbox.pop_oldest()
        self._close_slot_of(message)
        return message

    def fail(self, slots: Iterable[Slot], error: Callable[[str | None], Exception]) -> list[Slot]:
        """Settle those of `slots` that are unanswered with `error(msg_id)`; returns those that have a waiter.

        The others keep their error for a get_reply that may still come, up to MAX_UNCOLLECTED_REPLIES of them.
        """
        unanswered = [slot for slot in slots if slot.is_pending()]
        for slot in unanswered:
            if slot.on_settled is not None or slot.abandoned:
                self.discard(slot)
            else:
                self.pending.note_no_reply(slot.msg_id)
            slot.error = error
        # One whose reply came after an earlier error is left out: its reply waits in the inbox.
        uncollected = [slot for slot in self._slots.values() if slot.error is not None and slot.reply is None]
        for slot in uncollected[:-MAX_UNCOLLECTED_REPLIES]:
            self.discard(slot)
        return [slot for slot in unanswered if slot.on_settled is not None]

    def _keep(self, message: Message) -> None:
        for gone in self.inbox.append(message):
            self._close_slot_of(gone)

    def _close_slot_of(self, message: Message) -> None:
        parent_id = message.parent_header.get("msg_id")
        slot = self._slots.get(parent_id) if isinstance(parent_id, str) else None
        if slot is not None and slot.reply is message:
            del self._slots[slot.msg_id]


class Outputs:
    """Finds the execution or comm of each iopub message, and notes the state that the kernel reports."""

    def __init__(self, max_messages: int, max_bytes: int, pending: PendingAnswers, comms: CommRoutes[OpenComm]) -> None:
        self.pending = pending
        self.comms = comms
        self.inbox = Inbox(max_messages, max_bytes)
        self.executions: dict[str, Sink] = {}
        self.execution_state = "unknown"
        self.state_since = 0.0
        self.executing: dict[str | None, str] = {}
        self.executing_since: dict[str | None, float] = {}
        self.subscribed = False
        self.has_deleted_subshell = False
        self.kernels = 0
        self._kernel_session: object = None
        self._kept_session = 0

    def adopt(self, former: Outputs) -> None:
        """Take over the connection of `former`, and what it knows of the kernel."""
        self.subscribed = former.subscribed
        self.execution_state, self.state_since = former.execution_state, former.state_since

    def forget_kernel(self) -> None:
        """Forget the state of the kernel: a new connection follows, to the same kernel or another."""
        self.subscribed = False
        self.executing.clear()
        self._kernel_session = None

    def route(self, message: Message) -> Taker | None:
        """The execution or the comm that `message` belongs to; None if it went to the inbox."""
        self.subscribed = True
        msg_type = message.header["msg_type"]
        parent_id = message.parent_header.get("msg_id")
        if not isinstance(parent_id, str):
            parent_id = None
        if msg_type == "status":
            self._note_status(message, parent_id)
            if message.header.get("session") != self._kernel_session or self._kept_session < KEPT_SESSION_MESSAGES:
                self._note_session(message)
        elif msg_type in DISPLAY_TYPES and message.content.get("transient"):
            self._update_displays(message, parent_id)
        elif msg_type in COMM_TYPES and taken_request(message) is not None:
            self._update_displays(message, None)
        if parent_id is not None and msg_type in _OF_AN_EXECUTION:
            sink = self.executions.get(parent_id)
            if sink is not None:
                return sink
        if msg_type in COMM_TYPES and (taker := self.comms.route(message)) is not None:
            return taker
        if msg_type != "iopub_welcome":
            self.inbox.append(message)
        else:
            self._note_session(message)
        return None

    def _note_session(self, message: Message) -> None:
        """Count the kernels that another kernel has replaced: a restarted kernel has a new session id.

        Not every kernel keeps a session id of its own: some send that of the request, some a new one each time.
        """
        session = message.header.get("session")
        if session == self._kernel_session:
            self._kept_session += 1
            return
        if not isinstance(session, str) or session == message.parent_header.get("session"):
            return
        if self._kernel_session is not None and self._kept_session >= KEPT_SESSION_MESSAGES:
            self.kernels += 1
        self._kernel_session = session
        self._kept_session = 0

    def _note_status(self, message: Message, parent_id: str | None) -> None:
        state = message.content.get("execution_state")
        if not isinstance(state, str):
            return
        self.execution_state = state
        self.state_since = message.received
        if parent_id is not None:
            self._note_execution(message.parent_header, parent_id, state, message.received)
        if state == "idle" and parent_id is not None:
            self.pending.note_idle(parent_id, message.received)

    def _note_execution(self, parent: dict[str, Any], parent_id: str, state: str, now: float) -> None:
        """Note which code each shell runs: that of the latest busy, because an idle may have been lost.

        Requests on control, an interrupt_request say, do not change this. One of them may delete a subshell.
        """
        subshell_id = parent.get("subshell_id")
        if not isinstance(subshell_id, str):
            subshell_id = None
        if state == "busy" and parent.get("msg_type") == "execute_request":
            self.executing[subshell_id] = parent_id
            self.executing_since[subshell_id] = now
        elif state == "idle" and self.executing.get(subshell_id) == parent_id:
            del self.executing[subshell_id], self.executing_since[subshell_id]
        elif state == "idle" and parent.get("msg_type") == "delete_subshell_request":
            self.has_deleted_subshell = True

    def _update_displays(self, message: Message, parent_id: str | None) -> None:
        """Pass `message` to the other executions: one may have its display_id, or give output to its widget."""
        for msg_id, sink in self.executions.items():
            if msg_id != parent_id:
                sink.update_display(message)
