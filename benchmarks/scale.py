"""Many clients in one process: what the 200th costs in time and memory.

Time: one client alone makes calls; then 200 clients of 200 echo kernels, which one process hosts, make one call each in
turn; and so on. The one client is alone in the process whenever it is measured. Memory and file descriptors: in a fresh
process for each client library, at 1 client and at 200, with all five channels. Then the memory of 50 real kernels,
executed and forked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.builds import BEFORE, Builds, builds, checkouts
from benchmarks.clients import LATENCY
from benchmarks.kernel_memory import COLUMNS as KERNEL_MEMORY
from benchmarks.kernel_memory import kernel_memory
from benchmarks.kernels import ROOT, Connection, echo_kernels
from benchmarks.report import Options, Report, parse, run_script
from benchmarks.turns import all_in_turn, one_alone
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.results import Row
from kclient.bench.table import figure

CLIENTS = 200

TIMED = ["raw", "raw (again)", "kclient", "jupyter_client"]

MEMORY = [
    figure("clients", "n"),
    figure("KiB one more", "kib", 1),
    figure("KiB with 1", "kib_at_one"),
    figure("KiB with all", "kib_at_all"),
    figure("descriptors one more", "descriptors", 1),
]


def measure_calls(
    connections: Sequence[Mapping[str, Connection]], transport: str, both: Builds, options: Options
) -> tuple[dict[str, Recorder], dict[str, Recorder]]:
    """The latencies of one client alone, and of all in turn, by client library; both from equally many calls."""
    one, *_ = every = [each[transport] for each in connections]
    ones_of: dict[str, Callable[[], list[int]]] = {}
    alls_of: dict[str, Callable[[], list[int]]] = {}
    for name in TIMED:
        if both and name == "kclient":
            ones_of |= both.turns(name, "one_alone", one, len(every))
            alls_of |= both.turns(name, "all_in_turn", every)
        else:
            ones_of[name] = partial(one_alone, LATENCY[name], one, len(every))
            alls_of[name] = partial(all_in_turn, LATENCY[name], every)
    ones, alls = ({name: Recorder() for name in ones_of} for _ in range(2))
    rounds = options.pick(10, 2)
    with ProgressLine(f"one and many, {transport}", rounds * len(ones)) as progress:
        for _ in range(rounds):
            for name in ones:
                ones[name].record_round(ones_of[name]())
                alls[name].record_round(alls_of[name]())
                progress.advance()
    return ones, alls


def measure_memory(client: str, connections: Sequence[Connection], checkout: Path) -> dict[str, Any]:
    """What a process tells of itself that imports nothing but that client, kclient from that checkout."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", client, str(checkout)],
        cwd=ROOT,
        input=json.dumps(list(connections)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def memory_rows(transport: str, count: int, options: Options) -> list[Row]:
    """A row for each client library, and one for the other build; its ratio is that of one more client's memory."""
    paths = checkouts(options.against)
    rows: dict[str, Row] = {}
    for client in [*(f"kclient{end}" for end in paths), "jupyter_client"]:
        library, _, _ = client.partition(" ")
        path = paths[client.removeprefix("kclient") if library == "kclient" else ""]
        with echo_kernels(count) as connections:
            found = measure_memory(library, [each[transport] for each in connections], path)
        rows[client] = Row("scale", transport, client, "memory of one more client", found.pop("n"), extra=found)
    before = rows.get("kclient" + BEFORE)
    if before is not None:
        ratio = rows["kclient"].extra["kib"] / before.extra["kib"]
        rows["kclient"] = rows["kclient"].with_extra(ratio_to_before=ratio)
    return list(rows.values())


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("scale", __doc__ or "", argv, compares_builds=True)
    report = Report("scale", options)
    count = options.pick(CLIENTS, 4)
    for transport in options.transports:
        with echo_kernels(count) as connections, builds(options.against) as both:
            ones, alls = measure_calls(connections, transport, both, options)
            report.add_calls(transport, "one client", ones)
            to_one = {name: {"p99_to_one": p99(alls[name]) / p99(ones[name])} for name in ones}
            columns = [figure("p99 to one's", "p99_to_one", 2)]
            report.add_calls(transport, f"{count} clients", alls, extra=to_one, columns=columns)
        report.add_rows(transport, "memory of one more client", memory_rows(transport, count, options), MEMORY)
    report.add_rows("", "memory of a kernel", kernel_memory(options), KERNEL_MEMORY)
    report.finish()


def p99(recorder: Recorder) -> float:
    return recorder.figures().p99_us


if __name__ == "__main__":
    run_script(main)
