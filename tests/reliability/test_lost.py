"""Messages that get lost between the kernel and us: every call still ends soon, and no other call is affected."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import gevent
import gevent.event
import gevent.queue
import pytest
from figures import Figures
from fixtures import WAIT

import kclient
from kclient.client import catch_up, watchdog
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
    fake: FakeKernel, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is given up after `MUTE_S` of silence on iopub; then it is known that the kernel does not say it."""
    if not figures.is_long:
        monkeypatch.setattr(catch_up, "MUTE_S", 0.5)
        monkeypatch.setattr(catch_up, "ASK_AGAIN_S", 0.1)
    fake.lose = lambda channel, message: message.msg_type == "status"
    with kclient.connect(fake.connection_info) as client:
        first = client.run("6 * 7", timeout=2 * WAIT)
        start = perf_counter()
        executions = [client.submit("6 * 7") for _ in range(10)]
        outcomes = [execution.result(timeout=WAIT) for execution in executions]
        figures.note("no status ever: later runs end", perf_counter() - start, "s", at_most=SOON)
    assert {(outcome.text, outcome.complete) for outcome in (first, *outcomes)} == {("42", False)}


def test_kernel_that_has_said_idle_and_says_it_no_more_is_waited_for(
    fake: FakeKernel, client: kclient.KernelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot be told from a kernel whose statuses are on their way. The caller's timeout ends the wait."""
    for name in ("MUTE_S", "ASK_AGAIN_S"):
        monkeypatch.setattr(catch_up, name, 0.001)
    monkeypatch.setattr(watchdog, "OVERDUE_S", 0.001)
    fake.lose = lambda channel, message: message.msg_type == "status"
    with pytest.raises(kclient.KernelTimeout) as caught:
        client.run("6 * 7", timeout=0.5)
    assert caught.value.result is not None
    assert caught.value.result.stdout == "hi\n"
    asked = [request.msg_type for request in fake.requests].count("kernel_info_request")
    assert asked <= 12, "each pause between two questions is twice as long as the one before"


def test_question_whose_own_idle_is_lost_is_asked_again(
    fake: FakeKernel, client: kclient.KernelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catch_up, "ASK_AGAIN_S", 0.05)
    monkeypatch.setattr(watchdog, "OVERDUE_S", 0.05)
    lose(fake, is_idle)
    of_lossy, lost = fake.lose, []

    def lose_more(channel: str, message: Message) -> bool:
        asked = message.parent_header.get("msg_type") == "kernel_info_request"
        if asked and is_idle(message) and len(lost) < 3:
            lost.append(message)
            return True
        return of_lossy is not None and of_lossy(channel, message)

    fake.lose = lose_more
    outcome = client.run("lossy", timeout=WAIT)
    assert (outcome.text, outcome.complete, len(lost)) == ("42", False, 3)
    assert client.run("6 * 7", timeout=WAIT).complete


def test_check_raises_incomplete_output(fake: FakeKernel, client: kclient.KernelClient) -> None:
    lose(fake, is_idle)
    with pytest.raises(kclient.IncompleteOutput) as caught:
        client.run("lossy", check=True, timeout=WAIT)
    assert caught.value.result is not None
    assert caught.value.result.stdout == "some\n"
    with pytest.raises(kclient.IncompleteOutput):
        client.submit("lossy", check=True).result(timeout=WAIT)


def test_flush_ends_when_it_is_known_that_an_idle_status_is_lost(
    fake: FakeKernel, client: kclient.KernelClient
) -> None:
    lose(fake, is_idle)
    client.iopub_channel.flush()
    client.execute("lossy", timeout=WAIT)
    start = perf_counter()
    msg_types = [message.msg_type for message in client.iopub_channel.flush(timeout=WAIT)]
    assert msg_types == ["status", "execute_input", "stream", "execute_result"]
    assert perf_counter() - start < WAIT / 2


def test_failed_code_without_its_idle_is_still_a_failure(fake: FakeKernel, client: kclient.KernelClient) -> None:
    fake.script["lossy"] = [error("ValueError", "no")]
    lose(fake, is_idle)
    outcome = client.run("lossy", timeout=WAIT)
    assert (outcome.status, outcome.complete) == ("error", False)
    with pytest.raises(kclient.ExecutionError, match="ValueError"):
        client.run("lossy", check=True, timeout=WAIT)


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


# A kernel that is deaf on shell


@pytest.fixture
def deafen(fake: FakeKernel, client: kclient.KernelClient, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the kernel read nothing more from shell once it has that code, whose reply or idle status is lost."""
    monkeypatch.setattr(watchdog, "OVERDUE_S", 0.05)
    monkeypatch.setattr(watchdog, "NUDGE_WAIT_S", 0.2)
    monkeypatch.setattr(catch_up, "DEAF_S", 0.5)

    def take(port: Any, frames: list[bytes]) -> None:
        if port.name != "shell" or not any(request.content.get("code") == "lossy" for request in fake.requests):
            FakeKernel.take(fake, port, frames)

    def deafen(lost: str) -> None:
        lose(fake, is_reply if lost == "reply" else is_idle)
        fake.take = take  # type: ignore[method-assign]

    return deafen


@pytest.mark.parametrize("call", ["run", "execute"])
def test_kernel_that_is_deaf_on_shell_and_answers_on_control_ends_the_call(
    client: kclient.KernelClient, deafen: Callable[[str], None], call: str
) -> None:
    deafen("reply")
    with pytest.raises(kclient.NoReply, match="control"):
        getattr(client, call)("lossy")
    with pytest.raises(kclient.NoReply, match="control"):
        client.run("6 * 7")
    with pytest.raises(kclient.NoReply, match="control"):
        client.complete("x")
    assert client.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"


def test_run_whose_idle_was_lost_ends_though_the_kernel_is_deaf(
    client: kclient.KernelClient, deafen: Callable[[str], None]
) -> None:
    deafen("idle")
    outcome = client.run("lossy")
    assert (outcome.text, outcome.complete) == ("42", False)


def test_kernel_that_is_deaf_on_control_too_is_waited_for(
    fake: FakeKernel, client: kclient.KernelClient, deafen: Callable[[str], None]
) -> None:
    """It may be stopped, or its host may be cut off."""
    deafen("reply")
    take = fake.take
    fake.take = lambda port, frames: None if port.name == "control" else take(port, frames)  # type: ignore[method-assign]
    with pytest.raises(kclient.KernelTimeout):
        client.run("lossy", timeout=2)


def test_kernel_that_is_busy_for_another_client_is_not_taken_for_deaf(
    fake: FakeKernel, client: kclient.KernelClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "OVERDUE_S", 0.05)
    monkeypatch.setattr(catch_up, "DEAF_S", 0.2)
    lose(fake, is_reply)
    goes_on = gevent.event.Event()
    fake.script["long"] = lambda request: goes_on.wait(WAIT)
    with kclient.connect(fake.connection_info) as other:
        lossy = client.submit("lossy")
        long = other.submit("long")
        with pytest.raises(kclient.KernelTimeout):
            lossy.result(timeout=1.5)
        goes_on.set()
        with pytest.raises(kclient.NoReply, match="sent no reply"):
            lossy.result(timeout=WAIT)
        assert long.result(timeout=WAIT).ok
