"""Kernels that skip code which is queued behind an error or an interrupt, although no request asked for that."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import kclient
from kclient.testing import FakeKernel, Request, result

WAIT = 20
"""Seconds, for a wait of milliseconds on an idle machine."""


class SkippingKernel(FakeKernel):
    """Skips the next `skips` requests to run code, and notes what it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.skips = 0
        self.ran: list[str] = []
        self.on("execute_request", self.run)

    def run(self, request: Request) -> None:
        if self.skips:
            self.skips -= 1
            request.reply({"status": "aborted"})
            return
        self.ran.append(request.content["code"])
        request.publish("execute_input", {"code": request.content["code"], "execution_count": 1})
        request.publish(*result("done"))
        request.reply({"execution_count": 1})


@pytest.fixture
def fake() -> Iterator[SkippingKernel]:
    with SkippingKernel() as fake:
        yield fake


@pytest.fixture
def client(fake: SkippingKernel) -> Iterator[kclient.KernelClient]:
    with kclient.connect(fake.connection_info) as client:
        yield client


def tell(fake: FakeKernel, client: kclient.KernelClient, implementation: str) -> None:
    """Let the kernel say that it is another one."""
    info = dict(client.info.content, implementation=implementation)
    fake.on("kernel_info_request", lambda request: request.reply(info))
    client.kernel_info(timeout=WAIT)


def test_code_that_was_skipped_against_its_will_is_sent_once_more(
    fake: SkippingKernel, client: kclient.KernelClient
) -> None:
    fake.skips = 1
    execution = client.submit("code")
    assert [message.msg_type for message in execution] == ["execute_result"]
    assert execution.result(timeout=WAIT).text == "done"
    assert fake.ran == ["code"]


def test_code_that_is_skipped_twice_says_so(fake: SkippingKernel, client: kclient.KernelClient) -> None:
    fake.skips = 2
    done = client.run("code", timeout=WAIT)
    assert (done.status, done.ok, done.complete) == ("aborted", False, True)
    with pytest.raises(kclient.ExecutionAborted, match="earlier code failed or was interrupted; the code did not run"):
        done.raise_for_error()
    assert fake.ran == []


def test_program_that_uses_stop_on_error_gets_what_it_asked_for(
    fake: SkippingKernel, client: kclient.KernelClient
) -> None:
    client.run("1", stop_on_error=True, timeout=WAIT)
    fake.skips = 1
    assert client.run("code", timeout=WAIT).status == "aborted"
    assert fake.ran == ["1"]


@pytest.mark.parametrize("implementation", ["IRkernel", "tslab", "xeus-python", "seen once"])
def test_such_a_kernel_is_sent_one_request_at_a_time(
    fake: SkippingKernel, client: kclient.KernelClient, implementation: str
) -> None:
    if implementation == "seen once":
        fake.skips = 1
        client.run("0", timeout=WAIT)
        fake.ran.clear()
    else:
        tell(fake, client, implementation)
    executions = [client.submit(f"{n}") for n in range(5)]
    held = [client.shell_channel.turns.holds(execution.msg_id) for execution in executions]
    assert held == [False, True, True, True, True]
    executions[2].interrupt()
    assert client.complete("impor", timeout=WAIT).content["status"] == "ok"
    assert [execution.result(timeout=WAIT).status for execution in executions] == ["ok", "ok", "aborted", "ok", "ok"]
    assert fake.ran == ["0", "1", "3", "4"]


@pytest.mark.parametrize("implementation", ["fake", "ipython"])
def test_other_kernels_are_sent_all_at_once(
    fake: SkippingKernel, client: kclient.KernelClient, implementation: str
) -> None:
    """ipykernel skips code only for the sake of another client, so it stays so."""
    tell(fake, client, implementation)
    if implementation == "ipython":
        fake.skips = 1
        assert client.run("0", timeout=WAIT).ok
    executions = [client.submit(f"{n}") for n in range(3)]
    assert not client.shell_channel.turns.rows
    assert all(execution.result(timeout=WAIT).ok for execution in executions)


def test_requests_that_wait_for_their_turn_fail_when_the_channels_close(
    fake: SkippingKernel, client: kclient.KernelClient
) -> None:
    tell(fake, client, "IRkernel")
    executions = [client.submit(f"{n}") for n in range(3)]
    client.stop_channels()
    for execution in executions:
        with pytest.raises(kclient.ChannelClosed):
            execution.result(timeout=WAIT)


def test_all_that_was_skipped_is_sent_once_more(fake: SkippingKernel, client: kclient.KernelClient) -> None:
    fake.skips = 3
    executions = [client.submit(f"{n}") for n in range(5)]
    assert [execution.result(timeout=WAIT).text for execution in executions] == ["done"] * 5
    assert sorted(fake.ran) == ["0", "1", "2", "3", "4"]
    assert not client.shell_channel.turns.rows
