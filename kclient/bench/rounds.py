"""Interleaved rounds: A B C A B C ..., so that a disturbance of the machine affects every client alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter_ns

from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder

Call = Callable[[], object]
"""One call of the operation that is measured."""

Batch = Callable[[int], list[int]]
"""Makes so many calls; the nanoseconds of each."""


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
    batches = {name: partial(time_calls, call) for name, call in calls.items()}
    return interleave_batches(batches, title=title, count=count, batch=batch, warm_up=warm_up, tidy=tidy)


def interleave_batches(
    batches: Mapping[str, Batch],
    *,
    title: str,
    count: int,
    batch: int,
    warm_up: int,
    tidy: Mapping[str, Call] | None = None,
) -> dict[str, Recorder]:
    """The same for clients that time their calls themselves, in another process for example."""
    tidy = tidy or {}
    recorders = {name: Recorder() for name in batches}
    sizes = [batch] * (count // batch) + [count % batch] * bool(count % batch)
    with ProgressLine(title, (len(sizes) + 1) * len(batches)) as progress:
        for name, make_calls in batches.items():
            make_calls(warm_up)
            tidy.get(name, nothing)()
            progress.advance()
        for size in sizes:
            for name, make_calls in batches.items():
                recorders[name].record_round(make_calls(size))
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
