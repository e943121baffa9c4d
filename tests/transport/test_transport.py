"""The lines of a ZmqTransport when the kernel's addresses change."""

from __future__ import annotations

from typing import Any

import attrs

from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.messages import Message
from kclient.protocol.session import Session
from kclient.transport.zmq.transport import ZmqTransport

INFO = ConnectionInfo.from_dict(
    {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5, "ip": "127.0.0.1"}
)


class NoReceiver:
    def receive(self, message: Message) -> None: ...

    def drop(self, reason: str, error: Exception) -> None: ...

    def reconnected(self) -> None: ...

    def lost(self) -> None: ...


def test_line_follows_the_kernel_to_its_new_address() -> None:
    transport = ZmqTransport(INFO, Session())
    line = transport.line("shell", NoReceiver())
    line.open()
    before: Any = line.socket
    transport.move(attrs.evolve(INFO, shell_port=6))
    assert before.closed
    assert line.is_open
    line.close()


def test_second_line_stays_when_the_kernel_is_given_away() -> None:
    """The watchdog may still nudge over it, while the pool hands the kernel to its next user."""
    transport = ZmqTransport(INFO, Session())
    line = transport.second_line("shell", NoReceiver())
    line.open()
    socket: Any = line.socket
    transport.move(attrs.evolve(INFO, shell_port=0))
    assert not socket.closed
    line.close()
