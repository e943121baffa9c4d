"""`linger`: output that comes after the end of the code, and the end of the wait for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import pytest
from gevent.event import Event

import kclient
from kclient.client import lingering
from kclient.testing import FakeKernel, Request, stream

Client = kclient.KernelClient


class Clock:
    """A Timer that goes off when the test calls `ring`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.was_set = Event()

    def __call__(self, owner: Any, method: Callable[..., object]) -> Clock:
        self.ring = method
        return self

    def set(self, seconds: float) -> None:
        self.seconds = seconds
        self.was_set.set()

    def cancel(self) -> None:
        """It goes off only by hand."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lingering, "Timer", clock)
    return clock


def answer(request: Request) -> None:
    """Run the code to its end, and publish something late."""
    request.publish(*stream("in time\n"))
    request.reply()
    request.publish("status", {"execution_state": "idle"})
    if request.content["code"] == "late":
        request.publish(*stream("late\n"))


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    with FakeKernel() as fake:
        fake.on("execute_request", answer)
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[Client]:
    with kclient.connect(fake.connection_info) as client:
        yield client


def test_late_output_is_in_the_result_and_reaches_the_callback(client: Client, clock: Clock) -> None:
    seen: list[str] = []

    def see(message: kclient.Message) -> None:
        seen.append(message.content["text"])
        if seen[-1] == "late\n":
            clock.ring()

    result = client.run("late", linger=7, on_output=see)
    assert (result.stdout, result.ok, result.complete) == ("in time\nlate\n", True, True)
    assert seen == ["in time\n", "late\n"]
    assert 6 < clock.seconds <= 7
    assert client.run("next").stdout == "in time\n"


def test_late_output_of_submit_comes_out_of_its_iteration(client: Client, clock: Clock) -> None:
    execution = client.submit("late", linger=7)
    texts = []
    for message in execution:
        texts.append(message.content["text"])
        if texts[-1] == "late\n":
            assert not execution.done()
            clock.ring()
    assert texts == ["in time\n", "late\n"]
    assert execution.done()
    assert execution.result().stdout == "in time\nlate\n"


def test_submit_that_is_asked_for_its_result_too_early_may_be_asked_again(client: Client, clock: Clock) -> None:
    execution = client.submit("late", linger=7)
    clock.was_set.wait()
    with pytest.raises(kclient.KernelTimeout):
        execution.result(timeout=0)
    clock.ring()
    assert execution.result(timeout=0).ok


def test_run_returns_when_the_time_is_over(client: Client) -> None:
    begun = perf_counter()
    assert client.run("code", linger=0.05).stdout == "in time\n"
    assert perf_counter() - begun >= 0.05


def test_timeout_of_run_ends_the_wait_and_is_no_error(client: Client) -> None:
    begun = perf_counter()
    assert client.run("late", linger=60, timeout=1).ok
    assert perf_counter() - begun < 30


def test_end_of_the_channels_ends_the_wait_with_the_result(client: Client, clock: Clock) -> None:
    execution = client.submit("code", linger=7)
    clock.was_set.wait()
    client.stop_channels()
    assert execution.result(timeout=0).stdout == "in time\n"


def test_code_that_fails_to_end_does_not_linger(client: Client, fake: FakeKernel, clock: Clock) -> None:
    fake.on("execute_request", lambda request: Event().wait())
    with pytest.raises(kclient.KernelTimeout):
        client.run("hang", linger=7, timeout=0.1)
    execution = client.submit("hang", linger=7)
    client.stop_channels()
    with pytest.raises(kclient.ChannelClosed):
        execution.result()
    assert not clock.was_set.is_set()


@pytest.mark.parametrize("nonsense", [-1, "1", None, True])
def test_linger_must_be_a_number_of_seconds(client: Client, nonsense: Any) -> None:
    with pytest.raises(kclient.InvalidArgument, match="linger"):
        client.run("1", linger=nonsense)
    with pytest.raises(kclient.InvalidArgument, match="linger"):
        client.submit("1", linger=nonsense)
