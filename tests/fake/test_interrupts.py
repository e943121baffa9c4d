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
from kclient.concurrency.deadline import Deadline
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


def busy_for(wanted: int, heard: Queue[Request]) -> Callable[[Request], None]:
    """Code that prints, and then waits for so many interrupts."""

    def code(request: Request) -> None:
        request.publish(*stream("ready"))
        for _ in range(wanted):
            heard.get()

    return code


def test_interrupt_just_after_execute_input_is_sent_once_more(
    fake: FakeKernel, client: kclient.KernelClient, clock: Clock, heard: Queue[Request]
) -> None:
    """A kernel for Java compiles then. So the fake kernel needs a third one, which has to be asked for."""
    fake.script["code"] = busy_for(3, heard)
    execution = client.submit("code")
    next(iter(execution))
    execution.interrupt()
    assert clock.ring() == INTERRUPT_AGAIN_S
    assert not clock.is_set
    execution.interrupt()
    assert execution.result(timeout=20).ok
    assert heard.empty()


@pytest.mark.parametrize("reason", ["later", "ipykernel"])
def test_interrupt_that_was_not_too_early_is_sent_once(
    fake: FakeKernel,
    client: kclient.KernelClient,
    clock: Clock,
    heard: Queue[Request],
    monkeypatch: pytest.MonkeyPatch,
    reason: str,
) -> None:
    """The code of ipykernel is there when execute_input comes."""
    if reason == "later":
        monkeypatch.setattr(interrupts, "EARLY_S", 0.0)
    else:
        info = dict(client.info.content, implementation="ipython")
        fake.on("kernel_info_request", lambda request: request.reply(info))
        client.kernel_info(timeout=20)
    fake.script["code"] = busy_for(1, heard)
    execution = client.submit("code")
    next(iter(execution))
    execution.interrupt()
    assert not clock.is_set
    assert execution.result(timeout=20).ok
    assert heard.empty()


def test_interrupt_waits_for_execute_input_but_not_for_long(
    fake: FakeKernel,
    client: kclient.KernelClient,
    clock: Clock,
    heard: Queue[Request],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Silent code has none, so the interrupt is sent at last. If execute_input comes after all, it was too early."""
    begins = Event()

    def execute(request: Request) -> None:
        begins.wait()
        request.publish("execute_input", {"code": "code", "execution_count": 1})
        request.publish(*stream("ready"))
        heard.get()
        heard.get()
        request.reply({"execution_count": 1})

    fake.on("execute_request", execute)
    execution = client.submit("code")
    while not execution.times.busy:
        assert client.iopub_channel.changed.wait(Deadline(20))
    execution.interrupt()
    client.control_channel.kernel_info(timeout=20)
    assert heard.empty()
    assert 0 < clock.seconds <= INTERRUPT_AGAIN_S
    monkeypatch.setattr(interrupts, "INTERRUPT_AGAIN_S", 0.0)  # the time is over
    clock.ring()
    assert not clock.is_set
    begins.set()
    next(iter(execution))
    clock.ring()
    assert execution.result(timeout=20).ok
    assert heard.empty()
