"""Beginnings and ends: start a kernel, find it ready, shut it down, import the library.

`start` is compared with the bare process: a connection file, the kernel's command, a raw DEALER that tries every 5 ms
to connect and has kernel_info queued from the first moment; until the reply. `kclient, fork server` forks the kernel
from a process that was there before the first of them. `shutdown` is compared with a raw shutdown_request and
the end of the process, `wait_for_ready` with a fresh DEALER and one reply, `import` with what kclient stands on.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import perf_counter_ns, sleep

import zmq
from jupyter_client.manager import KernelManager

import kclient
from benchmarks.builds import builds, checkouts
from benchmarks.clients import PATIENCE
from benchmarks.codec import Codec
from benchmarks.kernels import ROOT, Connection, address, bare_kernel
from benchmarks.report import Options, Report, parse, run_script
from benchmarks.turns import SETTLE_S, Times, life_with_kclient, ready_client
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.rounds import Batch, interleave_batches, time_calls
from kclient.bench.table import figure

IMPORTS = {
    "raw": "gevent, zmq.green, attrs",
    "raw (again)": "gevent, zmq.green, attrs",
    "kclient": "kclient",
    "jupyter_client": "jupyter_client",
}


def life_of_bare_process(transport: str) -> Times:
    start = perf_counter_ns()
    with bare_kernel(transport) as kernel, dealer(kernel.connection, "shell") as shell:
        shell.send_multipart(request(kernel.connection, "kernel_info_request"))
        shell.recv_multipart()
        started = perf_counter_ns() - start
        sleep(SETTLE_S)
        with dealer(kernel.connection, "control") as control:
            start = perf_counter_ns()
            control.send_multipart(request(kernel.connection, "shutdown_request"))
            wait_for_exit(kernel.process)
            return started, perf_counter_ns() - start


def life_with_jupyter_client(transport: str) -> Times:
    """What its start_new_kernel does, which takes no transport."""
    start = perf_counter_ns()
    with jupyter_kernel(transport) as manager:
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=PATIENCE)
        started = perf_counter_ns() - start
        sleep(SETTLE_S)
        client.stop_channels()
        start = perf_counter_ns()
        manager.shutdown_kernel()
        return started, perf_counter_ns() - start


@contextmanager
def jupyter_kernel(transport: str) -> Iterator[KernelManager]:
    manager = KernelManager(kernel_name="python3", transport=transport)
    manager.start_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield manager
    finally:
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


@contextmanager
def dealer(connection: Connection, channel: str) -> Iterator[zmq.Socket[bytes]]:
    """A socket that tries as often as kclient's to connect."""
    with zmq.Context.instance().socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.reconnect_ivl = 5
        socket.connect(address(connection, channel))
        yield socket


def request(connection: Connection, msg_type: str) -> list[bytes]:
    content = {"restart": False} if msg_type == "shutdown_request" else {}
    return Codec(connection["key"].encode()).request(msg_type, content)


def wait_for_exit(process: subprocess.Popen[bytes]) -> None:
    """As soon as it has ended; Popen.wait with a timeout looks every 50 ms."""
    descriptor = os.pidfd_open(process.pid)
    try:
        select.select([descriptor], [], [], PATIENCE)
    finally:
        os.close(descriptor)


def measure_lives(transport: str, options: Options) -> tuple[dict[str, Recorder], dict[str, Recorder]]:
    """The latencies of start and shutdown, by client; one kernel after the other, in turn."""
    with kclient.ForkServer() as launcher, builds(options.against) as both:
        life_with_kclient(transport, launcher)  # when it has started one, it has imported all
        lives: dict[str, Callable[[], Times]] = {
            "raw": lambda: life_of_bare_process(transport),
            "raw (again)": lambda: life_of_bare_process(transport),
            **(both.turns("kclient", "life", transport) or {"kclient": lambda: life_with_kclient(transport)}),
            **(
                both.turns("kclient, fork server", "forked_life", transport)
                or {"kclient, fork server": lambda: life_with_kclient(transport, launcher)}
            ),
            "jupyter_client": lambda: life_with_jupyter_client(transport),
        }
        if options.quick:
            del lives["raw (again)"]
        rounds = options.pick(30, 1)
        starts, ends = ({name: Recorder() for name in lives} for _ in range(2))
        with ProgressLine(f"start and shutdown, {transport}", rounds * len(lives)) as progress:
            for _ in range(rounds):
                for name, live in lives.items():
                    start, end = live()
                    starts[name].record_round([start])
                    ends[name].record_round([end])
                    progress.advance()
        return starts, ends


def measure_wait_for_ready(transport: str, options: Options) -> dict[str, Recorder]:
    """A fresh client of a kernel that is ready, from nothing to ready; its channels are closed untimed."""
    with jupyter_kernel(transport) as manager, builds(options.against) as both:
        connection = manager.get_connection_info()
        connection["key"] = connection["key"].decode()
        left: list[Callable[[], object]] = []

        def raw() -> None:
            with dealer(connection, "shell") as shell:
                shell.send_multipart(request(connection, "kernel_info_request"))
                shell.recv_multipart()

        def with_kclient() -> None:
            left.append(ready_client(connection).close)

        def with_jupyter_client() -> None:
            client = manager.client()
            left.append(client.stop_channels)
            client.start_channels()
            client.wait_for_ready(timeout=PATIENCE)

        def close() -> None:
            while left:
                left.pop()()

        batches: dict[str, Batch] = {
            "raw": partial(time_calls, raw),
            "raw (again)": partial(time_calls, raw),
            **(both.turns("kclient", "time_until_ready", connection) or {"kclient": partial(time_calls, with_kclient)}),
            "jupyter_client": partial(time_calls, with_jupyter_client),
        }
        return interleave_batches(
            batches,
            title=f"wait_for_ready, {transport}",
            count=options.pick(100, 2),
            batch=1,
            warm_up=1,
            tidy=dict.fromkeys(batches, close),
        )


def measure_imports(options: Options) -> dict[str, Recorder]:
    """The time of the import statement alone, in fresh interpreters, in turn."""
    rounds = options.pick(40, 2)
    imports = {
        f"{name}{end}": (modules, path)
        for name, modules in IMPORTS.items()
        for end, path in (checkouts(options.against) if name == "kclient" else {"": ROOT}).items()
    }
    recorders = {name: Recorder() for name in imports}
    with ProgressLine("import", (rounds + 1) * len(imports)) as progress:
        for number in range(1 + rounds):
            for name, (modules, path) in [*imports.items()][:: -1 if number % 2 else 1]:
                nanoseconds = time_import(modules, path)
                if number:  # the first writes the byte code
                    recorders[name].record_round([nanoseconds])
                progress.advance()
    return recorders


def time_import(modules: str, path: Path) -> int:
    """Nanoseconds of the statement in a process whose working directory comes first where Python looks for modules."""
    code = f"from time import perf_counter_ns as now; start = now(); import {modules}; print(now() - start)"
    # An installed package has its byte code; where none may be written, a checkout would be compiled each time.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=path, env=env, stdout=subprocess.PIPE, text=True, check=True
    )
    return int(done.stdout)


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("startup", __doc__ or "", argv, compares_builds=True)
    report = Report("startup", options)
    lives = {transport: measure_lives(transport, options) for transport in options.transports}
    for transport, (starts, _) in lives.items():
        report.add_calls(transport, "start", starts)
    for transport, (_, ends) in lives.items():
        own = ends["raw"].figures().p50_us
        over = {name: {"over_raw_us": recorder.figures().p50_us - own} for name, recorder in ends.items()}
        report.add_calls(transport, "shutdown", ends, extra=over, columns=[figure("p50 over raw, us", "over_raw_us")])
    for transport in options.transports:
        report.add_calls(transport, "wait_for_ready", measure_wait_for_ready(transport, options))
    report.add_calls("", "import", measure_imports(options))
    report.say("import: raw is `import gevent, zmq.green, attrs`.")
    report.finish()


if __name__ == "__main__":
    run_script(main)
