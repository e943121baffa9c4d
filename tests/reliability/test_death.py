"""The death of a kernel wakes every greenlet that waits for it, and each error tells how the kernel died."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import gevent.event
import pytest
from crowd import Exit, wait_in_get_msg, wait_in_shell
from figures import Figures
from fixtures import WAIT, Background, Gate

import kclient

BOTH_LINES = True

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing tells of the end of a process here"),
]

WAITING = 100
"""Number of greenlets."""

AT_ONCE = 0.05
"""Seconds, at most, from the exit of a kernel that we started until the last waiting call has ended."""

TIME_TO_DEAD = 0.6

DEATHS = {
    "SIGKILL": ("os.kill(os.getpid(), 9)", -9, "killed by SIGKILL"),
    "segfault": ("import ctypes; ctypes.string_at(0)", -11, "killed by SIGSEGV"),
    "exit": ("os._exit(3)", 3, "exit code 3"),
}

DIE = """
import os, resource, threading
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def die():
    {wait}
    os.write(2, b'last output')
    {die}
threading.Thread(target=die).start()
print('on', flush=True)
input('? ')
"""
"""The main thread waits for input when the kernel dies. Another thread of the kernel kills it."""

Crowd = dict[str, Background]


def gather(manager: kclient.KernelManager, background: Callable[..., Background], code: str) -> Crowd:
    """A hundred greenlets that wait for ever. One answers the input that `code` asks for, the others wait behind it."""
    asked = gevent.event.Event()

    def answer(prompt: str, password: bool) -> Any:
        asked.set()
        return manager.control_channel.get_msg()

    crowd = {"on_input": background(manager.run, code, on_input=answer)}
    assert asked.wait(WAIT)
    crowd["wait_for_ready"] = background(manager.wait_for_ready)
    crowd |= wait_in_get_msg(manager, background)
    for number in range(WAITING - len(crowd)):
        crowd[f"{number}"] = background(wait_in_shell(manager, number))
    assert [name for name, call in crowd.items() if not call.is_waiting] == []
    return crowd


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("death", "transport"), [("SIGKILL", "tcp"), ("segfault", "ipc"), ("exit", "tcp")])
def test_death_wakes_everyone_who_waits_at_once(
    start_kernel: Callable[..., kclient.KernelManager],
    background: Callable[..., Background],
    make_gate: Callable[[], Gate],
    figures: Figures,
    death: str,
    transport: str,
) -> None:
    die, exit_code, how = DEATHS[death]
    latest = 0.0
    for kind in ["tcp", "ipc"] * 5 if figures.is_long else [transport]:
        gate = make_gate()
        manager = start_kernel(transport=kind)
        crowd = gather(manager, background, DIE.format(wait=gate.code, die=die))
        assert manager.process is not None
        exit_of_kernel = Exit(manager.process.pid)
        gate.open()
        errors = {name: call.error() for name, call in crowd.items()}
        assert {type(error) for error in errors.values()} == {kclient.DeadKernelError}, errors
        assert {error.exit_code for error in errors.values()} == {exit_code}
        assert all("last output" in error.stderr and how in str(error) for error in errors.values())
        latest = max(latest, *(call.ended - exit_of_kernel.at for call in crowd.values()))
        with pytest.raises(kclient.DeadKernelError, match=how):
            manager.run("1")
        assert not manager.is_alive()
        manager.shutdown_kernel()
    figures.note(f"{death}: exit to the last of {WAITING} wake-ups", latest * 1e3, "ms", at_most=AT_ONCE * 1e3)


@pytest.mark.zmq_only  # the heartbeat
def test_death_of_a_foreign_kernel_wakes_everyone_within_the_time_to_dead_and_a_second(
    kernel_manager: kclient.KernelManager,
    transport: str,
    background: Callable[..., Background],
    gate: Gate,
    figures: Figures,
) -> None:
    with kclient.connect(kernel_manager.connection_file, watch=True, timeout=WAIT) as client:
        client.hb_channel.pause()
        client.hb_channel.time_to_dead = TIME_TO_DEAD
        client.hb_channel.unpause()
        execution = client.submit(f"print('on', flush=True); {gate.code}")
        next(iter(execution))
        crowd = {"result": background(execution.result)}
        crowd |= wait_in_get_msg(client, background)
        for number in range(WAITING - len(crowd)):
            crowd[f"{number}"] = background(wait_in_shell(client, number))
        assert [name for name, call in crowd.items() if not call.is_waiting] == []
        assert kernel_manager.process is not None
        exit_of_kernel = Exit(kernel_manager.process.pid)
        kernel_manager.kill_kernel()
        errors = {name: call.error() for name, call in crowd.items()}
        assert {type(error) for error in errors.values()} == {kclient.DeadKernelError}, errors
        assert errors["result"].result.stdout == "on\n"
        latest = max(call.ended - exit_of_kernel.at for call in crowd.values())
        assert not client.is_alive()
    figures.note(
        f"foreign kernel over {transport}: exit to the last of {WAITING} wake-ups, time to dead {TIME_TO_DEAD:g} s",
        latest,
        "s",
        at_most=TIME_TO_DEAD + 1,
    )
