"""Faults between a client and a kernel: a relay of messages, and a line of bytes.

Each takes the connection of a kernel and has a `connection_info` to connect to instead; they can be put one
before the other. They run in the hub of their `with` block.
"""

from __future__ import annotations

import json
import math
import secrets
import socket as plain
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Any, TypeVar

import attrs
import gevent
import zmq
from gevent import socket
from gevent.event import Event

from kclient.client.kernel_client import as_connection_info
from kclient.concurrency.owner import Owner
from kclient.errors import ChannelClosed
from kclient.protocol.connection import CHANNELS, ConnectionInfo
from kclient.protocol.framing import DELIMITER
from kclient.transport.zmq.context import context
from kclient.transport.zmq.curve import encrypt
from kclient.transport.zmq.stream import ZmqStream

CLIENT, KERNEL = "client", "kernel"
"""The side that a message goes to."""

Frames = list[bytes]
Send = Callable[[Frames], object]
Fate = Callable[[Send, Frames], object]
"""The fate of a message: a function that sends its frames on by way of `send`, or does not."""

_Self = TypeVar("_Self", bound="Proxy")

_SOCKETS = dict.fromkeys(CHANNELS, (zmq.ROUTER, zmq.DEALER)) | {"iopub": (zmq.XPUB, zmq.XSUB)}
"""At the front, to the clients, and at the back, to the kernel. A kernel keeps whole the envelope that a ROUTER puts
around a request, on stdin too."""


class Proxy:
    """Stands between a client and a kernel."""

    def __init__(self, connection: ConnectionInfo | Mapping[str, Any]) -> None:
        self.kernel = as_connection_info(connection)
        self.channels = [name for name in CHANNELS if self.kernel.port(name)]
        self.connection_info = self.kernel

    def __enter__(self: _Self) -> _Self:
        ports = {f"{name}_port": self.open(name) for name in self.channels}
        self.connection_info = attrs.evolve(self.kernel, transport="tcp", ip="127.0.0.1", **ports)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def open(self, name: str) -> int:
        """Listen for clients of a channel; returns the port."""
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


# Messages


@attrs.frozen
class Passing:
    """A message on its way: its destination, its channel, and its frames, envelope first."""

    to: str
    channel: str
    frames: Frames

    @property
    def is_message(self) -> bool:
        """False for heartbeats, subscriptions and malformed messages."""
        return DELIMITER in self.frames[:-5]

    @property
    def msg_type(self) -> str:
        return str(self._part(0).get("msg_type", ""))

    @property
    def parent(self) -> dict[str, Any]:
        return self._part(1)

    @property
    def content(self) -> dict[str, Any]:
        return self._part(3)

    @property
    def state(self) -> str | None:
        """The execution_state of a status message."""
        return self.content.get("execution_state")

    def _part(self, number: int) -> dict[str, Any]:
        if not self.is_message:
            return {}
        value = json.loads(self.frames[self.frames.index(DELIMITER) + 2 + number])
        return value if isinstance(value, dict) else {}


Rule = Callable[[Passing], Fate | None]
"""Chooses the fate of a message; None lets it pass."""


class Relay(Proxy):
    """Forwards messages one by one, each as `rule` decides; to the client without encryption.

    `inject` adds what no kernel sent.
    """

    def __init__(self, connection: ConnectionInfo | Mapping[str, Any], rule: Rule | None = None) -> None:
        super().__init__(connection)
        self.rule = rule
        self.clients: list[bytes] = []
        self._owner = Owner()
        self._ends: dict[tuple[str, str], _End] = {}
        self._identity = secrets.token_hex(8).encode()
        self._timers: list[gevent.Greenlet[..., Any]] = []

    def open(self, name: str) -> int:
        front_type, back_type = _SOCKETS[name]
        back = _End(self, name, CLIENT, back_type, self._owner)
        if name != "iopub":
            back.stream.socket.routing_id = self._identity
        front = _End(self, name, KERNEL, front_type, self._owner)
        self._ends[CLIENT, name], self._ends[KERNEL, name] = front, back
        if self.kernel.curve_publickey:
            encrypt(back.stream.socket, self.kernel.curve_publickey)
        back.stream.socket.connect(self.kernel.address(name))
        return int(front.stream.socket.bind_to_random_port("tcp://127.0.0.1"))

    def close(self) -> None:
        gevent.killall(self._timers)
        for end in self._ends.values():
            end.stream.close()
        self._ends.clear()

    def __enter__(self) -> Relay:
        super().__enter__()
        self.connection_info = attrs.evolve(self.connection_info, curve_publickey=b"", curve_secretkey=b"")
        return self

    def inject(self, channel: str, frames: Frames) -> None:
        """Send frames to the client that came first; on iopub to every client, behind a topic."""
        envelope = b"topic" if channel == "iopub" else self.clients[0]
        self._ends[CLIENT, channel].send([envelope, *frames])

    def delayed(self, seconds: float) -> Fate:
        """A fate: the message goes on after that time. Later messages may overtake it."""
        return lambda send, frames: self._timers.append(gevent.spawn_later(seconds, send, frames))

    def wait_for_late(self) -> None:
        """Wait until every delayed message has gone on."""
        gevent.joinall(self._timers)
        self._timers.clear()

    def pass_on(self, to: str, name: str, frames: Frames) -> None:
        """Send a message on, unless the rule has another fate for it."""
        if to == KERNEL and name == "shell" and frames[0] not in self.clients:
            self.clients.append(frames[0])
        fate = self.rule(Passing(to, name, frames)) if self.rule is not None else None
        (fate or passed)(self._ends[to, name].send, frames)


class _End:
    """One socket of a relay. It receives messages for the side `to`."""

    def __init__(self, relay: Relay, name: str, to: str, socket_type: int, owner: Owner) -> None:
        self._relay = relay
        self._name = name
        self._to = to
        socket = context().socket(socket_type)
        socket.linger = 0
        socket.rcvhwm = socket.sndhwm = 0
        if socket_type == zmq.ROUTER:
            socket.router_handover = True
        elif socket_type == zmq.XPUB:
            socket.xpub_verbose = True  # a client that comes back is welcomed again
        elif socket_type == zmq.DEALER:
            socket.reconnect_ivl = 5
        self.stream = ZmqStream(owner, socket, self, name=f"relay's {name}")

    def send(self, frames: Frames) -> None:
        with suppress(ChannelClosed):  # a delayed message may come too late
            self.stream.send(frames)

    def receive(self, frames: Frames) -> None:
        self._relay.pass_on(self._to, self._name, frames)

    def stop(self) -> None:
        """The context was closed: there is nothing to do."""


def passed(send: Send, frames: Frames) -> None:
    send(frames)


def dropped(send: Send, frames: Frames) -> None:
    """A fate: the message gets lost."""


def doubled(send: Send, frames: Frames) -> None:
    send(frames)
    send(frames)


def changed(change: Callable[[Frames], Frames]) -> Fate:
    """A fate: `change` gets the frames with the envelope, and its value goes on."""
    return lambda send, frames: send(change(list(frames)))


@attrs.define
class Held:
    """A fate: the messages wait until `release`, which can reverse their order."""

    waiting: list[Callable[[], object]] = attrs.field(factory=list)
    arrived: Event = attrs.field(factory=Event)

    def __call__(self, send: Send, frames: Frames) -> None:
        self.waiting.append(lambda: send(frames))
        self.arrived.set()

    def release(self, *, backwards: bool = False) -> None:
        waiting, self.waiting = self.waiting, []
        for go_on in reversed(waiting) if backwards else waiting:
            go_on()


@attrs.define
class On:
    """A rule: `fate` for messages of that type, or state, to the side `to`; for the first `times` of them, if given.

    `only` may say more of the message. `met` are those that it was applied to.
    """

    fate: Fate
    msg_type: str | None = None
    state: str | None = None
    to: str = CLIENT
    parent: str | None = "execute_request"
    times: int | None = None
    only: Callable[[Passing], bool] = lambda passing: True
    met: list[Passing] = attrs.field(factory=list)

    def __call__(self, passing: Passing) -> Fate | None:
        if passing.to != self.to or not passing.is_message or len(self.met) == self.times:
            return None
        if self.msg_type not in (None, passing.msg_type) or self.state not in (None, passing.state):
            return None
        if self.to == CLIENT and self.parent not in (None, passing.parent.get("msg_type")):
            return None
        if not self.only(passing):
            return None
        self.met.append(passing)
        return self.fate


# Bytes


class Line(Proxy):
    """Forwards the bytes of connections, which can be cut, stalled, slowed down, and cut after a number of bytes.

    `tap` gets to see them.
    """

    def __init__(
        self, connection: ConnectionInfo | Mapping[str, Any], tap: Callable[[bytes], object] | None = None
    ) -> None:
        super().__init__(connection)
        self._tap = tap
        self.accepted = 0
        self._doors: dict[str, _Door] = {}

    def open(self, name: str) -> int:
        self._doors[name] = door = _Door(self.kernel.address(name), self._tap)
        door.listen()
        return door.port

    def close(self) -> None:
        for door in self._doors.values():
            door.close()

    def cut(self, *, channels: Sequence[str] = CHANNELS, refuse: bool = True) -> None:
        """End the connections of those channels. Refuse new ones until `mend`, or accept them at once."""
        for name in channels:
            if name in self._doors:
                self._doors[name].cut(refuse=refuse)

    def mend(self) -> None:
        """Accept connections again."""
        for door in self._doors.values():
            door.listen()

    def stall(self, *, channels: Sequence[str] = CHANNELS) -> None:
        """Hold all bytes of those channels back. The connections stay."""
        for name in channels:
            if name in self._doors:
                self._doors[name].flows.clear()

    def flow(self) -> None:
        for door in self._doors.values():
            door.flows.set()

    def slow_down(self, name: str, bytes_per_s: float) -> None:
        """Let the bytes of that channel through to the client at that speed."""
        self._doors[name].bytes_per_s = bytes_per_s

    def cut_after(self, name: str, nbytes: int) -> Event:
        """Let `nbytes` more bytes through to the client, then cut and refuse. The event tells that it has happened."""
        door = self._doors[name]
        door.left = nbytes
        door.is_used_up.clear()
        return door.is_used_up


class _Door:
    """The port of one channel, and the connections through it."""

    def __init__(self, address: str, tap: Callable[[bytes], object] | None) -> None:
        self.port = 0
        self.left: int | None = None
        self.bytes_per_s = math.inf
        self.flows = Event()
        self.flows.set()
        self.is_used_up = Event()
        transport, _, where = address.partition("://")
        host, _, port = where.rpartition(":")
        self._family = plain.AF_INET if transport == "tcp" else plain.AF_UNIX
        self._kernel = (host, int(port)) if transport == "tcp" else where
        self._tap = tap
        self._socket = self._bind()
        self.port = self._socket.getsockname()[1]
        self._acceptor: gevent.Greenlet[..., Any] | None = None
        self._connections: dict[gevent.Greenlet[..., Any], socket.socket] = {}

    def _bind(self) -> socket.socket:
        """A socket that reserves the port. It refuses connections until it listens."""
        bound = socket.socket()
        bound.setsockopt(plain.SOL_SOCKET, plain.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", self.port))
        return bound

    def listen(self) -> None:
        if self._acceptor is None:
            self.left = None
            self._socket.listen(100)
            self._acceptor = gevent.spawn(self._accept)

    def cut(self, *, refuse: bool) -> None:
        if refuse:
            self._refuse()
        gevent.killall(list(self._connections))

    def close(self) -> None:
        self.cut(refuse=True)
        self._socket.close()

    def _refuse(self) -> None:
        if self._acceptor is not None:
            self._acceptor.kill()
            self._acceptor = None
            self._socket.close()
            self._socket = self._bind()

    def _accept(self) -> None:
        while True:
            client, _ = self._socket.accept()
            connection = gevent.spawn(self._serve, client)
            self._connections[connection] = client
            connection.link(self._hang_up)

    def _hang_up(self, connection: gevent.Greenlet[..., Any]) -> None:
        """A greenlet that was killed before it began has closed no socket."""
        self._connections.pop(connection).close()

    def _serve(self, client: socket.socket) -> None:
        with ExitStack() as stack, suppress(OSError):
            kernel = stack.enter_context(socket.socket(self._family))
            kernel.connect(self._kernel)
            copiers = [
                gevent.spawn(self._copy, client, kernel, lambda data: data),
                gevent.spawn(self._copy, kernel, client, self._what_may_pass),
            ]
            stack.callback(gevent.killall, copiers)
            gevent.joinall(copiers, count=1)
            if self.left == 0:
                self._refuse()
                self.is_used_up.set()

    def _copy(self, source: socket.socket, target: socket.socket, what_may_pass: Callable[[bytes], bytes]) -> None:
        with suppress(OSError):
            while self.left != 0 and (data := source.recv(65536)):
                self.flows.wait()
                if self._tap is not None:
                    self._tap(data)
                target.sendall(what_may_pass(data))

    def _what_may_pass(self, data: bytes) -> bytes:
        """The part of `data` that goes on to the client, after the time that it takes."""
        if self.bytes_per_s < math.inf:
            gevent.sleep(len(data) / self.bytes_per_s)
        if self.left is None:
            return data
        data = data[: self.left]
        self.left -= len(data)
        return data
