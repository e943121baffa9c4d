"""Many requests in flight on one connection: 100 greenlets on one client, beside raw pyzmq with 100 requests under way.

The floor signs, verifies and parses each message: whoever has many requests in flight must know whose reply it has.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Protocol

import attrs

from benchmarks import stress
from benchmarks.builds import Builds, builds, ratios_of_recorders
from benchmarks.clients import Green, Raw, RawUnrolled
from benchmarks.kernels import Connection, echo_kernel_each
from benchmarks.report import Options, Report, parse, run_script
from benchmarks.turns import IN_FLIGHT, KCLIENTS, Pipelined, kclient_greenlets
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.results import Row, row_of
from kclient.bench.table import LATENCY, figure


class Opener(Protocol):
    def __call__(self, connection: Connection) -> AbstractContextManager[Pipelined]: ...


@contextmanager
def raw_codec(connection: Connection, sockets: type[Raw] = Raw) -> Iterator[Pipelined]:
    """One loop: for each reply that comes, the next request goes out."""
    with closing(sockets(connection, iopub=False)) as raw:
        codec = raw.codec

        def calls(count: int) -> tuple[list[int], float]:
            began = perf_counter()
            sent: dict[str, int] = {}
            times = []

            def ask() -> None:
                start = perf_counter_ns()
                raw.send(codec.request("kernel_info_request", {}))
                sent[codec.last_id] = start

            for _ in range(IN_FLIGHT):
                ask()
            for answered in range(count):
                _, parent, _, _ = codec.read(raw.read_shell())
                times.append(perf_counter_ns() - sent.pop(parent["msg_id"]))
                if answered + IN_FLIGHT < count:
                    ask()
            return times, perf_counter() - began

        yield calls


CLIENTS: dict[str, Opener] = {
    "raw + codec": raw_codec,
    "raw + codec (again)": raw_codec,
    "raw + codec (unrolled)": partial(raw_codec, sockets=RawUnrolled),
    "zmq.green + codec": partial(raw_codec, sockets=Green),
    **{name: partial(kclient_greenlets, opened=opened) for name, opened in KCLIENTS.items()},
}


def measure(
    transport: str, connections: Mapping[str, Connection], both: Builds, options: Options
) -> tuple[list[Row], dict[str, Recorder]]:
    """The rate of each client, a median over interleaved rounds, and its latencies."""
    count, rounds = options.pick(5000, 300), options.pick(10, 2)
    with ExitStack() as stack:
        opened: dict[str, Pipelined] = {}
        for name, connection in connections.items():
            if both and name in KCLIENTS:
                opened |= both.turns(name, "pipelined", name, connection)
            else:
                opened[name] = stack.enter_context(CLIENTS[name](connection))
        recorders = {name: Recorder() for name in opened}
        rates: dict[str, list[float]] = {name: [] for name in opened}
        progress = stack.enter_context(ProgressLine(f"pipelined, {transport}", (rounds + 1) * len(opened)))
        for calls in opened.values():
            calls(options.pick(2000, IN_FLIGHT))
            progress.advance()
        for _ in range(rounds):
            for name, calls in opened.items():
                times, seconds = calls(count)
                recorders[name].record_round(times)
                rates[name].append(count / seconds)
                progress.advance()
    to_before = ratios_of_recorders(recorders)
    rows = []
    for name, recorder in recorders.items():
        row = row_of("concurrency", transport, name, "pipelined", recorder).with_extra(**to_before.get(name, {}))
        rows.append(attrs.evolve(row, per_s=median(rates[name])))
    return rows, recorders


def add_stress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stress", type=int, metavar="N", help="then make N calls at random, each to end within 1 s")
    parser.add_argument("--seed", type=int, default=1, help="of what is done at random [1]")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("concurrency", __doc__ or "", argv, add_stress, compares_builds=True)
    report = Report("concurrency", options)
    with echo_kernel_each(list(CLIENTS)) as kernels, builds(options.against) as both:
        for transport in options.transports:
            connections = {name: kernels[name][transport] for name in CLIENTS}
            rows, recorders = measure(transport, connections, both, options)
            report.add_rates(transport, "pipelined", rows, [*LATENCY[:-1], figure("calls/s", "per_s")])
            report.add_panel(transport, "pipelined", recorders)
    report.say("jupyter_client cannot: whoever waits on its client takes what comes, the replies to others too.")
    if options.rest.stress:
        for transport in options.transports:
            stress.report_on(report, transport, options.rest.stress, options.rest.seed)
    report.finish()


if __name__ == "__main__":
    run_script(main)
