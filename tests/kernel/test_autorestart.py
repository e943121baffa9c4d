"""Automatic restarts after a death: waiting calls, callbacks, and policies that decide otherwise."""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import pytest
from fixtures import WAIT, Background, Gate
from gevent.event import Event
from handshaking import KERNEL
from leaks import turn_loop

import kclient
from kclient import AutoRestart
from kclient.kernels.process.local import LocalLauncher
from kclient.manager import backoff

MORTAL = """
import json, os, sys
sys.path.append({tests!r})
from odd_kernels import OddKernel

class Mortal(OddKernel):
    def _answer(self, socket, frames):
        code = json.loads(frames[-1]).get("code", "")
        if code.endswith("exit"):
            exec(code.removesuffix("exit"))
            os._exit(3)
        super()._answer(socket, frames)

Mortal(sys.argv[-1]).serve()
"""
"""A kernel that echoes code. At the code ``exit`` it first runs other code, and then ends."""

pytestmark = pytest.mark.kernel


class Fragile(LocalLauncher):
    """A launcher. While `fails` is set, each start fails and sets `failed`."""

    def __init__(self) -> None:
        self.starts = 0
        self.fails = False
        self.failed = Event()

    def start(self, argv: Any, **where: Any) -> Any:
        self.starts += 1
        if self.fails:
            self.failed.set()
            raise kclient.LaunchError("no more", exit_code=4, stderr="no more kernels", argv=argv)
        return super().start(argv, **where)


class Witness:
    """Callbacks that keep their arguments. `given_up` is set with the last. `on_restart` calls `then`."""

    def __init__(self) -> None:
        self.counts: list[int] = []
        self.deaths: list[kclient.DeadKernelError] = []
        self.errors: list[kclient.DeadKernelError] = []
        self.given_up = Event()
        self.then: Callable[[kclient.KernelManager], object] = lambda manager: None

    def policy(self, **options: Any) -> AutoRestart:
        return AutoRestart(on_restart=self.restarted, on_give_up=self.gave_up, **options)

    def restarted(self, manager: kclient.KernelManager, death: kclient.DeadKernelError, count: int) -> None:
        self.counts.append(count)
        self.deaths.append(death)
        self.then(manager)

    def gave_up(self, manager: kclient.KernelManager, error: kclient.DeadKernelError) -> None:
        self.errors.append(error)
        self.given_up.set()


@pytest.fixture
def mortal(install_kernel: Callable[..., str]) -> str:
    return install_kernel(MORTAL.format(tests=str(Path(__file__).resolve().parent.parent)))


@pytest.fixture
def launcher() -> Fragile:
    return Fragile()


@pytest.fixture
def witness() -> Witness:
    return Witness()


@pytest.fixture
def start(
    start_kernel: Callable[..., kclient.KernelManager], mortal: str, launcher: Fragile
) -> Callable[..., kclient.KernelManager]:
    return lambda **options: start_kernel(mortal, launcher=launcher, **{"restart": True, **options})


def die(manager: kclient.KernelManager) -> None:
    with pytest.raises(kclient.DeadKernelError) as caught:
        manager.run("exit", timeout=WAIT)
    assert caught.value.exit_code == 3


def kill_unseen(manager: kclient.KernelManager) -> None:
    """Kill the kernel, and return when it is dead, without a turn of the loop."""
    assert manager.process is not None
    os.kill(manager.process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, manager.process.pid, os.WEXITED | os.WNOWAIT)


def echo(manager: kclient.KernelManager, text: str = "hello") -> None:
    assert manager.run(text, timeout=WAIT).stdout == text


def break_down(manager: kclient.KernelManager, launcher: Fragile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel die and the first restart fail; the next one is far off."""
    monkeypatch.setattr(backoff, "FIRST_WAIT_S", 1000.0)
    monkeypatch.setattr(backoff, "LONGEST_WAIT_S", 1000.0)
    launcher.fails = True
    die(manager)
    assert launcher.failed.wait(WAIT)
    turn_loop()
    launcher.fails = False


def test_call_after_the_death_waits_for_the_next_kernel(start: Callable[..., kclient.KernelManager]) -> None:
    manager = start()
    client, info = manager.client, manager.get_connection_info()
    manager.hb_channel.unpause()
    for _ in range(2):
        assert manager.process is not None
        pid = manager.process.pid
        die(manager)
        echo(manager)
        assert manager.is_alive()
        assert manager.process.pid != pid
        assert manager.client is client
        assert manager.get_connection_info() == info
        assert not manager.hb_channel.is_paused


def test_kernel_that_dies_while_no_call_is_pending_is_restarted(
    start: Callable[..., kclient.KernelManager], witness: Witness
) -> None:
    restarted = Event()
    witness.then = lambda manager: restarted.set()
    manager = start(restart=witness.policy())
    manager.signal_kernel(signal.SIGKILL)
    assert restarted.wait(WAIT)
    assert [death.exit_code for death in witness.deaths] == [-9]
    echo(manager)


def test_calls_that_wait_at_the_death_fail_and_later_ones_wait_with_their_timeout(
    start: Callable[..., kclient.KernelManager], background: Callable[..., Background], gate: Gate
) -> None:
    manager = start()
    waiting = [background(manager.shell_channel.get_msg), background(manager.iopub_channel.get_msg)]
    execution = manager.submit(f"{gate.code}exit")
    waiting += [background(manager.wait_for_ready), background(manager.kernel_info)]
    gate.open()
    with pytest.raises(kclient.DeadKernelError) as caught:
        execution.result(WAIT)
    assert [type(call.error()) for call in waiting] == [kclient.DeadKernelError] * 4
    assert caught.value.exit_code == 3
    with pytest.raises(kclient.KernelTimeout, match=r"after its restart .*exit code 3"):
        manager.run("1", timeout=0.001)
    calls = [
        background(manager.run, "hello", timeout=WAIT),
        background(manager.wait_for_ready, WAIT),
        background(manager.client.wait_for_ready, WAIT),
        background(manager.kernel_info, timeout=WAIT),
    ]
    assert [call.error() for call in calls] == [None] * 4


def test_on_restart_is_called_before_any_call_reaches_the_kernel(
    start: Callable[..., kclient.KernelManager], background: Callable[..., Background], witness: Witness
) -> None:
    manager = start(restart=witness.policy())

    def set_up(manager: kclient.KernelManager) -> None:
        gevent.sleep(0)
        assert manager.run("set up", timeout=WAIT).execution_count == 1
        assert manager.submit("more").result(WAIT).execution_count == 2

    witness.then = set_up
    die(manager)
    calls = [background(manager.run, f"{number}", timeout=WAIT) for number in range(3)]
    assert sorted(call.get().execution_count for call in calls) == [3, 4, 5]
    assert witness.counts == [1]
    assert witness.deaths[0].exit_code == 3


def test_kernel_that_dies_again_in_on_restart_is_restarted_again(
    start: Callable[..., kclient.KernelManager], witness: Witness, caplog: pytest.LogCaptureFixture
) -> None:
    manager = start(restart=witness.policy())
    witness.then = lambda manager: len(witness.counts) > 2 or manager.run("exit", timeout=WAIT)
    die(manager)
    echo(manager)
    assert witness.counts == [1, 2, 3]
    assert caplog.text.count("a callback of the automatic restarts failed") == 2


def test_kernel_that_keeps_dying_is_given_up_until_somebody_restarts_it(
    start: Callable[..., kclient.KernelManager],
    background: Callable[..., Background],
    launcher: Fragile,
    witness: Witness,
    caplog: pytest.LogCaptureFixture,
) -> None:
    manager = start(restart=witness.policy(limit=2))
    launcher.fails = True
    die(manager)
    waiting = background(manager.run, "1")
    assert witness.given_up.wait(WAIT)
    assert launcher.starts == 3
    later = background(manager.run, "1")
    for error in (waiting.error(), *witness.errors, later.error()):
        assert isinstance(error, kclient.DeadKernelError)
        assert error.exit_code == 4
        assert "restarted 2 times in a row" in str(error)
        assert "restart_kernel()" in str(error)
        assert "no more kernels" in str(error)
    for call in (manager.wait_for_ready, manager.client.wait_for_ready, manager.kernel_info):
        with pytest.raises(kclient.DeadKernelError, match="given up"):
            call(timeout=WAIT)
    launcher.fails = False
    manager.restart_kernel(timeout=WAIT)
    witness.counts.clear()
    for _ in range(2):
        echo(manager)
        die(manager)
    echo(manager)
    assert witness.counts == [1, 2]
    assert "it is restarted (2 in a row)" in caplog.text


def test_no_restart_is_counted_of_a_kernel_that_was_stable(
    start: Callable[..., kclient.KernelManager], witness: Witness
) -> None:
    manager = start(restart=witness.policy(limit=1, stable_start_time=0))
    for _ in range(3):
        die(manager)
        echo(manager)
    assert witness.counts == [1, 1, 1]


def test_limit_of_zero_gives_up_at_once(start: Callable[..., kclient.KernelManager], witness: Witness) -> None:
    manager = start(restart=witness.policy(limit=0))
    die(manager)
    with pytest.raises(kclient.DeadKernelError, match="the limit is 0"):
        manager.run("1", timeout=WAIT)
    assert len(witness.errors) == 1


def test_kernel_that_never_comes_up_is_the_launch_error_of_its_start(
    start: Callable[..., kclient.KernelManager], install_kernel: Callable[..., str], witness: Witness
) -> None:
    broken = install_kernel("raise SystemExit(5)", name="broken")
    with pytest.raises(kclient.LaunchError) as caught:
        kclient.start_kernel(broken, restart=witness.policy(), timeout=WAIT)
    assert caught.value.exit_code == 5
    assert (witness.counts, witness.errors) == ([], [])
    manager = start(restart=witness.policy())
    manager.kernel_spec.argv[:] = ["false"]
    with pytest.raises(kclient.LaunchError):
        manager.restart_kernel(timeout=WAIT)
    with pytest.raises(kclient.DeadKernelError):
        manager.run("1", timeout=WAIT)
    assert (witness.counts, witness.errors) == ([], [])


# Policies that decide otherwise


def test_kernel_that_the_program_ends_is_not_restarted(
    start: Callable[..., kclient.KernelManager], launcher: Fragile
) -> None:
    manager = start()
    manager.kill_kernel()
    with pytest.raises(kclient.DeadKernelError):
        manager.run("1", timeout=WAIT)
    manager.restart_kernel(timeout=WAIT)
    echo(manager)
    manager.shutdown_kernel(now=True)
    assert launcher.starts == 2
    assert not manager.has_kernel


@pytest.mark.parametrize("end", ["shutdown_kernel", "kill_kernel"])
def test_end_before_the_next_restart_wakes_waiting_calls(
    start: Callable[..., kclient.KernelManager],
    background: Callable[..., Background],
    launcher: Fragile,
    monkeypatch: pytest.MonkeyPatch,
    end: str,
) -> None:
    manager = start()
    break_down(manager, launcher, monkeypatch)
    waiting = background(manager.run, "1")
    assert waiting.is_waiting
    with pytest.raises(kclient.KernelTimeout, match=r"after its restart .*no more"):
        manager.run("1", timeout=0)
    getattr(manager, end)()
    assert isinstance(waiting.error(), kclient.DeadKernelError)
    manager.start_kernel()
    manager.start_channels()
    manager.wait_for_ready(WAIT)
    echo(manager)
    assert launcher.starts == 3


def test_restart_by_hand_comes_before_the_next_restart_and_serves_waiting_calls(
    start: Callable[..., kclient.KernelManager],
    background: Callable[..., Background],
    launcher: Fragile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    manager = start()
    break_down(manager, launcher, monkeypatch)
    waiting = background(manager.run, "hello")
    assert waiting.is_waiting
    with pytest.raises(kclient.InvalidArgument):
        manager.restart_kernel(colour="green")
    assert waiting.is_waiting
    manager.restart_kernel(timeout=WAIT)
    assert waiting.get().stdout == "hello"


@pytest.mark.parametrize("end", ["shutdown_kernel", "kill_kernel", "restart_kernel"])
def test_program_gets_its_way_during_a_restart(
    start: Callable[..., kclient.KernelManager],
    background: Callable[..., Background],
    launcher: Fragile,
    end: str,
) -> None:
    begun = Event()
    manager = start()
    real = launcher.start

    def slow(argv: Any, **where: Any) -> Any:
        """A kernel that never answers."""
        begun.set()
        launcher.start = real  # type: ignore[method-assign]
        return real(["sleep", "1000"], **where)

    launcher.start = slow  # type: ignore[method-assign]
    die(manager)
    assert begun.wait(WAIT)
    waiting = background(manager.run, "hello")
    getattr(manager, end)()
    if end == "restart_kernel":
        assert waiting.get().stdout == "hello"
    else:
        assert isinstance(waiting.error(), kclient.DeadKernelError)
    turn_loop(0.05)
    assert launcher.starts == 2 + (end == "restart_kernel")


def test_on_restart_may_end_the_kernel(start: Callable[..., kclient.KernelManager], witness: Witness) -> None:
    ended = Event()

    def end(manager: kclient.KernelManager) -> None:
        manager.shutdown_kernel()
        ended.set()

    witness.then = end
    manager = start(restart=witness.policy())
    die(manager)
    with pytest.raises(kclient.DeadKernelError):
        manager.run("1", timeout=WAIT)
    assert ended.wait(WAIT)
    assert not manager.has_kernel


def test_on_give_up_may_restart_the_kernel(
    start: Callable[..., kclient.KernelManager], background: Callable[..., Background]
) -> None:
    restarted = Event()

    def restart(manager: kclient.KernelManager, error: kclient.DeadKernelError) -> None:
        manager.restart_kernel(timeout=WAIT)
        restarted.set()

    manager = start(restart=AutoRestart(limit=0, on_give_up=restart))
    die(manager)
    assert restarted.wait(WAIT)
    echo(manager)


def test_manager_that_is_dropped_is_not_restarted(
    mortal: str, launcher: Fragile, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = kclient.start_kernel(mortal, launcher=launcher, restart=True, timeout=WAIT)
    break_down(manager, launcher, monkeypatch)
    reference = weakref.ref(manager)
    del manager
    gc.collect()
    assert reference() is None


# Scripts


def test_death_that_the_loop_could_not_tell_is_seen_by_the_next_call(
    start: Callable[..., kclient.KernelManager], witness: Witness
) -> None:
    manager = start(restart=witness.policy())
    kill_unseen(manager)
    echo(manager)
    assert witness.counts == [1]


def test_script_that_only_polls_sees_the_death_and_the_next_call_works(
    start: Callable[..., kclient.KernelManager], witness: Witness
) -> None:
    manager = start(restart=witness.policy())
    execution = manager.submit("hello")
    kill_unseen(manager)
    while not execution.done():
        pass
    with pytest.raises(kclient.KernelTimeout):
        manager.run("1", timeout=0)
    echo(manager)
    assert witness.counts == [1]


def test_ctrl_c_ends_the_wait_for_a_restart_and_not_the_restart(
    start: Callable[..., kclient.KernelManager], launcher: Fragile
) -> None:
    manager = start()
    die(manager)
    gevent.get_hub().loop.run_callback(os.kill, os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        manager.run("1", timeout=WAIT)
    echo(manager)
    assert launcher.starts == 2


# Other kernels


def test_process_without_channels_is_restarted(mortal: str, launcher: Fragile, witness: Witness) -> None:
    restarted = Event()
    witness.then = lambda manager: restarted.set()
    with kclient.KernelManager(mortal, launcher=launcher, restart=witness.policy()) as manager:
        manager.start_kernel()
        manager.signal_kernel(signal.SIGKILL)
        assert restarted.wait(WAIT)
        assert manager.is_alive()
        assert not manager.channels_running
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        echo(manager)


def test_channels_may_be_started_while_the_kernel_is_restarted(mortal: str, launcher: Fragile) -> None:
    with kclient.KernelManager(mortal, launcher=launcher, restart=True) as manager:
        manager.start_kernel()
        kill_unseen(manager)
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        echo(manager)
    assert launcher.starts == 2


@pytest.mark.parametrize("encryption", ["off", "required"])
def test_kernel_that_chooses_its_ports_is_restarted(
    install_kernel: Callable[..., str], start_kernel: Callable[..., kclient.KernelManager], encryption: str
) -> None:
    name = install_kernel(KERNEL, kernel_protocol_version="5.6", metadata={"supported_encryption": "curve"})
    manager = start_kernel(name, handshake="required", encryption=encryption, restart=True)
    client, before = manager.client, manager.get_connection_info()
    kill_unseen(manager)
    assert client.run("6 * 7", timeout=WAIT).text == "42"
    assert manager.get_connection_info()["shell_port"] != before["shell_port"]


def test_ports_that_another_program_has_taken_are_exchanged(
    start: Callable[..., kclient.KernelManager], launcher: Fragile, witness: Witness
) -> None:
    manager = start(restart=witness.policy())
    client, before = manager.client, manager.get_connection_info()
    real = launcher.start
    with ExitStack() as stack:

        def race(argv: Any, **where: Any) -> Any:
            launcher.start = real  # type: ignore[method-assign]
            sock = stack.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", before["stdin_port"]))
            sock.listen()
            return real(argv, **where)

        launcher.start = race  # type: ignore[method-assign]
        die(manager)
        assert client.run("hello", timeout=WAIT).stdout == "hello"
    after = manager.get_connection_info()
    assert after["stdin_port"] != before["stdin_port"]
    assert json.loads(Path(manager.connection_file or "").read_text()) == after
    assert witness.counts == [2]
    assert launcher.starts == 3


# Bad input


@pytest.mark.parametrize("restart", [None, 1, "yes", AutoRestart, {"limit": 5}])
def test_restart_that_is_none_is_refused(restart: Any) -> None:
    with pytest.raises(kclient.InvalidArgument, match="AutoRestart"):
        kclient.KernelManager(restart=restart)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"limit": -1}, "limit"),
        ({"stable_start_time": "10"}, "stable_start_time"),
        ({"on_restart": "print"}, "on_restart"),
        ({"on_give_up": 1}, "on_give_up"),
        ({"start_timeout": -1}, "start_timeout"),
    ],
)
def test_policy_that_makes_no_sense_is_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(kclient.InvalidArgument, match=match):
        AutoRestart(**options)
