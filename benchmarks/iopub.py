"""A flood of output: how fast it is taken in, whether any is lost, and whether other greenlets still get their turn.

The echo kernel builds the messages first and publishes them in one go, with SNDHWM 0, so that the client is the limit.
The time is that from the start of the burst to the moment when the client has all of it, and the kernel's reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from queue import Empty
from statistics import median
from time import perf_counter

import gevent
import zmq
from jupyter_client.blocking import BlockingKernelClient

from benchmarks.builds import Builds, builds, ratios_to_before
from benchmarks.clients import Green, JupyterClient, Raw, RawUnrolled
from benchmarks.codec import execute_content
from benchmarks.kernels import Connection, echo_kernel_each
from benchmarks.report import Options, Report, parse, run_script
from benchmarks.turns import KCLIENT_DRAINS, Drain, Drained, gaps
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.results import Row
from kclient.bench.table import figure

SILENCE = 2.0
"""Seconds without a message, after which the rest is lost."""


@contextmanager
def raw_codec(connection: Connection, sockets: type[Raw] = Raw) -> Iterator[Drain]:
    """A loop around recv that verifies and parses each message: the floor."""
    with closing(sockets(connection, iopub=True)) as raw:

        def drain(count: int) -> Drained:
            raw.send(raw.codec.request("execute_request", execute_content(f"flood {count}")))
            received, is_idle = 0, False
            while not is_idle:
                header, _, _, content = raw.codec.read(raw.read_iopub())
                if header["msg_type"] == "stream":
                    received += 1
                else:
                    is_idle = content["execution_state"] == "idle"
            reply = raw.codec.read(raw.read_shell())
            return Drained(received, reply[3]["burst_started"], perf_counter())

        yield drain


@contextmanager
def jupyter_client(connection: Connection, high_water_mark: int = 0) -> Iterator[Drain]:
    """Its get_iopub_msg in a loop; with ZeroMQ's high-water mark, as it comes, or with none."""
    context = zmq.Context()
    context.setsockopt(zmq.RCVHWM, high_water_mark)
    with closing(JupyterClient(connection, iopub=True, client=BlockingKernelClient(context=context))) as opened:
        client = opened.client

        def drain(count: int) -> Drained:
            client.execute(f"flood {count}")
            received, is_idle, ended = 0, False, 0.0
            while not is_idle:
                try:
                    message = client.get_iopub_msg(timeout=SILENCE if received else None)
                except Empty:  # the idle status was lost as well
                    break
                ended = perf_counter()
                if message["msg_type"] == "stream":
                    received += 1
                else:
                    is_idle = message["content"]["execution_state"] == "idle"
            return Drained(received, client.get_shell_msg()["content"]["burst_started"], ended)

        yield drain
    context.destroy(linger=0)


DRAINS: dict[str, Callable[[Connection], AbstractContextManager[Drain]]] = {
    "raw + codec": raw_codec,
    "raw + codec (again)": raw_codec,
    "raw + codec (unrolled)": partial(raw_codec, sockets=RawUnrolled),
    "zmq.green + codec": partial(raw_codec, sockets=Green),
    **KCLIENT_DRAINS,
    "jupyter_client": jupyter_client,
    "jupyter_client, RCVHWM 1000": partial(jupyter_client, high_water_mark=1000),
}


def measure_drains(transport: str, connections: Mapping[str, Connection], both: Builds, options: Options) -> list[Row]:
    """The rate of each client, and how many messages it lost, over interleaved floods."""
    count, rounds = size_of_floods(options, quick=(300, 2))
    warm_up = options.pick(5000, 50)
    with ExitStack() as stack:
        drains: dict[str, Drain] = {}
        for name, connection in connections.items():
            if both and name in KCLIENT_DRAINS:
                drains |= both.turns(name, "flood", name, connection, warm_up)
            else:
                drains[name] = stack.enter_context(DRAINS[name](connection))
        found: dict[str, list[Drained]] = {name: [] for name in drains}
        progress = stack.enter_context(ProgressLine(f"drain, {transport}", (rounds + 1) * len(drains)))
        for drain in drains.values():
            drain(warm_up)
            progress.advance()
        for _ in range(rounds):
            for name, drain in drains.items():
                found[name].append(drain(count))
                progress.advance()
    rates = {
        name: [flood.received / (flood.ended - flood.started) for flood in floods] for name, floods in found.items()
    }
    to_before = ratios_to_before(
        {name: 1 / median(each) for name, each in rates.items()},
        {name: [1 / rate for rate in each] for name, each in rates.items()},
    )
    return [
        Row(
            "iopub",
            transport,
            name,
            "drain",
            n=sum(flood.received for flood in floods),
            per_s=median(rates[name]),
            extra={
                "lost": rounds * count - sum(flood.received for flood in floods),
                **to_before.get(name, {}),
            },
        )
        for name, floods in found.items()
    ]


def size_of_floods(options: Options, quick: tuple[int, int]) -> tuple[int, int]:
    """Messages in a flood, and floods; more and smaller ones for two builds, whose turns are to be near each other."""
    if options.quick:
        return quick
    return (100_000, 5) if options.against is None else (20_000, 25)


def measure_tickers(
    transport: str, connections: Mapping[str, Connection], both: Builds, options: Options
) -> dict[str, Recorder]:
    """The gaps of a ticker beside each client, over interleaved floods; "no flood" is what the machine itself does."""
    count, rounds = size_of_floods(options, quick=(3000, 1))
    warm_up = options.pick(5000, 50)
    with ExitStack() as stack:
        tickers: dict[str, Callable[[int], list[int]]] = {"no flood": partial(gaps, quiet)}
        if both:
            tickers |= both.turns("kclient", "flooded_ticker", connections["kclient run"], warm_up)
        for name, opened in {"kclient": "kclient run", "zmq.green + codec": "zmq.green + codec"}.items():
            if name not in tickers:
                drain = stack.enter_context(DRAINS[opened](connections[opened]))
                drain(warm_up)
                tickers[name] = partial(gaps, drain)
        recorders = {name: Recorder() for name in tickers}
        progress = stack.enter_context(ProgressLine(f"ticker, {transport}", rounds * len(tickers)))
        for _ in range(rounds):
            for name, ticker in tickers.items():
                recorders[name].record_round(ticker(count))
                progress.advance()
    return recorders


def quiet(count: int) -> Drained:
    """As long as such a flood may take."""
    started = perf_counter()
    gevent.sleep(count / 50_000)
    return Drained(0, started, perf_counter())


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("iopub", __doc__ or "", argv, compares_builds=True)
    report = Report("iopub", options)
    columns = [figure("messages", "n"), figure("messages/s", "per_s"), figure("lost", "lost")]
    with echo_kernel_each(list(DRAINS)) as kernels, builds(options.against) as both:
        for transport in options.transports:
            connections = {name: kernels[name][transport] for name in DRAINS}
            report.add_rates(transport, "drain", measure_drains(transport, connections, both, options), columns)
            recorders = measure_tickers(transport, connections, both, options)
            report.add_calls(transport, "ticker, flooded", recorders)
    report.finish()


if __name__ == "__main__":
    run_script(main)
