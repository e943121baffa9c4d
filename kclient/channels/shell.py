"""The shell and the control channel: requests and their replies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from gevent import getcurrent

from kclient.channels import message_log
from kclient.channels.base import MessageChannel, spin
from kclient.channels.requests import ControlRequests, ShellRequests
from kclient.channels.shared import RequestClient
from kclient.channels.turns import Turn, Turns
from kclient.concurrency import log as logs
from kclient.concurrency.deadline import Deadline, Timeout, as_deadline
from kclient.concurrency.log import DEBUG, log
from kclient.concurrency.waiting import Parking
from kclient.errors import Failure, InvalidArgument, InvalidState, KernelTimeout
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import Content, Message, check_buffers, check_code, check_message
from kclient.protocol.peer import OPTIONAL
from kclient.protocol.routing import Requests, Slot

if TYPE_CHECKING:
    from kclient.protocol.session import Session


class RequestChannel(MessageChannel):
    """Matches replies to requests, by the msg_id of their parent_header."""

    takes_turns = False
    """True if requests may have to wait until the kernel has answered earlier ones."""

    def __init__(self, context: Any, session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        self.requests = Requests(self._shared.pending)
        self.answering: set[object] = set()
        self._client: RequestClient = self._shared.client
        self._spin = self._shared.spin
        self.turns = Turns(self._owner, self.requests, self.peer, self._client.awaits_end)

    def send(
        self,
        msg_type: str | Message,
        content: Mapping[str, Any] | None = None,
        *,
        metadata: Mapping[str, Any] | None = None,
        buffers: Sequence[Any] | None = None,
        subshell_id: str | None = None,
    ) -> str:
        """Send a request, or a Message made by `session.msg`, and return its msg_id at once, for `get_reply`.

        It does not ask the kernel first, so it does not refuse, for example, a subshell that is not known yet.

        `buffers` is a list of C-contiguous bytes-like objects. They are copied once and may be changed afterwards. The
        copy is a seventh to a half of the time that a MiB takes to arrive. To send without a copy, pyzmq would start a
        thread, which works neither with a fork nor with monkey-patching.
        """
        with self._owner.call():
            message = self._build(msg_type, content, metadata, buffers, subshell_id)
            self._admit(message, None)
            self.post(message)
            return message.msg_id

    def get_reply(self, msg_id: str, timeout: float | None = None) -> Message:
        """The reply to a request that `send` has sent; it can be taken once.

        Raises LocalProtocolError at once for an id that was never sent, was taken, or is awaited by another greenlet.
        Raises KernelTimeout after `timeout` seconds; then the caller may ask again.
        """
        deadline = Deadline(timeout)
        with self._owner.call():
            if self.answering:
                self.refuse_if_answering()
            parking = Parking(self._owner)
            slot = self.requests.claim(msg_id, parking.wake)
            try:
                if not slot.is_settled:
                    self.check_running()
                    self._line.drain()
                self._await(slot, parking, deadline)
            except BaseException:
                self.requests.release(slot)
                raise
            return self.requests.take(slot)

    def request(
        self,
        msg_type: str | Message,
        content: Content | None = None,
        *,
        timeout: Timeout = None,
        subshell_id: str | None = None,
    ) -> Message:
        """Send a request and return its reply. If the call raises before the reply comes, the reply is discarded."""
        deadline = as_deadline(timeout)
        with self._owner.call():
            if self.answering:
                self.refuse_if_answering(subshell_id)
            if isinstance(msg_type, Message) or subshell_id is not None:
                message = self._build(msg_type, content, None, None, subshell_id)
            else:
                message = self._session.msg(msg_type, content)
            self._admit(message, deadline)
            return self.exchange(message, deadline)

    def exchange(self, message: Message, deadline: Deadline, turn: Turn = Turn.IN_ORDER) -> Message:
        """Send `message` without a check whether the kernel knows it, and return its reply."""
        parking = Parking(self._owner)
        slot = self.post(message, parking.wake, turn)
        try:
            self._await(slot, parking, deadline)
        except BaseException:
            self.requests.abandon(slot)
            raise
        return self.requests.take(slot)

    def post(
        self,
        message: Message,
        on_settled: Callable[[Slot], None] | None = None,
        turn: Turn = Turn.IN_ORDER,
    ) -> Slot:
        """Send `message`, at its turn. When its slot is settled, `on_settled(slot)` is called, in any greenlet.

        The caller must hold a Ctrl-C back. Else a request could be sent of which no call knows.
        """
        if self._is_stopped or not self._is_started:
            self.check_running()
        if self._failure is not None:
            raise self._failure(message.msg_id)
        slot = self.requests.open(message, on_settled)
        if turn is Turn.AT_ONCE or not self.takes_turns or self.turns.pass_or_hold(message, slot, turn):
            self._transmit(message, slot)
        return slot

    def _transmit(self, message: Message, slot: Slot) -> None:
        version_4 = self.peer.version_4
        slot.sent = perf_counter()
        try:
            if logs.is_enabled(DEBUG):
                message_log.sending(self.name, message)
            self._line.send(message if version_4 is None else version_4.outgoing(message))
        except InvalidState:
            log().debug("the kernel refuses the connection, perhaps because it encrypts; %s is lost", message.msg_id)
        except BaseException:
            self.requests.discard(slot)
            raise

    def next_turn(self) -> None:
        """Send the requests that had to wait for others, if they need not any more."""
        if self.turns.rows:
            self.turns.look(self._transmit)

    def withdraw(self, msg_id: str) -> Slot:
        """Take a request back that still waits for its turn: one that `turns.holds`."""
        slot = self.turns.withdraw(msg_id)
        self.next_turn()
        return slot

    def give_up(self, slots: Iterable[Slot], failure: Failure) -> None:
        """End the wait for replies that will not come."""
        for slot in self.requests.fail(slots, failure):
            if slot.on_settled is not None:
                slot.on_settled(slot)
        self.next_turn()

    def waited_for(self) -> list[Slot]:
        """The requests that were sent and whose replies calls wait for: to take them, or because they are held back."""
        holds = bool(self.turns.rows)
        return [
            slot
            for slot in self.requests
            if slot.sent < math.inf and (slot.on_settled is not None or (holds and slot.is_pending()))
        ]

    @property
    def inbox(self) -> Inbox:
        """Replies that no `get_reply` awaits or has taken."""
        return self.requests.inbox

    def reopen(self) -> None:
        self.answering.clear()  # the kernel that waited for input is gone
        self.turns.clear()
        super().reopen()

    def fail(self, failure: Failure) -> None:
        super().fail(failure)
        self.give_up(self.requests, failure)

    def _await(self, slot: Slot, parking: Parking, deadline: Deadline) -> None:
        self._client.answer_is_owed()
        if self._spin:
            spin([self], slot.is_pending, deadline.at_most(self._spin))
        while slot.is_pending():
            if not parking.wait(deadline) and deadline.is_over:
                self._look_around(deadline)
                if not slot.is_settled:
                    raise self._timed_out(slot, deadline)

    def _timed_out(self, slot: Slot, deadline: Deadline) -> KernelTimeout:
        at_work = self._client.at_work(slot.subshell_id)
        hint = f"{at_work or 'the kernel may be busy with an earlier request'}; interrupt it, or allow more time"
        if self._shared.peer.info is None and not self._shared.transport.is_encrypted:
            hint += "; if its connection file has a curve_publickey, it answers only to a Session with that server_key"
        return KernelTimeout(
            f"{slot.reply_type or 'reply'} on the {self.name} channel", deadline.timeout, msg_id=slot.msg_id, hint=hint
        )

    def _build(
        self,
        msg_type: str | Message,
        content: Mapping[str, Any] | None,
        metadata: Mapping[str, Any] | None,
        buffers: Sequence[Any] | None,
        subshell_id: str | None,
    ) -> Message:
        if isinstance(msg_type, Message):
            if content is not None or metadata is not None:
                raise InvalidArgument("a Message brings its own content and metadata; pass them to session.msg()")
            message = check_message(msg_type)
        else:
            message = self._session.msg(msg_type, content, metadata=metadata)
        if buffers is not None:
            message.buffers = check_buffers(buffers)
        if subshell_id is not None:
            message.header["subshell_id"] = check_code(subshell_id, "subshell_id")
        return message

    def _admit(self, message: Message, deadline: Deadline | None) -> None:
        """Ask the client about a request that not every kernel understands."""
        header = message.header
        if "subshell_id" in header or header["msg_type"] in OPTIONAL:
            self._client.admit(message, deadline)

    def refuse_if_answering(self, subshell_id: str | None = None) -> None:
        """Raise InvalidState inside an `on_input`, which may not wait for the main shell: that waits for the input."""
        if subshell_id is None and getcurrent() in self.answering:
            raise InvalidState("the kernel waits for this input and cannot answer a request on its main shell")

    def _route(self, message: Message) -> None:
        msg_type = message.header["msg_type"]
        observe = self.peer.observers.get(msg_type)
        if observe is not None:
            observe(message)
            if msg_type == "delete_subshell_reply":
                self._client.subshell_deleted()
        slot = self.requests.route(message)
        if self.peer.version_4 is not None and msg_type != "execute_reply":
            self.requests.pending.owed_idle.pop(message.parent_id or "", None)  # the kernel may publish no idle status
        if slot is None:
            self._arrived.wake()
        elif slot.on_settled is not None:
            slot.on_settled(slot)
        if self.turns.rows:
            self.next_turn()

    def _next_unclaimed(self) -> Message:
        return self.requests.next_unclaimed()


class ShellChannel(RequestChannel, ShellRequests):
    """Requests to execute code, and questions about code. The kernel answers in order of arrival."""

    name = "shell"
    takes_turns = True

    def answers_input(self) -> bool:
        """True if the client of this channel would answer an input request."""
        return self._client.answers_input()


class ControlChannel(RequestChannel, ControlRequests):
    """Requests that a kernel answers even while it runs code: shutdown, interrupt, debug."""

    name = "control"

    def __init__(self, context: Any, session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        self._debug_seq = 0

    def next_debug_seq(self) -> int:
        self._debug_seq += 1
        return self._debug_seq

    def reopen(self) -> None:
        self._debug_seq = 0  # another kernel, and another debugger
        super().reopen()
