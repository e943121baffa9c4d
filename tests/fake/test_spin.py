"""spin=: a call looks at its sockets for a bounded time, while no other greenlet runs, before it waits for the loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import gevent
import pytest
from gevent.event import Event

import kclient
from kclient.testing import FakeKernel, result, stream

Client = kclient.KernelClient

LONG = 1.0
"""Seconds: the most that is allowed, and more than a kernel in a thread takes to answer."""


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    """A kernel in a thread of its own. A kernel in this hub could not answer during a spin."""
    with FakeKernel({"6 * 7": [stream("hi\n"), result("42")]}, thread=True) as fake:
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[Client]:
    with kclient.connect(fake.connection_info, spin=LONG) as client:
        yield client


def await_refusal_of_a_comm(client: Client) -> None:
    with pytest.raises(kclient.CommClosed):
        client.comms.open("unknown").receive()


CALLS: dict[str, Callable[[Client], object]] = {
    "kernel_info": lambda client: client.kernel_info(),
    "shell": lambda client: client.shell_channel.execute("6 * 7"),
    "control": lambda client: client.control_channel.kernel_info(),
    "get_reply": lambda client: client.shell_channel.get_reply(client.shell_channel.send("kernel_info_request")),
    "run": lambda client: client.run("6 * 7"),
    "comm": await_refusal_of_a_comm,
    "result": lambda client: client.submit("6 * 7").result(),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_call_that_is_answered_in_time_gives_no_other_greenlet_a_turn(
    client: Client, call: Callable[[Client], object]
) -> None:
    gevent.idle()
    others: list[str] = []
    greenlet = gevent.spawn(others.append, "ran")
    call(client)
    assert others == []
    greenlet.join()


def test_outputs_are_complete_and_in_order(client: Client) -> None:
    for _ in range(20):
        done = client.run("6 * 7")
        assert (done.stdout, done.text, done.complete) == ("hi\n", "42", True)
    seen: list[str] = []
    client.run("6 * 7", on_output=lambda message: seen.append(message.msg_type))
    assert seen == [message.msg_type for message in client.submit("6 * 7")] == ["stream", "execute_result"]


def test_callbacks_of_submit_run_while_its_result_is_awaited(client: Client) -> None:
    seen: list[str] = []
    done = client.submit("6 * 7", on_output=lambda message: seen.append(message.msg_type)).result(timeout=20)
    assert (done.text, seen) == ("42", ["stream", "execute_result"])
    done = client.submit("6 * 7", on_input=lambda prompt, password: "").result(timeout=20)
    assert done.stdout == "hi\n"
    client.on_input = lambda prompt, password: ""
    assert client.submit("6 * 7").result(timeout=20).text == "42"


@pytest.mark.kernel
def test_input_is_answered_while_outputs_are_iterated() -> None:
    with kclient.start_kernel(spin=0.001) as kernel:
        code = "print('before', flush=True); print(input('name? '), flush=True)"
        texts = [message.content["text"] for message in kernel.submit(code, on_input=lambda prompt, password: "Ada")]
        assert "".join(texts).split() == ["before", "Ada"]


def test_message_behind_the_reply_is_taken_in_at_the_next_turn(client: Client) -> None:
    """The spin ends with the reply. The loop gets no second event for the message behind it."""
    first, second = (client.shell_channel.send("kernel_info_request") for _ in range(2))
    client.shell_channel.get_reply(first)
    slot, is_settled = client.shell_channel.requests.claim(second), Event()
    slot.on_settled = lambda slot: is_settled.set()
    assert slot.is_settled or is_settled.wait(20)


def test_call_that_is_not_answered_in_time_yields_to_the_others(fake: FakeKernel) -> None:
    fake.script["long"] = lambda request: gevent.sleep(0.3)
    with kclient.connect(fake.connection_info, spin=0.001) as client:
        others: list[str] = []
        gevent.spawn(others.append, "ran")
        with pytest.raises(kclient.KernelTimeout):
            client.run("long", timeout=0.1)
        assert others == ["ran"]


def test_spin_is_part_of_the_timeout(fake: FakeKernel, client: Client) -> None:
    fake.script["long"] = lambda request: gevent.sleep(0.3)
    started = time.monotonic()
    with pytest.raises(kclient.KernelTimeout):
        client.shell_channel.execute("long", timeout=0.01)
    assert time.monotonic() - started < LONG


def test_timeout_0_only_looks(fake: FakeKernel, client: Client) -> None:
    fake.script["long"] = lambda request: gevent.sleep(0.3)
    msg_id = client.shell_channel.send("execute_request", {"code": "long"})
    started = time.monotonic()
    with pytest.raises(kclient.KernelTimeout):
        client.shell_channel.get_reply(msg_id, timeout=0)
    assert time.monotonic() - started < LONG


@pytest.mark.parametrize("spin", [-1, 1.5, float("nan"), float("inf"), "0.1", None, True])
def test_spin_that_is_no_bounded_time_is_refused(fake: FakeKernel, spin: object) -> None:
    for make in (
        lambda: kclient.connect(fake.connection_info, spin=spin),  # type: ignore[arg-type]
        lambda: kclient.KernelClient(fake.connection_info, spin=spin),  # type: ignore[arg-type]
        lambda: kclient.KernelManager(spin=spin),  # type: ignore[arg-type]
        lambda: kclient.start_kernel(spin=spin),  # type: ignore[arg-type]
    ):
        with pytest.raises(kclient.LocalProtocolError, match="spin"):
            make()


@pytest.mark.kernel
def test_real_kernel_is_started_with_spin() -> None:
    with kclient.start_kernel(spin=0.001) as kernel:
        assert kernel.run("6 * 7", timeout=30).text == "42"
        kernel.restart_kernel()
        assert kernel.run("6 * 7", timeout=30).text == "42"
