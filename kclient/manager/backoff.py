"""Backoff: when to start a kernel again that keeps dying, or a pool's kernel that fails to start."""

from __future__ import annotations

from typing import Final

from kclient.concurrency.deadline import check_seconds
from kclient.errors import InvalidArgument

RESTART_LIMIT: Final = 5
"""Number of restarts in a row; the same as jupyter_client's KernelRestarter.restart_limit."""

STABLE_START_TIME_S: Final = 10.0
"""A kernel that ran so long started well; the same as jupyter_client's KernelRestarter.stable_start_time."""

FIRST_WAIT_S: Final = 0.1
"""Seconds before the second try. The first comes at once; each later pause is twice as long as the one before."""

LONGEST_WAIT_S: Final = 30.0
"""Seconds between two tries, at most."""


class Backoff:
    """Counts failures in a row. A try that lasted `stable_start_time` seconds ends the row, and the count begins anew.

    `limit` is the number of new tries in a row; None means no limit.
    """

    def __init__(self, limit: int | None = RESTART_LIMIT, stable_start_time: float = STABLE_START_TIME_S) -> None:
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 0):
            raise InvalidArgument(f"the limit of restarts must be a whole number, 0 or more, or None; not {limit!r}")
        self.limit = limit
        self.stable_start_time = check_seconds(stable_start_time, "stable_start_time")
        self.failures = 0

    def after(self, lasted: float) -> float | None:
        """Seconds to wait before the next try, if the latest `lasted` so many seconds; None means give up."""
        if lasted >= self.stable_start_time:
            self.failures = 0
        self.failures += 1
        if self.limit is not None and self.failures > self.limit:
            return None
        if self.failures == 1:
            return 0.0
        return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(self.failures - 2, 64))

    def reset(self) -> None:
        """The latest try was good: the next failure is the first again."""
        self.failures = 0
