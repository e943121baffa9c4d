"""Round trips, one at a time: kernel_info, execute and run, against an echo kernel and a real one.

Each client has an echo kernel process of its own, with the subscriptions that its operation needs and no others; the
floor beside it has the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

from benchmarks.clients import LATENCY, Client, RawInTurn
from benchmarks.kernels import Connection, bare_kernel, echo_kernel_each
from benchmarks.report import Options, Report, parse, run_script
from kclient.bench.recorder import Recorder
from kclient.bench.rounds import interleave

BATCH = 50

OPERATIONS = ["kernel_info", "execute", "run"]

AGAINST_IPYKERNEL = ["raw", "raw (again)", "zmq.green", "kclient", "jupyter_client"]

QUICK_AGAINST_IPYKERNEL = ["raw", "kclient", "jupyter_client"]


def measure(
    operation: str,
    clients: Mapping[str, type[Client]],
    connections: Mapping[str, Connection],
    title: str,
    options: Options,
    count: int,
) -> dict[str, Recorder]:
    """The latencies of one operation, by client; each is connected for that long."""
    with ExitStack() as stack:
        opened = {
            name: stack.enter_context(closing(client(connections[name], iopub=operation != "kernel_info")))
            for name, client in clients.items()
        }
        return interleave(
            {name: getattr(client, operation) for name, client in opened.items()},
            tidy={name: client.tidy for name, client in opened.items()},
            title=title,
            count=options.pick(count, 20),
            batch=options.pick(BATCH, 10),
            warm_up=options.pick(4 * BATCH, 5),
        )


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("latency", __doc__ or "", argv)
    report = Report("latency", options)
    names = [*LATENCY, "raw (in turn)"]
    with echo_kernel_each(names) as kernels:
        for operation in OPERATIONS:
            clients = LATENCY if operation != "run" else {**LATENCY, "raw (in turn)": RawInTurn}
            for transport in options.transports:
                connections = {name: kernels[name][transport] for name in clients}
                title = f"{operation}, {transport}"
                recorders = measure(operation, clients, connections, title, options, count=4000)
                report.add_calls(transport, operation, recorders)
    names = QUICK_AGAINST_IPYKERNEL if options.quick else AGAINST_IPYKERNEL
    for transport in options.transports:
        with ExitStack() as stack:
            bare = {name: stack.enter_context(bare_kernel(transport)) for name in names}
            connections = {name: kernel.connection for name, kernel in bare.items()}
            clients = {name: LATENCY[name] for name in names}
            recorders = measure("run", clients, connections, f"run, ipykernel, {transport}", options, count=2000)
        report.add_calls(transport, "run, ipykernel", recorders)
    report.finish()


if __name__ == "__main__":
    run_script(main)
