"""The bars: limits that the figures of kclient have to meet, each within one run on one machine."""

from __future__ import annotations

import attrs

from kclient.bench.results import Row


@attrs.frozen
class Bar:
    """The figure with the key `figure` in the JSON must be at most `limit`; with `is_floor`, at least `limit`."""

    limit: float
    figure: str = "ratio_to_raw"
    is_floor: bool = False
    what: str = "p50 to that of raw"

    def is_met(self, row: Row) -> bool:
        value = row.figure(self.figure)
        if value is None:
            return False
        return value >= self.limit if self.is_floor else value <= self.limit

    def __str__(self) -> str:
        return f"{'>=' if self.is_floor else '<='} {self.limit:g}"


RATE = "rate to that of raw + codec"

BARS = {
    ("latency", "kernel_info", "kclient"): Bar(1.10),
    ("latency", "kernel_info", "kclient spin"): Bar(0.95),
    ("latency", "execute", "kclient"): Bar(1.20),
    ("latency", "run", "kclient"): Bar(1.40),
    ("latency", "run, ipykernel", "kclient"): Bar(1.10),
    ("iopub", "drain", "kclient run"): Bar(0.80, is_floor=True, what=RATE),
    ("iopub", "ticker, flooded", "kclient"): Bar(10_000, "p999_us", what="p99.9 us"),
    ("concurrency", "pipelined", "kclient"): Bar(0.70, is_floor=True, what=RATE),
    ("scale", "200 clients", "kclient"): Bar(3, "p99_to_one", what="p99 to that of one client"),
    ("startup", "start", "kclient"): Bar(1.15),
    ("startup", "start", "kclient, fork server"): Bar(0.20, "ratio_to_jupyter_client", what="p50 to jupyter_client's"),
    ("startup", "wait_for_ready", "kclient"): Bar(10_000, "p50_us", what="p50 us"),
    ("startup", "shutdown", "kclient"): Bar(10_000, "over_raw_us", what="p50 us over raw"),
    ("startup", "import", "kclient"): Bar(1.25, what="p50 to that of gevent, zmq.green, attrs"),
    ("pool", "check-out", "kclient"): Bar(1000, "p99_us", what="p99 us"),
    ("pool", "check-out", "kclient, fork server"): Bar(1000, "p99_us", what="p99 us"),
    ("pool", "check-out", "kclient, used again"): Bar(1000, "p99_us", what="p99 us"),
}
"""The bars, by benchmark, operation and client."""


def bar_of(row: Row) -> Bar | None:
    """The bar that a row has to meet, the same for each transport; None if it has none."""
    return BARS.get((row.benchmark, row.operation, row.client))
