"""One budget for a blocking call, and checks of the seconds that users pass."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import Any, Final

from kclient.errors import InvalidArgument

SPIN_AT_MOST_S: Final = 1.0
"""Seconds. While a call spins, every other greenlet stands still."""


class Deadline:
    """The one budget of a blocking call: `timeout` seconds from now, or None for ever."""

    __slots__ = ("_at", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._at: float | None = None
        if timeout is not None:
            self._at = monotonic() + check_seconds(timeout, "timeout", alternative=", or None")

    def left(self) -> float | None:
        """Seconds left, never negative; None for ever."""
        return None if self._at is None else max(0.0, self._at - monotonic())

    @property
    def is_over(self) -> bool:
        return self._at is not None and monotonic() >= self._at

    def half(self) -> Deadline:
        """A deadline for one step of the call: half of the time that is left."""
        left = self.left()
        return Deadline(None if left is None else left / 2)

    def at_most(self, seconds: float) -> Deadline:
        """A deadline for one step of the call: `seconds` from now, or this one if it is sooner."""
        left = self.left()
        return Deadline(seconds if left is None else min(seconds, left))


Timeout = float | Deadline | None
"""Seconds for the whole call, or None to wait for ever. Only kclient itself passes a Deadline."""


def as_deadline(timeout: Timeout) -> Deadline:
    """The deadline of a call. A call that is one step of another gets the deadline of that one."""
    return timeout if isinstance(timeout, Deadline) else Deadline(timeout)


def check_seconds(seconds: Any, name: str, *, alternative: str = "") -> float:
    """`seconds` if it is a number, 0 or more; else raises InvalidArgument."""
    if isinstance(seconds, (int, float)) and not isinstance(seconds, bool):
        with suppress(OverflowError):
            number = float(seconds)
            if number >= 0:
                return number
    raise InvalidArgument(f"{name} must be a number of seconds, 0 or more{alternative}; not {seconds!r}")


def check_spin(seconds: Any) -> float:
    """`seconds` if it is a number from 0 to SPIN_AT_MOST_S; else raises InvalidArgument."""
    if check_seconds(seconds, "spin") > SPIN_AT_MOST_S:
        raise InvalidArgument(f"spin must be at most {SPIN_AT_MOST_S:g} s, for which other greenlets stand still")
    return float(seconds)
