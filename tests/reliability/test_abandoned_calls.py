"""A greenlet is killed in a call, or its gevent.Timeout goes off there: the client is as if it had never called."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import attrs
import gevent
import gevent.event
import pytest
from figures import Figures
from fixtures import WAIT, Background, TellingLauncher, in_forked_child

import kclient
from kclient.testing import FakeKernel, Request, result, stream
from kclient.testing.script import DEFAULT_HANDLERS

Client = kclient.KernelClient


class HoldingKernel(FakeKernel):
    """A kernel that answers no request until `go` is set."""

    def __init__(self) -> None:
        def ask(request: Request) -> None:
            request.publish(*stream(request.ask("name? ")))

        super().__init__(
            {"6 * 7": [stream("hi\n"), result("42")], "ask": ask}, supported_features=["debugger", "kernel subshells"]
        )
        self.go = gevent.event.Event()
        self.go.set()
        self.replies_first = False
        answers: dict[str, Callable[[Request], object]] = {
            **dict.fromkeys(["debug_request", "create_subshell_request", "delete_subshell_request"], Request.reply),
            "list_subshell_request": lambda request: request.reply({"subshell_id": ["a"]}),
        }
        for name, handler in {**answers, **DEFAULT_HANDLERS}.items():
            self.on(name, lambda request, handler=handler: self._answer_later(request, handler))

    def _answer_later(self, request: Request, handler: Callable[[Request], object]) -> None:
        if self.replies_first:
            handler(request)
        if request.message.msg_type == "execute_request":
            request.publish("execute_input", {"code": request.content["code"], "execution_count": 1})
        if request.content.get("code") != "ask":
            self.go.wait()
        if not request.is_answered:
            handler(request)


@pytest.fixture
def fake() -> Iterator[HoldingKernel]:
    with HoldingKernel() as fake:
        yield fake


@pytest.fixture
def client(fake: HoldingKernel) -> Iterator[Client]:
    with kclient.connect(fake.connection_info, watch=False, timeout=WAIT) as client:
        for channel in (client.shell_channel, client.control_channel):  # so that the kernel can send there, too
            channel.kernel_info(timeout=WAIT)
        client.iopub_channel.flush(timeout=WAIT)
        client.iopub_channel.outputs.executions.clear()  # the first idle may precede our subscription
        yield client


@attrs.define
class Call:
    """A call that waits, and a check for the time after it was abandoned and the kernel has answered."""

    wait: Callable[[], Any]
    afterwards: Callable[[], object] = lambda: None
    wait_until_there: Callable[[], object] = lambda: None
    """Returns when the call is at the point where it is to be abandoned."""


def request(name: str, *arguments: Any, on: str = "") -> Callable[[Client, HoldingKernel], Call]:
    """A request method of the client, or of one of its channels."""
    return lambda client, fake: Call(lambda: getattr(getattr(client, on) if on else client, name)(*arguments))


def run_that_has_begun(client: Client, fake: HoldingKernel) -> Call:
    """A call whose code is interrupted when it is abandoned."""

    def check() -> None:
        client.control_channel.kernel_info(timeout=WAIT)
        sent = [request.msg_type for request in fake.requests]
        assert sent.index("interrupt_request") > sent.index("execute_request")

    def note(message: kclient.Message) -> None:
        if message.msg_type == "execute_input":
            begun.set()

    begun = gevent.event.Event()
    client.iopub_channel.call_handlers = note  # type: ignore[method-assign]
    return Call(lambda: client.run("1"), check, lambda: begun.wait(WAIT))


def run_in_on_output(client: Client, fake: HoldingKernel) -> Call:
    def show(message: kclient.Message) -> None:
        shown.set()
        gevent.sleep(WAIT)

    fake.replies_first = True
    shown = gevent.event.Event()
    return Call(lambda: client.run("6 * 7", on_output=show), wait_until_there=lambda: shown.wait(WAIT))


def run_in_on_input(client: Client, fake: HoldingKernel) -> Call:
    """A call whose prompt another caller may answer when it is abandoned."""

    def answer(prompt: str, password: bool) -> str:
        asked.set()
        gevent.sleep(WAIT)
        return ""

    asked = gevent.event.Event()
    return Call(lambda: client.run("ask", on_input=answer), lambda: client.input("Ada"), lambda: asked.wait(WAIT))


def execution_whose(wait: str, **callbacks: Any) -> Callable[[Client, HoldingKernel], Call]:
    """A wait for an execution. The execution goes on without it, and its result can be had."""

    def make(client: Client, fake: HoldingKernel) -> Call:
        execution = client.submit("6 * 7", **callbacks)

        def check() -> None:
            assert execution.result(WAIT).text == "42"

        return Call(execution.result if wait == "result" else lambda: list(execution), check)

    return make


def reply_on(name: str) -> Callable[[Client, HoldingKernel], Call]:
    """A wait for a reply that can be asked for again."""

    def make(client: Client, fake: HoldingKernel) -> Call:
        channel = getattr(client, f"{name}_channel")
        msg_id = channel.send("kernel_info_request", {})

        def check() -> None:
            assert channel.get_reply(msg_id, timeout=WAIT).parent_id == msg_id

        return Call(lambda: channel.get_reply(msg_id), check)

    return make


def message_on(name: str) -> Callable[[Client, HoldingKernel], Call]:
    """A wait for a message. Later messages stay for the next caller."""

    def make(client: Client, fake: HoldingKernel) -> Call:
        channel = getattr(client, f"{name}_channel")

        def check() -> None:
            client.iopub_channel.get_msgs()
            stray = fake.session.msg("stray", {"for": "the next caller"}, parent={"msg_id": "none"})
            fake.send(name, stray, [b"topic" if name == "iopub" else client.session.identity])
            assert channel.get_msg(timeout=WAIT).content == {"for": "the next caller"}

        return Call(channel.get_msg, check)

    return make


def flush(client: Client, fake: HoldingKernel) -> Call:
    fake.replies_first = True
    fake.go.clear()
    client.kernel_info(timeout=WAIT)
    return Call(lambda: client.iopub_channel.flush(timeout=WAIT))


def connect(client: Client, fake: HoldingKernel) -> Call:
    return Call(lambda: kclient.connect(fake.connection_info))


CALLS: dict[str, Callable[[Client, HoldingKernel], Call]] = {
    "run": request("run", "1"),
    "run that has begun": run_that_has_begun,
    "run that is left": lambda client, fake: Call(lambda: client.run("1", on_abandon="leave")),
    "run with callbacks": lambda client, fake: Call(
        lambda: client.run("1", on_output=print, on_input=lambda prompt, password: "")
    ),
    "run in its on_output": run_in_on_output,
    "run in its on_input": run_in_on_input,
    "result": execution_whose("result"),
    "result of an execution with callbacks": execution_whose("result", on_output=lambda message: None),
    "iteration": execution_whose("iteration"),
    "execute": request("execute", "1"),
    "complete": request("complete", "impor"),
    "inspect": request("inspect", "print"),
    "object_info": request("object_info", "print"),
    "history": request("history"),
    "is_complete": request("is_complete", "1"),
    "comm_info": request("comm_info"),
    "kernel_info": request("kernel_info"),
    "shutdown": request("shutdown"),
    "interrupt": request("interrupt"),
    "debug": request("debug", "debugInfo"),
    "create_subshell": request("create_subshell"),
    "delete_subshell": request("delete_subshell", "a"),
    "list_subshells": request("list_subshells"),
    "request": request("request", "kernel_info_request"),
    "execute on shell": request("execute", "1", on="shell_channel"),
    "kernel_info on shell": request("kernel_info", on="shell_channel"),
    "kernel_info on control": request("kernel_info", on="control_channel"),
    "get_reply on shell": reply_on("shell"),
    "get_reply on control": reply_on("control"),
    **{f"get_msg of {name}": message_on(name) for name in ("shell", "control", "iopub", "stdin")},
    "wait_for_debug_event": lambda client, fake: Call(client.wait_for_debug_event),
    "flush": flush,
    "wait_for_ready": request("wait_for_ready"),
    "connect": connect,
}


def strike(call: Background) -> None:
    """Kill the greenlet of the call."""
    call.greenlet.kill()
    assert isinstance(call.error(), gevent.GreenletExit)


def time_out(call: Background) -> None:
    """Throw a gevent.Timeout into the greenlet, as one around the call does."""
    timeout = gevent.Timeout(None)
    gevent.kill(call.greenlet, timeout)
    assert call.error() is timeout


def left_over(client: Client) -> dict[str, Any]:
    """All that the client still keeps of calls that are over. The watchdog may ask once more."""
    gevent.joinall(list(client.kernel_connection.watchdog._watchers.values()), timeout=WAIT)
    channels = [client.shell_channel, client.control_channel, client.iopub_channel, client.stdin_channel]
    pending = client.kernel_connection.channels.pending
    found = {
        "slots": [slot.msg_id for channel in channels[:2] for slot in channel.requests],
        "messages": [message for channel in channels for message in channel.get_msgs()],
        "parked in get_msg": sum(len(channel._arrived) for channel in channels),
        "parked at iopub": len(client.iopub_channel.changed),
        "parked for debug events": len(client.iopub_channel._debug_event_came),
        "executions": dict(client.iopub_channel.outputs.executions),
        "unanswered": set(pending.unanswered),
        "owed": {**pending.owed_idle, **pending.owed_reply},
        "answering": set(client.shell_channel.answering),
        "answerers": set(client.kernel_connection.input_requests._answerers),
    }
    return {name: value for name, value in found.items() if value}


@pytest.mark.parametrize("abandon", [strike, time_out])
@pytest.mark.parametrize("name", CALLS)
def test_abandoned_call_leaves_nothing_and_the_client_usable(
    fake: HoldingKernel,
    client: Client,
    background: Callable[..., Background],
    name: str,
    abandon: Callable[[Background], None],
) -> None:
    fake.go.clear()
    call = CALLS[name](client, fake)
    waiting = background(call.wait)
    call.wait_until_there()
    assert waiting.is_waiting
    abandon(waiting)
    fake.go.set()
    call.afterwards()
    assert client.run("6 * 7", timeout=WAIT).text == "42"
    assert client.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"
    client.kernel_info(timeout=WAIT)  # behind the question that follows an interrupt
    client.iopub_channel.flush(timeout=WAIT)
    assert left_over(client) == {}


# Calls from wrong places


def calls_of(client: Client, fake: HoldingKernel) -> dict[str, Callable[[], Any]]:
    """Every call except the one that makes a client of its own."""
    made = {name: make(client, fake).wait for name, make in CALLS.items() if name not in ("connect", "flush")}
    return {**made, "flush": client.iopub_channel.flush}


def refused(call: Callable[[], Any], error: type[Exception]) -> str:
    """Empty if `call` raises `error`, else its outcome."""
    try:
        return f"it returned {call()!r}"
    except error:
        return ""
    except BaseException as exc:
        return f"it raised {exc!r}"


def test_call_from_another_thread_is_refused_at_once(fake: HoldingKernel, client: Client, figures: Figures) -> None:
    """The kernel is in this thread, so it could not answer any of the calls."""
    calls = calls_of(client, fake)
    found: dict[str, str] = {}

    def call_all() -> None:
        for name, call in calls.items():
            found[name] = refused(call, kclient.WrongThread)

    thread = threading.Thread(target=call_all)
    started = perf_counter()
    thread.start()
    thread.join(WAIT)
    figures.note(f"{len(calls)} calls from another thread, refused", perf_counter() - started, "s", at_most=1)
    assert found == dict.fromkeys(calls, "")
    assert client.run("6 * 7", timeout=WAIT).text == "42"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_call_in_a_forked_child_is_refused_at_once(fake: HoldingKernel, client: Client, figures: Figures) -> None:
    calls = calls_of(client, fake)

    def call_all() -> str:
        found = {name: refused(call, kclient.ForkedProcess) for name, call in calls.items()}
        return " ".join(f"{name}: {did}" for name, did in found.items() if did)

    started = perf_counter()
    assert in_forked_child(call_all) == ""
    figures.note(f"{len(calls)} calls in a forked child, refused", perf_counter() - started, "s", at_most=1)
    assert client.run("6 * 7", timeout=WAIT).text == "42"


# Whole kernels

ASLEEP = "import time; time.sleep(600)"
"""A kernel that never answers."""


@pytest.mark.parametrize("abandon", [strike, time_out])
@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_abandoned_start_leaves_nothing(
    install_kernel: Callable[..., str],
    background: Callable[..., Background],
    transport: str,
    abandon: Callable[[Background], None],
) -> None:
    start = background(kclient.start_kernel, install_kernel(ASLEEP), transport=transport)
    assert start.is_waiting
    abandon(start)


@pytest.mark.kernel
@pytest.mark.parametrize("abandon", [strike, time_out])
def test_abandoned_restart_and_shutdown_leave_the_manager_usable(
    start_kernel: Callable[..., kclient.KernelManager],
    background: Callable[..., Background],
    abandon: Callable[[Background], None],
) -> None:
    """The calls are abandoned while the old kernel is to exit and while the new one is to come up."""
    launcher = TellingLauncher()
    manager = start_kernel(launcher=launcher)
    first = manager.process
    assert first is not None
    for end in (manager.restart_kernel, manager.shutdown_kernel):
        manager.signal_kernel(signal.SIGSTOP)
        calls = [background(end), background(manager.kernel_info)]
        for call in calls:
            assert call.is_waiting
            abandon(call)
        assert first.is_alive()
    launcher.started.clear()
    restart = background(manager.restart_kernel, now=True, timeout=WAIT)
    assert launcher.started.wait(WAIT)
    assert manager.process not in (None, first)
    manager.signal_kernel(signal.SIGSTOP)
    assert restart.is_waiting
    other = background(manager.run, "1")
    assert other.is_waiting
    abandon(other)
    abandon(restart)
    assert len(manager.kernel_connection.availability) == 0
    manager.signal_kernel(signal.SIGCONT)
    assert manager.run("print('hi'); 6 * 7", timeout=WAIT).text == "42"
    manager.control_channel.kernel_info(timeout=WAIT)  # behind a question of the watchdog's
    manager.iopub_channel.flush()
    assert left_over(manager.client) == {}
