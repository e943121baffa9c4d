"""Another program listens at an address that is meant for a kernel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from fixtures import WAIT

import kclient
from kclient.kernels import provisioner
from kclient.kernels.process.local import LocalLauncher

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")

BIND = """
import json, signal, socket, sys
with open(sys.argv[1]) as file:
    info = json.load(file)
socks = []
for name in ("shell", "iopub", "stdin", "control", "hb"):
    socks.append(socket.socket())
    socks[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        socks[-1].bind((info["ip"], info[name + "_port"]))
        socks[-1].listen()
    except OSError:
        on_failure()
"""

SILENT = f"""
def on_failure():
    raise SystemExit(1)
{BIND}
for sock in socks:
    sock.close()
from ipykernel.kernelapp import launch_new_instance
launch_new_instance(argv=["-f", sys.argv[1]])
"""
"""A kernel that ends without saying why."""

STAYS = f"""
def on_failure():
    pass
{BIND}
print("tried", flush=True)
signal.alarm(60)
signal.pause()
"""
"""A kernel that stays up without the ports that it could not get, and never answers."""


class Taker:
    """Another program. It listens on tcp ports of 127.0.0.1 and on socket files."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def take(self, port: int) -> int:
        sock = self._stack.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", port))
        sock.listen()
        return port

    def take_path(self, path: str) -> socket.socket:
        sock = self._stack.enter_context(socket.socket(socket.AF_UNIX))
        sock.bind(path)
        sock.listen()
        return sock


@pytest.fixture
def taker() -> Iterator[Taker]:
    with ExitStack() as stack:
        yield Taker(stack)


class Race(LocalLauncher):
    """Another program takes a port between its choice and the kernel's bind, for the first `times` starts."""

    def __init__(self, taker: Taker, times: int) -> None:
        self._taker = taker
        self._times = times
        self.taken: list[int] = []
        self.starts = 0

    def start(self, argv: Any, **where: Any) -> Any:
        self.starts += 1
        if len(self.taken) < self._times:
            self.taken.append(self._taker.take(json.loads(Path(argv[-1]).read_text())["stdin_port"]))
        return super().start(argv, **where)


@pytest.mark.kernel
def test_port_that_was_taken_is_exchanged_for_another_though_the_kernel_says_nothing(
    install_kernel: Callable[..., str], start_kernel: Callable[..., kclient.KernelManager], taker: Taker
) -> None:
    launcher = Race(taker, 1)
    manager = start_kernel(install_kernel(SILENT), launcher=launcher)
    assert launcher.starts == 2
    assert manager.run("6 * 7").text == "42"
    info = manager.get_connection_info()
    assert launcher.taken[0] not in [info[f"{name}_port"] for name in CHANNELS]


def test_error_names_the_port_when_each_new_one_is_taken(install_kernel: Callable[..., str], taker: Taker) -> None:
    launcher = Race(taker, 10)
    with pytest.raises(kclient.LaunchError, match="exit code 1") as caught:
        kclient.start_kernel(install_kernel(SILENT), launcher=launcher, timeout=WAIT)
    assert launcher.starts == 3
    assert f"port {launcher.taken[-1]} is taken by another program; end that program" in str(caught.value)
    assert caught.value.taken_ports == (launcher.taken[-1],)


def test_kernel_that_ends_for_another_reason_is_started_once(install_kernel: Callable[..., str], taker: Taker) -> None:
    launcher = Race(taker, 0)
    with pytest.raises(kclient.LaunchError) as caught:
        kclient.start_kernel(install_kernel("raise SystemExit(1)"), launcher=launcher, timeout=WAIT)
    assert launcher.starts == 1
    assert caught.value.taken_ports == ()
    assert "taken" not in str(caught.value)


@pytest.mark.parametrize("fixed_by", ["load", "write"])
def test_error_names_fixed_ports_that_are_taken(
    install_kernel: Callable[..., str], taker: Taker, folder: Path, fixed_by: str
) -> None:
    manager = kclient.KernelManager(install_kernel(SILENT))
    manager.write_connection_file()
    if fixed_by == "load":
        path = folder / "fixed.json"
        path.write_text(json.dumps(manager.get_connection_info()))
        manager.shutdown_kernel()
        manager.load_connection_file(path)
    info = manager.get_connection_info()
    shell, hb = taker.take(info["shell_port"]), taker.take(info["hb_port"])
    with manager:
        manager.start_kernel()
        manager.start_channels()
        with pytest.raises(kclient.LaunchError) as caught:
            manager.wait_for_ready(WAIT)
    assert f"ports {shell}, {hb} are taken by another program" in str(caught.value)
    assert caught.value.taken_ports == (shell, hb)


@pytest.mark.skipif(not os.path.exists("/proc/self/net/tcp"), reason="needs /proc to see the listening sockets")
def test_timeout_names_the_port_that_another_program_has_and_not_those_of_the_kernel(
    install_kernel: Callable[..., str], taker: Taker
) -> None:
    launcher = Race(taker, 1)
    with kclient.KernelManager(install_kernel(STAYS), launcher=launcher) as manager:
        manager.shutdown_wait_time = 0.0
        manager.start_kernel(stdout=subprocess.PIPE)
        manager.start_channels()
        assert manager.process.stdout.readline() == b"tried\n"  # type: ignore[union-attr]
        with pytest.raises(kclient.KernelTimeout) as caught:
            manager.wait_for_ready(0.05)
    assert f"port {launcher.taken[0]} is taken by another program" in str(caught.value)


@pytest.mark.kernel
def test_timeout_names_no_port_if_the_kernel_has_them_all(
    install_kernel: Callable[..., str], taker: Taker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provisioner, "TERM_WAIT_S", 0.0)
    with kclient.KernelManager(install_kernel(STAYS)) as manager:
        manager.shutdown_wait_time = 0.0
        manager.start_kernel(stdout=subprocess.PIPE)
        manager.start_channels()
        assert manager.process.stdout.readline() == b"tried\n"  # type: ignore[union-attr]
        with pytest.raises(kclient.KernelTimeout, match="the command was") as caught:
            manager.wait_for_ready(0.05)
    assert "taken" not in str(caught.value)


# ipc: libzmq replaces any file at the path by its own socket


@pytest.mark.kernel
def test_ipc_address_on_which_another_program_listens_is_left_to_it(
    start_kernel: Callable[..., kclient.KernelManager], taker: Taker, folder: Path
) -> None:
    ip = str(folder / "k")
    theirs = taker.take_path(f"{ip}-1")
    Path(f"{ip}-3").write_text("a user's file")
    taker.take_path(f"{ip}-4").close()  # its file stays, and no program listens
    with start_kernel(transport="ipc", ip=ip) as manager:
        assert manager.run("6 * 7").text == "42"
        info = manager.get_connection_info()
        assert sorted(info[f"{name}_port"] for name in CHANNELS) == [2, 4, 5, 6, 7]
    accepted, _ = theirs.accept()  # the starter of the kernel looks whether a program listens here
    accepted.close()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(f"{ip}-1")
    assert sorted(path.name for path in folder.glob("k-*")) == ["k-1", "k-3"]


def test_error_names_the_fixed_ipc_address_that_is_taken(
    install_kernel: Callable[..., str], taker: Taker, folder: Path
) -> None:
    ip = str(folder / "k")
    manager = kclient.KernelManager(install_kernel(SILENT), transport="ipc", ip=ip)
    manager.write_connection_file()
    taker.take_path(f"{ip}-2")
    with pytest.raises(kclient.LaunchError, match=f"address {ip}-2 is taken by another program") as caught:
        manager.start_kernel()
    assert caught.value.taken_ports == (2,)
    assert not manager.has_kernel
    assert os.path.exists(f"{ip}-2")
