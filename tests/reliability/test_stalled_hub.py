"""The hub stands still beyond a timeout, while the answer arrives: the answer wins."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from figures import Figures
from fixtures import WAIT, Background

import kclient
from kclient.channels import base
from kclient.testing import FakeKernel, Request, result, stream
from kclient.testing.script import DEFAULT_HANDLERS

TIMEOUT, STALL = 0.03, 0.05
"""Seconds that a call may take, and seconds for which the hub stands still after the answer was sent."""

SLOWER = 4
"""Factor for both on a busy machine."""

MANY = 300
"""Number of outputs. To take them in takes longer than a socket is read in two turns of the loop."""

Client = kclient.KernelClient


class Apart(FakeKernel):
    """A kernel in a thread of its own. It waits for `go` before it answers, and then sets `answered`."""

    def __init__(self) -> None:
        many = [stream(f"{number}\n") for number in range(MANY)]
        super().__init__({"6 * 7": [stream("hi\n"), result("42")], "many": [*many, result("42")]}, thread=True)
        self.go, self.answered = threading.Event(), threading.Event()
        self.go.set()
        self.replies_first = False
        for name in ("execute_request", "complete_request", "kernel_info_request"):
            self.on(name, self._answer_later)
        self.lose = self._watch

    def _answer_later(self, request: Request) -> None:
        if self.replies_first:
            DEFAULT_HANDLERS[request.message.msg_type](request)
        self.go.wait(WAIT)
        if not request.is_answered:
            DEFAULT_HANDLERS[request.message.msg_type](request)

    def _watch(self, channel: str, message: kclient.Message) -> bool:
        """True for no message: none gets lost. The idle status is the last message of an answer."""
        if message.content.get("execution_state") == "idle" or message.msg_type == "stray":
            self.answered.set()
        return False

    def send_stray(self, channel: str, identity: bytes) -> None:
        """Send a message that no call has asked for."""
        stray = self.session.msg("stray", {}, parent={"msg_id": "none"})
        address = [b"topic" if channel == "iopub" else identity]
        self._owner.run_here(lambda: self.send(channel, stray, address))  # type: ignore[union-attr]


@pytest.fixture
def pace(figures: Figures, monkeypatch: pytest.MonkeyPatch) -> int:
    if figures.is_long:
        return 1
    monkeypatch.setattr(base, "LAST_LOOK_S", STALL * SLOWER)  # for so long another process may have the processor
    return SLOWER


@pytest.fixture
def fake() -> Iterator[Apart]:
    with Apart() as fake:
        yield fake
        fake.go.set()


@pytest.fixture
def client(fake: Apart) -> Iterator[Client]:
    with kclient.connect(fake.connection_info, watch=False, timeout=WAIT) as client:
        client.control_channel.kernel_info(timeout=WAIT)  # the kernel can send on this socket from now on
        client.iopub_channel.flush(timeout=WAIT)
        yield client


def get_reply(client: Client, timeout: float) -> Callable[[], Any]:
    msg_id = client.shell_channel.send("complete_request", {"code": "", "cursor_pos": 0})
    return lambda: client.shell_channel.get_reply(msg_id, timeout=timeout).content["status"]


def get_result(client: Client, timeout: float) -> Callable[[], Any]:
    execution = client.submit("6 * 7")
    return lambda: execution.result(timeout=timeout).text


CALLS: dict[str, tuple[Callable[[Client, float], Callable[[], Any]], str | None]] = {
    "run": (lambda client, timeout: lambda: client.run("6 * 7", timeout=timeout).text, "42"),
    "run with on_output": (
        lambda client, timeout: lambda: client.run("6 * 7", timeout=timeout, on_output=lambda message: None).text,
        "42",
    ),
    "run with many outputs": (lambda client, timeout: lambda: client.run("many", timeout=timeout).text, "42"),
    "result": (get_result, "42"),
    "execute": (lambda client, timeout: lambda: client.execute("1", timeout=timeout).content["status"], "ok"),
    "complete": (lambda client, timeout: lambda: client.complete("x", timeout=timeout).content["status"], "ok"),
    "get_reply": (get_reply, "ok"),
    "kernel_info on control": (
        lambda client, timeout: lambda: client.control_channel.kernel_info(timeout=timeout).content["status"],
        "ok",
    ),
    "wait_for_ready": (lambda client, timeout: lambda: client.wait_for_ready(timeout=timeout), None),
}


def stall(fake: Apart, pace: int) -> None:
    """Block the whole thread with its hub, until the answer has long arrived."""
    assert fake.answered.wait(WAIT)
    time.sleep(STALL * pace)
    fake.answered.clear()


@pytest.mark.parametrize("name", CALLS)
def test_answer_that_arrives_while_the_hub_stands_still_is_returned(
    fake: Apart, client: Client, background: Callable[..., Background], figures: Figures, pace: int, name: str
) -> None:
    make, expected = CALLS[name]
    for _ in range(figures.size(1, 20)):
        fake.go.clear()
        fake.answered.clear()
        waiting = background(make(client, TIMEOUT * pace))
        assert waiting.is_waiting
        fake.go.set()
        stall(fake, pace)
        assert waiting.get() == expected


def test_answer_that_arrives_while_on_output_blocks_the_hub_is_returned(client: Client, pace: int) -> None:
    """The call does not wait between the callback and its look at the clock."""
    result = client.run("6 * 7", timeout=TIMEOUT * pace, on_output=lambda message: time.sleep(STALL * pace))
    assert (result.text, result.complete) == ("42", True)


@pytest.mark.parametrize("name", ["shell", "control", "iopub", "stdin"])
def test_message_that_arrives_while_the_hub_stands_still_is_returned(
    fake: Apart, client: Client, background: Callable[..., Background], figures: Figures, pace: int, name: str
) -> None:
    for _ in range(figures.size(1, 20)):
        waiting = background(getattr(client, f"{name}_channel").get_msg, timeout=TIMEOUT * pace)
        fake.answered.clear()
        fake.send_stray(name, client.session.identity)
        stall(fake, pace)
        assert waiting.get().msg_type == "stray"


def test_idle_that_arrives_while_the_hub_stands_still_is_flushed(
    fake: Apart, client: Client, background: Callable[..., Background], figures: Figures, pace: int
) -> None:
    fake.replies_first = True
    for _ in range(figures.size(1, 20)):
        fake.go.clear()
        client.execute("6 * 7", timeout=WAIT)
        fake.answered.clear()
        waiting = background(client.iopub_channel.flush, timeout=TIMEOUT * pace)
        assert waiting.is_waiting
        fake.go.set()
        stall(fake, pace)
        types = [message.msg_type for message in waiting.get()]
        assert types == ["status", "execute_input", "stream", "execute_result", "status"]


@pytest.mark.parametrize("is_asked", [True, False])
def test_kernel_is_neither_missed_nor_dead_when_the_hub_stands_still(
    client: Client, figures: Figures, pace: int, is_asked: bool
) -> None:
    """The answer has arrived meanwhile, or the last question is longer ago than the time to dead."""
    missed: list[float] = []
    hb = client.hb_channel
    hb.call_handlers = missed.append  # type: ignore[method-assign]
    hb.time_to_dead, stall = 3 * TIMEOUT * pace, 2 * STALL * pace
    for _ in range(figures.size(1, 20)):
        client.watch(dead_after=hb.time_to_dead)
        while hb._awaits_pong is not is_asked:
            gevent.sleep(0.001)
        time.sleep(stall)
        gevent.sleep(0.001)
        assert hb.is_beating()
        assert client.is_alive()
        hb.pause()
        assert missed == []
    assert client.run("6 * 7", timeout=WAIT).text == "42"
