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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any

from benchmarks.clients import LATENCY, Client
from benchmarks.kernel_memory import COLUMNS as KERNEL_MEMORY
from benchmarks.kernel_memory import kernel_memory
from benchmarks.kernels import ROOT, Connection, echo_kernels
from benchmarks.report import Options, Report, parse, run_script
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.results import Row
from kclient.bench.rounds import time_calls
from kclient.bench.table import figure

CLIENTS = 200

TIMED = ["raw", "raw (again)", "kclient", "jupyter_client"]

WARM_UP = 3

MEMORY = [
    figure("clients", "n"),
    figure("KiB one more", "kib", 1),
    figure("KiB with 1", "kib_at_one"),
    figure("KiB with all", "kib_at_all"),
    figure("descriptors one more", "descriptors", 1),
]


def measure_calls(
    connections: Sequence[Mapping[str, Connection]], transport: str, options: Options
) -> tuple[dict[str, Recorder], dict[str, Recorder]]:
    """The latencies of one client alone, and of all in turn, by client library; both from equally many calls."""
    ones, alls = ({name: Recorder() for name in TIMED} for _ in range(2))
    rounds = options.pick(10, 2)
    with ProgressLine(f"one and many, {transport}", rounds * len(TIMED)) as progress:
        for _ in range(rounds):
            for name in TIMED:
                client = LATENCY[name]
                ones[name].record(one_alone(client, connections[0][transport], len(connections)))
                alls[name].record(all_in_turn(client, [each[transport] for each in connections]))
                progress.advance()
    return ones, alls


def one_alone(client: type[Client], connection: Connection, count: int) -> list[int]:
    with closing(client(connection, iopub=False)) as opened:
        time_calls(opened.kernel_info, WARM_UP)
        return time_calls(opened.kernel_info, count)


def all_in_turn(client: type[Client], connections: Sequence[Connection]) -> list[int]:
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(client(connection, iopub=False))) for connection in connections]
        for each in opened:
            time_calls(each.kernel_info, WARM_UP)
        return [time for each in opened for time in time_calls(each.kernel_info, 1)]


def measure_memory(client: str, connections: Sequence[Connection]) -> dict[str, Any]:
    """What a process tells of itself that imports nothing but that client."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", client],
        cwd=ROOT,
        input=json.dumps(list(connections)),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("scale", __doc__ or "", argv)
    report = Report("scale", options)
    count = options.pick(CLIENTS, 4)
    for transport in options.transports:
        with echo_kernels(count) as connections:
            ones, alls = measure_calls(connections, transport, options)
            report.add_calls(transport, "one client", ones)
            to_one = {name: {"p99_to_one": p99(alls[name]) / p99(ones[name])} for name in TIMED}
            columns = [figure("p99 to one's", "p99_to_one", 2)]
            report.add_calls(transport, f"{count} clients", alls, extra=to_one, columns=columns)
        rows = []
        for client in ["kclient", "jupyter_client"]:
            with echo_kernels(count) as connections:
                found = measure_memory(client, [each[transport] for each in connections])
            rows.append(Row("scale", transport, client, "memory of one more client", found.pop("n"), extra=found))
        report.add_rows(transport, "memory of one more client", rows, MEMORY)
    report.add_rows("", "memory of a kernel", kernel_memory(options), KERNEL_MEMORY)
    report.finish()


def p99(recorder: Recorder) -> float:
    return recorder.figures().p99_us


if __name__ == "__main__":
    run_script(main)
