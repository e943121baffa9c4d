"""What a program still holds of a kernel (an Execution, a client, a channel, a comm) keeps the kernel alive."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import gevent
import pytest
from fixtures import WAIT

import kclient
from kclient.kernels.process.local import KernelProcess

pytestmark = pytest.mark.kernel

Started = tuple[weakref.ref[kclient.KernelManager], KernelProcess]
"""A manager, and its process."""

COMM_TARGET = """
def opened(comm, message):
    comm.send({"opened": 1})
get_ipython().kernel.comm_manager.register_target("x", opened)
"""


def collect(reference: weakref.ref[object]) -> None:
    """Return when the object is collected. A slow start may have woken a greenlet that still asks the kernel."""
    with gevent.Timeout(WAIT):
        while reference() is not None:
            gevent.sleep(0.001)
            gc.collect()


@pytest.fixture
def started() -> Iterator[list[Started]]:
    """The managers that `start` has made, and their processes. At the end none is left, and each process has ended."""
    managers: list[Started] = []
    yield managers
    assert managers
    for manager, process in managers:
        collect(manager)
        assert process.exited.wait(WAIT)


@pytest.fixture
def start(started: list[Started]) -> Callable[..., kclient.KernelManager]:
    """Starts a kernel. The manager is held by the caller alone."""

    def start_kernel(code: str = "", **options: object) -> kclient.KernelManager:
        manager = kclient.start_kernel(timeout=WAIT, **options)  # type: ignore[arg-type]
        if code:
            manager.run(code, timeout=WAIT, check=True)
        started.append((weakref.ref(manager), manager.process))
        return manager

    return start_kernel


Start = Callable[..., kclient.KernelManager]


def test_result_of_a_manager_that_is_dropped(start: Start) -> None:
    assert start().submit("6*7").result().text == "42"


def test_outputs_of_a_manager_that_is_dropped(start: Start) -> None:
    messages = list(start().submit("print('a'); 1"))
    assert [message.msg_type for message in messages] == ["stream", "execute_result"]


def test_execution_of_a_function_with_its_own_kernel(start: Start) -> None:
    def compute(code: str) -> kclient.Execution:
        kernel = start()
        return kernel.submit(code)

    assert compute("6*7").result().text == "42"


def test_execution_that_times_out_and_is_asked_again(start: Start) -> None:
    with pytest.raises(kclient.KernelTimeout) as caught:
        start().submit("import time; time.sleep(1); 6*7").result(timeout=0.1)
    execution = caught.value.execution
    assert execution.result().text == "42"
    caught.value.__traceback__ = None


@pytest.mark.parametrize("restart", [False, True])
def test_client_of_a_manager_that_is_dropped(start: Start, restart: bool) -> None:
    assert start(restart=restart).client.run("1").text == "1"


def test_client_of_a_dropped_manager_gets_the_next_kernel(start: Start) -> None:
    client = start(restart=True).client
    with pytest.raises(kclient.DeadKernelError):
        client.run("import os; os._exit(1)", timeout=WAIT)
    assert client.run("6*7", timeout=WAIT).text == "42"


def test_client_of_a_dropped_manager_learns_that_the_kernel_died(start: Start) -> None:
    client = start().client
    with pytest.raises(kclient.DeadKernelError, match="exit code 3"):
        client.run("import os; os._exit(3)")


@pytest.mark.parametrize("name", ["shell_channel", "control_channel"])
def test_channel_of_a_manager_that_is_dropped(start: Start, name: str) -> None:
    channel = getattr(start(), name)
    assert channel.kernel_info(timeout=WAIT)["content"]["status"] == "ok"


def test_heartbeat_of_a_manager_that_is_dropped(start: Start) -> None:
    heartbeat = start().hb_channel
    heartbeat.unpause()
    gc.collect()
    with gevent.Timeout(WAIT):
        while heartbeat.is_beating() is None:  # until the first answer, of which nothing tells
            gevent.sleep(0.001)
    assert heartbeat.is_beating()


def test_channel_of_a_client_of_a_manager_that_is_dropped(start: Start) -> None:
    assert start().client.shell_channel.kernel_info(timeout=WAIT)["content"]["status"] == "ok"


def test_output_on_the_iopub_channel_of_a_manager_that_is_dropped(start: Start) -> None:
    # The thread prints after the cell has ended, so its output belongs to no call.
    kernel = start("import threading; threading.Timer(0.5, lambda: print('late')).start()")
    iopub = kernel.iopub_channel
    iopub.get_msgs()
    del kernel
    gc.collect()
    while (message := iopub.get_msg(timeout=WAIT)).msg_type != "stream":
        pass
    assert message["content"]["text"].startswith("late")


def test_comm_of_a_manager_that_is_dropped(start: Start) -> None:
    assert start(COMM_TARGET).comms.open("x").receive(timeout=WAIT)["content"]["data"] == {"opened": 1}


def test_greenlet_goes_on_when_its_manager_is_replaced(start: Start) -> None:
    place = SimpleNamespace(kernel=start())
    execution = place.kernel.submit("import time; time.sleep(1); 6*7")
    greenlet = gevent.spawn(execution.result)
    del execution
    gevent.idle()
    place.kernel = start()
    gc.collect()
    assert greenlet.get(timeout=WAIT).text == "42"


def test_kernel_of_a_pool_that_is_dropped(started: list[Started]) -> None:
    with kclient.KernelPool(size=1).acquire(timeout=WAIT) as kernel:
        started.append((weakref.ref(kernel), kernel.process))
        gc.collect()
        gevent.idle()
        assert kernel.run("6*7").text == "42"
        assert kernel.submit("6*7").result().text == "42"
    assert kernel.process is None
    kernel = kclient.KernelPool(size=1).acquire(timeout=WAIT)
    started.append((weakref.ref(kernel), kernel.process))
    gc.collect()
    assert kernel.run("6*7").text == "42"


def test_kernel_ends_when_nothing_of_it_is_held(start: Start, started: list[Started]) -> None:
    held = start().client
    process = started[0][1]
    gc.collect()
    assert process.is_alive()
    del held
    collect(started[0][0])
    assert process.exited.wait(WAIT)


def test_kernel_of_a_manager_that_ran_code_only_ends_without_the_garbage_collector(
    start: Start, started: list[Started]
) -> None:
    gc.disable()
    try:
        kernel = start()
        assert kernel.run("6*7").text == "42"
        assert kernel.submit("6*7").result().text == "42"
        del kernel
        assert not started[0][1].is_alive() or started[0][1].exited.wait(WAIT)
    finally:
        gc.enable()


def test_call_that_waits_is_told_that_the_manager_was_dropped(start: Start, started: list[Started]) -> None:
    def execute() -> None:
        with pytest.raises(kclient.DeadKernelError, match="the manager of the kernel was dropped"):
            shell.execute("import time; time.sleep(600)")

    manager = start()
    # The parts of a client do not hold the manager. What a program gets of a manager does.
    shell = manager.kernel_connection.channels.shell
    greenlet = gevent.spawn(execute)
    gevent.idle()
    del manager
    collect(started[0][0])
    greenlet.get(timeout=WAIT)
    assert not shell.is_alive()


AT_EXIT = """
{patch}import atexit
import kclient
atexit.register(lambda: print(kernel.run("a * 7", timeout=60).text, flush=True))
{options}
kernel.run("a = 6")
"""

MAKE = {
    "start_kernel": "kernel = kclient.start_kernel()",
    "restart": "kernel = kclient.start_kernel(restart=True)",
    "ForkServer": "kernel = kclient.start_kernel(launcher=kclient.ForkServer())",
    "KernelPool": "pool = kclient.KernelPool(size=1)\nkernel = pool.acquire()",
    "client": "kernel = kclient.start_kernel().client",
}


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()\n"], ids=["", "patched"])
@pytest.mark.parametrize("make", MAKE)
def test_call_registered_with_atexit_before_the_kernel_was_made_works(
    run_script: Callable[..., str], runtime_dir: Path, patch: str, make: str
) -> None:
    assert run_script(AT_EXIT.format(patch=patch, options=MAKE[make])) == "42"
    assert list(runtime_dir.iterdir()) == []
