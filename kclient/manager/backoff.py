"""When to try again what keeps failing: for a kernel that dies, and for a pool whose kernels do not come up."""

from __future__ import annotations

from typing import Final

from kclient.concurrency.deadline import check_seconds
from kclient.errors import InvalidArgument

RESTART_LIMIT: Final = 5
"""Starts in a row after failures; jupyter_client's KernelRestarter.restart_limit."""

STABLE_START_TIME: Final = 10.0
"""Seconds after which a kernel's start was a good one; jupyter_client's KernelRestarter.stable_start_time."""

FIRST: Final = 0.1
"""Seconds before the second try; the first is made at once, each later one waits twice as long as the one before."""

MOST: Final = 30.0
"""Seconds between two tries at most."""


class Backoff:
    """Counts failures in a row. What lasted `stable_start_time` seconds was none, and what comes after it is the first.

    `limit` is the number of new tries in a row, None for as many as it takes.
    """

    def __init__(self, limit: int | None = RESTART_LIMIT, stable_start_time: float = STABLE_START_TIME) -> None:
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise InvalidArgument(f"the limit of restarts must be a whole number, 0 or more, or None; not {limit!r}")
        self.limit = limit
        self.stable_start_time = check_seconds(stable_start_time, "stable_start_time")
        self.failures = 0

    def after(self, lasted: float) -> float | None:
        """Seconds to wait before the next try, after one that `lasted` so many seconds; None to give up."""
        if lasted >= self.stable_start_time:
            self.failures = 0
        self.failures += 1
        if self.limit is not None and self.failures > self.limit:
            return None
        if self.failures == 1:
            return 0.0
        return min(MOST, FIRST * 2.0 ** min(self.failures - 2, 64))

    def reset(self) -> None:
        """It works: the next failure is the first again."""
        self.failures = 0
