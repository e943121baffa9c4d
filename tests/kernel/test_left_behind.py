"""A kernel of another program is killed, and processes that it had forked hold its sockets: it is dead all the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
import pytest
from fixtures import WAIT

import kclient
from kclient.transport.zmq import local_processes
from kclient.transport.zmq.local_processes import Listeners

FORKS = """
import os, time
pids = []
for _ in range(2):
    if not (pid := os.fork()):
        time.sleep(600)
        os._exit(0)
    pids.append(pid)
pids
"""


def is_written(path: Path) -> bool:
    """Whether the kernel has written its file: it is empty for a moment after it is made."""
    with suppress(FileNotFoundError, ValueError):
        return bool(json.loads(path.read_text()))
    return False


@pytest.fixture
def foreign(folder: Path, transport: str) -> Iterator[tuple[Path, Any]]:
    """The connection file of a kernel that another program started, and the process."""
    path = folder / "r" / "kernel-foreign.json"
    ip = {"tcp": "127.0.0.1", "ipc": str(folder / "t" / "k")}[transport]
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", str(path), f"--transport={transport}", f"--ip={ip}"]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing) as process:
        try:
            while not is_written(path):
                gevent.sleep(0.01)
            yield path, process
        finally:
            process.kill()
    for left in [path, *folder.glob("t/k*")]:
        left.unlink(missing_ok=True)


def test_kernel_that_is_gone_is_dead_although_its_forks_hold_its_sockets(foreign: tuple[Path, Any]) -> None:
    path, process = foreign
    with kclient.connect(path, timeout=WAIT) as client:
        address = client.connection.address("shell")
        assert not Listeners().left_to(address)
        forks = client.run(FORKS, timeout=WAIT).text
        pids = [int(pid) for pid in str(forks).strip("[]").split(",")]
        try:
            assert not Listeners().left_to(address), "the kernel lives"
            process.send_signal(signal.SIGSTOP)
            assert not Listeners().left_to(address), "a stopped kernel may go on"
            process.send_signal(signal.SIGCONT)
            client.hb_channel.time_to_dead = 0.4
            client.hb_channel.pause()
            client.hb_channel.unpause()
            process.kill()
            process.wait()
            with pytest.raises(kclient.DeadKernelError, match=f"end them .{pids[0]}, {pids[1]}."):
                client.run("1")
            assert not client.is_alive()
            assert Listeners().left_to(address) == sorted(pids)
            with pytest.raises(kclient.DeadKernelError, match="processes that it had started hold"):
                kclient.connect(path, timeout=WAIT)
            with pytest.raises(kclient.KernelTimeout, match="processes that it had started hold"):
                kclient.connect(path, timeout=0.1, watch=False)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            until = monotonic() + WAIT
            while any(os.path.exists(f"/proc/{pid}") for pid in pids) and monotonic() < until:
                gevent.sleep(0.01)


def test_who_asks_soon_after_another_gets_what_that_one_saw(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look of 20 ms counts for 380 ms: 300 clients of an overloaded machine asked at once, and took 20 s."""
    looks: list[float] = []
    now = 1.0

    def look() -> Iterator[int]:
        nonlocal now
        looks.append(now)
        now += 0.02
        yield from ()

    monkeypatch.setattr(local_processes, "monotonic", lambda: now)
    monkeypatch.setattr(local_processes, "_pids", look)
    listeners = Listeners()
    for asked in (1.0, 1.03, 1.39, 1.41, 1.42):
        now = max(now, asked)
        assert listeners.left_to("tcp://127.0.0.1:1") == []
    assert looks == [1.0, 1.41]
