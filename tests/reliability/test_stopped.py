"""A kernel that stands still, as after Ctrl-Z: the heartbeat misses it, it is not dead, and it loses no request."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import gevent
import gevent.event
import gevent.queue
import pytest
from crowd import expected_of, said, said_by, wait_in_shell
from figures import Figures
from fixtures import WAIT, Background

import kclient

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(300)]

TIME_TO_DEAD = 0.4

TIMEOUT = 0.15
"""Seconds that each call on the stopped kernel may take."""

LATE = 0.02
"""Seconds, at most, by which a call may be late to raise its KernelTimeout."""


class StopAndGo:
    """Stops the shared kernel, as Ctrl-Z does, and lets it go on."""

    def __init__(self, kernel: kclient.KernelManager) -> None:
        self._kernel = kernel

    def stop(self) -> float:
        """Stop the kernel with all its threads; returns the moment in `perf_counter` seconds."""
        self._kernel.signal_kernel(signal.SIGSTOP)
        assert self._kernel.process is not None
        os.waitid(os.P_PID, self._kernel.process.pid, os.WSTOPPED)
        return perf_counter()

    def go_on(self) -> None:
        self._kernel.signal_kernel(signal.SIGCONT)


@pytest.fixture
def process(kernel: kclient.KernelManager) -> Iterator[StopAndGo]:
    process = StopAndGo(kernel)
    yield process
    process.go_on()


@pytest.fixture
def misses(client: kclient.KernelClient) -> gevent.queue.Queue[float]:
    """The moments at which the heartbeat missed a beat, in `perf_counter` seconds."""
    told: gevent.queue.Queue[float] = gevent.queue.Queue()
    client.hb_channel.time_to_dead = TIME_TO_DEAD
    client.hb_channel.call_handlers = lambda since: told.put(perf_counter())  # type: ignore[method-assign]
    client.watch()
    return told


def wait_for_beat(hb: kclient.HBChannel) -> None:
    """A beat sets no event: only `is_beating` takes it in."""
    with gevent.Timeout(WAIT):
        while hb.since_last_beat() > TIME_TO_DEAD / 2 or not hb.is_beating():
            gevent.sleep(0.001)


def test_stop_is_noticed_within_the_time_to_dead(
    client: kclient.KernelClient, process: StopAndGo, misses: gevent.queue.Queue[float], figures: Figures
) -> None:
    latest = 0.0
    for _ in range(figures.size(1, 20)):
        wait_for_beat(client.hb_channel)
        stopped = process.stop()
        latest = max(latest, misses.get(timeout=WAIT) - stopped)
        assert not client.hb_channel.is_beating()
        process.go_on()
        wait_for_beat(client.hb_channel)
        assert client.is_alive()
    figures.note("stop to the missed heartbeat", latest, "s", at_most=TIME_TO_DEAD + LATE)


def calls_with_timeout(client: kclient.KernelClient) -> dict[str, Callable[[], Any]]:
    """Every call that waits for the kernel and takes a timeout."""
    shell, control = client.shell_channel, client.control_channel
    msg_id = shell.send("kernel_info_request")
    execution = client.submit("1")
    return {
        "run": lambda: client.run("1", timeout=TIMEOUT, on_abandon="leave"),
        "run with callbacks": lambda: client.run("1", timeout=TIMEOUT, on_abandon="leave", on_output=print),
        "result": lambda: execution.result(timeout=TIMEOUT),
        "execute": lambda: client.execute("1", timeout=TIMEOUT),
        "is_complete": lambda: client.is_complete("if x:", timeout=TIMEOUT),
        "get_reply": lambda: shell.get_reply(msg_id, timeout=TIMEOUT),
        "kernel_info on shell": lambda: client.kernel_info(timeout=TIMEOUT),
        "kernel_info on control": lambda: control.kernel_info(timeout=TIMEOUT),
        "wait_for_ready": lambda: client.wait_for_ready(timeout=TIMEOUT),
        **{
            f"get_msg of {name}": lambda name=name: getattr(client, f"{name}_channel").get_msg(timeout=TIMEOUT)
            for name in ("shell", "control", "iopub", "stdin")
        },
    }


def test_calls_honour_their_timeout_while_the_kernel_is_stopped(
    client: kclient.KernelClient, process: StopAndGo, background: Callable[..., Background], figures: Figures
) -> None:
    client.run("1", timeout=WAIT)  # the kernel has worked off earlier requests, and their statuses are here
    client.control_channel.kernel_info(timeout=WAIT)
    client.iopub_channel.flush()
    process.stop()
    latest = 0.0
    for _ in range(figures.size(1, 20)):
        client.iopub_channel.get_msgs()
        calls, started = {}, {}
        for name, call in calls_with_timeout(client).items():
            started[name] = perf_counter()
            calls[name] = background(call)
        errors = {name: type(call.error()) for name, call in calls.items()}
        assert errors == dict.fromkeys(calls, kclient.KernelTimeout)
        latest = max(latest, *(call.ended - started[name] - TIMEOUT for name, call in calls.items()))
    process.go_on()
    assert client.run("print('on')", timeout=WAIT).stdout == "on\n"
    figures.note("a timeout is raised late by", latest * 1e3, "ms", at_most=LATE * 1e3)


def test_stopped_kernel_is_never_called_dead_and_nothing_is_lost_when_it_goes_on(
    client: kclient.KernelClient,
    process: StopAndGo,
    misses: gevent.queue.Queue[float],
    background: Callable[..., Background],
    figures: Figures,
) -> None:
    many = figures.size(100, 1000)
    shell = client.shell_channel
    wait_for_beat(client.hb_channel)
    sent_before = [shell.send("execute_request", said(f"before {number}")) for number in range(5)]
    calls = [background(wait_in_shell(client, number)) for number in range(many // 2)]
    process.stop()
    calls += [background(wait_in_shell(client, number)) for number in range(many // 2, many)]
    sent_meanwhile = [shell.send("execute_request", said(f"meanwhile {number}")) for number in range(5)]
    for _ in range(figures.size(2, 20)):
        misses.get(timeout=WAIT)
    assert any(call.is_waiting for call in calls)
    assert {call.error() for call in calls if not call.is_waiting} <= {None}
    watching = background(client.stdin_channel.get_msg)
    process.go_on()
    assert [call.get() for call in calls] == [expected_of(number) for number in range(many)]
    for word, sent in (("before", sent_before), ("meanwhile", sent_meanwhile)):
        replies = [shell.get_reply(msg_id, timeout=WAIT) for msg_id in sent]
        assert [said_by(reply) for reply in replies] == [f"{word} {number}" for number in range(5)]
    assert watching.is_waiting
    assert not client.kernel_connection.channels.pending.owed_reply
    wait_for_beat(client.hb_channel)
    assert client.is_alive()
    assert client.run("print('on')", timeout=WAIT).complete
