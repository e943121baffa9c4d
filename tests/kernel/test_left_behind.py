"""A kernel of another program is killed, and processes that it had forked hold its sockets: it is dead all the same."""

from __future__ import annotations

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
from kclient.transport.zmq.local_processes import left_to

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


@pytest.fixture
def foreign(folder: Path, transport: str) -> Iterator[tuple[Path, Any]]:
    """The connection file of a kernel that another program started, and the process."""
    path = folder / "r" / "kernel-foreign.json"
    ip = {"tcp": "127.0.0.1", "ipc": str(folder / "t" / "k")}[transport]
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", str(path), f"--transport={transport}", f"--ip={ip}"]
    nothing = subprocess.DEVNULL
    with subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing) as process:
        try:
            while not path.exists():
                gevent.sleep(0.01)
            yield path, process
        finally:
            process.kill()
    for left in [path, *folder.glob("t/k*")]:
        left.unlink(missing_ok=True)


def test_kernel_that_is_gone_is_dead_although_its_forks_hold_its_sockets(foreign: tuple[Path, Any]) -> None:
    path, process = foreign
    with kclient.connect(path, timeout=WAIT) as client:
        assert not left_to(client.connection.address("shell"))
        forks = client.run(FORKS, timeout=WAIT).text
        pids = [int(pid) for pid in str(forks).strip("[]").split(",")]
        try:
            assert not left_to(client.connection.address("shell")), "the kernel lives"
            process.send_signal(signal.SIGSTOP)
            assert not left_to(client.connection.address("shell")), "a stopped kernel may go on"
            process.send_signal(signal.SIGCONT)
            client.hb_channel.time_to_dead = 0.4
            client.hb_channel.pause()
            client.hb_channel.unpause()
            process.kill()
            process.wait()
            with pytest.raises(kclient.DeadKernelError, match=f"end them .{pids[0]}, {pids[1]}."):
                client.run("1")
            assert not client.is_alive()
            with pytest.raises(kclient.DeadKernelError, match="processes that it had started hold"):
                kclient.connect(path, timeout=WAIT)
        finally:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            until = monotonic() + WAIT
            while any(os.path.exists(f"/proc/{pid}") for pid in pids) and monotonic() < until:
                gevent.sleep(0.01)
