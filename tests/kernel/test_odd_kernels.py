"""Kernels that lack a channel, or start slowly. Each is a process of its own that does not use ipykernel."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures import WAIT

import kclient
from kclient.client import readiness
from kclient.manager import shutdown

ODD = """
import sys
sys.path.append({tests!r})
from odd_kernels import OddKernel
{first}
OddKernel(sys.argv[-1], lacks={lacks}, deaf={deaf}).serve()
"""


@pytest.fixture
def install_odd(install_kernel):
    """Install an OddKernel that runs `first` before it listens."""

    def install(*lacks, deaf=(), first="pass"):
        tests = str(Path(__file__).resolve().parent.parent)
        return install_kernel(ODD.format(tests=tests, first=first, lacks=lacks, deaf=deaf))

    return install


@pytest.mark.parametrize("lacks", [(), ("control", "stdin", "hb")], ids=["all", "least"])
def test_kernel_without_some_channels_runs_code_and_ends(install_odd, transport, lacks, monkeypatch):
    monkeypatch.setattr(readiness, "STDIN_WAIT_S", 0.1)
    monkeypatch.setattr(shutdown, "CONTROL_WAIT_S", 0.1)
    with kclient.KernelManager(install_odd(*lacks), transport=transport) as manager:
        manager.shutdown_wait_time = WAIT
        manager.start_kernel()
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        process = manager.process
        result = manager.run("hello", timeout=WAIT)
        assert (result.stdout, result.ok, result.complete) == ("hello", True, True)
    assert process.exit_code == 0


@pytest.mark.parametrize("channels", [True, False])
def test_kernel_that_answers_nothing_on_control_is_asked_to_exit_on_shell(
    install_odd, start_kernel, monkeypatch, channels
):
    monkeypatch.setattr(shutdown, "CONTROL_WAIT_S", 0.1)
    manager = start_kernel(install_odd(deaf=("control",)))
    manager.shutdown_wait_time = WAIT
    manager.kernel_spec.interrupt_mode = "message"
    manager.interrupt_kernel()
    process = manager.process
    if not channels:
        manager.stop_channels()
    manager.shutdown_kernel()
    assert process.exit_code == 0


def test_kernel_whose_connection_file_has_no_control_port_is_asked_to_exit_on_shell(install_odd, folder):
    path = folder / "mine.json"
    ports = {f"{channel}_port": number for number, channel in enumerate(["control", "shell", "iopub", "stdin", "hb"])}
    path.write_text(json.dumps({"transport": "ipc", "ip": str(folder / "k"), "key": "secret", **ports}))
    path.chmod(0o600)
    with kclient.KernelManager(install_odd("control"), connection_file=path) as manager:
        manager.load_connection_file()
        manager.shutdown_wait_time = WAIT
        manager.start_kernel()
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        process = manager.process
        assert not manager.kernel_connection.channels.runs("control")
    assert process.exit_code == 0


def test_kernel_that_takes_long_to_start_is_waited_for(install_odd, start_kernel, background, gate):
    """The kernel prints megabytes, and then waits at the gate. The start takes as long as that."""
    name = install_odd(first=f"print('starting ' * 1_000_000, flush=True); {gate.code}")
    starting = background(start_kernel, name, timeout=None)
    assert starting.is_waiting
    gate.open()
    manager = starting.get()
    assert manager.run("hello", timeout=WAIT).stdout == "hello"
    error = manager._lifecycle.provisioner.never_answered(kclient.KernelTimeout("answer", 1.0))
    assert str(error).count("starting") in range(200, 250)  # the end of its output, not all of it
