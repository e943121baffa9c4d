"""A service that runs code for 200 callers at once: examples/server, and the same with jupyter_client on aiohttp.

Each service is a process, and all have the same number of kernels. benchmarks.load, another process, puts load on them.

| trial                      | a request mostly waits for                                       |
| -------------------------- | ---------------------------------------------------------------- |
| a kernel each              | the start of its kernel                                          |
| kernels used again         | the service                                                      |
| a kernel each, some killed | the start of its kernel; kernels are killed at random, also busy |

The figures are printed as tables, and again in Markdown. --readme writes them into examples/server/README.md.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import mean
from tempfile import TemporaryFile
from typing import Any

import attrs

from benchmarks.kernels import ROOT
from benchmarks.load import BAD, CLEAR, put_load
from benchmarks.readme import markdown, put_figures
from benchmarks.report import JUPYTER, Options, Report, parse, run_script
from kclient.bench.machine import describe_machine, machine_line
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.results import Row, row_of
from kclient.bench.table import Column, figure, number

SERVICES = {
    "kclient": ["examples/server"],
    "kclient, forked": ["examples/server", "--fork"],
    JUPYTER: ["-m", "benchmarks.peer_service"],
}

README = ROOT / "examples" / "server" / "README.md"

QUICK = "kernels used again"
"""The only trial of a quick run."""

ROUNDS = 2

QUEUE_TIMEOUT_S = 300
"""Seconds that a request may wait for its kernel: so many that a slow machine refuses no request."""

END_WAIT_S = 30
"""Seconds for a service to end after SIGTERM."""


@attrs.frozen
class Trial:
    """A kind of load: `requests` in each round, options of the services, and options of benchmarks.load."""

    requests: int
    service: Sequence[str] = ()
    load: Sequence[str] = ()


TRIALS = {
    "a kernel each": Trial(300, load=["--fresh"]),
    "kernels used again": Trial(3000, ["--max-uses", "1000000"]),
    "a kernel each, some killed": Trial(300, load=["--fresh", "--kill", "0.3"]),
}


@attrs.define
class Found:
    """The results of all rounds with one service."""

    recorder: Recorder = attrs.field(factory=Recorder)
    outcomes: Counter[str] = attrs.field(factory=Counter)
    seconds: float = 0.0
    killed: int = 0
    server_kib: list[float] = attrs.field(factory=list)
    all_kib: list[float] = attrs.field(factory=list)

    def add(self, found: dict[str, Any]) -> None:
        self.recorder.record(found["done_ns"])
        self.outcomes.update(found["outcomes"])
        self.seconds += found["seconds"]
        self.killed += found["killed"]
        self.server_kib.append(found["server_kib"])
        self.all_kib.append(found["all_kib"])

    def row(self, client: str, operation: str) -> Row:
        """The figures of the service. Only requests that ended as expected count as results, for latency and rate."""
        row = row_of("service", "", client, operation, self.recorder)
        row = attrs.evolve(row, per_s=self.recorder.n / self.seconds)
        return row.with_extra(
            errors=sum(self.outcomes[name] for name in CLEAR),
            bad=sum(self.outcomes[name] for name in BAD),
            killed=self.killed,
            server_kib=mean(self.server_kib),
            all_kib=mean(self.all_kib),
        )


def scaled(title: str, name: str, unit: float, digits: int) -> Column:
    """A column of the figure of that name, in a larger unit."""
    return Column(title, lambda row: number((row.figure(name) or 0) / unit, digits))


COLUMNS = [
    figure("results", "n"),
    figure("results/s", "per_s", 1),
    scaled("p50 ms", "p50_us", 1e3, 0),
    scaled("p99 ms", "p99_us", 1e3, 0),
    scaled("server MiB", "server_kib", 1024, 1),
    scaled("with kernels MiB", "all_kib", 1024, 1),
    figure("killed", "killed"),
    figure("errors", "errors"),
    figure("bad", "bad"),
]


@contextmanager
def serving(arguments: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Run a service on a free port; yields its URL and pid. Exits if the service does not end well at SIGTERM."""
    command = [sys.executable, *arguments, "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with (
        TemporaryFile("w+") as stderr,  # its kernels may inherit it, too; a pipe would fill and block them
        subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            if url:
                yield url, process.pid
            process.send_signal(signal.SIGTERM)
            if process.wait(END_WAIT_S) or not url:
                stderr.seek(0)
                sys.exit(f"{' '.join(command)} ended with {process.returncode}: {stderr.read()}")
        finally:
            process.kill()


def measure(trial: Trial, options: Options, progress: ProgressLine) -> dict[str, Found]:
    """Measure the services in turn; each is started anew for each round."""
    found = {name: Found() for name in SERVICES}
    size = options.pick(options.rest.size, 1)
    for seed in range(options.pick(ROUNDS, 1)):
        for name, command in SERVICES.items():
            fixed = ["--size", str(size), "--queue-timeout", str(QUEUE_TIMEOUT_S), "--max-time", "30"]
            with serving([*command, *fixed, *trial.service]) as (url, pid):
                put_load(url, pid, "--concurrent", size, "--requests", size)  # warms its kernels
                concurrent = options.pick(options.rest.concurrent, 5)
                requests = options.pick(trial.requests, 20)
                more = ["--seed", seed, "--patience", QUEUE_TIMEOUT_S + 60]
                round_ = put_load(url, pid, "--concurrent", concurrent, "--requests", requests, *more, *trial.load)
                found[name].add(round_)
                sys.stderr.writelines(f"{complaint}\n" for complaint in round_["complaints"])
            progress.advance()
    return found


def as_markdown(operation: str, rows: Sequence[Row]) -> str:
    columns = [*COLUMNS, figure(f"to {JUPYTER}", "ratio_to_jupyter_client", 2)]
    cells = [[row.client, *(column.text(row) for column in columns)] for row in rows]
    return f"**{operation}**\n\n" + markdown(["service", *(column.title for column in columns)], cells, 1)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrent", type=int, default=200, help="requests at the same time [200]")
    parser.add_argument("--size", type=int, default=4, help="kernels of each service [4]")
    parser.add_argument("--readme", action="store_true", help="write the figures into examples/server/README.md")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("service", __doc__ or "", argv, add_options)
    report = Report("service", options)
    trials = {QUICK: TRIALS[QUICK]} if options.quick else TRIALS
    with ProgressLine("service", len(trials) * options.pick(ROUNDS, 1) * len(SERVICES)) as progress:
        for operation, trial in trials.items():
            found = measure(trial, options, progress)
            rows = [each.row(name, operation) for name, each in found.items()]
            report.add_rates("", operation, rows, COLUMNS)
            report.add_panel("", operation, {name: each.recorder for name, each in found.items()})
    tables = [as_markdown(name, [row for row in report.rows if row.operation == name]) for name in trials]
    text = "\n\n".join([machine_line(describe_machine()), *tables])
    report.say(f"\n{text}")
    if options.rest.readme:
        put_figures(text, README)
    report.finish()


if __name__ == "__main__":
    run_script(main)
