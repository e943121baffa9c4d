import signal

import attrs
import gevent
import gevent.event
import gevent.queue
import pytest
import zmq

import kclient
from kclient.transport.zmq.context import context

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

QUICK = 0.1
"""A time to dead, in seconds, for tests that wait until it is over."""


class Misses(kclient.HBChannel):
    """A heartbeat that keeps the arguments of `call_handlers`."""

    time_to_dead = QUICK

    def __init__(self, *args):
        super().__init__(*args)
        self.told = gevent.queue.Queue()

    def call_handlers(self, since_last_heartbeat):
        self.told.put(since_last_heartbeat)


class Watching(kclient.KernelManager):
    hb_channel_class = Misses


@pytest.fixture
def stopped(kernel):
    """Stop the shared kernel's process, as Ctrl-Z does, and let it go on at the end of the test."""
    pids = []

    def stop():
        kernel.signal_kernel(signal.SIGSTOP)
        pids.append(kernel.process.pid)

    yield stop
    if pids:
        kernel.signal_kernel(signal.SIGCONT)


@pytest.fixture
def manager(kernel):
    """A manager that did not start the shared kernel. Its heartbeat is quick to miss."""
    manager = Watching()
    manager.load_connection_file(kernel.connection_file)
    manager.start_channels()
    manager.wait_for_ready(WAIT)
    yield manager
    manager.stop_channels()


def wait_for_beat(hb):
    """A beat sets no event: only `is_beating` takes it in."""
    with gevent.Timeout(WAIT):
        while not hb.is_beating():
            gevent.sleep(0.001)


def test_heartbeat_waits_three_seconds_by_default(kernel):
    assert kernel.hb_channel.time_to_dead == 3.0


def test_heartbeat_is_paused_until_told(manager):
    hb = manager.hb_channel
    assert hb.is_alive()
    assert hb.is_paused
    assert not hb.is_beating()
    assert manager.is_alive()
    hb.unpause()
    wait_for_beat(hb)
    assert not hb.is_paused
    assert manager.is_alive()
    hb.pause()
    assert not hb.is_beating()
    assert manager.is_alive()


def test_kernel_without_a_heartbeat_is_neither_beating_nor_silent_until_the_time_is_up(manager):
    """Whether it beats is unknown until it has answered."""
    info = manager.client.connection
    with context().socket(zmq.ROUTER) as mute:
        mute.linger = 0
        address = ("127.0.0.1", mute.bind_to_random_port("tcp://127.0.0.1"))
        with kclient.KernelClient(attrs.evolve(info, transport="tcp", ip=address[0], hb_port=address[1])) as client:
            client.start_channels(shell=False, iopub=False, stdin=False, control=False)
            hb, missed = client.hb_channel, gevent.event.Event()
            hb.time_to_dead, hb.call_handlers = QUICK, lambda silence: missed.set()
            hb.unpause()
            assert (hb.is_beating(), client.is_alive()) == (None, True)
            assert missed.wait(WAIT)
            assert (hb.is_beating(), client.is_alive()) == (False, False)
            hb.pause()
            hb.unpause()
            assert (hb.is_beating(), client.is_alive()) == (None, True)


def test_heartbeat_misses_nothing_while_paused(manager, stopped):
    hb = manager.hb_channel
    hb.unpause()
    wait_for_beat(hb)
    hb.pause()
    stopped()
    with pytest.raises(gevent.queue.Empty):
        hb.told.get(timeout=3 * QUICK)
    assert manager.is_alive()


def test_silent_kernel_is_missed_again_and_again_and_beats_again_when_it_can(manager, kernel, stopped):
    hb = manager.hb_channel
    hb.unpause()
    wait_for_beat(hb)
    stopped()
    first, second = (hb.told.get(timeout=WAIT) for _ in range(2))
    assert QUICK <= first < second
    assert not hb.is_beating()
    assert not manager.is_alive()
    kernel.signal_kernel(signal.SIGCONT)
    wait_for_beat(hb)
    assert manager.is_alive()


def test_kernel_that_is_merely_stopped_is_not_dead(kernel, stopped, background):
    """The kernel still accepts connections, so calls wait on."""
    with kclient.connect(kernel.connection_file, timeout=WAIT) as client:
        hb = client.hb_channel
        missed = gevent.event.Event()
        hb.time_to_dead = QUICK
        hb.call_handlers = lambda since: missed.set()
        client.kernel_info(timeout=WAIT)
        wait_for_beat(hb)
        stopped()
        reply = background(client.kernel_info)
        result = background(client.run, "print('went on')")
        for _ in range(2):
            assert missed.wait(WAIT)
            missed.clear()
        assert reply.is_waiting
        assert result.is_waiting
        kernel.signal_kernel(signal.SIGCONT)
        assert reply.get().content["status"] == "ok"
        assert result.get().stdout == "went on\n"
        wait_for_beat(hb)
        assert client.is_alive()


def test_busy_kernel_beats(manager, gate):
    manager.hb_channel.unpause()
    execution = manager.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    wait_for_beat(manager.hb_channel)
    gate.open()
    assert execution.result().ok
    assert manager.is_alive()


# A kernel that another program started dies


def test_death_of_a_foreign_kernel_wakes_everyone_who_waits(kernel_manager, background, gate):
    with kclient.connect(kernel_manager.connection_file, timeout=WAIT) as client:
        client.hb_channel.time_to_dead = QUICK
        execution = client.submit(f"print('on'); {gate.code}")
        next(iter(execution))
        client.iopub_channel.get_msgs()
        waiting = [
            background(client.kernel_info),
            background(execution.result),
            background(client.shell_channel.get_msg),
            background(client.iopub_channel.get_msg),
            background(client.stdin_channel.get_msg),
            background(client.control_channel.get_msg),
            background(client.run, "1"),
        ]
        assert client.is_alive()
        kernel_manager.kill_kernel()
        errors = [call.error() for call in waiting]
        assert {type(error) for error in errors} == {kclient.DeadKernelError}
        assert "refuses connections" in str(errors[0])
        assert errors[1].result.stdout == "on\n"
        assert not client.is_alive()
        with pytest.raises(kclient.DeadKernelError):
            client.run("1")


def test_client_that_does_not_watch_waits_on(kernel_manager):
    with kclient.connect(kernel_manager.connection_file, watch=False, timeout=WAIT) as client:
        kernel_manager.kill_kernel()
        with pytest.raises(kclient.KernelTimeout):
            client.kernel_info(timeout=0.05)
        assert client.is_alive()


def test_silence_of_a_kernel_is_its_death_after_as_many_seconds_as_one_says(kernel, stopped):
    with kclient.connect(kernel.connection_file, watch=True, dead_after=QUICK, timeout=WAIT) as client:
        client.hb_channel.time_to_dead = QUICK
        client.kernel_info(timeout=WAIT)
        wait_for_beat(client.hb_channel)
        stopped()
        with pytest.raises(kclient.DeadKernelError, match="has been silent for"):
            client.kernel_info()
