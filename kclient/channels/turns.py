"""Turns: requests that wait in kclient until the kernel has answered those before them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from enum import Enum

import attrs

from kclient.concurrency.owner import Owner
from kclient.errors import KClientError, copies_of
from kclient.protocol.messages import Message
from kclient.protocol.peer import Peer
from kclient.protocol.routing import Requests, Slot


class Turn(Enum):
    """When a request is sent."""

    AT_ONCE = "now: a question of kclient's own, for example, which may find out why no answer comes"
    IN_ORDER = "now, or after those that wait before it"
    WHEN_FREE = "after all code that was sent before: it may be withdrawn until then, and then it never runs"


@attrs.define(eq=False)
class _Held:
    message: Message
    slot: Slot
    turn: Turn


class Turns:
    """The requests of a channel that wait for their turn, in order. Each subshell has a row of its own.

    To a kernel that spoils what is queued behind an error, `peer.one_at_a_time`, every request is sent `WHEN_FREE`.
    `is_unfinished(msg_id)` is True while an execution waits for its end. The channel sends: with a method of it, these
    objects would be a circle, and a dropped channel would keep its socket.
    """

    def __init__(
        self,
        owner: Owner,
        requests: Requests,
        peer: Peer,
        is_unfinished: Callable[[str], bool],
    ) -> None:
        self.rows: dict[str | None, deque[_Held]] = {}
        self.stops_on_error = False
        self._owner = owner
        self._requests = requests
        self._peer = peer
        self._is_unfinished = is_unfinished
        self._latest: dict[str | None, str] = {}
        self._is_looking = False

    def pass_or_hold(self, message: Message, slot: Slot, turn: Turn) -> bool:
        """True if the request may be sent now. If not, it is kept, and sent when its turn has come."""
        shell = slot.subshell_id
        if (self.rows or turn is Turn.WHEN_FREE or self._peer.one_at_a_time) and self._must_wait(shell, turn):
            slot.sent = math.inf
            self.rows.setdefault(shell, deque()).append(_Held(message, slot, turn))
            return False
        if slot.reply_type == "execute_reply" or self._peer.one_at_a_time:
            self._note(message, slot)
        return True

    def withdraw(self, msg_id: str) -> Slot:
        """Take a request back that still waits for its turn: one that `holds` tells of."""
        row, held = next((row, held) for row in self.rows.values() for held in row if held.slot.msg_id == msg_id)
        row.remove(held)
        self._requests.discard(held.slot)
        return held.slot

    def holds(self, msg_id: str) -> bool:
        """True if the request still waits for its turn."""
        return any(held.slot.msg_id == msg_id for row in self.rows.values() for held in row)

    def skipped(self, msg_id: str) -> None:
        """The kernel has skipped that request, and nothing of it will come any more."""
        for shell, latest_id in list(self._latest.items()):
            if latest_id == msg_id:
                del self._latest[shell]

    def look(self, send: Callable[[Message, Slot], None]) -> None:
        """`send` the requests whose turn has come. Called when a request is answered, or is not awaited any more."""
        if self._is_looking:  # the sockets are read after each sending, and an answer may be there
            return
        with self._owner.call():
            self._is_looking = True
            try:
                for shell, row in list(self.rows.items()):
                    while self._send_first(shell, row, send):
                        pass
            finally:
                self._is_looking = False

    def clear(self) -> None:
        """Forget all: another kernel takes the place of this one, or the channel is closed."""
        self.rows.clear()
        self._latest.clear()

    def _send_first(self, shell: str | None, row: deque[_Held], send: Callable[[Message, Slot], None]) -> bool:
        """Send the first request of that row, or drop it if nobody awaits it. False if it must wait."""
        if not row:  # the last one was withdrawn
            self.rows.pop(shell, None)
            return False
        held = row[0]
        is_dropped = held.slot.abandoned or held.slot.is_settled
        if not is_dropped and (held.turn is Turn.WHEN_FREE or self._peer.one_at_a_time) and not self._is_free(shell):
            return False
        row.popleft()
        if is_dropped:
            self._requests.discard(held.slot)
            return True
        self._note(held.message, held.slot)
        try:
            send(held.message, held.slot)
        except KClientError as exc:
            for slot in self._requests.fail([held.slot], copies_of(exc)):
                if slot.on_settled is not None:
                    slot.on_settled(slot)
        return True

    def _must_wait(self, shell: str | None, turn: Turn) -> bool:
        if shell in self.rows:
            return True
        return (turn is Turn.WHEN_FREE or self._peer.one_at_a_time) and not self._is_free(shell)

    def _note(self, message: Message, slot: Slot) -> None:
        # The id, not the slot: that holds its execution, and so the manager, which is to go with its last user.
        if slot.reply_type == "execute_reply":
            self._latest[slot.subshell_id] = slot.msg_id
            if message.content.get("stop_on_error", True):
                self.stops_on_error = True
        elif self._peer.one_at_a_time:
            self._latest[slot.subshell_id] = slot.msg_id

    def _is_free(self, shell: str | None) -> bool:
        """True if the kernel has finished the latest request that was sent to that shell, so all of them.

        A reply says so, or an idle status: code that is interrupted before it begins may get no reply. Code of a kernel
        that is asked one thing at a time must have ended altogether.
        """
        msg_id = self._latest.get(shell)
        if msg_id is None:
            return True
        slot = self._requests.get(msg_id)
        if slot is not None and slot.is_pending() and msg_id not in self._requests.pending.owed_reply:
            return False
        return not (self._peer.one_at_a_time and self._is_unfinished(msg_id))
