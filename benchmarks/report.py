"""What each benchmark has around it: options, a table for each operation, the JSON and the plot."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import attrs
import gevent

from benchmarks.bars import bar_of
from benchmarks.builds import BEFORE, add_against, ratios_of_recorders
from kclient.bench.machine import describe_machine, machine_line
from kclient.bench.plot import Line, Panel, check_format, write_plot
from kclient.bench.recorder import Recorder
from kclient.bench.results import Row, check_writable, row_of, write_json
from kclient.bench.table import LATENCY, Column, figure, label, table_of
from kclient.errors import KClientError

COLOURS = {
    "raw": ("#000000", "-"),
    "raw (again)": ("#000000", ":"),
    "raw (in turn)": ("#777777", "--"),
    "raw (unrolled)": ("#777777", ":"),
    "raw + codec": ("#777777", "-"),
    "raw + codec (unrolled)": ("#777777", "--"),
    "zmq.green": ("#009e73", "-"),
    "raw + codec (again)": ("#777777", ":"),
    "zmq.green + codec": ("#009e73", "--"),
    "kclient": ("#0072b2", "-"),
    "no flood": ("#000000", "-"),
    "kclient spin": ("#56b4e9", "-"),
    "kclient, fork server": ("#56b4e9", "-"),
    "kclient, used again": ("#0072b2", ":"),
    "jupyter_client": ("#d55e00", "-"),
}
"""A colour and a dash for each client, the same in every plot; those of Okabe and Ito, for the colour-blind too."""

DASH_BEFORE = "-."
"""Of the other build of a client, which has its colour."""

JUPYTER = "jupyter_client"

FLOOR_OF_RATES = "raw + codec"
"""What takes in many messages must know which is which."""


@attrs.define
class Options:
    """The command line that all benchmarks have in common."""

    quick: bool
    json: Path | None
    plot: Path | None
    transports: list[str]
    rest: argparse.Namespace
    against: Path | None = None

    def pick(self, full: int, quick: int) -> int:
        """The size of a full run, or that of a quick one."""
        return quick if self.quick else full


def parse(
    module: str,
    text: str,
    argv: Sequence[str] | None,
    add: Callable[[argparse.ArgumentParser], object] | None = None,
    *,
    compares_builds: bool = False,
) -> Options:
    """The options; exits with code 2 for wrong ones, and for files that cannot be written."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=text.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="too few calls to mean anything, in a few seconds")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw latency by percentile there")
    parser.add_argument("--transport", choices=["tcp", "ipc", "both"], default="both", help="[both]")
    if compares_builds:
        add_against(parser)
    if add is not None:
        add(parser)
    found = parser.parse_args(argv)
    for path in filter(None, (found.json, found.plot)):
        try:
            check_writable(path)
        except OSError as exc:
            parser.error(f"cannot write {str(path)!r}: {exc.strerror or exc}")
    if found.plot is not None:
        try:
            check_format(found.plot)
        except ValueError as exc:
            parser.error(f"cannot plot {str(found.plot)!r}: {exc}")
    transports = ["tcp", "ipc"] if found.transport == "both" else [found.transport]
    return Options(found.quick, found.json, found.plot, transports, found, getattr(found, "against", None))


def bar_text(row: Row) -> str:
    """The bar, and whether it was met."""
    bar = bar_of(row)
    if bar is None:
        return ""
    return f"{bar} {'met' if bar.is_met(row) else 'MISSED'} ({bar.what})"


RATIOS = [
    figure("to raw", "ratio_to_raw", 3),
    figure("to jupyter_client", "ratio_to_jupyter_client", 3),
    figure("to before", "ratio_to_before", 3),
    figure("by round", "ratio_by_round", 3),
    Column("bar", bar_text, is_number=False),
]


def look_of(name: str) -> tuple[str | None, str]:
    """The colour and the dash of a client."""
    colour, dash = COLOURS.get(name.removesuffix(BEFORE), (None, "-"))
    return colour, DASH_BEFORE if name.endswith(BEFORE) else dash


class Report:
    """Collects the rows of one benchmark, prints each table as soon as it is complete, and writes the files."""

    def __init__(self, benchmark: str, options: Options) -> None:
        self.benchmark = benchmark
        self.options = options
        self.rows: list[Row] = []
        self.panels: list[Panel] = []

    def add_calls(
        self,
        transport: str,
        operation: str,
        recorders: Mapping[str, Recorder],
        *,
        floor: str = "raw",
        extra: Mapping[str, Mapping[str, object]] | None = None,
        columns: Sequence[Column] = (),
    ) -> None:
        """Calls that were timed one by one; the ratios are those of the medians."""
        figures = {name: recorder.figures() for name, recorder in recorders.items()}
        to_before = ratios_of_recorders(recorders)
        rows = []
        for name, recorder in recorders.items():
            row = row_of(self.benchmark, transport, name, operation, recorder, figures.get(floor))
            if JUPYTER in figures:
                row = row.with_extra(ratio_to_jupyter_client=figures[name].p50_us / figures[JUPYTER].p50_us)
            rows.append(row.with_extra(**to_before.get(name, {}), **(extra or {}).get(name, {})))
        self.add_rows(transport, operation, rows, [*LATENCY, *columns])
        self.add_panel(transport, operation, recorders)

    def add_panel(self, transport: str, operation: str, recorders: Mapping[str, Recorder]) -> None:
        """Have those latencies drawn."""
        lines = [Line(name, recorder, *look_of(name)) for name, recorder in recorders.items()]
        self.panels.append(Panel(", ".join(filter(None, [operation, transport])), lines))

    def say(self, text: str) -> None:
        """A line under the tables."""
        sys.stdout.write(text + "\n")

    def add_rates(self, transport: str, operation: str, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        """What has a rate; the ratios are those of the rates, the floor that with the codec."""
        rates = {row.client: row.per_s for row in rows}

        def with_ratios(row: Row) -> Row:
            to_raw, to_jupyter = (
                row.per_s / rates[name] if row.per_s and rates.get(name) else None for name in (FLOOR_OF_RATES, JUPYTER)
            )
            return attrs.evolve(row, ratio_to_raw=to_raw).with_extra(ratio_to_jupyter_client=to_jupyter)

        self.add_rows(transport, operation, [with_ratios(row) for row in rows], columns)

    def add_rows(self, transport: str, operation: str, rows: Sequence[Row], columns: Sequence[Column]) -> None:
        """Keep the rows, and print them."""
        judged = [self._judged(row) for row in rows]
        self.rows += judged
        ratios = [column for column in RATIOS if any(column.text(row) not in ("", "-") for row in judged)]
        title = " ".join(filter(None, [f"{self.benchmark}: {operation}", f"over {transport}" if transport else ""]))
        sys.stdout.write("\n" + table_of(title, [label("client"), *columns, *ratios], judged) + "\n")
        sys.stdout.flush()

    def finish(self) -> None:
        """Name the machine, and write what was asked for."""
        machine = describe_machine()
        sys.stdout.write(f"\n{machine_line(machine)}\n")
        if self.options.json is not None:
            write_json(self.options.json, machine, self.rows)
        if self.options.plot is not None and self.panels:
            columns = len(self.options.transports) if len(self.panels) > 1 else 1
            write_plot(self.options.plot, self.panels, columns=columns, foot=machine_line(machine))

    def _judged(self, row: Row) -> Row:
        bar = bar_of(row)
        if bar is None:
            return row
        return row.with_extra(bar=str(bar), bar_of=bar.what, bar_value=row.figure(bar.figure), bar_met=bar.is_met(row))


class Ended(BaseException):
    """A signal told us to end."""


def run_script(main: Callable[[], object]) -> None:
    """Run a benchmark as a program: no signal and no full disk ends it with a traceback, or leaves a kernel behind."""
    here, loop = gevent.getcurrent(), gevent.get_hub().loop

    def end(signum: int, frame: FrameType | None) -> None:
        if gevent.getcurrent() is here:
            raise Ended(signum)
        loop.run_callback(here.throw, Ended(signum))  # what it raises in another greenlet, gevent prints

    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, end)
    try:
        main()
    except Ended as exc:
        sys.stderr.write(f"\nended by {signal.Signals(exc.args[0]).name}\n")
        sys.exit(128 + exc.args[0])
    except KClientError:  # a KernelTimeout is an OSError, too
        raise
    except OSError as exc:
        sys.stderr.write(f"{exc}\n")
        sys.exit(2)
