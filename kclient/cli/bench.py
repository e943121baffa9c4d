"""``kclient bench``: how long a kernel takes to answer, over tcp and ipc, as a table, a plot and JSON."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from time import monotonic
from typing import TYPE_CHECKING, Final

import attrs
import gevent

import kclient
from kclient.cli.run import READY_TIMEOUT_S, ExitCode, Signals, Stopped, code_of_end, started
from kclient.cli.say import printable
from kclient.cli.terminal import OutputLost, Screen
from kclient.client.interface import KernelInterface
from kclient.concurrency.deadline import Deadline
from kclient.errors import KClientError, KernelTimeout

if TYPE_CHECKING:
    from kclient.bench.recorder import Recorder

BATCH_CALLS: Final = 50
"""Calls of one kind before it is the turn of the next."""

IPC_WAIT_S: Final = 10.0
"""The least time that a kernel has to start over ipc, after a start over tcp. A kernel without ipc may never answer."""

IPC_FACTOR: Final = 3.0
"""A slow kernel has this many times as long for its start over ipc as it took over tcp."""

NEEDS: Final = {"hdrh": "hdrhistogram", "matplotlib": "matplotlib"}
"""Packages of the extra ``bench`` that ``cli`` lacks, by the name of their module."""


@attrs.frozen
class BenchJob:
    """What to measure, and how often. `existing` is the connection file or the id of a running kernel."""

    kernel: str
    existing: str | None
    transports: tuple[str, ...]
    encryption: str
    calls: int
    warm_up: int
    code: str
    spin: float
    timeout: float | None
    plot: str | None
    json: str | None


class CodeFailed(Exception):
    """The code to measure raises an error."""


def run_bench(job: BenchJob) -> int:
    """Measure, show the table, write the files, and return the exit code of the command."""
    screen = Screen()
    missing = [package for module, package in NEEDS.items() if find_spec(module) is None]
    if missing:
        screen.complain(f"measuring needs {' and '.join(missing)}: pip install 'kclient[bench]'")
        return ExitCode.NOT_DONE
    refusal = refuse_files(job)
    if refusal:
        screen.complain(refusal)
        return ExitCode.NOT_DONE
    bench = Bench(job, screen)
    signals = Signals()
    try:
        recorders = bench.measure()
        show(job, recorders, screen, is_encrypted=bench.is_encrypted)
        return ExitCode.OK
    except (Stopped, OutputLost) as exc:
        return code_of_end(exc, screen)
    except CodeFailed as exc:
        screen.complain(str(exc))
        return ExitCode.FAILED
    except KernelTimeout as exc:
        late = f"the calls did not end within {job.timeout:g} s; give a longer --timeout or fewer --calls"
        screen.complain(late if bench.is_ready else str(exc))
        return ExitCode.TIMED_OUT
    except KClientError as exc:
        screen.complain(str(exc))
        return signals.failure if bench.is_ready else ExitCode.NOT_DONE
    except OSError as exc:  # a KernelTimeout is an OSError too, so it comes before
        name = repr(exc.filename) if exc.filename is not None else "the figures"  # no name: the disk is full
        screen.complain(f"cannot write {name}: {exc.strerror or exc}")
        return ExitCode.NOT_DONE


def refuse_files(job: BenchJob) -> str:
    """Check, before anything is measured, that the files can be written; returns the reason if not, else ''."""
    from kclient.bench.plot import check_format
    from kclient.bench.results import check_writable

    for path in filter(None, (job.plot, job.json)):
        try:
            check_writable(path)
        except (OSError, ValueError) as exc:  # ValueError: a NUL in its name
            return f"cannot write {path!r}: {getattr(exc, 'strerror', None) or exc}"
    try:
        if job.plot is not None:
            check_format(job.plot)
    except ValueError as exc:
        return f"cannot plot {job.plot!r}: {exc}"
    return ""


class Bench:
    """One measurement. Its kernels are started for it and end with it; an existing kernel is left running."""

    def __init__(self, job: BenchJob, screen: Screen) -> None:
        self.is_ready = False
        self.is_encrypted = False
        self._job = job
        self._screen = screen
        self._deadline = Deadline(job.timeout)

    def measure(self) -> dict[tuple[str, str], Recorder]:
        """The latencies by operation and transport; raises KernelTimeout, CodeFailed, DeadKernelError and Stopped."""
        from kclient.bench.rounds import interleave

        calls: dict[str, Callable[[], object]] = {}
        tidy: dict[str, Callable[[], object]] = {}
        keys: dict[str, tuple[str, str]] = {}
        with ExitStack() as stack:
            kernels = self._open_all(stack)
            self.is_ready = True
            self.is_encrypted = any(
                kernel.kernel_connection.channels.transport.is_encrypted for kernel in kernels.values()
            )
            for transport, kernel in kernels.items():
                for operation, call in self._calls(kernel).items():
                    name = f"{operation}, {transport}"
                    keys[name], calls[name], tidy[name] = (operation, transport), call, tidier(kernel)
            recorders = interleave(
                calls, title="measuring", count=self._job.calls, batch=BATCH_CALLS, warm_up=self._job.warm_up, tidy=tidy
            )
        return {keys[name]: recorder for name, recorder in sorted(recorders.items())}

    def _open_all(self, stack: ExitStack) -> dict[str, KernelInterface]:
        """The kernel on each transport. If it starts only over tcp, a message says so and tcp alone is measured."""
        limit = READY_TIMEOUT_S if self._job.timeout is None else self._job.timeout
        if self._job.existing is not None:
            client = kclient.connect(self._job.existing, timeout=limit, spin=self._job.spin)
            return {client.connection.transport: stack.enter_context(client)}
        kernels: dict[str, KernelInterface] = {}
        for transport in self._job.transports:
            start = monotonic()
            try:
                left = self._deadline.at_most(limit).left()
                kernel = started(self._job.kernel, transport, self._job.encryption, left, self._job.spin)
                kernels[transport] = stack.enter_context(kernel)
            except KClientError as exc:
                if not kernels or self._deadline.is_over:
                    raise
                reason = str(exc).splitlines()[0]
                self._screen.complain(f"{self._job.kernel!r} does not start over {transport}: {reason}")
            limit = max(IPC_WAIT_S, IPC_FACTOR * (monotonic() - start))
        return kernels

    def _calls(self, kernel: KernelInterface) -> dict[str, Callable[[], object]]:
        """The calls to measure on one kernel, by operation."""
        code, left = self._job.code, self._deadline.left
        result = kernel.run(code, timeout=left())
        if not result.ok:
            error = f"{result.error.ename}: {result.error.evalue}" if result.error is not None else result.status
            raise CodeFailed(f"the code fails: {error}")

        def kernel_info() -> None:
            kernel.kernel_info(timeout=left())

        def run() -> None:
            kernel.run(code, timeout=left())

        return {"kernel_info": kernel_info, "run": run}


def tidier(kernel: KernelInterface) -> Callable[[], None]:
    """A function to call between two batches: it drops unclaimed messages, and lets the hub handle a signal."""

    def tidy() -> None:
        kernel.iopub_channel.get_msgs()
        gevent.sleep(0)

    return tidy


def show(job: BenchJob, recorders: dict[tuple[str, str], Recorder], screen: Screen, *, is_encrypted: bool) -> None:
    """Write the table, and the files that were asked for; raises OutputLost and OSError."""
    from kclient.bench.machine import describe_machine, machine_line
    from kclient.bench.results import row_of, write_json
    from kclient.bench.table import LATENCY, label, table_of

    client = f"kclient, spin {job.spin:g}" if job.spin else "kclient"
    rows = [
        row_of("kclient bench", transport, client, operation, recorder).with_extra(encrypted=is_encrypted)
        for (operation, transport), recorder in recorders.items()
    ]
    machine = describe_machine()
    kernel = printable(job.existing or job.kernel)
    title = f"{client}, kernel {kernel}, {'encrypted' if is_encrypted else 'not encrypted'}"
    table = table_of(title, [label("operation"), label("transport"), *LATENCY], rows)
    screen.out.write_lines(f"{table}\n\n{machine_line(machine)}")
    if job.json is not None:
        write_json(job.json, machine, rows)
    if job.plot is not None:
        from kclient.bench.plot import Line, Panel, write_plot

        lines = [Line(f"{operation}, {transport}", recorder) for (operation, transport), recorder in recorders.items()]
        write_plot(job.plot, [Panel(title, lines)], columns=1, foot=machine_line(machine))
