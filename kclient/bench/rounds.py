"""Interleaved rounds: A B C A B C ..., so that what disturbs the machine disturbs every client alike."""

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
    rounds: int,
    calls_a_round: int,
    warm_up: int,
    tidy: Mapping[str, Call] | None = None,
) -> dict[str, Recorder]:
    """Time `rounds` times `calls_a_round` calls of each client, in turn; its `tidy` runs, untimed, after each batch."""
    tidy = tidy or {}
    recorders = {name: Recorder() for name in calls}
    with ProgressLine(title, (rounds + 1) * len(calls)) as progress:
        for name, call in calls.items():
            for _ in range(warm_up):
                call()
            tidy.get(name, nothing)()
            progress.advance()
        for _ in range(rounds):
            for name, call in calls.items():
                recorders[name].record(time_calls(call, calls_a_round))
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
