"""Kernels in processes of their own that choose their own ports."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from handshaking import KERNEL

import kclient

WAIT = 30


def check(manager: kclient.KernelManager, code: str, text: str) -> None:
    """Run, restart and attach, and assert that the process ends when it is told to."""
    client = manager.client
    assert client.run(code, timeout=WAIT).text == text
    before = manager.get_connection_info()
    manager.restart_kernel(timeout=WAIT)
    assert client.run(code, timeout=WAIT).text == text
    assert manager.get_connection_info()["shell_port"] != before["shell_port"]
    path = Path(manager.connection_file or "")
    assert json.loads(path.read_text()) == manager.get_connection_info()
    with kclient.connect(path, timeout=WAIT) as other:
        assert other.run(code, timeout=WAIT).text == text
    process = manager.process
    manager.shutdown_kernel()
    assert process is not None
    assert process.exit_code == 0


@pytest.mark.parametrize("orphan_guard", [False, True])
def test_kernel_that_chooses_its_ports(
    install_kernel: Callable[..., str], start_kernel: Callable[..., kclient.KernelManager], orphan_guard: bool
) -> None:
    install_kernel(KERNEL, kernel_protocol_version="5.6")
    check(start_kernel("odd", handshake="required", orphan_guard=orphan_guard), "6 * 7", "42")


def test_kernel_that_chooses_its_ports_is_encrypted_if_it_can(
    install_kernel: Callable[..., str], start_kernel: Callable[..., kclient.KernelManager]
) -> None:
    """The registration file brings the kernel its keys. It keeps them when it is restarted."""
    install_kernel(KERNEL, kernel_protocol_version="5.6", metadata={"supported_encryption": "curve"})
    manager = start_kernel("odd", handshake="required", encryption="required")
    assert len(manager.get_connection_info()["curve_publickey"]) == 40
    check(manager, "6 * 7", "42")


@pytest.mark.skipif(find_spec("xpython") is None, reason="xeus-python is not installed")
def test_xeus_python_chooses_its_ports(
    install_kernel: Callable[..., str], start_kernel: Callable[..., kclient.KernelManager]
) -> None:
    argv = [sys.executable, "-m", "xpython_launcher", "-f", "{connection_file}"]
    install_kernel("", argv=argv, kernel_protocol_version="5.6")  # the kernel's own spec names no version
    check(start_kernel("odd", handshake="required"), "6 * 7", "42")
