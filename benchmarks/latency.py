"""Round trips, one at a time: kernel_info, execute and run, against an echo kernel and a real one.

Each client has an echo kernel process of its own, with the subscriptions that its operation needs and no others; the
floor beside it has the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial

from benchmarks.builds import Builds, builds
from benchmarks.clients import LATENCY, Client, RawInTurn
from benchmarks.kernels import Connection, bare_kernel, echo_kernel_each
from benchmarks.report import Options, Report, parse, run_script
from benchmarks.turns import KCLIENTS
from kclient.bench.recorder import Recorder
from kclient.bench.rounds import Batch, interleave_batches, time_calls

BATCH_CALLS = 50

OPERATIONS = ["kernel_info", "execute", "run"]

AGAINST_IPYKERNEL = ["raw", "raw (again)", "zmq.green", "kclient", "jupyter_client"]

QUICK_AGAINST_IPYKERNEL = ["raw", "kclient", "jupyter_client"]


def measure(
    operation: str,
    clients: Mapping[str, type[Client]],
    connections: Mapping[str, Connection],
    both: Builds,
    title: str,
    options: Options,
    count: int,
) -> dict[str, Recorder]:
    """The latencies of one operation, by client; each is connected for that long."""
    batches: dict[str, Batch] = {}
    tidy: dict[str, Callable[[], object]] = {}
    with ExitStack() as stack:
        for name, client in clients.items():
            if both and name in KCLIENTS:
                batches |= both.turns(name, "calls", name, operation, connections[name])
                continue
            opened = stack.enter_context(closing(client(connections[name], iopub=operation != "kernel_info")))
            batches[name], tidy[name] = partial(time_calls, getattr(opened, operation)), opened.tidy
        return interleave_batches(
            batches,
            tidy=tidy,
            title=title,
            count=options.pick(count, 20),
            batch=options.pick(BATCH_CALLS, 10),
            warm_up=options.pick(4 * BATCH_CALLS, 5),
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("latency", __doc__ or "", argv, compares_builds=True)
    report = Report("latency", options)
    measure_echo_kernels(report, options)
    measure_ipykernel(report, options)
    report.finish()


def measure_echo_kernels(report: Report, options: Options) -> None:
    names = [*LATENCY, "raw (in turn)"]
    with echo_kernel_each(names) as kernels, builds(options.against) as both:
        for operation in OPERATIONS:
            clients = LATENCY if operation != "run" else {**LATENCY, "raw (in turn)": RawInTurn}
            for transport in options.transports:
                connections = {name: kernels[name][transport] for name in clients}
                title = f"{operation}, {transport}"
                recorders = measure(operation, clients, connections, both, title, options, count=4000)
                report.add_calls(transport, operation, recorders)


def measure_ipykernel(report: Report, options: Options) -> None:
    names = QUICK_AGAINST_IPYKERNEL if options.quick else AGAINST_IPYKERNEL
    for transport in options.transports:
        with ExitStack() as stack:
            bare = {name: stack.enter_context(bare_kernel(transport)) for name in names}
            connections = {name: kernel.connection for name, kernel in bare.items()}
            clients = {name: LATENCY[name] for name in names}
            both = stack.enter_context(builds(options.against))
            title = f"run, ipykernel, {transport}"
            recorders = measure("run", clients, connections, both, title, options, count=2000)
        report.add_calls(transport, "run, ipykernel", recorders)


if __name__ == "__main__":
    run_script(main)
