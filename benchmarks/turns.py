"""What is measured of kclient where `benchmarks.clients` is not enough, and the turns that one build of it takes.

With ``--against`` this module runs in a process of each build (`benchmarks.build_process`). An older build has other
modules inside: nothing here may use more of kclient than its public names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import cache, partial
from itertools import pairwise
from time import perf_counter, perf_counter_ns, sleep
from typing import Any

import attrs
import gevent

import kclient
from benchmarks.clients import PATIENCE, Client, KClient, KClientSpin
from benchmarks.codec import execute_content
from benchmarks.kernels import Connection

WARM_UP_CALLS = 10
"""Before those that are timed, in each turn: the first calls of a client that has just connected are slower."""

WARM_UP_CALLS_OF_MANY = 3

IN_FLIGHT = 100

TICK_S = 0.001

SETTLE_S = 0.2
"""Between a kernel's first reply and its shutdown: it is to be idle."""

KCLIENTS: dict[str, type[KClient]] = {"kclient": KClient, "kclient spin": KClientSpin}

at_end = ExitStack()
"""What the process of a build closes before it ends."""


def time_calls(call: Callable[[], object], count: int) -> list[int]:
    """Nanoseconds of each of `count` calls, one right after the other; times both builds, unlike kclient.bench's."""
    times = []
    for _ in range(count):
        start = perf_counter_ns()
        call()
        times.append(perf_counter_ns() - start)
    return times


def calls(client: str, operation: str, connection: Connection, count: int) -> list[int]:
    """Connect, and time an operation of that client."""
    with closing(KCLIENTS[client](connection, iopub=operation != "kernel_info")) as opened:
        call = getattr(opened, operation)
        time_calls(call, WARM_UP_CALLS)
        opened.tidy()
        return time_calls(call, count)


# Many requests in flight

Pipelined = Callable[[int], tuple[list[int], float]]
"""Makes so many kernel_info calls, `IN_FLIGHT` of them at a time: nanoseconds of each, and seconds of them all."""


@contextmanager
def kclient_greenlets(connection: Connection, opened: type[KClient] = KClient) -> Iterator[Pipelined]:
    """Greenlets that each make one call after the other, on a client that they share."""
    with closing(opened(connection, iopub=False)) as shared:

        def calls(count: int) -> tuple[list[int], float]:
            times: list[int] = []

            def work() -> None:
                for _ in range(count // IN_FLIGHT):
                    start = perf_counter_ns()
                    shared.kernel_info()
                    times.append(perf_counter_ns() - start)

            start = perf_counter()
            gevent.joinall([gevent.spawn(work) for _ in range(IN_FLIGHT)], raise_error=True)
            return times, perf_counter() - start

        yield calls


def pipelined(client: str, connection: Connection, count: int) -> tuple[list[int], float]:
    """Connect, and make that many calls, with many in flight."""
    with kclient_greenlets(connection, KCLIENTS[client]) as calls:
        calls(IN_FLIGHT)
        return calls(count)


# A flood of output


@attrs.frozen
class Drained:
    """What became of one flood: messages that arrived, when the burst began, and when all was in."""

    received: int
    started: float
    ended: float


Drain = Callable[[int], Drained]
"""Asks for a flood of that many messages, and takes it in."""


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


KCLIENT_DRAINS: dict[str, Callable[[Connection], AbstractContextManager[Drain]]] = {
    "kclient run": kclient_run,
    "kclient submit": kclient_submit,
    "kclient get_msg": kclient_get_msg,
}


def gaps(drain: Drain, count: int) -> list[int]:
    """Nanoseconds between one tick and the next, of a greenlet that sleeps for 1 ms, while a flood comes in."""
    ticks: list[int] = []

    def tick() -> None:
        while True:
            ticks.append(perf_counter_ns())
            gevent.sleep(TICK_S)

    ticker = gevent.spawn(tick)
    try:
        flood = drain(count)
        gevent.sleep(0.02)  # the last gap ends after the flood
    finally:
        ticker.kill()
    return [
        end - start
        for start, end in pairwise(ticks)
        if flood.started <= end / 1e9 and start / 1e9 <= flood.ended  # of which some part was in the flood
    ]


def flood(client: str, connection: Connection, warm_up: int, count: int) -> Drained:
    """Connect, and take in two floods: a small one, and one that is timed."""
    with KCLIENT_DRAINS[client](connection) as drain:
        drain(warm_up)
        return drain(count)


def flooded_ticker(connection: Connection, warm_up: int, count: int) -> list[int]:
    """The gaps of a ticker beside `run`."""
    with kclient_run(connection) as drain:
        drain(warm_up)
        return gaps(drain, count)


# One client and many


def one_alone(client: type[Client], connection: Connection, count: int) -> list[int]:
    with closing(client(connection, iopub=False)) as opened:
        time_calls(opened.kernel_info, WARM_UP_CALLS_OF_MANY)
        return time_calls(opened.kernel_info, count)


def all_in_turn(client: type[Client], connections: Sequence[Connection]) -> list[int]:
    with ExitStack() as stack:
        opened = [stack.enter_context(closing(client(connection, iopub=False))) for connection in connections]
        for each in opened:
            time_calls(each.kernel_info, WARM_UP_CALLS_OF_MANY)
        return [time for each in opened for time in time_calls(each.kernel_info, 1)]


# Beginnings and ends

Times = tuple[int, int]
"""Nanoseconds of a start, and of the shutdown."""


def life_with_kclient(transport: str, launcher: kclient.ForkServer | None = None) -> Times:
    """Without encryption, as the others."""
    start = perf_counter_ns()
    with kclient.start_kernel(transport=transport, encryption="off", launcher=launcher) as kernel:
        started = perf_counter_ns() - start
        sleep(SETTLE_S)
        start = perf_counter_ns()
        kernel.shutdown_kernel()
        return started, perf_counter_ns() - start


def forked_life(transport: str) -> Times:
    return life_with_kclient(transport, fork_server(transport))


@cache
def fork_server(transport: str) -> kclient.ForkServer:
    """One that has started a kernel, and so has imported all."""
    launcher = at_end.enter_context(kclient.ForkServer())
    life_with_kclient(transport, launcher)
    return launcher


def ready_client(connection: Connection) -> kclient.KernelClient:
    """A fresh client of a kernel that is ready."""
    client = kclient.KernelClient(connection)
    client.start_channels()
    client.wait_for_ready(PATIENCE)
    return client


def time_until_ready(connection: Connection, count: int) -> list[int]:
    """Nanoseconds from nothing to ready, of so many clients; one more comes before them."""
    times = []
    for _ in range(1 + count):
        start = perf_counter_ns()
        client = ready_client(connection)
        times.append(perf_counter_ns() - start)
        client.close()
    return times[1:]


TURNS: dict[str, Callable[..., Any]] = {
    "calls": calls,
    "pipelined": pipelined,
    "flood": flood,
    "flooded_ticker": flooded_ticker,
    "one_alone": partial(one_alone, KClient),
    "all_in_turn": partial(all_in_turn, KClient),
    "life": life_with_kclient,
    "forked_life": forked_life,
    "time_until_ready": time_until_ready,
}
"""By the names that `benchmarks.builds` sends."""
