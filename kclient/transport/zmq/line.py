"""The line of one channel over a ZeroMQ socket: messages to signed frames, and back."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import zmq

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import TURN_S
from kclient.errors import BadMessage, ChannelClosed
from kclient.protocol.messages import Message
from kclient.protocol.session import stand_in
from kclient.transport.base import Connection, HeartbeatReceiver, Receiver
from kclient.transport.zmq.frames import FrameReader, MessageReader
from kclient.transport.zmq.monitor import (
    CUT,
    HANDSHAKE,
    HUNG_UP,
    OTHER_MECHANISM,
    REJECTED,
    SHAKEN,
    Monitor,
    new_monitor,
)
from kclient.transport.zmq.stream import ZmqStream

if TYPE_CHECKING:
    from kclient.protocol.session import Session

Connect = Callable[[Callable[["zmq.Socket[Any]"], object]], tuple["zmq.Socket[Any]", str]]
"""Makes a connected socket; returns it and its address. It calls its argument with the socket before it connects."""

HUNG_UP_AT_MOST: Final = 3
"""A connection that is closed in the middle of the handshake, so many times in a row, is rejected."""

PING: Final = (b"", b"ping")
"""A ping as a REQ sends it. The socket is a DEALER: a REQ cannot be read between its ping and the next (EFSM)."""


class ZmqConnection(ABC):
    """A line over one socket. `connect(prepare)` makes the connected socket, and returns its address, too.

    It holds its receiver weakly: a channel that is dropped is freed at once, and its socket with it.
    """

    _receiver: weakref.ref[Any]

    def __init__(self, owner: Owner, name: str, connect: Connect) -> None:
        self.name = name
        self._owner = owner
        self._connect = connect
        self._connected_to = ""
        self._stream: ZmqStream | None = None
        self._monitors: list[Monitor] = []
        self._finalizer: weakref.finalize[..., Any] | None = None

    @property
    def is_open(self) -> bool:
        """True from `open` to `close`."""
        return self._stream is not None

    @property
    def socket(self) -> zmq.Socket[Any] | None:
        """The socket, while the line is open."""
        return None if self._stream is None else self._stream.socket

    def open(self) -> None:
        """Connect; raises InvalidState, InvalidArgument and TooManyFiles."""
        try:
            self._attach(*self._connect(self._prepare))
        except BaseException:
            _close(None, self._monitors)
            raise

    def close(self) -> None:
        """Disconnect at once. Idempotent."""
        if self._finalizer is not None:
            self._finalizer()
        self._stream = None

    def adopt(self, former: Connection) -> bool:
        """Go on with the socket of `former`, which is closed by that; False if it is not open, or no ZeroMQ line."""
        if not isinstance(former, ZmqConnection) or former._stream is None:
            return False
        _close(None, former._monitors)
        stream, address = former._stream, former._connected_to
        socket = stream.detach()
        former.close()
        self._attach(socket, address)
        return True

    def disconnect(self) -> None:
        """Stop trying to reach a kernel that is dead: a try every 5 ms takes 2 % of a processor."""
        if self._stream is not None and not self._stream.is_closed:
            with suppress(zmq.ZMQError):  # ENOENT: it is disconnected already
                self._stream.socket.disconnect(self._connected_to)

    def drain(self, seconds: float = TURN_S) -> None:
        """Take in the messages that are on the socket, without waiting, for at most so many seconds."""
        if self._stream is not None:
            self._stream.drain(seconds)

    def glance(self) -> None:
        """Take in one message, if there is one."""
        if self._stream is not None:
            self._stream.glance()

    def mend(self) -> None:
        """Make sure that the loop still watches the socket."""
        if self._stream is not None:
            self._stream.mend()

    def _attach(self, socket: zmq.Socket[Any], address: str) -> None:
        self._stream = self._new_stream(socket)
        self._connected_to = address
        close = partial(_close, self._stream, self._monitors)
        self._finalizer = weakref.finalize(self, self._owner.run_here, close)
        self._finalizer.atexit = False

    def lost(self) -> None:
        """The socket, or its context, was closed by other code."""
        receiver = self._receiver()
        if receiver is not None:
            receiver.lost()

    def _prepare(self, socket: zmq.Socket[Any]) -> None:
        """Do what must be done before the socket connects."""

    @abstractmethod
    def _new_stream(self, socket: zmq.Socket[Any]) -> ZmqStream:
        """The stream of a socket that is connected."""

    @abstractmethod
    def receive(self, frames: list[bytes]) -> None:
        """Take in a message of the socket."""

    def _open_stream(self) -> ZmqStream:
        if self._stream is None:
            raise ChannelClosed(self.name)
        return self._stream


def _close(stream: ZmqStream | None, monitors: list[Monitor]) -> None:
    """Close a stream, and the monitor of its socket first."""
    while monitors:
        monitors[-1].close()
        monitors.pop()
    if stream is not None:
        stream.close()


class ZmqLine(ZmqConnection):
    """Carries messages as signed frames. A frame that is no valid message is dropped, and counted by the receiver.

    `topics` is the number of frames before the delimiter. `tells_of_cuts`: the socket has ZMQ_IMMEDIATE, so it is
    writable only while the kernel is connected. That shows a connection that was cut and is back. `tells_of_rejection`:
    the socket is watched until its first handshake has succeeded.
    """

    def __init__(
        self,
        owner: Owner,
        name: str,
        connect: Connect,
        session: Session,
        receiver: Receiver,
        *,
        topics: int = 0,
        tells_of_cuts: bool = False,
        tells_of_rejection: bool = False,
    ) -> None:
        super().__init__(owner, name, connect)
        self._session = session
        self._receiver = weakref.ref(receiver)
        self._topics = topics
        self._tells_of_cuts = tells_of_cuts
        self._tells_of_rejection = tells_of_rejection
        self._hung_up, self._is_of_handshake = 0, False
        self._had_peer = self._was_cut = False

    def send(self, message: Message) -> None:
        """Sign and send; raises InvalidArgument, ChannelClosed, and InvalidState if the socket keeps no messages."""
        stream = self._stream
        if stream is None:
            raise ChannelClosed(self.name)
        stream.send(self._session.serialize(message))

    def is_connected(self) -> bool:
        """True if the kernel is connected; only a line that tells of cuts can tell."""
        return self._stream is not None and self._stream.has_peer()

    def wait_until_connected(self, deadline: Deadline) -> bool:
        """Wait until the kernel is connected; False if it is not within the deadline."""
        return self._open_stream().wait_for_peer(deadline)

    def watch_connection(self, is_wanted: bool) -> None:
        """Tell the receiver of the next cut and of rejections, or do so no longer."""
        socket = self.socket
        if not is_wanted or socket is None:
            _close(None, self._monitors)
        elif not self._monitors:
            self._watch(socket, CUT | HANDSHAKE)

    def _prepare(self, socket: zmq.Socket[Any]) -> None:
        if self._tells_of_rejection:
            self._watch(socket, HANDSHAKE)

    def _watch(self, socket: zmq.Socket[Any], events: int) -> None:
        self._hung_up, self._is_of_handshake = 0, events == HANDSHAKE
        monitor = new_monitor(self._owner, socket, events, self._connection_event, self.name)
        if monitor is not None:
            self._monitors.append(monitor)

    def _connection_event(self, event: int, value: int) -> None:
        """Act on an event of the connection, as libzmq reports it."""
        receiver = self._receiver()
        if receiver is None:
            return
        if event & CUT:
            if not self._hung_up:
                _close(None, self._monitors)  # once is enough, and there would be many
                receiver.cut()
        elif event & SHAKEN:
            self._hung_up = 0
            if self._is_of_handshake:
                _close(None, self._monitors)
        else:
            self._hung_up += event & HUNG_UP != 0
            if self._hung_up >= HUNG_UP_AT_MOST or (event & REJECTED and value == OTHER_MECHANISM):
                self._hung_up = 0
                receiver.rejected()

    def receive(self, frames: list[bytes]) -> None:
        """Verify and parse one message, and hand it to the channel."""
        receiver = self._receiver()
        if receiver is None:
            return
        try:
            message = self._session.deserialize(frames)
        except BadMessage as exc:
            receiver.drop(exc.reason, exc)
            if exc.reason != "size" or (shorter := stand_in(frames)) is None:
                return
            message = shorter
        receiver.receive(message)

    def _new_stream(self, socket: zmq.Socket[Any]) -> ZmqStream:
        self._had_peer = self._was_cut = False
        on_touched = self._look_at_peer if self._tells_of_cuts else None
        reader = MessageReader(socket, self._topics)
        return ZmqStream(self._owner, socket, self, reader=reader, name=self.name, on_touched=on_touched)

    def _look_at_peer(self) -> None:
        """Notice that the kernel is back after a cut."""
        has_peer = self.is_connected()
        is_back = has_peer and self._was_cut
        self._was_cut = not has_peer and (self._was_cut or self._had_peer)
        self._had_peer = has_peer
        receiver = self._receiver()
        if is_back and receiver is not None:
            receiver.reconnected()


class ZmqHeartbeat(ZmqConnection):
    """Carries pings. The kernel sends each one back as it came, unsigned."""

    def __init__(
        self,
        owner: Owner,
        name: str,
        connect: Connect,
        receiver: HeartbeatReceiver,
    ) -> None:
        super().__init__(owner, name, connect)
        self._receiver = weakref.ref(receiver)

    def ping(self) -> None:
        """Ask for a sign of life; raises InvalidState if the kernel refuses the connection, and ChannelClosed."""
        self._open_stream().send(PING)

    def receive(self, frames: list[bytes]) -> None:
        """Any answer is a sign of life."""
        receiver = self._receiver()
        if receiver is not None:
            receiver.beat()

    def _new_stream(self, socket: zmq.Socket[Any]) -> ZmqStream:
        return ZmqStream(self._owner, socket, self, reader=FrameReader(socket), name=self.name)
