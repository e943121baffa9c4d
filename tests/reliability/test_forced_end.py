"""A kernel that hangs in C code, and obeys neither interrupt nor shutdown nor SIGTERM."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from endings import ending, needs_pidfd
from figures import Figures

import kclient
from kclient.kernels import provisioner

pytestmark = [pytest.mark.kernel, needs_pidfd]

ASKED = 0.2
"""Seconds that the kernel has after the shutdown_request."""

TERMINATED = 0.2
"""Seconds that the kernel has after SIGTERM."""

SLACK = 0.5
"""Seconds for everything else: signals, the end of a process, its files."""

CHILD = """
import ctypes, os, signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen(["sleep", "600"]).pid
"""
"""Start a child that ignores SIGTERM, too."""

LEFT = """
import subprocess
int(subprocess.check_output(["sh", "-c", "trap '' TERM; sleep 600 > /dev/null & echo $!"]))
"""
"""Leaves a process that ignores SIGTERM in the group of the kernel, whose child it is no more: ipykernel takes some
seconds over each child, and so gets a SIGTERM itself."""

HANG = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
os.write(os.open({path!r}, os.O_WRONLY), b"!")
while True:
    ctypes.PyDLL(None).pause()  # with the GIL: no thread of the kernel runs
"""


class Hanging:
    """A kernel that hangs, and the pid of its child."""

    def __init__(self, manager: kclient.KernelManager, path: Path) -> None:
        self.manager = manager
        manager.shutdown_wait_time = ASKED
        self.child = int(manager.run(CHILD).text or "")
        assert manager.process is not None
        self.process = manager.process
        os.mkfifo(path)
        self.execution = manager.submit(HANG.format(path=str(path)))
        with path.open("rb") as fifo:
            assert fifo.read(1) == b"!"

    @property
    def pids(self) -> list[int]:
        return [self.process.pid, self.child]


@pytest.fixture
def hanging(
    start_kernel: Callable[..., kclient.KernelManager], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Hanging:
    monkeypatch.setattr(provisioner, "TERM_WAIT_S", TERMINATED)
    return Hanging(start_kernel(), folder / "fifo")


def test_calls_time_out_and_shutdown_ends_kernel_and_child_within_its_budgets(
    hanging: Hanging, figures: Figures, background: Callable[..., Any]
) -> None:
    manager = hanging.manager
    hanging.execution.interrupt()
    for call in (manager.run, manager.complete):
        begun = monotonic()
        with pytest.raises(kclient.KernelTimeout):
            call("1", timeout=0.2)
        figures.note(f"{call.__name__} of a kernel that hangs, late", monotonic() - begun - 0.2, "s", at_most=0.02)
    with ending(hanging.pids):
        begun = monotonic()
        manager.shutdown_kernel()
        took = monotonic() - begun
    assert took >= ASKED + TERMINATED
    figures.note("shutdown of a kernel that hangs", took, "s", at_most=ASKED + TERMINATED + SLACK)
    assert hanging.process.exit_code == -signal.SIGKILL
    with pytest.raises((kclient.DeadKernelError, kclient.ChannelClosed)):
        hanging.execution.result(timeout=0)


def test_restart_ends_kernel_and_child_and_starts_another(hanging: Hanging, figures: Figures) -> None:
    with ending(hanging.pids):
        begun = monotonic()
        hanging.manager.restart_kernel()
        figures.note("restart of a kernel that hangs", monotonic() - begun, "s")
    assert hanging.process.exit_code == -signal.SIGKILL
    with pytest.raises(kclient.KernelRestarted):
        hanging.execution.result(timeout=0)
    assert hanging.manager.run("6 * 7").text == "42"


@pytest.mark.parametrize("one_is_impatient", [False, True])
def test_shutdown_by_five_greenlets_at_once_takes_as_long_as_by_one(
    hanging: Hanging, figures: Figures, background: Callable[..., Any], one_is_impatient: bool
) -> None:
    with ending(hanging.pids):
        begun = monotonic()
        calls = [background(hanging.manager.shutdown_kernel) for _ in range(4)]
        calls.append(background(hanging.manager.shutdown_kernel, now=one_is_impatient))
        assert [call.error() for call in calls] == [None] * 5
        took = monotonic() - begun
    budget = 0.0 if one_is_impatient else ASKED + TERMINATED
    figures.note("shutdown by five greenlets", took, "s", at_most=budget + SLACK)
    assert hanging.process.exit_code == -signal.SIGKILL
    assert not hanging.manager.has_kernel


def test_process_that_ignores_sigterm_ends_with_a_kernel_that_exits_politely(
    start_kernel: Callable[..., kclient.KernelManager],
) -> None:
    manager = start_kernel()
    child = int(manager.run(LEFT).text or "")
    process = manager.process
    assert process is not None
    with ending([process.pid, child]):
        manager.shutdown_kernel()
    assert process.exit_code == 0


def test_child_ends_with_a_kernel_that_crashes(start_kernel: Callable[..., kclient.KernelManager]) -> None:
    manager = start_kernel()
    child = int(manager.run(CHILD).text or "")
    assert manager.process is not None
    with ending([child]):
        os.kill(manager.process.pid, signal.SIGKILL)
        with pytest.raises(kclient.DeadKernelError):
            manager.run("1")
