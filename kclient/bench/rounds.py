"""Interleaved rounds: A B C A B C ..., so that a disturbance of the machine affects every client alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import perf_counter_ns

from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder

Call = Callable[[], object]
"""One call of the operation that is measured."""


def interleave(
    calls: Mapping[str, Call],
    *,
    title: str,
    count: int,
    batch: int,
    warm_up: int,
    tidy: Mapping[str, Call] | None = None,
) -> dict[str, Recorder]:
    """Time `count` calls of each client, `batch` of them a round; its `tidy` runs, untimed, after each batch."""
    tidy = tidy or {}
    recorders = {name: Recorder() for name in calls}
    sizes = [batch] * (count // batch) + [count % batch] * bool(count % batch)
    with ProgressLine(title, (len(sizes) + 1) * len(calls)) as progress:
        for name, call in calls.items():
            time_calls(call, warm_up)
            tidy.get(name, nothing)()
            progress.advance()
        for size in sizes:
            for name, call in calls.items():
                recorders[name].record(time_calls(call, size))
                tidy.get(name, nothing)()
                progress.advance()
    return recorders


def time_calls(call: Call, count: int) -> list[int]:
    """Nanoseconds of each of `count` calls, one right after the other."""
    times = []
    for _ in range(count):
        start = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - start)
    return times


def nothing() -> None:
    """For a client that has nothing to tidy."""
