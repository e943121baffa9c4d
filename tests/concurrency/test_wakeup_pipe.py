"""The pipe that wakes the loop when a signal comes: in forked children, and where the program has closed it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import gevent
import pytest
from fixtures import in_forked_child
from gevent import get_hub

from kclient.concurrency import wakeup_pipe
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking

LONG = 30
"""Seconds. A test waits so long only if it fails."""

DAEMON = """
import os, sys, gevent, kclient
from kclient.testing import FakeKernel

def use(name):
    with FakeKernel() as fake, kclient.KernelClient(fake.connection_info) as client:
        client.start_channels()
        print(name, client.kernel_info(timeout=30).content["status"], flush=True)

def in_child(function):
    pid = gevent.fork()
    if not pid:
        try:
            function()
        finally:
            os._exit(0)
    gevent.os.waitpid(pid, 0)

def daemon():
    os.setsid()
    os.closerange(3, 256)
    if sys.argv[1] == "other files have the numbers":
        files = [open("/dev/null", "rb") for _ in range(64)]
    else:
        gevent.get_hub().destroy(destroy_loop=True)
        files = []
    use("daemon")
    for number in range(2):
        in_child(lambda: use(f"worker {number}"))
    assert all(file.read() == b"" for file in files)

use("program")
with FakeKernel() as fake, kclient.KernelClient(fake.connection_info) as client:
    client.start_channels()
    in_child(daemon)
    print("program", client.kernel_info(timeout=30).content["status"])
"""


@pytest.fixture
def sigint_is_pythons() -> Iterator[None]:
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def identity(fd: int) -> int:
    return os.fstat(fd).st_ino


def awaken_after_signal() -> str:
    """Wait, and let a handler that the program has for a signal end the wait: only the pipe wakes the loop."""
    owner = Owner()
    parking = Parking(owner)
    old = signal.signal(signal.SIGALRM, lambda signum, frame: parking.wake())
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        return str(parking.wait(Deadline(LONG)))
    finally:
        signal.signal(signal.SIGALRM, old)


@pytest.mark.parametrize("what", ["a new hub", "other files have the numbers"])
def test_daemon_that_closes_all_descriptors_goes_on_and_so_do_the_children_that_it_forks(
    run_script: Callable[..., str], what: str
) -> None:
    words = run_script(DAEMON, what).splitlines()
    assert words == ["program ok", "daemon ok", "worker 0 ok", "worker 1 ok", "program ok"]


def test_forked_child_has_a_pipe_of_its_own() -> None:
    assert awaken_after_signal() == "True"
    fd = wakeup_pipe.wakeup_fd(get_hub())
    ours = identity(fd)
    its = in_forked_child(lambda: f"{wakeup_pipe.wakeup_fd(get_hub())} {identity(fd)}")
    number, found = map(int, its.split())
    assert number == fd
    assert found != ours
    assert identity(fd) == ours


def test_signal_wakes_a_forked_child_and_not_its_parent() -> None:
    hub = get_hub()
    wakeup_pipe.wakeup_fd(hub)

    def child() -> str:
        gevent.reinit()
        return awaken_after_signal()

    assert in_forked_child(child) == "True"
    assert wakeup_pipe._pipe is not None
    with pytest.raises(BlockingIOError):
        os.read(wakeup_pipe._pipe._out, 1)


def test_files_that_the_program_opened_with_the_numbers_of_a_pipe_that_it_closed_are_left_alone(folder: Path) -> None:
    """In a child: the pipe of this process lives on."""
    path = folder / "file"
    path.write_bytes(b"content")
    wakeup_pipe.wakeup_fd(get_hub())

    def child() -> str:
        pipe = wakeup_pipe._pipe
        assert pipe is not None
        numbers = [pipe._out, pipe.fd]
        for number in numbers:
            os.close(number)
        files = [os.open(path, os.O_RDWR | os.O_NONBLOCK) for _ in numbers]
        assert sorted(files) == sorted(numbers)
        gevent.reinit()
        woken = awaken_after_signal()
        return f"{woken} {[os.read(file, 100) for file in files]} {path.read_bytes()!r}"

    assert in_forked_child(child) == "True [b'content', b'content'] b'content'"


def test_wait_goes_on_where_the_program_has_closed_its_own_wakeup_descriptor(sigint_is_pythons: None) -> None:
    out, fd = os.pipe()
    os.set_blocking(fd, False)
    signal.set_wakeup_fd(fd)
    os.close(out)
    os.close(fd)
    assert awaken_after_signal() == "True"
    assert signal.set_wakeup_fd(-1) == -1
