"""ZmqStream: no wake-up is lost, no flood starves the loop, and a dropped stream leaves nothing."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from typing import Any

import gevent
import pytest
import zmq
import zmq.green
from fixtures import WAIT
from strikes import Strike

import kclient
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import TURN_S, Parking
from kclient.protocol.framing import DELIMITER
from kclient.testing import FakeKernel, result, stream
from kclient.transport.zmq import frames as frames_module
from kclient.transport.zmq.context import context
from kclient.transport.zmq.frames import FrameReader, MessageReader
from kclient.transport.zmq.stream import ZmqStream
from kclient.transport.zmq.transport import RECONNECT_IVL_MS


class Listener:
    """Receives the messages of a stream. It computes for `seconds` at each message."""

    def __init__(self, seconds: float = 0.0, new_reader: Callable[..., FrameReader] = FrameReader) -> None:
        self.owner = Owner()
        self.arrived = Parking(self.owner)
        self.messages: list[list[bytes]] = []
        self.is_lost = False
        self.seconds = seconds
        self.socket = context().socket(zmq.PAIR)
        self.peer = zmq.Socket(context(), zmq.PAIR)
        address = f"inproc://listener-{id(self)}"
        self.peer.bind(address)
        self.socket.connect(address)
        self.stream = ZmqStream(self.owner, self.socket, self, reader=new_reader(self.socket))

    def receive(self, frames: list[bytes]) -> None:
        end = time.perf_counter() + self.seconds
        while time.perf_counter() < end:
            pass
        self.messages.append(frames)
        self.arrived.wake()

    def lost(self) -> None:
        self.is_lost = True

    def wait_for(self, count: int) -> None:
        deadline = Deadline(20)
        while len(self.messages) < count:
            assert self.arrived.wait(deadline) or not deadline.is_over, f"{len(self.messages)} of {count}"

    def close(self) -> None:
        self.stream.close()
        self.peer.close(0)


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.close()


def test_message_that_came_before_the_first_look_is_not_missed(listener: Listener) -> None:
    """A ZeroMQ pipe sends no signal until its reader has found it empty once."""
    listener.peer.send(b"early")
    listener.wait_for(1)


def test_message_that_was_read_with_the_one_before_is_not_missed() -> None:
    """The socket has nothing more then. The greenlet that waits for the second message is woken by the first one."""
    listener = Listener(new_reader=partial(MessageReader, topics=0))
    short, whole = [DELIMITER, b"", b"{}"], [DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"]
    for _ in range(3):
        listener.peer.send_multipart(short)
        listener.peer.send_multipart(whole)
        listener.wait_for(1)
        listener.wait_for(2)
        assert listener.messages == [short, whole]
        listener.messages.clear()
    listener.close()


def test_messages_arrive_whole_and_in_order(listener: Listener) -> None:
    sent = [[str(number).encode(), b"", b"x" * number] for number in range(500)]
    for frames in sent:
        zmq.Socket.send_multipart(listener.peer, frames)
    listener.wait_for(len(sent))
    assert listener.messages == sent


def test_a_message_that_a_send_finds_is_taken_in_at_once(listener: Listener) -> None:
    listener.peer.send(b"here already")
    listener.stream.send([b"question"])
    assert listener.messages == [[b"here already"]]
    assert listener.peer.recv() == b"question"


def wait_for(greenlet: gevent.Greenlet[..., Any], seconds: float) -> None:
    greenlet.join(seconds)
    gevent.sleep(0)  # a Ctrl-C noted in the hub is raised with the loop's next turn


@pytest.mark.parametrize("callback", ["_go_on", "_on_readable"])
def test_ctrl_c_at_any_line_of_a_callback_loses_no_message_and_no_wake_up(listener: Listener, callback: str) -> None:
    """The next turn mends `_go_on`, and `mend` the callback of the watcher, which the loop has stopped."""
    for number in count(1):
        while listener.stream._again.active:
            gevent.sleep(0)
        waiting = gevent.spawn(listener.wait_for, number)
        gevent.sleep(0)
        if callback == "_go_on":
            listener.stream.mend()
        listener.peer.send(str(number).encode())
        strike = Strike(number, getattr(ZmqStream, callback).__code__)
        error = strike.during(partial(wait_for, waiting, WAIT if callback == "_go_on" else 0.01))
        assert isinstance(error, KeyboardInterrupt) or not strike.where, f"{error!r} at {strike.where}"
        if callback == "_on_readable":
            listener.stream.mend()
        waiting.get(timeout=WAIT)
        if not strike.where:
            break
    assert number > 20
    assert [frames[0] for frames in listener.messages] == [b"%d" % sent for sent in range(1, number + 1)]


def test_a_drain_ends_after_its_turn_and_the_rest_comes_with_the_next() -> None:
    slow = Listener(seconds=TURN_S * 1.5)
    try:
        for number in range(5):
            slow.peer.send(str(number).encode())
        slow.stream.drain()
        assert len(slow.messages) == 1
        slow.wait_for(5)
        assert [frames[0] for frames in slow.messages] == [b"0", b"1", b"2", b"3", b"4"]
    finally:
        slow.close()


def test_other_greenlets_run_between_the_turns_of_a_flood() -> None:
    slow = Listener(seconds=TURN_S * 1.5)
    seen = []
    try:
        for number in range(20):
            slow.peer.send(str(number).encode())

        def tick() -> None:
            while len(slow.messages) < 20:
                seen.append(len(slow.messages))
                gevent.sleep(1e-6)

        ticker = gevent.spawn(tick)
        slow.wait_for(20)
        ticker.join()
    finally:
        slow.close()
    assert len(set(seen)) >= 10, seen


def test_other_greenlets_run_between_those_that_a_flood_wakes() -> None:
    """Each message wakes one greenlet, which computes for longer than a turn."""
    seen: list[int] = []
    done: list[int] = []
    listener = Listener()
    parkings = [Parking(listener.owner) for _ in range(20)]

    def work(number: int) -> None:
        parkings[number].wait(Deadline(None))
        end = time.perf_counter() + TURN_S * 1.5
        while time.perf_counter() < end:
            pass
        done.append(number)

    def tick() -> None:
        while len(done) < 20:
            seen.append(len(done))
            gevent.sleep(1e-6)

    try:
        listener.receive = lambda frames: parkings[int(frames[0])].wake()  # type: ignore[method-assign]
        workers = [gevent.spawn(work, number) for number in range(20)]
        gevent.idle()
        for number in range(20):
            listener.peer.send(str(number).encode())
        ticker = gevent.spawn(tick)
        gevent.joinall([*workers, ticker], timeout=20, raise_error=True)
    finally:
        listener.close()
    assert sorted(done) == list(range(20))
    assert len(set(seen)) >= 10, seen


def test_an_error_while_a_message_is_taken_in_loses_no_later_one(listener: Listener, capsys: Any) -> None:
    real = listener.receive
    calls = []

    def fail_once(frames: list[bytes]) -> None:
        calls.append(frames)
        if len(calls) == 1:
            raise ZeroDivisionError
        real(frames)

    failing = type("Failing", (), {"receive": staticmethod(fail_once)})
    listener.stream._receiver = lambda: failing  # type: ignore[assignment]
    for number in range(3):
        listener.peer.send(str(number).encode())
    listener.wait_for(2)
    listener.peer.send(b"3")  # after the loop has stopped the watcher whose callback failed
    listener.wait_for(3)
    assert [frames[0] for frames in listener.messages] == [b"1", b"2", b"3"]
    assert "ZeroDivisionError" in capsys.readouterr().err


def strike_after_first(real: Any) -> Any:
    """`real`, followed by a Ctrl-C at the first call."""
    calls = count()

    def call(*args: Any) -> Any:
        value = real(*args)
        if next(calls) == 0:
            signal.raise_signal(signal.SIGINT)
        return value

    return call


@pytest.fixture
def ctrl_c_after() -> Iterator[Callable[[float], None]]:
    """`ctrl_c_after(seconds)` sends this process a SIGINT after that time, wherever it runs then."""
    old = signal.signal(signal.SIGALRM, lambda signum, frame: os.kill(os.getpid(), signal.SIGINT))
    yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, old)


def test_ctrl_c_between_two_frames_of_a_send_tears_no_message(
    listener: Listener, ctrl_c_after: Callable[[float], None]
) -> None:
    """Copying the frames of a message takes some milliseconds. Each message arrives whole or not at all."""
    long = [bytes(2**20)] * 20

    def send_for(seconds: float) -> None:
        ctrl_c_after(seconds)
        while True:
            listener.stream.send(long)

    for number in range(10):
        with pytest.raises(KeyboardInterrupt):
            send_for(0.001 + 0.0005 * number)
        listener.stream.send([b"next"])
        while (frames := zmq.Socket.recv_multipart(listener.peer)) != [b"next"]:
            assert len(frames) == len(long)


def test_ctrl_c_between_two_frames_of_a_message_loses_none(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    listener.stream.drain()
    sent = [[b"one", b"two", b"three"], [b"next"]]
    for frames in sent:
        zmq.Socket.send_multipart(listener.peer, frames)
    monkeypatch.setattr(frames_module, "_recv", strike_after_first(frames_module._recv))
    with pytest.raises(KeyboardInterrupt):
        listener.stream.drain()
    listener.stream.drain()
    assert listener.messages == sent


def test_ctrl_c_in_the_loop_does_not_stop_a_stream(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """The main greenlet waits elsewhere, so the hub reads the messages under Python's own handler."""
    strike, struck_in = strike_after_first(frames_module._recv), []

    def receive(*args: Any) -> Any:
        struck_in.append(gevent.getcurrent())
        return strike(*args)

    monkeypatch.setattr(frames_module, "_recv", receive)
    listener.peer.send(b"1")
    with pytest.raises(KeyboardInterrupt):
        gevent.sleep(20)
    listener.wait_for(1)
    for number in (2, 3):
        listener.peer.send(str(number).encode())
        listener.wait_for(number)
    assert struck_in[0] is gevent.get_hub()
    assert capfd.readouterr().err == "", "it is raised in the main greenlet, and gevent has nothing to report"


def test_a_socket_that_was_closed_elsewhere_is_noticed(listener: Listener) -> None:
    listener.socket.close(0)
    listener.stream.drain()
    assert listener.is_lost
    assert listener.stream.is_closed


def test_sending_on_a_socket_that_was_closed_elsewhere_raises_channel_closed(listener: Listener) -> None:
    listener.socket.close(0)
    with pytest.raises(kclient.ChannelClosed):
        listener.stream.send([b"x"])
    assert listener.is_lost


def test_closing_twice_does_nothing(listener: Listener) -> None:
    listener.stream.close()
    listener.stream.close()
    listener.stream.drain()
    assert listener.messages == []


def test_a_green_socket_keeps_no_watcher_of_its_own(listener: Listener) -> None:
    assert isinstance(listener.socket, zmq.green.Socket)
    assert listener.socket._state_event is None


def test_the_context_has_room_for_many_clients() -> None:
    assert context() is context()
    assert context().get(zmq.MAX_SOCKETS) >= 10_000


def test_no_wake_up_is_lost_between_many_senders_and_receivers() -> None:
    """Sends and receives interleave at random. After a lost edge a call would never return."""
    random_ = random.Random(7)
    script = {str(number): [stream("out\n"), result(str(number))] for number in range(10)}
    with FakeKernel(script, thread=True) as fake, kclient.connect(fake.connection_info) as client:

        def call_at_random(seed: int) -> int:
            mine = random.Random(seed)
            for _ in range(30):
                choice = mine.randrange(4)
                if choice == 0:
                    client.kernel_info(timeout=30)
                elif choice == 1:
                    number = str(mine.randrange(10))
                    assert client.run(number, timeout=30).text == number
                elif choice == 2:
                    msg_id = client.shell_channel.send("kernel_info_request")
                    if mine.random() < 0.5:
                        gevent.sleep(0)
                    assert client.shell_channel.get_reply(msg_id, timeout=30).parent_id == msg_id
                else:
                    client.control_channel.kernel_info(timeout=30)
            return seed

        greenlets = [gevent.spawn(call_at_random, random_.randrange(10**6)) for _ in range(20)]
        gevent.joinall(greenlets, raise_error=True)
        assert all(greenlet.successful() for greenlet in greenlets)


def test_a_client_dropped_without_close_is_collected_and_closes_its_sockets() -> None:
    closed = []
    with FakeKernel() as fake:
        client = kclient.connect(fake.connection_info)
        sockets = [channel._connection.socket for channel in client.kernel_connection.channels.running()]
        del client
        gc.collect()
        closed = [socket.closed for socket in sockets]
    assert closed == [True] * 5


def test_constants_are_what_the_text_says() -> None:
    assert RECONNECT_IVL_MS == 5
    assert TURN_S == 0.001
