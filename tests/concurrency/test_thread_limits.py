"""A limit of processes and threads: refused before libzmq ends the program."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

import kclient
from kclient.concurrency import thread_limits
from kclient.concurrency.thread_limits import check_threads

LIMITED = """
import os, resource, sys
import kclient
from kclient.kernels.process.local import LocalLauncher
from kclient.testing import FakeKernel

with FakeKernel() as fake, kclient.connect(fake.connection_info, watch=False) as client:
    child = os.fork()
    if child == 0:
        if os.getuid() == 0:  # which no limit holds
            os.setuid(65534)
        limit = int(sys.argv[1])
        resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))
        for call in (
            lambda: kclient.connect(fake.connection_info, watch=False, timeout=1),
            lambda: LocalLauncher().start(["true"], stdout=1, stderr=1),
        ):
            try:
                call()
            except kclient.KClientError as exc:
                print(type(exc).__name__, exc, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.parametrize("limit", ["1", "2", "3"])
def test_client_and_kernel_are_refused_at_the_limit(run_script: Callable[..., str], limit: str) -> None:
    connect, *start = run_script(LIMITED, limit).splitlines()
    assert connect.startswith("InvalidState the ZeroMQ context takes 2 threads, and the system starts no more")
    assert "ulimit -u" in connect
    if limit == "1":
        assert start[0].startswith("LaunchError cannot start the kernel: a limit of processes and threads is reached")
        assert "ulimit -u" in start[0]


@pytest.mark.parametrize("left", range(4))
def test_threads_are_tried_and_leave_nothing(monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    """One more than needed: the program may start another meanwhile."""
    real, before, count = thread_limits.start_new_thread, threads(), 0

    def start(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if count == left:
            raise RuntimeError("can't start new thread")
        count += 1
        real(function, arguments)

    monkeypatch.setattr(thread_limits, "start_new_thread", start)
    if left < 3:
        with pytest.raises(kclient.InvalidState, match=r"2 threads, and .* \(can't start new thread\)"):
            check_threads(2, "it")
    else:
        check_threads(2, "it")
    assert threads() == before


def threads() -> set[str]:
    return set(os.listdir("/proc/self/task"))
