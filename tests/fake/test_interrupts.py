"""The interrupt of an execution: a kernel that does not hear the first one, and code that takes its time to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from gevent.event import Event
from gevent.queue import Queue

import kclient
from kclient.client import interrupts
from kclient.client.interrupts import INTERRUPT_AGAIN_S
from kclient.testing import FakeKernel, Request, stream


class Clock:
    """A Timer that goes off when the test calls `ring`."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._call: Callable[[], object] | None = None

    def __call__(self, hub: Any, method: Callable[..., object]) -> Clock:
        self._method = method
        return self

    def set(self, seconds: float, *args: object) -> None:
        self.seconds, self._call = seconds, lambda: self._method(*args)

    def cancel(self) -> None:
        self._call = None

    def ring(self) -> float:
        """Call back as if the time were over; returns the seconds that the timer was set to."""
        call, seconds, self._call = self._call, self.seconds, None
        assert call is not None
        call()
        return seconds

    @property
    def is_set(self) -> bool:
        return self._call is not None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(interrupts, "Timer", clock)
    return clock


@pytest.fixture
def heard() -> Queue[Request]:
    """The interrupts that the kernel has received."""
    return Queue()


@pytest.fixture
def fake(heard: Queue[Request]) -> Iterator[FakeKernel]:
    with FakeKernel() as fake:
        fake.on("interrupt_request", heard.put)
        yield fake


@pytest.fixture
def client(fake: FakeKernel, clock: Clock) -> Iterator[kclient.KernelClient]:
    with kclient.connect(fake.connection_info) as client:
        yield client


def test_code_that_prints_what_it_does_when_it_is_interrupted_is_left_to_that(
    fake: FakeKernel, client: kclient.KernelClient, clock: Clock, heard: Queue[Request]
) -> None:
    goes_on = Event()

    def code(request: Request) -> None:
        request.publish(*stream("ready"))
        heard.get()
        request.publish(*stream("cleaning up"))
        goes_on.wait()

    fake.script["code"] = code
    execution = client.submit("code")
    messages = iter(execution)
    next(messages)
    execution.interrupt()
    assert next(messages).content["text"] == "cleaning up"
    assert clock.ring() == INTERRUPT_AGAIN_S
    assert not clock.is_set
    goes_on.set()
    assert execution.result(timeout=20).ok
    client.control_channel.kernel_info(timeout=20)
    assert heard.empty()
    assert not clock.is_set


def test_interrupt_without_any_effect_is_sent_once_more_and_again_when_it_is_asked_for(
    fake: FakeKernel, client: kclient.KernelClient, clock: Clock, heard: Queue[Request]
) -> None:
    def code(request: Request) -> None:
        request.publish(*stream("ready"))
        for _ in range(3):
            heard.get()

    fake.script["code"] = code
    execution = client.submit("code")
    next(iter(execution))
    execution.interrupt()
    assert clock.ring() == INTERRUPT_AGAIN_S
    assert not clock.is_set
    execution.interrupt()
    assert execution.result(timeout=20).ok
    assert heard.empty()
