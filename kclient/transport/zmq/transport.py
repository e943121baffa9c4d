"""ZmqTransport: the lines to a kernel that listens at the addresses of a connection file."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import zmq

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.file_limits import CHANNEL_DESCRIPTORS
from kclient.concurrency.owner import Owner
from kclient.errors import ConnectionFileError, InvalidArgument, KClientError
from kclient.protocol.connection import CHANNELS, ConnectionInfo, make_address
from kclient.transport.base import HeartbeatReceiver, Receiver
from kclient.transport.zmq import obstacles
from kclient.transport.zmq.context import context, no_socket
from kclient.transport.zmq.curve import encrypt
from kclient.transport.zmq.line import ZmqHeartbeat, ZmqLine
from kclient.transport.zmq.reachability import refuses

if TYPE_CHECKING:
    from kclient.protocol.session import Session

RECONNECT_IVL_MS: Final = 5
"""Milliseconds between attempts to connect. ZeroMQ's default, 100, would be most of the start of a kernel."""

RECONNECT_IVL_MAX_MS: Final = 200
"""Milliseconds at most between attempts to reach another program's kernel, which may be gone for good."""

SOCKET_TYPES: Final = {
    "shell": zmq.DEALER,
    "iopub": zmq.SUB,
    "stdin": zmq.DEALER,
    "control": zmq.DEALER,
    "hb": zmq.DEALER,
}

TOPICS: Final = {"iopub": 1}
"""Number of frames before the delimiter of a message; 0 for the other channels."""


ANOTHER_KEY: Final = (
    "the kernel at {} has another key: the signatures of its messages are wrong; "
    "is this the connection file of another kernel, or of an earlier one?"
)


class Addresses(Protocol):
    """Where the channels of a kernel listen; ConnectionInfo is one."""

    def address(self, channel: str) -> str: ...

    def port(self, channel: str) -> int: ...

    @property
    def where(self) -> str:
        """The beginning of an error message about them."""


class OneAddress:
    """The address of a channel that stands alone: a ZeroMQ URL, or an (ip, port) pair."""

    where = ""

    def __init__(self, address: str | tuple[str, int]) -> None:
        self._address = make_address(address)

    def address(self, channel: str) -> str:
        return self._address

    def port(self, channel: str) -> int:
        return 1


class ZmqTransport:
    """Lines over ZeroMQ sockets of one hub. They are encrypted if the session has a server_key.

    `context` is that of this process unless another is given. `is_ours` says that this program started the kernel, and
    so learns of its end. Attempts to reach another program's kernel become rarer with time.

    The shell and the stdin line share an identity (ROUTING_ID): the kernel sends its input requests to the identity
    that the request for code came from.
    """

    def __init__(
        self,
        addresses: Addresses,
        session: Session,
        *,
        context: zmq.Context[Any] | None = None,
        is_ours: bool = True,
    ) -> None:
        self._is_ours = is_ours
        self._addresses = addresses
        self._session = session
        self._context = context
        self._owner = Owner()
        self._epoch = 0
        self._made: set[str] = set()
        self._shell_identity = session.identity
        self._shell: weakref.ref[ZmqLine] | None = None
        self._stdin: weakref.ref[ZmqLine] | None = None
        self._take_key()

    @property
    def context(self) -> zmq.Context[Any]:
        """The ZeroMQ context of the sockets."""
        return context() if self._context is None else self._context

    @property
    def channels(self) -> Sequence[str]:
        """The channels that the kernel has: all of them while its ports are not chosen yet."""
        addresses = self._addresses
        return [name for name in CHANNELS if addresses.port(name) or not addresses.port("shell")]

    @property
    def is_encrypted(self) -> bool:
        """True if the sockets encrypt, with CurveZMQ."""
        return bool(self._session.server_key)

    def address(self, channel: str) -> str:
        """The ZeroMQ URL that the channel connects to; raises InvalidPortNumber."""
        return self._addresses.address(channel)

    def file_descriptors(self, channels: int) -> int:
        """How many descriptors so many sockets take, once they are connected."""
        return CHANNEL_DESCRIPTORS * channels

    def line(self, channel: str, receiver: Receiver) -> ZmqLine:
        """A line for that channel. The next one for the same channel has an identity of its own.

        A ROUTER may ignore a peer whose identity it still knows from a connection that has just been closed.
        """
        is_first = channel not in self._made
        self._made.add(channel)
        if channel == "shell":
            if not is_first:
                self._shell_identity = self._new_identity()
            line = self._new_line(channel, receiver, self._shell_identity)
            self._shell = weakref.ref(line)
            self._reopen_stdin()
        elif channel == "stdin":
            if not is_first and not self._has_shell:
                self._shell_identity = self._new_identity()
            line = self._new_line(channel, receiver, None)
            self._stdin = weakref.ref(line)
        else:
            line = self._new_line(channel, receiver, self._session.identity if is_first else self._new_identity())
        return line

    def second_line(self, channel: str, receiver: Receiver) -> ZmqLine:
        """A line over a connection of its own, for a short time."""
        return self._new_line(channel, receiver, self._new_identity())

    def heartbeat(self, receiver: HeartbeatReceiver) -> ZmqHeartbeat:
        """A line for pings."""
        self.address("hb")
        return ZmqHeartbeat(self._owner, "hb", partial(self._open_socket, "hb", None), receiver)

    def is_refused(self, channels: Sequence[str] = ("hb", "shell")) -> bool:
        """True if no program listens at the ports of those channels. Some kernels have no heartbeat."""
        there = [name for name in channels if self._addresses.port(name)]
        return bool(there) and all(refuses(self.address(name)) for name in there)

    def left_to(self) -> Sequence[int]:
        """The processes that hold the ports of hb and shell, and send no greeting, since the kernel has ended."""
        there = [self.address(name) for name in ("hb", "shell") if self._addresses.port(name)]
        return sorted(set.intersection(*(set(obstacles.left_to(address)) for address in there)))

    def rejection(self, *, is_seen: bool) -> KClientError | None:
        """The error to raise if the kernel's greeting shows that our keys are wrong; waits 2 s at most."""
        reason = obstacles.rejection(self.address("shell"), encrypts=self.is_encrypted, is_seen=is_seen)
        return self._unusable(reason) if reason else None

    def find_obstacle(self, deadline: Deadline) -> KClientError | None:
        """The error to raise at once if the kernel of this connection file cannot answer."""
        addresses = self._addresses
        return obstacles.find_obstacle(addresses, deadline) if isinstance(addresses, ConnectionInfo) else None

    def another_key(self) -> KClientError:
        """The error to raise for a kernel that has another key than its connection file."""
        return self._unusable(ANOTHER_KEY.format(self.address("shell")))

    def hint(self) -> str:
        """Why a kernel is silent. Connects to it for a moment, to see what is there."""
        return obstacles.hint(self.address("shell"), encrypts=self.is_encrypted)

    def _unusable(self, reason: str) -> ConnectionFileError:
        addresses = self._addresses
        path = addresses.path if isinstance(addresses, ConnectionInfo) else None
        return ConnectionFileError(addresses.where + reason, path=path)

    def own(self) -> None:
        """This program started the kernel: see `is_ours`."""
        self._is_ours = True

    def move(self, connection: ConnectionInfo) -> None:
        """The kernel has other addresses since it was restarted. Lines that are opened from here on connect there."""
        self._addresses = connection
        self._take_key()

    def _take_key(self) -> None:
        """A kernel that encrypts has its public key beside its addresses."""
        if isinstance(self._addresses, ConnectionInfo):
            self._session.server_key = self._addresses.curve_publickey

    def _new_identity(self) -> bytes:
        self._epoch += 1
        return b"%s-%d" % (self._session.identity, self._epoch)

    @property
    def _has_shell(self) -> bool:
        """True while the shell line is in use."""
        return self._shell is not None and self._shell() is not None

    def _identity_of_shell(self) -> bytes:
        """The identity of the shell line's socket, which may have been adopted, or the one that it will get."""
        line = None if self._shell is None else self._shell()
        socket = None if line is None else line.socket
        if socket is None or socket.closed:
            return self._shell_identity
        identity = socket.get(zmq.ROUTING_ID)
        return identity if isinstance(identity, bytes) else str(identity).encode()

    def _reopen_stdin(self) -> None:
        """Let the stdin line have the identity of the new shell line."""
        line = None if self._stdin is None else self._stdin()
        if line is not None and line.is_open:
            line.close()
            line.open()

    def _new_line(self, channel: str, receiver: Receiver, identity: bytes | None) -> ZmqLine:
        self.address(channel)
        return ZmqLine(
            self._owner,
            channel,
            partial(self._open_socket, channel, identity),
            self._session,
            receiver,
            topics=TOPICS.get(channel, 0),
            tells_of_cuts=channel == "stdin",
            tells_of_rejection=channel == "shell" and self.is_encrypted and self._is_ours,
        )

    def _open_socket(
        self, channel: str, identity: bytes | None, prepare: Callable[[zmq.Socket[Any]], object]
    ) -> tuple[zmq.Socket[Any], str]:
        """A connected socket and its address; `prepare(socket)` is called before it connects.

        Raises InvalidState, InvalidArgument and TooManyFiles.
        """
        address = self.address(channel)
        within = self.context
        try:
            socket: zmq.Socket[Any] = within.socket(SOCKET_TYPES[channel])
        except zmq.ZMQError as exc:
            raise no_socket(f"the {channel} channel", within, exc) from exc
        try:
            socket.linger = 0
            socket.rcvhwm = 0
            socket.sndhwm = 0
            socket.reconnect_ivl = RECONNECT_IVL_MS
            socket.reconnect_ivl_max = 0 if self._is_ours else RECONNECT_IVL_MAX_MS
            socket.ipv6 = "[" in address
            if self._session.server_key:
                encrypt(socket, self._session.server_key)
            if channel == "iopub":
                socket.subscribe(b"")
                if not self._is_ours:  # a kernel welcomes only a subscription that no other client has
                    socket.subscribe(self._session.identity)
            elif channel == "stdin":
                socket.routing_id = self._identity_of_shell()
                socket.immediate = True
            elif identity is not None:
                socket.routing_id = identity
            prepare(socket)
            socket.connect(address)
        except zmq.ZMQError as exc:
            socket.close(0)
            where = self._addresses.where
            raise InvalidArgument(f"{where}cannot connect the {channel} channel to {address!r}: {exc}") from exc
        except BaseException:
            socket.close(0)
            raise
        return socket, address
