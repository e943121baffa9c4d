"""Very many kernels, and very many clients one after the other: nothing is shared, lost or left over."""

from __future__ import annotations

import gc
import os
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter
from typing import Any

import gevent
import leaks
import pytest
from figures import Figures
from fixtures import WAIT

import kclient
from benchmarks.kernels import echo_kernels

pytestmark = pytest.mark.kernel

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")

LONG_START = 300
"""Seconds that a kernel may take to start beside a hundred others."""

FLOOD = 10_000
"""Messages of a flood, each with one `LINE`."""

DESCRIPTORS = 6500
"""Descriptors of a process with 300 echo kernels: 20 for each and some for all. Their clients take half as many."""

LINE = "a line of output, as long as one is\n"

MIB = 2**20

GROWTH = 16 * MIB
"""Bytes by which the process may grow between the first tenth of the rounds and the last."""


class Holdings:
    """The numbers of greenlets, descriptors, threads and other objects that this process holds."""

    def __init__(self) -> None:
        gc.collect()
        leaks.end_threadpool()
        for _ in range(3):
            leaks.turn_loop()
        self.greenlets = len(leaks.live_greenlets())
        self.threads = len(leaks.native_threads())
        self.descriptors = len(leaks.descriptors())
        self.rss = resident()

    def counts(self) -> dict[str, int]:
        return {"greenlets": self.greenlets, "threads": self.threads, "descriptors": self.descriptors}

    def more_than(self, before: Holdings) -> dict[str, int]:
        """The counts that are larger than `before`. A thread that was just ended may have been counted there."""
        return {what: count for what, count in self.counts().items() if count > before.counts()[what]}


def resident() -> int:
    """Bytes of memory that this process holds now; 0 where there is no /proc."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if path.exists() else 0


def settled(before: Holdings) -> Holdings:
    """Wait until no more is held than before: libzmq closes the descriptors of a closed socket some time later."""
    until = perf_counter() + leaks.SETTLE
    while (now := Holdings()).more_than(before) and perf_counter() < until:
        gevent.sleep(0.01)
    assert not now.more_than(before), before.counts()
    return now


def repeat(round_: Callable[[int], None], rounds: int, figures: Figures, what: str) -> None:
    """Call `round_` `rounds` times. After a tenth of the rounds, and after all of them, no more is held than before."""
    before = Holdings()
    tenth = max(1, rounds // 10)
    started = perf_counter()
    for number in range(tenth):
        round_(number)
    after_tenth = settled(before)
    for number in range(tenth, rounds):
        round_(number)
    figures.note(f"{what}: {rounds} rounds", perf_counter() - started, "s")
    growth = settled(before).rss - after_tenth.rss
    figures.note(f"{what}: growth of memory after {tenth}", growth / MIB, "MiB", at_most=GROWTH / MIB)


@pytest.mark.timeout(600)
def test_kernels_that_are_started_at_once_all_start_and_share_nothing(transport: str, figures: Figures) -> None:
    number = figures.size(4, 100)
    managers: list[kclient.KernelManager] = []

    def start() -> None:
        managers.append(kclient.start_kernel(transport=transport, timeout=LONG_START))

    try:
        started = perf_counter()
        gevent.joinall([gevent.spawn(start) for _ in range(number)], raise_error=True)
        figures.note(f"{number} kernels at once over {transport}: all are ready", perf_counter() - started, "s")
        infos = [manager.get_connection_info() for manager in managers]
        places = [(info["ip"], info[f"{name}_port"]) for info in infos for name in CHANNELS]
        assert len({*places}) == 5 * number
        assert len({info["key"] for info in infos}) == number
        assert len({manager.connection_file for manager in managers}) == number
        pids = [manager.run("import os; os.getpid()", timeout=WAIT).text for manager in managers]
        assert pids == [str(manager.process.pid) for manager in managers if manager.process is not None]
        assert len({*pids}) == number
    finally:
        gevent.joinall([gevent.spawn(manager.shutdown_kernel, now=True) for manager in managers])


def answers_of(clients: Sequence[kclient.KernelManager | kclient.KernelClient], code: str) -> list[Any]:
    """The answer that each client gets for `code` with its number in it. All of them ask at once."""
    jobs = [gevent.spawn(client.run, code.format(number), timeout=WAIT) for number, client in enumerate(clients)]
    gevent.joinall(jobs, raise_error=True)
    return [job.value for job in jobs]


@pytest.mark.timeout(300)
def test_thirty_forked_kernels_in_one_process_each_answer_their_own(figures: Figures) -> None:
    number = 30
    managers: list[kclient.KernelManager] = []
    with kclient.ForkServer() as launcher, ExitStack() as stack:

        def start() -> None:
            managers.append(stack.enter_context(kclient.start_kernel(launcher=launcher, timeout=LONG_START)))

        started = perf_counter()
        gevent.joinall([gevent.spawn(start) for _ in range(number)], raise_error=True)
        figures.note(f"{number} forked kernels at once: all are ready", perf_counter() - started, "s")
        results = answers_of(managers, "import os; mine = {0}; print(mine); os.getpid()")
        assert [(result.stdout, result.complete) for result in results] == [(f"{n}\n", True) for n in range(number)]
        pids = [manager.process.pid for manager in managers if manager.process is not None]
        assert [int(result.text) for result in results] == pids
        assert [result.text for result in answers_of(managers, "mine + {0}")] == [str(2 * n) for n in range(number)]
        gevent.joinall([gevent.spawn(manager.shutdown_kernel, now=True) for manager in managers], raise_error=True)


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Raise the soft limit to the hard one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"RLIMIT_NOFILE allows {hard} descriptors, and {DESCRIPTORS} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
@pytest.mark.timeout(120)
def test_three_hundred_clients_in_one_process_each_get_their_own(transport: str, figures: Figures) -> None:
    """300 echo kernels. Then one of them floods, and all others are answered meanwhile."""
    number = 300
    with echo_kernels(number) as kernels, ExitStack() as stack:
        started = perf_counter()
        jobs = [gevent.spawn(kclient.connect, kernel[transport], timeout=WAIT) for kernel in kernels]
        gevent.joinall(jobs, raise_error=True)
        clients = [stack.enter_context(job.value) for job in jobs]
        figures.note(f"{number} clients at once over {transport}: all are ready", perf_counter() - started, "s")
        assert len({id(client.shell_channel.context) for client in clients}) == 1
        for _ in range(2):
            results = answers_of(clients, "say {0}")
            assert [(result.stdout, result.complete) for result in results] == [(str(n), True) for n in range(number)]
        flood = clients[0].submit(f"flood {FLOOD}")
        assert [result.stdout for result in answers_of(clients[1:], "say {0}")] == [str(n) for n in range(number - 1)]
        assert flood.result(timeout=WAIT).stdout == FLOOD * LINE


@pytest.mark.timeout(600)
def test_clients_that_come_and_go_lose_nothing_and_leave_nothing(
    kernel: kclient.KernelManager, transport: str, figures: Figures
) -> None:
    def come_and_go(number: int) -> None:
        with kclient.connect(kernel.connection_file, timeout=WAIT) as client:
            result = client.run("print(1)", timeout=WAIT)
        assert (result.stdout, result.complete) == ("1\n", True), number

    repeat(come_and_go, figures.size(40, 500), figures, f"connect, run, close over {transport}")


@pytest.mark.timeout(900)
def test_kernels_that_come_and_go_lose_nothing_and_leave_nothing(
    start_kernel: Any, runtime_dir: Path, folder: Path, figures: Figures
) -> None:
    """Over both transports in turn."""

    def come_and_go(number: int) -> None:
        with kclient.start_kernel(transport=("tcp", "ipc")[number % 2], timeout=WAIT) as manager:
            process = manager.process
            result = manager.run("print(1)", timeout=WAIT)
        assert (result.stdout, result.complete) == ("1\n", True), number
        assert process is not None
        assert not process.is_alive()
        assert [*runtime_dir.iterdir(), *(folder / "t").iterdir()] == []

    repeat(come_and_go, figures.size(4, 200), figures, "start, run, shutdown")
