"""Ctrl-C at any moment: it is raised in the main greenlet, the call leaves nothing half done, and the client works on.

A trace function strikes at one line after the other of all that kclient runs for a call, in whatever greenlet that is.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count
from pathlib import Path
from types import CodeType
from typing import Any

import gevent
import gevent.event
import leaks
import pytest
from fake_processes import FakeLauncher, install_fake
from figures import Figures
from fixtures import WAIT, Script
from strikes import Strike

import kclient
from kclient.concurrency import sigint
from kclient.concurrency.callbacks import in_callback
from kclient.concurrency.waiting import until_done
from kclient.testing import FakeKernel, result, stream

CALL_UNTIL_DONE = next(code for code in until_done.__code__.co_consts if isinstance(code, CodeType))
"""The code that the loop runs for `until_done`."""


def strikes(figures: Figures, step: int) -> Iterator[Strike]:
    """Strikes at every line or, in the ordinary suite, at every `step`-th, until the call ends before its strike."""
    strike = Strike(0)
    for at in range(1, 100_000, figures.size(step, 1)):
        if at > 1 and not strike.where:
            return
        strike = Strike(at)
        yield strike


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    with FakeKernel({"6 * 7": [stream("hi\n"), result("42")]}, thread=True) as fake:
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[kclient.KernelClient]:
    with kclient.connect(fake.connection_info, watch=False) as client:
        yield client


def ask(client: kclient.KernelClient) -> None:
    execution = client.submit("print(input())", on_input=lambda prompt, password: "Ada")
    assert execution.result(WAIT).stdout == "Ada"


CALLS: dict[str, Callable[[kclient.KernelClient], object]] = {
    "run": lambda client: client.run("6 * 7", timeout=WAIT),
    "run with on_output": lambda client: client.run("6 * 7", on_output=lambda message: None, timeout=WAIT),
    "iteration": lambda client: list(client.submit("6 * 7")),
    "result": lambda client: client.submit("6 * 7").result(WAIT),
    "input": ask,
    "a request": lambda client: client.kernel_info(timeout=WAIT),
    "get_reply": lambda client: client.shell_channel.get_reply(client.shell_channel.send("kernel_info_request"), WAIT),
    "get_msg": lambda client: client.iopub_channel.get_msg(timeout=0.001),
    "flush": lambda client: client.iopub_channel.flush(),
    "wait_for_ready": lambda client: client.wait_for_ready(WAIT),
    "stop and start": lambda client: (client.stop_channels(), client.start_channels(), client.wait_for_ready(WAIT)),
}


def check_that_it_works(client: kclient.KernelClient, where: str) -> None:
    """Assert that the client runs code, and that no interrupted call has left an entry anywhere."""
    if not client.channels_running:  # Ctrl-C came between stop and start
        client.start_channels()
    client.wait_for_ready(WAIT)
    outcome = client.run("6 * 7", timeout=WAIT)
    assert (outcome.stdout, outcome.text, outcome.complete) == ("hi\n", "42", True), where
    client.wait_for_ready(WAIT)  # the idle status of the first question may have come too early
    client.control_channel.kernel_info(timeout=WAIT)  # behind the interrupt_request
    client.shell_channel.kernel_info(timeout=WAIT)
    client.iopub_channel.flush()
    client.shell_channel.get_msgs()  # replies to `send`
    assert not list(client.shell_channel.requests), where
    assert not client.iopub_channel.outputs.executions, where
    assert not client.kernel_connection.channels.pending.unanswered, where
    assert not in_callback(), where
    assert (sigint._holders, sigint._noted_for) == (set(), None), where
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, where


@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS)
def test_ctrl_c_at_any_line_is_raised_and_the_client_works_on(
    fake: FakeKernel, client: kclient.KernelClient, figures: Figures, capfd: pytest.CaptureFixture[str], call: str
) -> None:
    fake.script["print(input())"] = lambda request: request.publish(*stream(request.ask("? ")))
    struck = 0
    for strike in strikes(figures, 17):
        error = strike.during(lambda: CALLS[call](client))
        if strike.where:
            assert isinstance(error, KeyboardInterrupt), f"{error!r} at {strike.where}"
            struck += 1
        check_that_it_works(client, strike.where)
    figures.note(f"Ctrl-C during {call}", struck, "moments")
    assert struck > 5
    assert capfd.readouterr().err == ""


@pytest.mark.timeout(600)
def test_ctrl_c_hits_the_main_greenlet_while_others_are_busy(
    client: kclient.KernelClient, figures: Figures, capfd: pytest.CaptureFixture[str]
) -> None:
    """The other greenlets go on calling. The signal may come in any greenlet."""

    def call_on() -> None:
        while True:
            assert client.run("6 * 7").complete
            client.kernel_info()

    others = [gevent.spawn(call_on) for _ in range(3)]
    for strike in strikes(figures, 101):
        error = strike.during(lambda: client.run("6 * 7", timeout=WAIT))
        if strike.where:
            assert isinstance(error, KeyboardInterrupt), f"{error!r} at {strike.where}"
        assert client.run("6 * 7", timeout=WAIT).text == "42"
        assert not any(other.ready() for other in others), strike.where
    gevent.killall(others)
    check_that_it_works(client, "at the end")
    assert capfd.readouterr().err == ""


def wait_for(caller: gevent.Greenlet[..., Any]) -> None:
    gevent.wait([caller], timeout=WAIT)
    gevent.sleep(0)  # a Ctrl-C noted in the hub is raised with the loop's next turn


@pytest.mark.timeout(600)
def test_ctrl_c_while_only_other_greenlets_call_is_raised_in_the_main_one(
    client: kclient.KernelClient, figures: Figures
) -> None:
    """The main greenlet waits outside of kclient. Python's own handler may raise in a caller that begins its call."""
    for strike in strikes(figures, 101):
        caller = gevent.spawn(client.run, "6 * 7")
        error = strike.during(partial(wait_for, caller))
        caller.join()
        assert isinstance(error, KeyboardInterrupt) or not strike.where, f"{error!r} at {strike.where}"
        assert isinstance(caller.exception, KeyboardInterrupt) or caller.get().complete, strike.where
    check_that_it_works(client, "at the end")


@pytest.mark.parametrize("restart", [False, True], ids=["", "restarted"])
def test_ctrl_c_while_a_death_is_told_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: bool
) -> None:
    """The main greenlet waits outside of kclient. A greenlet that waits for a reply is told that its kernel died."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    name = install_fake(tmp_path)
    for at in chain(range(1, 20), count(20, 10)):  # after the first lines the hub holds Ctrl-C
        launcher = FakeLauncher({"hang": lambda request: gevent.sleep(WAIT)})
        with kclient.start_kernel(name, launcher=launcher, restart=restart) as kernel:
            caller = gevent.spawn(kernel.run, "hang")
            gevent.idle()
            launcher.processes[0].die(-9)
            strike = Strike(at, CALL_UNTIL_DONE)
            error = strike.during(partial(wait_for, caller))
            assert isinstance(error, KeyboardInterrupt) or not strike.where, f"{error!r} at {strike.where}"
            caller.join(WAIT)
            assert isinstance(caller.exception, kclient.DeadKernelError), strike.where
            if restart:
                kernel.wait_for_ready(WAIT)
                assert len(launcher.processes) == 2, strike.where
        if not strike.where:
            break
    assert at > 20


def spread(figures: Figures, lines: int, short: int, long: int) -> Iterator[Strike]:
    """Strikes at evenly spread moments of a call that runs `lines` lines of kclient."""
    count = figures.size(short, long)
    for number in range(count):
        yield Strike(1 + lines * number // count)


def lines_of(call: Callable[[], object]) -> int:
    """The number of lines of kclient that run during `call`."""
    counter = Strike(0)
    assert counter.during(call) is None
    return -counter.left


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_while_a_kernel_starts_leaves_none_behind(
    figures: Figures, runtime_dir: Path, transport: str, capfd: pytest.CaptureFixture[str]
) -> None:
    def start() -> None:
        with kclient.start_kernel(transport=transport, timeout=WAIT):
            pass

    before = leaks.processes()
    for strike in spread(figures, lines_of(start), 8, 150):
        error = strike.during(start)
        was_missed = not strike.where or "abandon" in strike.where  # Python only prints the errors of a finalizer
        assert isinstance(error, KeyboardInterrupt) or was_missed, f"{error!r} at {strike.where}"
        assert leaks.settled(lambda: [*(leaks.processes().keys() - before.keys())]) == [], strike.where
        assert list(runtime_dir.iterdir()) == [], strike.where
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler, strike.where
    assert capfd.readouterr().err == ""


@pytest.mark.timeout(900)
def test_ctrl_c_in_a_restart_leaves_a_manager_that_can_restart(
    figures: Figures, kernel_manager: kclient.KernelManager, capfd: pytest.CaptureFixture[str]
) -> None:
    def restart() -> None:
        kernel_manager.restart_kernel(now=True, timeout=WAIT)

    for strike in spread(figures, lines_of(restart), 6, 100):
        error = strike.during(restart)
        assert isinstance(error, KeyboardInterrupt) or not strike.where, f"{error!r} at {strike.where}"
        restart()
        outcome = kernel_manager.run("print('hi'); 6 * 7", timeout=WAIT)
        assert (outcome.stdout, outcome.text, outcome.complete) == ("hi\n", "42", True), strike.where
    assert capfd.readouterr().err == ""


@pytest.mark.timeout(900)
def test_ctrl_c_in_a_shutdown_leaves_a_manager_that_can_shut_down(
    figures: Figures, transport: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with kclient.start_kernel(transport=transport, timeout=WAIT) as sample:
        lines = lines_of(sample.shutdown_kernel)
    for strike in spread(figures, lines, 6, 60):
        with kclient.start_kernel(transport=transport, timeout=WAIT) as manager:
            error = strike.during(manager.shutdown_kernel)
            assert isinstance(error, KeyboardInterrupt) or not strike.where, f"{error!r} at {strike.where}"
            manager.shutdown_kernel()
            assert not manager.has_kernel, strike.where
    assert capfd.readouterr().err == ""


def test_handler_of_ctrl_c_is_put_back_when_the_last_of_several_greenlets_ends(
    fake: FakeKernel, client: kclient.KernelClient
) -> None:
    """A callback that waits began while `result` let it run, and ends when no call is under way."""
    begun, go_on, ended = (gevent.event.Event() for _ in range(3))

    def on_output(message: kclient.Message) -> None:
        begun.set()
        go_on.wait(WAIT)
        ended.set()

    execution = client.submit("6 * 7", on_output=on_output)
    while not begun.is_set():
        with pytest.raises(kclient.KernelTimeout):
            execution.result(timeout=0)
    go_on.set()
    assert ended.wait(WAIT)
    gevent.sleep(0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert execution.result(WAIT).text == "42"


WAITING_LAUNCHER = """
import signal
import gevent, gevent.event
import kclient

class WaitingLauncher:
    def start(self, *args, **kwargs):
        gevent.event.Event().wait(30)

gevent.spawn(signal.raise_signal, signal.SIGINT)
try:
    kclient.KernelManager(launcher=WaitingLauncher()).start_kernel()
except KeyboardInterrupt:
    print("raised", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def test_ctrl_c_is_raised_while_a_launcher_waits(start_script: Callable[..., Script]) -> None:
    """The program has a process of its own: older gevent prints a KeyboardInterrupt, and keeps the ended wait."""
    script = start_script(WAITING_LAUNCHER)
    assert script.read_line() == "raised True"
