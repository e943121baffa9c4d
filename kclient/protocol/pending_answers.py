"""What a kernel still owes: the other half of an answer."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_OWED: Final = 10_000
"""Halves of answers, of each kind, that are noted."""


class PendingAnswers:
    """Requests half answered: their reply has come but not their idle status, or the other way round.

    Shared by the channels of a client; `tracking` is on while iopub runs. Idle statuses of what others have sent, and
    of messages that get no reply, are none of its business.
    """

    def __init__(self) -> None:
        self.tracking = False
        self.unanswered: set[str] = set()
        self.owed_idle: OrderedDict[str, float] = OrderedDict()
        self.owed_reply: OrderedDict[str, float] = OrderedDict()
        self._waived: frozenset[str] = frozenset()

    @property
    def awaits_idle(self) -> bool:
        """True if an idle status is owed that was not waived."""
        return not self._waived.issuperset(self.owed_idle)

    def waive(self) -> None:
        """Await none of the idle statuses that are owed now, which may have been lost."""
        self._waived = frozenset(self.owed_idle)

    def note_reply(self, msg_id: str, now: float) -> None:
        self.unanswered.discard(msg_id)
        if self.owed_reply.pop(msg_id, None) is None and self.tracking:
            _remember(self.owed_idle, msg_id, now)

    def note_idle(self, msg_id: str, now: float) -> None:
        if self.owed_idle.pop(msg_id, None) is None and self.tracking and msg_id in self.unanswered:
            _remember(self.owed_reply, msg_id, now)

    def note_no_reply(self, msg_id: str) -> None:
        """No reply will come, or none is wanted."""
        self.unanswered.discard(msg_id)
        self.owed_reply.pop(msg_id, None)

    def forget(self) -> None:
        self.owed_idle.clear()
        self.owed_reply.clear()
        self._waived = frozenset()


def _remember(entries: OrderedDict[str, float], msg_id: str, now: float) -> None:
    entries[msg_id] = now
    if len(entries) > MAX_OWED:
        entries.popitem(last=False)
