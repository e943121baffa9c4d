"""Iopub, or shell, that lags: a stalled or slow line loses nothing, so no call may take it for a loss."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from figures import Figures
from fixtures import WAIT, Background, Gate
from proxy import Line

import kclient
from kclient.client import watchdog
from kclient.concurrency.deadline import Deadline
from kclient.testing import FakeKernel, result, stream

Client = kclient.KernelClient

CODE = "print('hi'); 6 * 7"

LONGER = 20
"""Seconds that each stall of this file may take beside its own time, on a busy machine."""

SHORT_STALL_S = 1.0
"""Seconds. The watchdog asks after 50 ms here."""


@pytest.fixture(scope="module")
def real_kernel() -> Iterator[kclient.KernelManager]:
    """One real kernel for this file: code that tests give up does not reach other files."""
    with kclient.start_kernel(timeout=60) as manager:
        yield manager


@pytest.fixture
def line(real_kernel: kclient.KernelManager) -> Iterator[Line]:
    with Line(real_kernel.get_connection_info()) as line:
        yield line


@pytest.fixture
def client(line: Line) -> Iterator[Client]:
    with kclient.connect(line.connection_info, watch=False, timeout=WAIT) as client:
        client.iopub_channel.flush(WAIT)
        yield client


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the watchdog ask after 50 ms."""
    monkeypatch.setattr(watchdog, "OVERDUE_S", 0.05)


def stall(line: Line, seconds: float, channel: str = "iopub") -> None:
    """Hold a channel back for that time: time itself is the fault."""
    line.stall(channels=[channel])
    gevent.spawn_later(seconds, line.flow)


def stalls(figures: Figures) -> Iterator[float]:
    """Seconds of stalls: one with the watchdog's own patience in the short run, up to 20 s in the long one."""
    return iter([0.5, 2.5, 5.0, 10.0, 20.0] if figures.is_long else [2.5])


def is_whole(outcome: kclient.Result) -> bool:
    return (outcome.stdout, outcome.text, outcome.complete) == ("hi\n", "42", True)


def wait_for_reply(client: Client | kclient.KernelManager, execution: kclient.Execution) -> None:
    while not execution.times.reply:
        client.control_channel.kernel_info(timeout=WAIT)


def test_outputs_of_run_are_all_there_after_iopub_stalled(line: Line, client: Client, figures: Figures) -> None:
    for seconds in stalls(figures):
        stall(line, seconds)
        assert is_whole(client.run(CODE, timeout=seconds + LONGER)), f"after a stall of {seconds} s"


@pytest.mark.parametrize("megabytes", [3])
def test_big_output_on_a_slow_line_is_there(line: Line, client: Client, megabytes: int) -> None:
    """Not one whole message comes for seconds, while its bytes do."""
    line.slow_down("iopub", 1e6)
    outcome = client.run(f"print('x' * {megabytes}_000_000)", timeout=megabytes + LONGER, check=True)
    assert (len(outcome.stdout), outcome.complete) == (megabytes * 1_000_000 + 1, True)


def test_many_runs_on_a_slow_line_are_all_whole(line: Line, client: Client, impatient: None) -> None:
    line.slow_down("iopub", 200e3)
    executions = [client.submit(f"print('x' * 100_000); {number}") for number in range(5)]
    outcomes = [execution.result(timeout=WAIT) for execution in executions]
    assert [(outcome.text, len(outcome.stdout), outcome.complete) for outcome in outcomes] == [
        (str(number), 100_001, True) for number in range(5)
    ]


def test_run_that_timed_out_while_iopub_stalled_can_be_asked_again(line: Line, client: Client, impatient: None) -> None:
    line.stall(channels=["iopub"])
    execution = client.submit(CODE)
    with pytest.raises(kclient.KernelTimeout) as caught:
        execution.result(timeout=SHORT_STALL_S)
    assert caught.value.result is not None
    assert not caught.value.result.complete
    line.flow()
    assert is_whole(execution.result(timeout=WAIT))


def test_run_that_times_out_while_only_its_outputs_lag_interrupts_nothing(impatient: None) -> None:
    """An interrupt would hit the code that the kernel runs next."""
    ended = gevent.event.Event()
    script = {"6 * 7": lambda request: ended.wait(WAIT)}
    with FakeKernel(script) as fake, Line(fake.connection_info) as line:
        with kclient.connect(line.connection_info, watch=False, timeout=WAIT) as client:
            running = gevent.spawn(client.run, "6 * 7", timeout=SHORT_STALL_S)
            while not client.iopub_channel.outputs.executing:
                client.iopub_channel.changed.wait(Deadline(WAIT))
            line.stall(channels=["iopub"])
            ended.set()
            with pytest.raises(kclient.KernelTimeout, match="its code has ended"):
                running.get()
            client.control_channel.kernel_info(timeout=WAIT)
            line.flow()
    assert "interrupt_request" not in [request.msg_type for request in fake.requests]


def test_code_in_a_subshell_that_ends_while_iopub_stalls_is_whole(line: Line, client: Client, impatient: None) -> None:
    if "kernel subshells" not in client.info.supported_features:
        pytest.skip("this kernel has no subshells")
    subshell_id = client.create_subshell(timeout=WAIT).content["subshell_id"]
    line.stall(channels=["iopub"])
    execution = client.submit(CODE, subshell_id=subshell_id)
    wait_for_reply(client, execution)
    client.delete_subshell(subshell_id, timeout=WAIT)
    gevent.sleep(2 * SHORT_STALL_S)  # time itself: longer than a deleted subshell is asked
    assert not execution.done()
    line.flow()
    assert is_whole(execution.result(timeout=WAIT))


@pytest.mark.parametrize("call", ["run", "execute"])
def test_reply_that_comes_long_after_the_idle_status_is_waited_for(
    line: Line, client: Client, gate: Gate, background: Callable[..., Background], impatient: None, call: str
) -> None:
    """Shell stalls, and iopub does not. The question about the reply waits behind it."""
    waiting = background(getattr(client, call), f"{gate.code} 6 * 7", timeout=WAIT)
    while not client.iopub_channel.outputs.executing:
        client.iopub_channel.changed.wait(Deadline(WAIT))
    stall(line, SHORT_STALL_S, "shell")
    gate.open()
    outcome = waiting.get()
    assert outcome.ok if call == "run" else outcome.content["status"] == "ok"


def test_comm_message_that_comes_late_is_received(line: Line, client: Client, impatient: None) -> None:
    stall(line, SHORT_STALL_S)
    with pytest.raises(kclient.CommClosed):
        client.comms.open("no such target").receive(timeout=WAIT)


def test_flush_waits_again_for_what_an_earlier_flush_has_not_got(line: Line, client: Client, impatient: None) -> None:
    line.stall(channels=["iopub"])
    client.execute(CODE, timeout=WAIT)
    assert client.iopub_channel.flush(timeout=SHORT_STALL_S) == []
    gevent.spawn_later(SHORT_STALL_S, line.flow)
    msg_types = [message.msg_type for message in client.iopub_channel.flush(timeout=WAIT)]
    assert msg_types == ["status", "execute_input", "stream", "execute_result", "status"]


# What is lost all the same


FLOOD = """
from IPython.display import display
for _ in range(3_000):
    display({"text/plain": "x" * 20_000}, raw=True)
"""


def test_run_whose_outputs_the_kernel_dropped_ends_as_incomplete(line: Line, client: Client, impatient: None) -> None:
    """The kernel's PUB drops what a stalled peer does not take. The idle status is the last of it."""
    line.stall(channels=["iopub"])
    execution = client.submit(FLOOD, check=True)
    wait_for_reply(client, execution)
    line.flow()
    with pytest.raises(kclient.IncompleteOutput, match=r"\.result") as caught:
        execution.result(timeout=WAIT)
    assert caught.value.result is not None
    assert 0 < len(caught.value.result.outputs) < 3_000
    assert is_whole(client.run(CODE, timeout=WAIT, check=True))


def test_kernel_that_dies_while_iopub_stalls_ends_the_run(
    background: Callable[..., Background], impatient: None
) -> None:
    with FakeKernel({"6 * 7": [stream("hi\n"), result("42")]}) as fake, Line(fake.connection_info) as line:
        with kclient.connect(line.connection_info, timeout=WAIT) as client:
            client.iopub_channel.flush(WAIT)
            client.hb_channel.pause()
            client.hb_channel.time_to_dead = 0.2
            client.hb_channel.unpause()
            line.stall(channels=["iopub"])
            execution = client.submit("6 * 7")
            waiting = background(execution.result)
            wait_for_reply(client, execution)
            line.cut()
            error = waiting.error()
    assert isinstance(error, kclient.DeadKernelError)
    assert error.result is not None
    assert error.result.reply is not None


def test_kernel_of_ours_that_dies_while_iopub_stalls_ends_the_run(
    start_kernel: Callable[..., Any], background: Callable[..., Background], impatient: None
) -> None:
    manager = start_kernel()
    connection = manager.kernel_connection
    with Line(manager.get_connection_info()) as line:
        connection.channels.move(lambda: connection.channels.transport.move(line.connection_info))
        manager.wait_for_ready(timeout=WAIT)
        manager.iopub_channel.flush(WAIT)
        line.stall(channels=["iopub"])
        execution = manager.submit("6 * 7")
        wait_for_reply(manager, execution)
        waiting = background(execution.result)
        manager.signal_kernel(signal.SIGKILL)
        error = waiting.error()
    assert isinstance(error, kclient.DeadKernelError)
    assert error.exit_code == -signal.SIGKILL
