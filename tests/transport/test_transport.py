"""The lines of a ZmqTransport: their addresses, their identities and their receivers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
import pytest
import zmq

import kclient
from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.messages import Message
from kclient.protocol.session import Session
from kclient.transport.zmq.context import context
from kclient.transport.zmq.line import ZmqLine
from kclient.transport.zmq.transport import ZmqTransport

INFO = ConnectionInfo.from_dict(
    {"shell_port": 1, "iopub_port": 2, "stdin_port": 3, "control_port": 4, "hb_port": 5, "ip": "127.0.0.1"}
)


class NoReceiver:
    def receive(self, message: Message) -> None: ...

    def drop(self, reason: str, error: Exception) -> None: ...

    def reconnected(self) -> None: ...

    def lost(self) -> None: ...


class Lines:
    """Opens lines of one transport, and closes them all."""

    def __init__(self) -> None:
        self.transport = ZmqTransport(INFO, Session())
        self.receiver = NoReceiver()
        self.opened: list[ZmqLine] = []

    def open(self, channel: str) -> ZmqLine:
        line = self.transport.line(channel, self.receiver)
        line.open()
        self.opened.append(line)
        return line

    def close(self) -> None:
        for line in self.opened:
            line.close()


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    lines.close()


def socket_of(line: ZmqLine) -> zmq.Socket[Any]:
    assert line.socket is not None
    return line.socket


def identity_of(line: ZmqLine) -> bytes:
    identity = socket_of(line).get(zmq.ROUTING_ID)
    assert isinstance(identity, bytes)
    assert identity
    return identity


def test_line_connects_to_the_address_that_the_kernel_has_when_it_is_opened(lines: Lines) -> None:
    """An open line stays: the watchdog may nudge over its own, while the pool hands the kernel to its next user."""
    line = lines.open("shell")
    before = socket_of(line)
    lines.transport.move(attrs.evolve(INFO, shell_port=6))
    assert socket_of(line) is before
    assert not before.closed
    line.close()
    line.open()
    assert socket_of(line).last_endpoint == b"tcp://127.0.0.1:6"


@pytest.mark.parametrize("order", [("shell", "stdin"), ("stdin", "shell"), ("control", "stdin", "shell")])
def test_stdin_has_the_identity_of_the_shell(lines: Lines, order: tuple[str, ...]) -> None:
    made = {channel: lines.open(channel) for channel in order}
    assert identity_of(made["stdin"]) == identity_of(made["shell"])


def test_stdin_takes_the_identity_of_the_next_shell(lines: Lines) -> None:
    first, stdin = lines.open("shell"), lines.open("stdin")
    former = identity_of(first)
    first.close()
    second = lines.open("shell")
    assert identity_of(second) != former
    assert identity_of(stdin) == identity_of(second)


def test_next_shell_and_stdin_have_one_identity(lines: Lines) -> None:
    former = [lines.open("shell"), lines.open("stdin")]
    for line in former:
        line.close()
    assert identity_of(lines.open("shell")) == identity_of(lines.open("stdin"))


def test_dropped_channel_is_freed_at_once_and_its_socket_with_it() -> None:
    """The line must not wait for the garbage collector to find a circle: an open socket keeps a descriptor."""
    channel = kclient.ShellChannel(context(), Session(), "tcp://127.0.0.1:1")
    channel.start()
    socket = channel._connection.socket  # type: ignore[attr-defined]
    assert not socket.closed
    del channel
    assert socket.closed


def test_channel_that_cannot_connect_anew_runs_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    channel = kclient.ShellChannel(context(), Session(), "tcp://127.0.0.1:1")
    channel.start()
    with monkeypatch.context() as patch:
        patch.setattr(channel._connection, "open", refuse)
        with pytest.raises(kclient.TooManyFiles):
            channel.reopen()
    assert not channel.is_alive()
    channel.start()
    assert channel.is_alive()
    channel.stop()


def refuse() -> None:
    raise kclient.TooManyFiles("no descriptor is left", needed=1, in_use=1, limit=1, hard_limit=1)
