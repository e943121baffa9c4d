"""Monitor: the events of one socket's connection, as libzmq reports them (zmq_socket_monitor(3)).

libzmq sends each event as a message to a second socket, and its thread blocks, with all connections of the process, if
that socket is full or gone. So the second socket has no bound, it is there before the first event, and the monitor ends
before it is closed.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from typing import Any, Final

import zmq

from kclient.concurrency.file_limits import CHANNEL_DESCRIPTORS, check
from kclient.concurrency.log import log
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import weakly
from kclient.errors import TooManyFiles
from kclient.transport.zmq.stream import ZmqStream

SHAKEN: Final = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
REJECTED: Final = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
HUNG_UP: Final = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)
"""The connection was closed in the middle of the handshake: a kernel does that to a client with another curve key."""

CUT: Final = int(zmq.EVENT_DISCONNECTED) | int(zmq.EVENT_CONNECT_RETRIED)
"""The connection has ended, or could not be made and is tried again."""

HANDSHAKE: Final = SHAKEN | REJECTED | HUNG_UP

OTHER_MECHANISM: Final = 0x11000002
"""The value of REJECTED if only one side encrypts: ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH in zmq.h."""

_EVENT: Final = struct.Struct("=HI")
_number: Final = count()


class Monitor:
    """Calls `on_event(event, value)`, a method that is held weakly, for each of `events` of `socket`, until `close`.

    It takes two descriptors, and 0.1 ms to open. An event that is not reported costs nothing.
    """

    def __init__(
        self, owner: Owner, socket: zmq.Socket[Any], events: int, on_event: Callable[[int, int], object], name: str
    ) -> None:
        self._socket = socket
        self._on_event = weakly(on_event)
        address = f"inproc://kclient-monitor-{next(_number)}"
        reader: zmq.Socket[Any] = socket.context.socket(zmq.PAIR)
        try:
            reader.linger = 0
            reader.rcvhwm = 0
            reader.connect(address)
            socket.monitor(address, events)
        except BaseException:
            self._end()
            reader.close(0)
            raise
        self._stream = ZmqStream(owner, reader, self, name=f"{name} monitor's")

    def close(self) -> None:
        """Watch no longer. Idempotent."""
        self._end()
        self._stream.close()

    def receive(self, frames: list[bytes]) -> None:
        """An event: two numbers, and the address of the connection."""
        if len(frames[0]) == _EVENT.size:
            self._on_event(*_EVENT.unpack(frames[0]))

    def lost(self) -> None:
        """The context was closed: the socket tells of that itself."""

    def _end(self) -> None:
        with suppress(zmq.ZMQError):  # other code has closed the socket
            self._socket.monitor(None, 0)


def new_monitor(
    owner: Owner, socket: zmq.Socket[Any], events: int, on_event: Callable[[int, int], object], name: str
) -> Monitor | None:
    """A monitor of `socket`; None if there are no descriptors for it, which then have a better use."""
    try:
        check(CHANNEL_DESCRIPTORS, f"the monitor of the {name} channel")
        return Monitor(owner, socket, events, on_event, name)
    except (TooManyFiles, zmq.ZMQError) as exc:
        log().debug("the connection of the %s channel is not watched: %s", name, exc)
        return None
