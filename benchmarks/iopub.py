"""A flood of output: how fast it is taken in, whether any is lost, and whether other greenlets still get their turn.

The echo kernel builds the messages first and publishes them in one go, with SNDHWM 0, so that the client is the limit.
The time is that from the start of the burst to the moment when the client has all of it, and the kernel's reply.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from itertools import pairwise
from queue import Empty
from statistics import median
from time import perf_counter, perf_counter_ns

import attrs
import gevent
import zmq
from jupyter_client.blocking import BlockingKernelClient

from benchmarks.clients import Green, JupyterClient, KClient, Raw, RawUnrolled
from benchmarks.codec import execute_content
from benchmarks.kernels import Connection, echo_kernel_each
from benchmarks.report import Options, Report, parse, run_script
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.results import Row
from kclient.bench.table import figure

TICK = 0.001
"""Seconds."""

SILENCE = 2.0
"""Seconds without a message, after which the rest is lost."""


@attrs.frozen
class Drained:
    """What became of one flood: messages that arrived, when the burst began, and when all was in."""

    received: int
    started: float
    ended: float


Drain = Callable[[int], Drained]
"""Asks for a flood of that many messages, and takes it in."""


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
def kclient_run(connection: Connection) -> Iterator[Drain]:
    """All of the output in one Result."""
    with closing(KClient(connection, iopub=True)) as opened:

        def drain(count: int) -> Drained:
            result = opened.client.run(f"flood {count}")
            ended = perf_counter()
            return Drained(result.stdout.count("\n"), result.reply.content["burst_started"], ended)

        yield drain


@contextmanager
def kclient_submit(connection: Connection) -> Iterator[Drain]:
    """Each message as it arrives."""
    with closing(KClient(connection, iopub=True)) as opened:

        def drain(count: int) -> Drained:
            execution = opened.client.submit(f"flood {count}", keep_outputs=False)
            received = sum(1 for _ in execution)
            ended = perf_counter()
            return Drained(received, execution.result().reply.content["burst_started"], ended)

        yield drain


@contextmanager
def kclient_get_msg(connection: Connection) -> Iterator[Drain]:
    """What no execution claims, from the inbox."""
    with closing(KClient(connection, iopub=True)) as opened:
        shell, iopub = opened.client.shell_channel, opened.client.iopub_channel

        def drain(count: int) -> Drained:
            msg_id = shell.send("execute_request", execute_content(f"flood {count}"))
            received, is_idle = 0, False
            while not is_idle:
                for message in [iopub.get_msg(), *iopub.get_msgs()]:
                    if message.msg_type == "stream":
                        received += 1
                    else:
                        is_idle = message.content["execution_state"] == "idle"
            reply = shell.get_reply(msg_id)
            return Drained(received, reply.content["burst_started"], perf_counter())

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
    "kclient run": kclient_run,
    "kclient submit": kclient_submit,
    "kclient get_msg": kclient_get_msg,
    "jupyter_client": jupyter_client,
    "jupyter_client, RCVHWM 1000": partial(jupyter_client, high_water_mark=1000),
}


def measure_drains(transport: str, connections: Mapping[str, Connection], options: Options) -> list[Row]:
    """The rate of each client, and how many messages it lost, over interleaved floods."""
    count, rounds = options.pick(100_000, 300), options.pick(5, 2)
    found: dict[str, list[Drained]] = {name: [] for name in connections}
    with ExitStack() as stack:
        drains = {name: stack.enter_context(DRAINS[name](connections[name])) for name in connections}
        progress = stack.enter_context(ProgressLine(f"drain, {transport}", (rounds + 1) * len(drains)))
        for drain in drains.values():
            drain(options.pick(5000, 50))
            progress.advance()
        for _ in range(rounds):
            for name, drain in drains.items():
                found[name].append(drain(count))
                progress.advance()
    return [
        Row(
            "iopub",
            transport,
            name,
            "drain",
            n=sum(flood.received for flood in floods),
            per_s=median(flood.received / (flood.ended - flood.started) for flood in floods),
            extra={"lost": rounds * count - sum(flood.received for flood in floods)},
        )
        for name, floods in found.items()
    ]


def measure_ticker(drain: Drain | None, count: int, floods: int) -> Recorder:
    """Nanoseconds between one tick and the next, of a greenlet that sleeps for 1 ms, while bursts come in.

    Without a `drain` nothing comes in meanwhile: what the machine does by itself.
    """
    ticks: list[int] = []

    def tick() -> None:
        while True:
            ticks.append(perf_counter_ns())
            gevent.sleep(TICK)

    recorder = Recorder()
    ticker = gevent.spawn(tick)
    try:
        for _ in range(floods):
            ticks.clear()
            flood = drain(count) if drain is not None else quiet(count / 50_000)
            gevent.sleep(0.02)  # the last gap ends after the flood
            recorder.record(
                end - start
                for start, end in pairwise(ticks)
                if flood.started <= end / 1e9 and start / 1e9 <= flood.ended  # of which some part was in the flood
            )
    finally:
        ticker.kill()
    return recorder


def quiet(seconds: float) -> Drained:
    started = perf_counter()
    gevent.sleep(seconds)
    return Drained(0, started, perf_counter())


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("iopub", __doc__ or "", argv)
    report = Report("iopub", options)
    count, floods = options.pick(100_000, 3000), options.pick(5, 1)
    with echo_kernel_each(list(DRAINS)) as kernels:
        for transport in options.transports:
            connections = {name: kernels[name][transport] for name in DRAINS}
            columns = [figure("messages", "n"), figure("messages/s", "per_s"), figure("lost", "lost")]
            report.add_rates(transport, "drain", measure_drains(transport, connections, options), columns)
            recorders = {"no flood": measure_ticker(None, count, floods)}
            for name, opener in {"kclient": kclient_run, "zmq.green + codec": DRAINS["zmq.green + codec"]}.items():
                with (
                    opener(connections["kclient run" if name == "kclient" else name]) as drain,
                    ProgressLine(f"ticker, {name}, {transport}", 1),
                ):
                    drain(options.pick(5000, 50))
                    recorders[name] = measure_ticker(drain, count, floods)
            report.add_calls(transport, "ticker, flooded", recorders)
    report.finish()


if __name__ == "__main__":
    run_script(main)
