"""A pool of fake kernels in this hub: check-out, return, failures, events, the end, and wrong use."""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import gevent
import pytest
from fake_processes import FakeLauncher, FakeProcess, broken, install_fake
from fixtures import WAIT, Background, in_forked_child
from gevent.event import Event
from leaks import turn_loop

import kclient
from kclient import (
    ChannelClosed,
    InvalidArgument,
    InvalidPortNumber,
    InvalidState,
    KernelPool,
    KernelTimeout,
    LaunchError,
    NoSuchKernel,
    PoolEvent,
)
from kclient.pool import lent_kernel, workers
from kclient.pool.lent_kernel import Lender, LentKernel, Recipe
from kclient.testing import result, stream

AFTER_DEATH_S = 0.05
"""Seconds after which the sockets of a dead kernel are closed."""


@pytest.fixture
def launcher() -> FakeLauncher:
    return FakeLauncher({"6 * 7": [result("42")], "warm up": [stream("noise")]})


@pytest.fixture
def make_pool(launcher: FakeLauncher, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """A KernelPool of fake kernels. It is closed at the end of the test."""
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    install_fake(folder / "jupyter")
    pools: list[KernelPool] = []

    def make(*, is_warm: bool = True, **options: Any) -> KernelPool:
        pools.append(KernelPool("fake", **{"size": 1, "launcher": launcher, **options}))
        if is_warm:
            pools[-1].wait_until_warm(WAIT)
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


class Told:
    """An on_event that keeps its arguments. `wait_for` waits for more."""

    def __init__(self) -> None:
        self.events: list[PoolEvent] = []
        self._came = Event()

    def __call__(self, event: PoolEvent) -> None:
        self.events.append(event)
        self._came.set()

    @property
    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]

    def wait_for_more(self) -> None:
        self._came.clear()
        assert self._came.wait(WAIT)


class Blockade:
    """A `before` that holds up every start until `open` is called."""

    def __init__(self) -> None:
        self._event = Event()

    def __call__(self, number: int) -> None:
        self._event.wait(WAIT)

    def open(self) -> None:
        self._event.set()


def process_of(kernel: kclient.KernelManager) -> FakeProcess:
    assert isinstance(kernel.process, FakeProcess)
    return kernel.process


# Check-out


def test_kernel_is_ready_and_a_manager(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool()
    with pool.kernel(timeout=WAIT) as kernel:
        assert isinstance(kernel, kclient.KernelManager)
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"
        assert [(listed.kernel_id, listed.state, listed.uses) for listed in pool.kernels()] == [
            (kernel.kernel_id, "busy", 1)
        ]


def test_each_user_gets_a_kernel_of_their_own(make_pool: Callable[..., KernelPool], launcher: FakeLauncher) -> None:
    pool = make_pool()
    for _ in range(3):
        with pool.kernel(timeout=WAIT):
            pass
    pool.wait_until_warm(WAIT)
    assert (len(launcher.processes), len(launcher.alive)) == (4, 1)


def test_callers_are_served_in_their_order(
    make_pool: Callable[..., KernelPool], background: Callable[..., Background]
) -> None:
    pool = make_pool(size=2)
    order: list[int] = []

    def use(number: int) -> None:
        with pool.kernel(timeout=WAIT):
            order.append(number)

    users = [background(use, number) for number in range(12)]
    for user in users:
        user.get()
    assert order == sorted(order)
    stats = pool.stats()
    assert (stats.checkouts, stats.busy, stats.waiting) == (12, 0, 0)
    assert 0 <= stats.checkout_p50 <= stats.checkout_p99 <= stats.checkout_max


def test_without_a_kernel_in_time_the_caller_is_told_how_things_are(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool()
    with pool.kernel():
        for timeout in (0, 0.01):
            with pytest.raises(KernelTimeout, match="no free kernel within .*; busy: 1, starting: 0, max_size: 1"):
                pool.acquire(timeout)
    stats = pool.stats()
    assert (stats.waits, stats.timeouts, stats.waiting) == (2, 2, 0)


def test_timeout_of_0_gets_what_is_idle(make_pool: Callable[..., KernelPool]) -> None:
    with make_pool().kernel(timeout=0) as kernel:
        assert kernel.is_alive()


@pytest.mark.parametrize("blow", [gevent.GreenletExit(), gevent.Timeout(1), KeyboardInterrupt()])
def test_caller_killed_in_the_turn_in_which_it_was_handed_a_kernel_does_not_take_it_along(
    make_pool: Callable[..., KernelPool],
    launcher: FakeLauncher,
    background: Callable[..., Background],
    blow: BaseException,
) -> None:
    launcher.before = blockade = Blockade()
    pool = make_pool(is_warm=False)
    waits = background(pool.acquire, WAIT)
    lend = pool._workers.scheduler.lend

    def lend_and_kill() -> Any:
        checkout = lend()
        waits.greenlet.kill(blow, block=False)
        return checkout

    pool._workers.scheduler.lend = lend_and_kill
    blockade.open()
    assert waits.error() is blow
    pool._workers.scheduler.lend = lend
    with pool.kernel(timeout=WAIT) as kernel:
        assert kernel.is_alive()
    assert len(launcher.processes) == 1


def test_caller_that_asks_in_the_hub_is_told_off(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool()
    errors: list[Exception] = []
    with pool.kernel():

        def ask() -> None:
            try:
                pool.acquire(1)
            except InvalidState as exc:
                errors.append(exc)

        gevent.get_hub().loop.run_callback(ask)
        turn_loop()
    assert "in the hub" in str(errors[0])
    assert pool.stats().waiting == 0


# Return


def test_returned_kernel_is_nobodys(
    make_pool: Callable[..., KernelPool], background: Callable[..., Background]
) -> None:
    pool = make_pool()
    with pool.kernel() as kernel:
        client = kernel.client
        process_of(kernel).kernel.script["hang"] = lambda request: Event().wait()
        hangs = background(kernel.run, "hang")
    assert isinstance(hangs.error(), InvalidState)
    calls: list[Callable[[], Any]] = [
        lambda: kernel.run("6 * 7"),
        lambda: client.run("6 * 7"),
        lambda: kernel.complete("x", 1),
        lambda: kernel.restart_kernel(),
        lambda: kernel.start_kernel(),
        lambda: kernel.start_channels(),
        lambda: kernel.interrupt_kernel(),
        lambda: kernel.signal_kernel(9),
        lambda: kernel.kill_kernel(),
    ]
    for moment in range(2):
        for call in calls:
            with pytest.raises(InvalidState, match="was given back to its pool"):
                call()
        if not moment:
            pool.wait_until_warm(WAIT)


@pytest.mark.parametrize("end", [BaseException("the body failed"), None])
def test_kernel_is_given_back_however_the_block_ends(
    make_pool: Callable[..., KernelPool], end: BaseException | None
) -> None:
    pool = make_pool()
    with suppress(BaseException), pool.kernel():
        if end is not None:
            raise end
    pool.wait_until_warm(WAIT)
    assert pool.stats().recycled == 1


@pytest.mark.parametrize("use", ["shutdown_kernel", "kill_kernel", "restart_kernel", "stop_channels"])
@pytest.mark.parametrize("max_uses", [1, 5])
def test_next_user_gets_a_good_kernel_after_any_use_of_the_last_one(
    make_pool: Callable[..., KernelPool], use: str, max_uses: int
) -> None:
    pool = make_pool(max_uses=max_uses)
    with pool.kernel() as kernel:
        getattr(kernel, use)()
        first = kernel.process
    with pool.kernel(timeout=WAIT) as kernel:
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"
        assert kernel.process is not first
    assert pool.stats().deaths == 0


def test_kernel_in_a_with_statement_of_its_own_is_given_back(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool()
    with pool.acquire() as kernel:
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"
    with pytest.raises(InvalidState, match="given back already"):
        pool.release(kernel)


def test_kernel_given_back_twice_is_an_error(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool()
    kernel = pool.acquire()
    pool.release(kernel)
    with pytest.raises(InvalidState, match="given back already"):
        pool.release(kernel)


def test_kernel_of_another_pool_cannot_be_given_back(make_pool: Callable[..., KernelPool]) -> None:
    pool, other = make_pool(), make_pool()
    with other.kernel() as kernel:
        for stranger in (kernel, None, kclient.KernelManager(), "kernel"):
            with pytest.raises(InvalidArgument, match="not a kernel of this pool"):
                pool.release(stranger)
    with pool.kernel() as kernel:
        pool.release(kernel)  # the end of the block does nothing more
    assert pool.stats().recycled == 1


# One kernel for more than one user


def test_same_process_goes_on_to_the_next_user_who_shares_nothing_else_with_the_former(
    make_pool: Callable[..., KernelPool],
) -> None:
    pool = make_pool(max_uses=2)
    with pool.kernel() as former:
        former.on_input = lambda prompt, password: "secret"
        kernel_id, process = former.kernel_id, process_of(former)
        process.kernel.publish("stream", {"name": "stdout", "text": "left over"})
    with pool.kernel(timeout=WAIT) as kernel:
        assert (kernel.process, kernel.kernel_id) == (process, kernel_id)
        assert kernel is not former
        assert kernel.on_input is None
        assert kernel.iopub_channel.get_msgs() == []
        stale = [former.run, former.client.run, former.complete]
        for call in stale:
            with pytest.raises(InvalidState, match="was given back to its pool"):
                call("6 * 7")
        with pytest.raises(InvalidState, match="was given back to its pool"):
            former.kill_kernel()
        with pytest.raises(InvalidState, match="no kernel was started"):
            former.client.interrupt_kernel()
        former.shutdown_kernel()
        del former, stale, call
        gc.collect()
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"
    pool.wait_until_warm(WAIT)
    assert not process.is_alive()


def test_user_may_restart_a_kernel_that_had_another_user(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool(max_uses=5)
    with pool.kernel():
        pass
    with pool.kernel(timeout=WAIT) as kernel:
        former = process_of(kernel)
        former.tells = False
        kernel.restart_kernel(now=True, timeout=WAIT)
        former.exited.set()
        turn_loop(AFTER_DEATH_S)
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"
        process_of(kernel).die(3)
        with pytest.raises(kclient.DeadKernelError):
            kernel.run("6 * 7", timeout=WAIT)
    assert pool.stats().deaths == 1


def test_kernel_that_died_after_it_was_renewed_is_replaced_and_no_news_to_its_former_user(
    make_pool: Callable[..., KernelPool],
) -> None:
    pool = make_pool(max_uses=5)
    with pool.kernel() as former:
        process = process_of(former)
    pool.wait_until_warm(WAIT)
    process.die(3)
    with pool.kernel(timeout=WAIT) as kernel:
        assert kernel.process is not process
    assert pool.stats().deaths == 1
    turn_loop(AFTER_DEATH_S)
    with pytest.raises(InvalidState, match="was given back to its pool"):
        former.run("6 * 7")


def sockets_of(kernel: kclient.KernelManager) -> dict[str, Any]:
    return {channel.name: channel._connection.socket for channel in kernel.kernel_connection.channels.running()}


def ask(request: Any) -> None:
    request.publish("stream", {"name": "stdout", "text": request.ask("? ")})


def test_connections_go_on_to_the_next_user_and_channels_of_the_former_have_none(
    make_pool: Callable[..., KernelPool],
) -> None:
    pool = make_pool(max_uses=5)
    with pool.kernel() as former:
        process_of(former).kernel.script["ask"] = ask
        former.run("6 * 7", timeout=WAIT)
        channels, sockets = former.kernel_connection.channels.running(), sockets_of(former)
        info, former_info = former.kernel, former.kernel.content
    with pool.kernel(timeout=WAIT) as kernel:
        assert sockets_of(kernel) == sockets
        assert kernel.kernel == info
        former_info.clear()
        assert kernel.kernel.content
        assert not any(channel.is_alive() for channel in channels)
        for channel in channels:
            with pytest.raises(ChannelClosed):
                channel.check_running()
        with pytest.raises(InvalidPortNumber):
            former.client.start_channels()
        asked = process_of(kernel).kernel.requests
        assert [request.msg_type for request in asked].count("kernel_info_request") == 1
        for _ in range(2):
            output = kernel.run("ask", timeout=WAIT, on_input=lambda prompt, password: "an answer").stdout
            assert output == "an answer"
            kernel.restart_kernel(now=True, timeout=WAIT)
            process_of(kernel).kernel.script["ask"] = ask
        assert sockets_of(kernel).keys() == sockets.keys()


@pytest.mark.parametrize("use", ["stop a channel", "signal", "lose a subscription"])
def test_connection_that_may_not_be_as_it_should_is_replaced_and_not_the_kernel(
    make_pool: Callable[..., KernelPool], use: str
) -> None:
    pool = make_pool(max_uses=5)
    with pool.kernel() as former:
        process, shell = process_of(former), sockets_of(former)["shell"]
        if use == "stop a channel":
            former.hb_channel.stop()
        elif use == "signal":
            former.signal_kernel(18)
        else:
            former.kernel_connection.channels.outputs.subscribed = False
    with pool.kernel(timeout=WAIT) as kernel:
        assert process_of(kernel) is process
        assert sockets_of(kernel)["shell"] is not shell
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"


@pytest.mark.parametrize("left", ["an execution", "a request", "a comm message", "an execution of another client"])
def test_kernel_with_work_of_its_user_left_is_replaced(make_pool: Callable[..., KernelPool], left: str) -> None:
    pool = make_pool(max_uses=5)
    with pool.kernel() as kernel, ExitStack() as stack:
        process = process_of(kernel)
        process.kernel.script["hang"] = lambda request: Event().wait()
        if left == "an execution":
            kernel.submit("hang")
        elif left == "a request":
            kernel.shell_channel.send("execute_request", {"code": "hang"})
        elif left == "a comm message":
            kernel.comms.open("target")
        else:
            stack.enter_context(kclient.connect(kernel.connection_file, watch=False)).submit("hang")
            while not kernel.kernel_connection.channels.iopub.outputs.executing:
                turn_loop()
    with pool.kernel(timeout=WAIT) as kernel:
        assert kernel.process is not process


def leave(request: Any) -> None:
    request.reply({"execution_count": 1, "payload": [{"source": "ask_exit", "keepkernel": False}]})


@pytest.mark.parametrize("use", ["run", "submit and wait", "execute", "a request of the channel", "shutdown_reply"])
def test_kernel_that_is_about_to_exit_is_replaced(make_pool: Callable[..., KernelPool], use: str) -> None:
    pool = make_pool(max_uses=5)
    with pool.kernel() as kernel:
        process = process_of(kernel)
        process.kernel.script["exit()"] = leave
        if use == "run":
            kernel.run("exit()", timeout=WAIT)
        elif use == "submit and wait":
            kernel.submit("exit()").result(WAIT)
        elif use == "execute":
            kernel.execute("exit()", timeout=WAIT)
        elif use == "a request of the channel":
            shell = kernel.client.shell_channel
            shell.get_reply(shell.send("execute_request", {"code": "exit()"}), timeout=WAIT)
        else:
            process.kernel.on("shutdown_request", lambda request: request.reply())  # it takes its time to exit
            kernel.client.shutdown(timeout=WAIT)
        assert kernel.is_alive()
    with pool.kernel(timeout=WAIT) as kernel:
        assert kernel.process is not process
    assert pool.stats().deaths == 0


@pytest.mark.parametrize(
    "payload", [[{"source": "ask_exit", "keepkernel": True}], [{"source": "page"}], ["exit"], {}, 7]
)
def test_kernel_whose_payload_does_not_ask_to_exit_goes_on_to_the_next_user(
    make_pool: Callable[..., KernelPool], payload: Any
) -> None:
    pool = make_pool(max_uses=2)
    with pool.kernel() as kernel:
        process = process_of(kernel)
        process.kernel.script["pay"] = lambda request: request.reply({"execution_count": 1, "payload": payload})
        kernel.run("pay", timeout=WAIT)
    with pool.kernel(timeout=WAIT) as kernel:
        assert kernel.process is process


def test_idle_kernel_that_another_client_shuts_down_is_not_handed_out(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher
) -> None:
    told = Told()
    pool = make_pool(on_event=told)
    (entry,) = pool._workers.scheduler
    launcher.processes[0].kernel.publish("shutdown_reply", {"status": "ok", "restart": False})
    while entry.kernel is not None and not entry.kernel.is_about_to_exit:
        turn_loop()
    with pool.kernel(timeout=WAIT) as kernel:
        assert kernel.process is launcher.processes[1]
    while "died" not in told.kinds:
        told.wait_for_more()
    (death,) = [event.error for event in told.events if event.kind == "died"]
    assert str(death).startswith("the kernel 'fake' died: it was asked to shut down")


class Answering:
    """A handler of the fake kernel that answers when it is told to."""

    def __init__(self, process: FakeProcess, msg_type: str) -> None:
        self.began, self.may_end, self.has_ended = Event(), Event(), Event()
        process.kernel.on(msg_type, self)

    def __call__(self, request: Any) -> None:
        self.began.set()
        self.may_end.wait()
        self.has_ended.set()
        request.reply({"matches": [], "cursor_start": 0, "cursor_end": 0, "metadata": {}})


def test_kernel_is_not_killed_while_it_answers_a_question(make_pool: Callable[..., KernelPool]) -> None:
    """It may be writing into a cache that other kernels share."""
    pool = make_pool()
    with pool.kernel() as kernel:
        process = process_of(kernel)
        answering = Answering(process, "complete_request")
        kernel.shell_channel.send("complete_request", {"code": "x", "cursor_pos": 1})
        assert answering.began.wait(WAIT)
    with pytest.raises(InvalidState, match="was given back"):
        kernel.complete("x")
    turn_loop(2 * lent_kernel.BEGIN_WAIT_S)
    assert process.is_alive()
    answering.may_end.set()
    pool.wait_until_warm(WAIT)
    assert answering.has_ended.is_set()
    assert not process.is_alive()


def test_kernel_that_answers_for_too_long_is_killed(
    make_pool: Callable[..., KernelPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lent_kernel, "ANSWER_WAIT_S", 0.01)
    pool = make_pool()
    with pool.kernel() as kernel:
        process = process_of(kernel)
        answering = Answering(process, "complete_request")
        kernel.shell_channel.send("complete_request", {"code": "x", "cursor_pos": 1})
        assert answering.began.wait(WAIT)
    pool.wait_until_warm(WAIT)
    assert not process.is_alive()


def test_kernel_that_runs_code_is_killed_at_once(
    make_pool: Callable[..., KernelPool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lent_kernel, "ANSWER_WAIT_S", 10 * WAIT)
    pool = make_pool()
    with pool.kernel() as kernel:
        process = process_of(kernel)
        answering = Answering(process, "execute_request")
        kernel.submit("x")
        kernel.shell_channel.send("complete_request", {"code": "x", "cursor_pos": 1})
        assert answering.began.wait(WAIT)
    pool.wait_until_warm(WAIT)
    assert not process.is_alive()


LIMIT = 10_000


@pytest.mark.parametrize("uses", [1, 2])
@pytest.mark.parametrize("kind", ["stream", "display_data", "clear_output"])
def test_output_that_is_too_large_is_not_parsed_and_its_end_still_comes(
    make_pool: Callable[..., KernelPool], uses: int, kind: str
) -> None:
    pool = make_pool(max_uses=2, max_message_bytes=LIMIT)
    for _ in range(uses - 1):
        with pool.kernel(timeout=WAIT):
            pass
    with pool.kernel(timeout=WAIT) as kernel:

        def flood(request: Any) -> None:
            request.publish(kind, {"name": "stdout", "text": "x" * LIMIT, "data": {}, "metadata": {}})
            request.publish("stream", {"name": "stdout", "text": "small"})

        process_of(kernel).kernel.script["flood"] = flood
        found = kernel.run("flood", timeout=WAIT)
        assert (found.ok, found.complete, found.truncated, found.stdout) == (True, True, True, "small")
        assert kernel.iopub_channel.dropped == {"size": 1}
        assert not kernel.run("6 * 7", timeout=WAIT).truncated


def test_reply_that_is_too_large_is_an_error_and_not_lost(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool(max_message_bytes=LIMIT)
    with pool.kernel(timeout=WAIT) as kernel:
        fake = process_of(kernel).kernel
        fake.script["large"] = lambda request: request.reply({"user_expressions": {"x": "x" * LIMIT}})
        found = kernel.run("large", timeout=WAIT)
        assert (found.status, found.reply.content["ename"]) == ("error", "MessageTooLarge")
        fake.on("complete_request", lambda request: request.reply({"matches": ["x" * LIMIT]}))
        assert kernel.complete("x", timeout=WAIT).content["ename"] == "MessageTooLarge"
        assert kernel.shell_channel.dropped == {"size": 2}


def test_prompt_that_is_too_large_can_still_be_answered(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool(max_message_bytes=LIMIT)
    with pool.kernel(timeout=WAIT) as kernel:
        process_of(kernel).kernel.script["ask"] = lambda request: request.ask("x" * LIMIT)
        assert kernel.run("ask", timeout=WAIT, on_input=lambda prompt, password: prompt).ok


# Warm-up


def test_warm_up_has_run_and_nothing_of_it_reaches_the_user(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher
) -> None:
    pool = make_pool(warm_up="warm up")
    [entry] = pool._workers.scheduler
    launcher.processes[0].kernel.publish("stream", {"name": "stdout", "text": "of a thread, later"})
    while not entry.kernel.iopub_channel.msg_ready():
        turn_loop()
    with pool.kernel() as kernel:
        assert kernel.iopub_channel.get_msgs() == []
        [request] = [r for r in launcher.processes[0].kernel.requests if r.msg_type == "execute_request"]
        content = request.content
        assert (content["code"], content["silent"], content["allow_stdin"]) == ("warm up", True, False)


def test_warm_up_that_fails_is_the_reason_that_callers_get(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher
) -> None:
    launcher.script["warm up"] = [kclient.testing.error("NameError", "nothing")]
    pool = make_pool(is_warm=False, warm_up="warm up")
    with pytest.raises(kclient.ExecutionError, match="^warm_up has failed: NameError: nothing$"):
        pool.acquire(WAIT)
    assert launcher.alive == []


def test_warm_up_that_takes_too_long_is_a_failed_start(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher
) -> None:
    launcher.script["warm up"] = lambda request: Event().wait()
    pool = make_pool(is_warm=False, warm_up="warm up", start_timeout=0.1)
    with pytest.raises(KernelTimeout, match=r"no end of warm_up within 0\.1 s; start_timeout="):
        pool.acquire(WAIT)


# Failures


def test_broken_kernel_is_what_callers_are_told_at_once(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher
) -> None:
    launcher.before = broken
    pool = make_pool(is_warm=False)
    for call in (pool.acquire, pool.wait_until_warm):
        with pytest.raises(LaunchError, match="it is broken") as caught:
            call(WAIT)
        assert caught.value is not pool._workers.scheduler.last_failure
    assert "it is broken" in pool.stats().last_failure


def test_kernel_that_there_is_not_is_what_callers_are_told() -> None:
    with KernelPool("nope") as pool, pytest.raises(NoSuchKernel):
        pool.acquire(WAIT)


@pytest.mark.parametrize("error", [OSError("no such thing"), gevent.Timeout(1), gevent.GreenletExit("enough")])
def test_whatever_a_launcher_raises_callers_get_a_launch_error(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher, error: BaseException
) -> None:
    def fail(number: int) -> None:
        raise error

    launcher.before = fail
    with pytest.raises(LaunchError, match=f"{type(error).__name__}: {error}"):
        make_pool(is_warm=False).acquire(WAIT)


def test_pool_gets_over_a_time_of_failures(make_pool: Callable[..., KernelPool], launcher: FakeLauncher) -> None:
    launcher.before = broken
    told = Told()
    pool = make_pool(is_warm=False, on_event=told)
    with pytest.raises(LaunchError):
        pool.acquire(WAIT)
    launcher.before = lambda number: None
    while "started" not in told.kinds:
        told.wait_for_more()
    with pool.kernel(timeout=0) as kernel:
        assert kernel.is_alive()


def test_caller_that_waits_for_other_kernels_is_told_the_last_failure_in_the_end(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher
) -> None:
    pool = make_pool(max_size=2)
    with pool.kernel():
        launcher.before = broken
        with pytest.raises(KernelTimeout, match="busy: 1, .*the last failure: it is broken"):
            pool.acquire(0.05)


def test_kernel_that_dies_idle_is_replaced(make_pool: Callable[..., KernelPool], launcher: FakeLauncher) -> None:
    events: list[PoolEvent] = []
    pool = make_pool(size=2, on_event=events.append)
    launcher.processes[0].die(3)
    while not pool.stats().deaths:
        turn_loop()
    pool.wait_until_warm(WAIT)
    assert len(launcher.alive) == 2
    [death] = [event for event in events if event.kind == "died"]
    assert death.exit_code == 3
    assert "the last output" in str(death.error)


def test_dead_kernel_that_nobody_has_noticed_yet_is_not_handed_out(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher
) -> None:
    pool = make_pool(size=2)
    first, second = (listed.pid for listed in pool.kernels())
    next(process for process in launcher.processes if process.pid == first).die(3)
    with pool.kernel(timeout=0) as kernel:
        assert process_of(kernel).pid == second
    assert pool.stats().deaths == 1


def test_kernel_that_died_unnoticed_is_replaced(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = Recipe.make

    def make_and_die(recipe: Recipe, kernel_id: str, lender: Lender) -> LentKernel:
        kernel = make(recipe, kernel_id, lender)
        if len(launcher.processes) == 1:
            launcher.processes[0].die(3)
            turn_loop()
        return kernel

    monkeypatch.setattr(Recipe, "make", make_and_die)
    pool = make_pool(is_warm=False)
    pool.wait_until_warm(WAIT)
    assert (len(launcher.alive), pool.stats().deaths) == (1, 1)


def test_kernel_that_dies_in_its_users_hands_is_replaced_when_it_is_given_back(
    make_pool: Callable[..., KernelPool],
) -> None:
    pool = make_pool()
    with pool.kernel() as kernel:
        process_of(kernel).die(3)
        with pytest.raises(kclient.DeadKernelError):
            kernel.run("6 * 7", timeout=WAIT)
    pool.wait_until_warm(WAIT)
    assert (pool.stats().deaths, pool.stats().last_failure) == (1, None)


# Listing, shutdown by id, events


@pytest.mark.parametrize("state", ["starting", "idle", "busy"])
def test_kernel_can_be_shut_down_by_its_id_whatever_it_is_at(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher, state: str
) -> None:
    if state == "starting":
        launcher.before = Blockade()
    pool = make_pool(is_warm=state != "starting")
    turn_loop()
    kernel = pool.acquire() if state == "busy" else None
    [listed] = pool.kernels()
    assert (listed.state, listed.pid is None) == (state, state == "starting")
    launcher.before = lambda number: None
    pool.shutdown_kernel(listed.kernel_id)
    assert listed.kernel_id not in [other.kernel_id for other in pool.kernels()]
    if kernel is not None:
        with pytest.raises(InvalidState, match="shut down"):
            kernel.run("6 * 7")
        pool.release(kernel)
    pool.wait_until_warm(WAIT)
    with pytest.raises(InvalidArgument, match="the pool has no kernel"):
        pool.shutdown_kernel(listed.kernel_id)


def test_events_tell_in_order_what_happened(make_pool: Callable[..., KernelPool]) -> None:
    events: list[PoolEvent] = []
    pool = make_pool(on_event=events.append)
    with pool.kernel() as kernel, suppress(KernelTimeout):
        pool.acquire(0)
    pool.close()
    kinds = [event.kind for event in events]
    assert kinds == ["started", "acquired", "timeout", "released", "ended", "closed"]
    assert {event.kernel_id for event in events[:2]} == {kernel.kernel_id}
    assert [event.seconds is not None for event in events] == [True, True, True, False, False, False]


def test_on_event_that_fails_does_no_harm(
    make_pool: Callable[..., KernelPool], caplog: pytest.LogCaptureFixture
) -> None:
    events: list[PoolEvent] = []

    def fail(event: PoolEvent) -> None:
        events.append(event)
        raise ValueError("its own fault")

    with make_pool(on_event=fail).kernel() as kernel:
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"
    assert len(events) >= 2
    assert "on_event of a KernelPool failed" in caplog.text


def test_on_event_that_never_returns_holds_up_no_call_for_long(
    make_pool: Callable[..., KernelPool], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "LAST_EVENTS_WAIT_S", 0.01)
    monkeypatch.setattr(workers, "MAX_WAITING_EVENTS", 2)
    pool = make_pool(on_event=lambda event: Event().wait())
    with pool.kernel() as kernel:
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"
    pool.close()
    assert caplog.text.count("events are dropped") == 1


def test_on_event_may_use_and_close_the_pool(make_pool: Callable[..., KernelPool]) -> None:
    pools: list[KernelPool] = []
    seen: list[str] = []

    def use(event: PoolEvent) -> None:
        seen.append(event.kind)
        if event.kind == "released":
            pools[0].close()

    pools.append(make_pool(on_event=use))
    with pools[0].kernel():
        pass
    with pytest.raises(InvalidState, match="closed"):
        pools[0].acquire(WAIT)
    pools[0].close()
    assert seen[-1] == "closed"


# The end


def test_closing_ends_kernels_users_and_waiters(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher, background: Callable[..., Background]
) -> None:
    pool = make_pool(size=2)
    kernel = pool.acquire()
    process_of(kernel).kernel.script["hang"] = lambda request: Event().wait()
    with pool.kernel():
        waits = background(pool.acquire)
        runs = background(kernel.run, "hang")
        closing = [background(pool.close) for _ in range(2)]
        for close in closing:
            close.get()
        assert launcher.alive == []
        assert pool.kernels() == []
    for call in (waits, runs):
        assert isinstance(call.error(), InvalidState)
    pool.release(kernel)
    pool.close()
    for use in (pool.acquire, pool.wait_until_warm, lambda: pool.kernel().__enter__()):
        with pytest.raises(InvalidState, match="the pool is closed"):
            use()


def test_closing_ends_kernels_that_start(make_pool: Callable[..., KernelPool], launcher: FakeLauncher) -> None:
    launcher.before = Blockade()
    pool = make_pool(is_warm=False, size=3)
    turn_loop()
    pool.close()
    assert (len(pool.kernels()), launcher.processes) == (0, [])


def test_dropped_pool_ends_its_kernels(launcher: FakeLauncher, make_pool: Callable[..., KernelPool]) -> None:
    pool = KernelPool("fake", size=2, launcher=launcher)
    pool.wait_until_warm(WAIT)
    del pool
    gc.collect()
    assert launcher.alive == []
    turn_loop()


def test_pool_in_a_forked_child_ends_nothing(make_pool: Callable[..., KernelPool], launcher: FakeLauncher) -> None:
    pool = make_pool()

    def use() -> str:
        with suppress(Exception):
            pool.__exit__(None, None, None)
            try:
                pool.acquire(1)
            except kclient.ForkedProcess:
                return "refused"
        return "not refused"

    with pool.kernel() as kernel:
        assert in_forked_child(use) == "refused"
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"


def test_pool_is_for_the_thread_that_made_it(make_pool: Callable[..., KernelPool]) -> None:
    pool = make_pool()
    errors: list[type[BaseException]] = []

    def use() -> None:
        for call in (pool.acquire, pool.stats, pool.kernels, pool.close):
            try:
                call()
            except kclient.WrongThread as exc:
                errors.append(type(exc))

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(errors) == 4


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 0}, "size must be a whole number, 1 or more; not 0"),
        ({"size": "4"}, "size must be a whole number"),
        ({"size": True}, "size must be a whole number"),
        ({"size": 4, "max_size": 3}, "max_size must be a whole number, 4 or more; not 3"),
        ({"max_uses": 0}, "max_uses must be"),
        ({"max_age": -1}, "max_age must be a number of seconds"),
        ({"max_age": 0}, "max_age must be more than 0 s"),
        ({"warm_up": b"x"}, "warm_up must be a string"),
        ({"start_timeout": None}, "start_timeout must be"),
        ({"on_event": 1}, "on_event must be a function"),
        ({"launcher": 1}, "launcher must have a method"),
        ({"launcher": kclient.ForkServer}, "launcher must be an object, not a class"),
        ({"transport": "pigeon"}, "transport must be"),
        ({"cwd": 1}, "cwd must be"),
        ({"env": {"A": 1}}, "env must be"),
        ({"extra_arguments": "-x"}, "extra_arguments must be"),
        ({"spin": 9}, "spin must be"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_anything_starts(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        KernelPool(**options)


@pytest.mark.parametrize("timeout", ["5", -1])
def test_timeout_that_is_none_is_refused(make_pool: Callable[..., KernelPool], timeout: Any) -> None:
    pool = make_pool()
    for call in (pool.acquire, pool.wait_until_warm, lambda timeout: pool.kernel(timeout).__enter__()):
        with pytest.raises(InvalidArgument, match="timeout must be"):
            call(timeout)
    assert pool.stats().waiting == 0


# Chaos


@pytest.mark.parametrize("max_uses", [1, 3])
def test_whatever_callers_and_kernels_do_every_kernel_has_one_user_and_everyone_an_answer(
    make_pool: Callable[..., KernelPool], launcher: FakeLauncher, figures: Any, max_uses: int
) -> None:
    choice = random.Random(max_uses)
    told = Told()
    pool = make_pool(size=5, max_size=8, max_uses=max_uses, is_warm=False, on_event=told)
    held: set[int] = set()

    def use(number: int, timeout: float) -> str:
        try:
            with pool.kernel(timeout=timeout) as kernel:
                pid = process_of(kernel).pid
                assert pid not in held, "two users"
                held.add(pid)
                try:
                    return misuse(kernel, number)
                finally:
                    held.discard(pid)
        except (KernelTimeout, kclient.DeadKernelError, InvalidState) as exc:
            return type(exc).__name__

    def misuse(kernel: kclient.KernelManager, number: int) -> str:
        what = number % 8
        if what == 0:
            process_of(kernel).die(1)
        elif what == 1:
            kernel.submit("6 * 7")
            return "left running"
        elif what == 2:
            kernel.shutdown_kernel(now=True)
            return "shut down"
        elif what == 3:
            pool.release(kernel)
            return "released"
        assert kernel.run("6 * 7", timeout=WAIT).text == "42"
        return "used"

    def shut_down(kernel_id: str) -> None:
        with suppress(InvalidArgument):  # it has ended meanwhile
            pool.shutdown_kernel(kernel_id)

    def await_idle() -> None:
        while pool.stats().idle < 5:
            told.wait_for_more()

    users, shutting = [], []
    for number in range(figures.size(150, 5000)):
        users.append(gevent.spawn(use, number, choice.choice([0, 0.02, 0.2, WAIT])))
        if choice.random() < 0.2:
            choice.choice(users).kill(block=False)
        if choice.random() < 0.05 and launcher.alive:
            choice.choice(launcher.alive).die(-9)
        if choice.random() < 0.02 and (listed := pool.kernels()):
            shutting.append(gevent.spawn(shut_down, choice.choice(listed).kernel_id))
        assert len(pool.kernels()) <= 8
        turn_loop(0.0005)
    for user in [*users, *shutting]:
        user.get(timeout=WAIT)
    await_idle()
    later = [gevent.spawn(use, 7, WAIT) for _ in range(20)]
    assert [user.get(timeout=WAIT) for user in later] == ["used"] * 20
    await_idle()
    stats = pool.stats()
    assert (stats.busy, stats.waiting, stats.checkouts) == (0, 0, stats.recycled)
    pool.close()
    assert launcher.alive == []
    assert os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]) == []
