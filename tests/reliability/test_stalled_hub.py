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
from kclient.testing import FakeKernel, Request, result, stream
from kclient.testing.script import DEFAULT_HANDLERS

TIMEOUT = 0.03

STALL = 0.05
"""Seconds for which the hub stands still when the answer is out; longer than the timeout."""

Client = kclient.KernelClient


class Apart(FakeKernel):
    """A kernel in a thread of its own, which waits for `go` before it answers, and sets `answered` when it has."""

    def __init__(self) -> None:
        super().__init__({"6 * 7": [stream("hi\n"), result("42")]}, thread=True)
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
        """The idle status is the last message of an answer; nothing gets lost."""
        if message.content.get("execution_state") == "idle":
            self.answered.set()
        return False

    def send_stray(self, channel: str, identity: bytes) -> None:
        """Something that nobody has asked for."""
        stray = self.session.msg("stray", {}, parent={"msg_id": "none"})
        self.send(channel, stray, [b"topic" if channel == "iopub" else identity])
        self.answered.set()


@pytest.fixture
def fake() -> Iterator[Apart]:
    with Apart() as fake:
        yield fake


@pytest.fixture
def client(fake: Apart) -> Iterator[Client]:
    with kclient.connect(fake.connection_info, watch=False, timeout=WAIT) as client:
        client.control_channel.kernel_info(timeout=WAIT)  # from now on the kernel can send there, too
        client.iopub_channel.flush(timeout=WAIT)
        yield client


def get_reply(client: Client) -> Callable[[], Any]:
    msg_id = client.shell_channel.send("complete_request", {"code": "", "cursor_pos": 0})
    return lambda: client.shell_channel.get_reply(msg_id, timeout=TIMEOUT).content["status"]


def get_result(client: Client) -> Callable[[], Any]:
    execution = client.submit("6 * 7")
    return lambda: execution.result(timeout=TIMEOUT).text


CALLS: dict[str, tuple[Callable[[Client], Callable[[], Any]], str | None]] = {
    "run": (lambda client: lambda: client.run("6 * 7", timeout=TIMEOUT).text, "42"),
    "run with on_output": (
        lambda client: lambda: client.run("6 * 7", timeout=TIMEOUT, on_output=lambda message: None).text,
        "42",
    ),
    "result": (get_result, "42"),
    "execute": (lambda client: lambda: client.execute("1", timeout=TIMEOUT).content["status"], "ok"),
    "complete": (lambda client: lambda: client.complete("x", timeout=TIMEOUT).content["status"], "ok"),
    "get_reply": (get_reply, "ok"),
    "kernel_info on control": (
        lambda client: lambda: client.control_channel.kernel_info(timeout=TIMEOUT).content["status"],
        "ok",
    ),
    "wait_for_ready": (lambda client: lambda: client.wait_for_ready(timeout=TIMEOUT), None),
}


def stall(fake: Apart) -> None:
    """Block the whole thread, and so the hub, from before the answer goes out until it has long arrived."""
    assert fake.answered.wait(WAIT)
    time.sleep(STALL)
    fake.answered.clear()


@pytest.mark.parametrize("name", CALLS)
def test_answer_that_arrives_while_the_hub_stands_still_is_returned(
    fake: Apart, client: Client, background: Callable[..., Background], figures: Figures, name: str
) -> None:
    make, expected = CALLS[name]
    for _ in range(figures.size(2, 20)):
        fake.go.clear()
        fake.answered.clear()
        waiting = background(make(client))
        assert waiting.is_waiting
        fake.go.set()
        stall(fake)
        assert waiting.get() == expected


@pytest.mark.parametrize("name", ["shell", "control", "iopub", "stdin"])
def test_message_that_arrives_while_the_hub_stands_still_is_returned(
    fake: Apart, client: Client, background: Callable[..., Background], figures: Figures, name: str
) -> None:
    for _ in range(figures.size(2, 20)):
        waiting = background(getattr(client, f"{name}_channel").get_msg, timeout=TIMEOUT)
        fake.answered.clear()
        fake.send_stray(name, client.session.identity)
        stall(fake)
        assert waiting.get().msg_type == "stray"


def test_idle_that_arrives_while_the_hub_stands_still_is_flushed(
    fake: Apart, client: Client, background: Callable[..., Background], figures: Figures
) -> None:
    fake.replies_first = True
    for _ in range(figures.size(2, 20)):
        fake.go.clear()
        client.execute("6 * 7", timeout=WAIT)
        fake.answered.clear()
        waiting = background(client.iopub_channel.flush, timeout=TIMEOUT)
        assert waiting.is_waiting
        fake.go.set()
        stall(fake)
        types = [message.msg_type for message in waiting.get()]
        assert types == ["status", "execute_input", "stream", "execute_result", "status"]


def test_kernel_that_beats_while_the_hub_stands_still_is_neither_missed_nor_dead(
    fake: Apart, client: Client, figures: Figures
) -> None:
    missed: list[float] = []
    hb = client.hb_channel
    hb.time_to_dead = TIMEOUT
    hb.call_handlers = missed.append  # type: ignore[method-assign]
    for _ in range(figures.size(2, 20)):
        client.watch(dead_after=TIMEOUT)
        gevent.sleep(1e-6)  # the ping goes out with the loop's next turn, at the latest
        time.sleep(STALL)
        gevent.sleep(1e-6)
        assert hb.is_beating()
        assert client.is_alive()
        hb.pause()
        assert missed == []
    assert client.run("6 * 7", timeout=WAIT).text == "42"
