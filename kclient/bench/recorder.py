"""Recorder: the latencies of many calls, their percentiles and their rate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import log10
from statistics import median
from typing import Final

import attrs
from hdrh.histogram import HdrHistogram

LONGEST_NS: Final = 3_600_000_000_000
"""An hour. A longer call counts as one of this length."""

DIGITS: Final = 3
"""Significant digits that the histogram keeps: a figure is off by 0.1 % at most."""

STEPS: Final = 20
"""Points of a curve between 90 % and 99 %, between 99 % and 99.9 %, and so on."""


@attrs.frozen
class Figures:
    """Percentiles in microseconds, and calls per second of the time spent in calls."""

    n: int
    p50_us: float
    p90_us: float
    p99_us: float
    p999_us: float
    max_us: float
    per_s: float


class Recorder:
    """An HdrHistogram (Gil Tene) of nanoseconds: every call counts, and the memory does not grow with them."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, LONGEST_NS, DIGITS)
        self._total = 0
        self.round_medians: list[float] = []

    def record(self, nanoseconds: Iterable[int]) -> None:
        """Add the latencies of some calls."""
        for value in nanoseconds:
            self._histogram.record_value(min(max(value, 1), LONGEST_NS))
            self._total += value

    def record_round(self, nanoseconds: Sequence[int]) -> None:
        """Add the latencies of one round, and keep their median."""
        self.record(nanoseconds)
        if nanoseconds:
            self.round_medians.append(median(nanoseconds))

    @property
    def n(self) -> int:
        return int(self._histogram.get_total_count())

    def figures(self) -> Figures:
        """The percentiles of the calls so far; raises ValueError if there is none."""
        self._check()
        p50, p90, p99, p999, most = (value / 1e3 for value in self._values([50.0, 90.0, 99.0, 99.9, 100.0]))
        return Figures(self.n, p50, p90, p99, p999, most, per_s=self.n / (self._total / 1e9))

    def curve(self) -> list[tuple[float, float]]:
        """(1 / (1 - p), microseconds) at percentiles p from 0 up to the highest for which there are enough calls.

        Raises ValueError if there is no call.
        """
        self._check()
        inverse = [10 ** (step / STEPS) for step in range(int(log10(self.n) * STEPS) + 1)]
        values = self._values([100 * (1 - 1 / x) for x in inverse])
        return [(x, value / 1e3) for x, value in zip(inverse, values, strict=True)]

    def _check(self) -> None:
        if not self.n:
            raise ValueError("no call was recorded")

    def _values(self, percentiles: list[float]) -> list[float]:
        """Nanoseconds at each percentile, in one pass over the histogram."""
        found = self._histogram.get_percentile_to_value_dict(percentiles)
        return [float(found[percentile]) for percentile in percentiles]
