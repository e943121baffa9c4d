"""Half-answered requests: the kernel has sent the reply or the idle status, but not both."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

MAX_OWED_ANSWERS: Final = 10_000
"""At most so many missing idle statuses are remembered, and so many missing replies."""


class PendingAnswers:
    """Two tables of requests, by msg_id, with the `perf_counter()` time at which the first half of the answer came.

    `owed_idle`: the reply has come, the idle status has not. `owed_reply`: the idle status has come, the reply has not.
    The channels of a client share one PendingAnswers. `tracking` is True while iopub runs. Idle statuses of other
    clients' requests, and of messages that get no reply, are ignored. `sought` are the missing idle statuses for which
    a flush has waited. `tells_idle` is whether the kernel publishes an idle status for a question of kclient's own:
    None if that is not known.
    """

    def __init__(self) -> None:
        self.tracking = False
        self.unanswered: set[str] = set()
        self.owed_idle: OrderedDict[str, float] = OrderedDict()
        self.owed_reply: OrderedDict[str, float] = OrderedDict()
        self.sought: frozenset[str] = frozenset()
        self.tells_idle: bool | None = None

    def seek(self) -> None:
        """A call waits for the idle statuses that are missing now."""
        self.sought = frozenset(self.owed_idle)

    def note_reply(self, msg_id: str, now: float) -> None:
        self.unanswered.discard(msg_id)
        if self.owed_reply.pop(msg_id, None) is None and self.tracking:
            _remember(self.owed_idle, msg_id, now)

    def note_idle(self, msg_id: str, now: float) -> None:
        if self.owed_idle.pop(msg_id, None) is None and self.tracking and msg_id in self.unanswered:
            _remember(self.owed_reply, msg_id, now)

    def note_no_reply(self, msg_id: str) -> None:
        """Note that no reply will come, or that none is wanted."""
        self.unanswered.discard(msg_id)
        self.owed_reply.pop(msg_id, None)

    def forget(self) -> None:
        self.owed_idle.clear()
        self.owed_reply.clear()
        self.tells_idle = None
        self.sought = frozenset()


def _remember(entries: OrderedDict[str, float], msg_id: str, now: float) -> None:
    entries[msg_id] = now
    if len(entries) > MAX_OWED_ANSWERS:
        entries.popitem(last=False)
