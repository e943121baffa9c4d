"""A kernel that this program did not start: its owner restarts it during a call, or before the client was ready."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import gevent
import pytest
from fixtures import WAIT, Background, Gate

import kclient
from kclient.client import catch_up
from kclient.testing import FakeKernel


@pytest.mark.parametrize("watch", [True, False])
def test_calls_that_wait_for_a_kernel_that_its_owner_restarts_fail(
    kernel_manager: kclient.KernelManager,
    background: Callable[..., Background],
    gate: Gate,
    await_arrival: Callable[[kclient.KernelClient], None],
    watch: bool,
) -> None:
    with kclient.connect(kernel_manager.connection_file, watch=watch, timeout=WAIT) as client:
        execution = client.submit(f"print('on'); {gate.code}")
        next(iter(execution))
        msg_id = client.shell_channel.send("kernel_info_request")
        calls = [
            background(execution.result),
            background(list, execution),
            background(client.run, "1"),
            background(client.execute, "1"),
            background(client.shell_channel.get_reply, msg_id),
        ]
        await_arrival(client)  # the new kernel would answer a request that had not left yet
        kernel_manager.restart_kernel(now=True, timeout=WAIT)
        assert [type(call.error()) for call in calls] == [kclient.KernelRestarted] * len(calls)
        assert client.run("6 * 7", timeout=WAIT).text == "42"
        gevent.joinall(list(client.kernel_connection.watchdog._watchers.values()), timeout=WAIT)  # it may ask once more
        assert len(client.shell_channel.requests) == 0
        executions = client.iopub_channel.outputs.executions.values()
        assert not any(isinstance(execution, kclient.Execution) for execution in executions)


def test_calls_on_every_channel_and_subshell_learn_of_a_restart_by_the_owner(
    kernel_manager: kclient.KernelManager, background: Callable[..., Background], gate: Gate, folder: Path
) -> None:
    """The new kernel may answer first on any of the channels."""
    os.mkfifo(arrived := folder / "arrived")
    held = f"""
def hold(*request):
    import os
    os.write(os.open({str(arrived)!r}, os.O_RDWR), b"!")
    {gate.code}
get_ipython().kernel.control_handlers["kernel_info_request"] = hold
"""
    with (
        kclient.connect(kernel_manager.connection_file, timeout=WAIT) as client,
        open(os.open(arrived, os.O_RDWR), "rb", buffering=0) as arrivals,
    ):
        client.run(held, check=True, timeout=WAIT)
        subshell_id = client.create_subshell(timeout=WAIT).content["subshell_id"]
        executions = [client.submit(f"print('on'); {gate.code}", subshell_id=shell) for shell in (None, subshell_id)]
        for execution in executions:
            next(iter(execution))
        calls = [
            background(call) for call in (*[each.result for each in executions], client.control_channel.kernel_info)
        ]
        arrivals.read(1)
        kernel_manager.restart_kernel(now=True, timeout=WAIT)
        assert [type(call.error()) for call in calls] == [kclient.KernelRestarted] * len(calls)


def test_interrupt_of_what_runs_after_the_owner_restarted_the_kernel_reaches_it(
    kernel_manager: kclient.KernelManager, gate: Gate
) -> None:
    with kclient.connect(kernel_manager.connection_file, timeout=WAIT) as client:
        old = client.submit(f"print('on'); {gate.code}")
        next(iter(old))
        kernel_manager.restart_kernel(now=True, timeout=WAIT)
        with pytest.raises(kclient.KernelRestarted):
            old.result(timeout=WAIT)
        new = client.submit("print('on')\nimport time\nfor _ in range(6000): time.sleep(0.01)")
        next(iter(new))
        new.interrupt()
        outcome = new.result(timeout=WAIT)
        assert outcome.error is not None
        assert outcome.error.ename == "KeyboardInterrupt"


def test_first_output_of_a_client_that_never_asked_whether_it_is_ready_arrives(kernel: kclient.KernelManager) -> None:
    for number in range(20):
        with kclient.KernelClient(kernel.connection_file) as client:
            client.start_channels(iopub=False)
            client.kernel_info(timeout=WAIT)
            client.start_channels()  # iopub connects last
            outcome = client.run(f"print({number})", timeout=WAIT)
            assert (outcome.stdout, outcome.complete) == (f"{number}\n", True)


def test_run_on_a_kernel_that_publishes_nothing_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catch_up, "MUTE_S", 0.5)
    with FakeKernel(welcome=False) as fake, kclient.KernelClient(fake.connection_info) as client:
        fake.lose = lambda channel, message: channel == "iopub"
        client.start_channels()
        assert not client.run("1", timeout=WAIT).complete
        assert [request.msg_type for request in fake.requests].count("execute_request") == 1


def test_run_of_a_client_that_is_not_ready_keeps_to_its_timeout() -> None:
    with FakeKernel(welcome=False) as fake, kclient.KernelClient(fake.connection_info) as client:
        fake.lose = lambda channel, message: True
        client.start_channels()
        for timeout in (0, 0.05):
            with pytest.raises(kclient.KernelTimeout) as caught:
                client.run("1", timeout=timeout)
            assert caught.value.execution is not None, "the code was sent"
