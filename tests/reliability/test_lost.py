"""Messages that get lost between the kernel and us: every call still ends soon, and no other call is affected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import gevent
import gevent.queue
import pytest
from fixtures import WAIT

import kclient
from kclient.client import watchdog
from kclient.protocol.messages import Message
from kclient.testing import FakeKernel, error, result, stream

SOON = 2.0
"""Seconds until a run whose messages got lost has ended: a second of waiting, and some for asking again."""


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    script = {"6 * 7": [stream("hi\n"), result("42")], "lossy": [stream("some\n"), result("42")]}
    with FakeKernel(script) as fake:
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[kclient.KernelClient]:
    with kclient.connect(fake.connection_info) as client:
        yield client


def lose(fake: FakeKernel, is_lost: Callable[[Message], bool]) -> None:
    """Lose those messages of the code "lossy" for which `is_lost` is true, and no others."""

    def of_lossy(channel: str, message: Message) -> bool:
        sent = {request.msg_id: request.content.get("code") for request in fake.requests}
        return sent.get(message.parent_id or "") == "lossy" and is_lost(message)

    fake.lose = of_lossy


def is_idle(message: Message) -> bool:
    return message.content.get("execution_state") == "idle"


def is_status(message: Message) -> bool:
    return message.msg_type == "status"


def is_reply(message: Message) -> bool:
    return message.msg_type == "execute_reply"


def is_anything(message: Message) -> bool:
    return True


def is_output(message: Message) -> bool:
    return message.msg_type == "stream"


def run_beside_others(client: kclient.KernelClient) -> tuple[kclient.Execution, float]:
    """Submit the code whose messages get lost, between two unaffected ones; returns it and its beginning."""
    before = client.submit("6 * 7")
    start = perf_counter()
    lossy = client.submit("lossy")
    after = client.submit("6 * 7")
    for other in (before, after):
        outcome = other.result(timeout=WAIT)
        assert (outcome.stdout, outcome.text, outcome.complete) == ("hi\n", "42", True)
    return lossy, start


@pytest.mark.parametrize("is_lost", [is_idle, is_status])
def test_run_without_its_idle_ends_as_incomplete(
    fake: FakeKernel, client: kclient.KernelClient, caplog: pytest.LogCaptureFixture, figures: Any, is_lost: Any
) -> None:
    lose(fake, is_lost)
    with caplog.at_level(logging.WARNING):
        lossy, start = run_beside_others(client)
        outcome = lossy.result(timeout=WAIT)
    figures.note("idle lost: the run ends", perf_counter() - start, "s", at_most=SOON)
    assert (outcome.stdout, outcome.text, outcome.complete) == ("some\n", "42", False)
    assert lossy.msg_id in caplog.text


def test_run_without_one_of_its_outputs_ends_with_the_others(fake: FakeKernel, client: kclient.KernelClient) -> None:
    lose(fake, is_output)
    lossy, _ = run_beside_others(client)
    outcome = lossy.result(timeout=WAIT)
    assert (outcome.stdout, outcome.text, outcome.complete) == ("", "42", True)


def test_run_without_its_reply_raises_no_reply_and_tells_what_came(
    fake: FakeKernel, client: kclient.KernelClient, figures: Any
) -> None:
    lose(fake, is_reply)
    lossy, start = run_beside_others(client)
    with pytest.raises(kclient.NoReply) as caught:
        lossy.result(timeout=WAIT)
    figures.note("reply lost: the run ends", perf_counter() - start, "s", at_most=SOON)
    assert caught.value.msg_id == lossy.msg_id
    assert caught.value.result is not None
    assert caught.value.result.text == "42"
    assert client.run("6 * 7", timeout=WAIT).complete


def test_run_of_which_nothing_comes_back_raises_no_reply(
    fake: FakeKernel, client: kclient.KernelClient, figures: Any
) -> None:
    lose(fake, is_anything)
    lossy, start = run_beside_others(client)
    with pytest.raises(kclient.NoReply):
        lossy.result(timeout=WAIT)
    figures.note("everything lost: the run ends", perf_counter() - start, "s", at_most=SOON)
    assert client.run("6 * 7", timeout=WAIT).complete


@pytest.mark.parametrize("is_lost", [is_reply, is_anything])
def test_execute_without_its_reply_raises_no_reply(
    fake: FakeKernel, client: kclient.KernelClient, figures: Any, is_lost: Any
) -> None:
    lose(fake, is_lost)
    start = perf_counter()
    with pytest.raises(kclient.NoReply) as caught:
        client.execute("lossy", timeout=WAIT)
    figures.note("reply lost: execute ends", perf_counter() - start, "s", at_most=SOON)
    assert caught.value.msg_id is not None
    assert client.run("6 * 7", timeout=WAIT).complete


def test_many_runs_without_their_idle_end_together(
    fake: FakeKernel, client: kclient.KernelClient, figures: Any
) -> None:
    lose(fake, is_idle)
    start = perf_counter()
    executions = [client.submit("lossy") for _ in range(100)]
    outcomes = [execution.result(timeout=WAIT) for execution in executions]
    figures.note("idle lost: 100 runs end", perf_counter() - start, "s", at_most=SOON)
    assert {(outcome.text, outcome.complete) for outcome in outcomes} == {("42", False)}


def test_runs_of_a_kernel_that_never_says_idle_end(
    fake: FakeKernel, client: kclient.KernelClient, figures: Any
) -> None:
    fake.lose = lambda channel, message: message.msg_type == "status"
    start = perf_counter()
    executions = [client.submit("6 * 7") for _ in range(10)]
    outcomes = [execution.result(timeout=WAIT) for execution in executions]
    figures.note("no status ever: runs end", perf_counter() - start, "s", at_most=SOON)
    assert {(outcome.text, outcome.complete) for outcome in outcomes} == {("42", False)}


def test_failed_code_without_its_idle_is_still_a_failure(fake: FakeKernel, client: kclient.KernelClient) -> None:
    fake.script["lossy"] = [error("ValueError", "no")]
    lose(fake, is_idle)
    outcome = client.run("lossy", timeout=WAIT)
    assert (outcome.status, outcome.complete) == ("error", False)


def test_outputs_that_come_long_after_the_reply_are_waited_for(
    fake: FakeKernel, client: kclient.KernelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading a flood takes longer than a reply. While messages still come, the idle status is not lost."""
    monkeypatch.setattr(watchdog, "OVERDUE_S", 0.05)
    fake.script["much"] = [stream("x")] * 120
    under_way: gevent.queue.Queue[tuple[Any, ...]] = gevent.queue.Queue()
    send = fake.send

    def send_later(channel: str, message: Message, identities: Any) -> None:
        if channel == "iopub":
            under_way.put((channel, message, identities))
        else:
            send(channel, message, identities)

    def forward() -> None:
        for sent in under_way:
            send(*sent)
            gevent.sleep(0.01)

    monkeypatch.setattr(fake, "send", send_later)
    forwarding = gevent.spawn(forward)
    outcome = client.run("much", timeout=WAIT)
    assert (outcome.stdout, outcome.complete) == ("x" * 120, True)
    forwarding.kill()
