"""The monitor of a socket tells of its connection, and never holds up libzmq's thread."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import leaks
import pytest
import zmq

from kclient.concurrency import file_limits
from kclient.concurrency.owner import Owner
from kclient.transport.zmq.context import context
from kclient.transport.zmq.monitor import CUT, SHAKEN, Monitor, new_monitor

ROUNDS = 1100
"""Each binds and unbinds: more events than two sockets hold that have ZeroMQ's bounds."""


class Line:
    def __init__(self) -> None:
        self.events: list[int] = []

    def on_event(self, event: int, value: int) -> None:
        self.events.append(event)

    def wait(self, event: int) -> None:
        while not any(seen & event for seen in self.events):
            leaks.turn_loop(0.001)


@pytest.fixture
def socket() -> Iterator[zmq.Socket[Any]]:
    with context().socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.reconnect_ivl = 5
        yield socket


def test_connection_and_its_end_are_told(socket: zmq.Socket[Any]) -> None:
    line = Line()
    monitor = Monitor(Owner(), socket, SHAKEN | CUT, line.on_event, "shell")
    with context().socket(zmq.ROUTER) as kernel:
        socket.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
        line.wait(SHAKEN)
    line.wait(CUT)
    monitor.close()
    monitor.close()


def test_events_that_nobody_reads_do_not_stop_the_connections_of_the_process(socket: zmq.Socket[Any]) -> None:
    line = Line()
    monitor = Monitor(Owner(), socket, zmq.EVENT_ALL, line.on_event, "shell")
    for _ in range(ROUNDS):
        address = f"tcp://127.0.0.1:{socket.bind_to_random_port('tcp://127.0.0.1')}"
        socket.unbind(address)
    assert line.events == [], "the loop has not turned"
    with context().socket(zmq.ROUTER) as kernel:
        socket.connect(f"tcp://127.0.0.1:{kernel.bind_to_random_port('tcp://127.0.0.1')}")
        socket.send(b"x")
        assert kernel.recv_multipart()[1:] == [b"x"]
        monitor.close()


def test_socket_that_other_code_has_closed_ends_its_monitor(socket: zmq.Socket[Any]) -> None:
    monitor = Monitor(Owner(), socket, CUT, Line().on_event, "shell")
    socket.close(0)
    monitor.close()


def test_there_is_no_monitor_without_descriptors_for_it(
    socket: zmq.Socket[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_limits, "_are_free", lambda wanted, limit: False)
    assert new_monitor(Owner(), socket, CUT, Line().on_event, "shell") is None
