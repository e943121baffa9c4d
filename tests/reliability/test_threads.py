"""Threads that end: they leave no descriptor, and what was made in them can still be ended."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from fixtures import WAIT
from leaks import descriptors, kind, settled

import kclient
from kclient.concurrency.owner import Owner
from kclient.testing import FakeKernel

THREADS = 20
"""More than the descriptors that a process may have by chance before or after."""


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeKernel]:
    with FakeKernel(thread=True) as fake:
        yield fake


def in_thread(function: Callable[[], Any]) -> Any:
    """The value that `function` returns in a thread of its own, after the end of the thread; raises its exception."""
    done: list[Any] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(function())
        except BaseException as exc:
            failed.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(WAIT)
    if failed:
        raise failed.pop()
    return done.pop()


def count() -> int:
    return len(descriptors())


def use(fake: FakeKernel) -> kclient.KernelClient:
    client = kclient.connect(fake.connection_info, timeout=WAIT)
    client.kernel_info(timeout=WAIT)
    return client


def close(fake: FakeKernel) -> None:
    with use(fake):
        pass


def drop(fake: FakeKernel) -> None:
    use(fake)


def drop_in_a_circle(fake: FakeKernel) -> None:
    circle: list[Any] = [use(fake)]
    circle.append(circle)


def leave_a_greenlet(fake: FakeKernel) -> None:
    client = use(fake)
    gevent.spawn(client.iopub_channel.get_msg)
    gevent.sleep(0)


def destroy_the_hub(fake: FakeKernel) -> None:
    close(fake)
    gevent.get_hub().destroy()


def destroy_the_hub_first(fake: FakeKernel) -> None:
    client = use(fake)
    gevent.get_hub().destroy()
    client.close()


@pytest.mark.parametrize(
    "request_of", [close, drop, drop_in_a_circle, leave_a_greenlet, destroy_the_hub, destroy_the_hub_first]
)
def test_thread_leaves_no_descriptor(fake: FakeKernel, request_of: Callable[[FakeKernel], None]) -> None:
    in_thread(lambda: request_of(fake))
    before = count()
    for _ in range(THREADS):
        in_thread(lambda: request_of(fake))
    # libzmq's thread closes the descriptors of a closed socket a bit later.
    assert settled(lambda: [f"{count()} instead of {before}"] if count() > before + THREADS // 2 else []) == []


def test_hub_that_the_program_had_used_before_is_left_to_it() -> None:
    hubs = []

    def request() -> None:
        hubs.append(gevent.get_hub())
        Owner()

    in_thread(request)
    assert hubs[0].loop is not None
    hubs[0].destroy(destroy_loop=True)


def test_client_of_a_thread_that_has_ended_can_be_closed_and_nothing_else(fake: FakeKernel) -> None:
    client = in_thread(lambda: use(fake))
    with pytest.raises(kclient.WrongThread, match="a thread that has ended"):
        client.kernel_info(timeout=WAIT)
    client.close()
    client.close()
    assert not client.channels_running


def test_function_that_is_posted_to_a_thread_is_called_though_the_thread_ends() -> None:
    called: list[int] = []

    def request() -> Owner:
        owner = Owner()
        poster = threading.Thread(target=lambda: owner.run_here(lambda: called.append(threading.get_ident())))
        poster.start()
        poster.join()
        assert called == []
        return owner

    owner = in_thread(request)
    assert len(called) == 1
    owner.run_here(lambda: called.append(0))
    assert called[1:] == [0]


def start(*, fork: bool = False) -> list[Any]:
    launcher = kclient.ForkServer() if fork else None
    manager = kclient.start_kernel(launcher=launcher, timeout=WAIT)
    assert manager.run("6 * 7", timeout=WAIT).text == "42"
    return [manager, launcher]


@pytest.mark.kernel
@pytest.mark.parametrize("end", [kclient.KernelManager.shutdown_kernel, kclient.KernelManager.kill_kernel])
def test_kernel_of_a_thread_that_has_ended_goes_on_and_can_be_ended(end: Callable[[Any], None]) -> None:
    manager, _ = in_thread(start)
    path, pid = manager.connection_file, manager.process.pid
    with kclient.connect(path, timeout=WAIT) as client:
        assert client.run("6 * 7", timeout=WAIT).text == "42"
    end(manager)
    assert not os.path.exists(path)
    assert not os.path.exists(f"/proc/{pid}"), "it is reaped, too"
    end(manager)
    assert not manager.has_kernel


@pytest.mark.kernel
def test_forked_kernel_and_its_server_can_be_ended_after_their_thread() -> None:
    manager, launcher = in_thread(lambda: start(fork=True))
    manager.shutdown_kernel()
    launcher.close()


@pytest.mark.kernel
def test_pool_can_be_closed_after_its_thread() -> None:
    def make() -> kclient.KernelPool:
        pool = kclient.KernelPool(size=1)
        pool.wait_until_warm(timeout=WAIT)
        return pool

    in_thread(make).close()


@pytest.mark.kernel
@pytest.mark.parametrize("is_in_a_circle", [True, False])
def test_kernel_that_is_dropped_in_a_thread_ends(is_in_a_circle: bool) -> None:
    """Without a circle it is dropped just before the thread ends, with one it is collected later."""

    def drop_kernel() -> int:
        circle = start()
        if is_in_a_circle:
            circle.append(circle)
        return int(circle[0].process.pid)

    def pidfds() -> int:
        return list(map(kind, descriptors().values())).count("anon_inode:[pidfd]")

    before = pidfds()  # of a kernel that tests share
    pid = in_thread(drop_kernel)
    gc.collect()
    assert settled(lambda: [f"process {pid}"] if os.path.exists(f"/proc/{pid}") else []) == []
    assert pidfds() <= before
