"""What the five channels have in common: life, delivery to `call_handlers`, and waiting for messages."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

import zmq
from gevent import get_hub, getcurrent

from kclient.concurrency.callbacks import CallbackQueue
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import WARNING, log, log_soon
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking
from kclient.errors import BadMessage, ChannelClosed, Failure, InvalidArgument, InvalidState, KernelTimeout
from kclient.protocol.connection import make_address
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import Message
from kclient.protocol.peer import Peer
from kclient.transport.zmq.context import no_socket
from kclient.transport.zmq.curve import encrypt
from kclient.transport.zmq.frames import FrameReader, MessageReader
from kclient.transport.zmq.stream import RECONNECT_IVL, TURN, ZmqStream

if TYPE_CHECKING:
    from kclient.protocol.session import Session

LAST_LOOK: Final = 0.02
"""Seconds for which a call whose time is up takes in what has come: its answer may stand behind many other messages."""

LOOK_AGAIN: Final = 0.04
"""Seconds from one such look to the next: many of them beside a flood must not stop the loop."""


class Channel(ABC):
    """A socket connected to `address`, served in the hub that made the channel.

    `address` is a ZeroMQ URL or an (ip, port) pair; port 0 raises InvalidPortNumber. It is encrypted if the session has
    a server_key. A subclass may override `call_handlers`, which sees every message once, in a greenlet of its own.
    """

    name: ClassVar[str]
    socket_type: ClassVar[int]

    def __init__(self, context: zmq.Context[Any], session: Session, address: str | tuple[str, int]) -> None:
        self.context = context
        self.session = session
        self.dropped: Counter[str] = Counter()
        self._address = make_address(address)
        self._owner = Owner()
        self._wire: ZmqStream | None = None
        self._retire: weakref.finalize[..., Any] | None = None
        self._is_stopped = False
        self._failure: Failure | None = None
        self._last_failure: Failure | None = None
        self._failures = 0
        self.look: Callable[[], None] | None = None
        self.reconnect_ivl_max = 0
        self.identity: bytes | None = None
        self.looked_at = 0.0
        self._deliverer = CallbackQueue(f"call_handlers of the {self.name} channel")

    def __repr__(self) -> str:
        state = "running" if self.is_alive() else "stopped" if self._is_stopped else "not started"
        return f"<{type(self).__name__} {self._address} {state}>"

    @property
    def address(self) -> str:
        """The ZeroMQ URL that the channel connects to."""
        return self._address

    def start(self) -> None:
        """Connect. Idempotent; after `stop` it raises InvalidState, a RuntimeError: make a new channel."""
        self._owner.check()
        if self._is_stopped:
            raise InvalidState(f"the {self.name} channel was stopped and cannot start again; make a new one")
        if self._wire is None:
            self._open()

    def stop(self) -> None:
        """Disconnect; whoever waits gets ChannelClosed. Idempotent, and without effect in a forked child."""
        if self._owner.forked:
            return
        self._owner.check()
        self._is_stopped = True
        self._close()
        self.fail(lambda msg_id: ChannelClosed(self.name))
        self._deliverer.stop()

    def is_alive(self) -> bool:
        """True between start and stop."""
        return self._wire is not None and not self._is_stopped

    @property
    def is_stopped(self) -> bool:
        """True after `stop`."""
        return self._is_stopped

    @property
    def has_failed(self) -> bool:
        """True from `fail` to `reopen`."""
        return self._failure is not None

    def call_handlers(self, msg: Any) -> None:
        """Override to see every message, after it was routed; what it raises is logged. Does nothing here."""

    def fail(self, failure: Failure) -> None:
        """Wake every waiting call with an error, and refuse new ones until `reopen`."""
        self._failure = self._last_failure = failure
        self._failures += 1

    def reopen(self) -> None:
        """Connect anew under the same object: what was sent and not delivered is dropped."""
        self._close()
        self._failure = None
        self._open()

    def adopt(self, former: Channel) -> None:
        """Start with the connection of `former`, a running channel of the same kind, which is stopped."""
        self.identity = former.identity
        socket = former._check().detach()
        former.stop()
        self._attach(socket)

    def move(self, address: str) -> None:
        """Be connected to `address` from here on, if it is not so already."""
        if address != self._address:
            self._address = make_address(address)
            if self.is_alive():
                self.reopen()

    def disconnect(self) -> None:
        """Stop trying to reach a kernel that is dead, which at 5 ms a try costs 2 % of a processor."""
        if self._wire is not None and not self._wire.is_closed:
            with suppress(zmq.ZMQError):  # ENOENT: it is disconnected already
                self._wire.socket.disconnect(self._address)

    def drain(self, seconds: float = TURN) -> None:
        """Take in what is on the socket now, without waiting, for at most so many seconds."""
        self._owner.check()
        if self._wire is not None:
            self._wire.drain(seconds)

    def mend(self) -> None:
        """See that the loop still watches the socket."""
        if self._wire is not None:
            self._wire.mend()

    def glance(self) -> None:
        """Take in one message, if there is one."""
        if self._wire is not None:
            self._wire.glance()

    def _look_around(self, deadline: Deadline) -> None:
        """Take in what there is to know before a call gives up: messages, and the death of the kernel."""
        last_look([self], deadline)
        if self.look is not None:
            self.look()

    @abstractmethod
    def receive(self, frames: list[bytes]) -> None:
        """Take one multipart message off the wire; never raises."""

    def _reader_of(self, socket: zmq.Socket[Any]) -> FrameReader:
        return FrameReader(socket)

    def _configure(self, socket: zmq.Socket[Any]) -> None:
        """Set what a channel's socket needs before it connects."""

    def _open(self) -> None:
        try:
            socket = self.context.socket(self.socket_type)
        except zmq.ZMQError as exc:
            raise no_socket(f"the {self.name} channel", self.context, exc) from exc
        try:
            socket.linger = 0
            socket.rcvhwm = 0
            socket.sndhwm = 0
            socket.reconnect_ivl = RECONNECT_IVL
            socket.reconnect_ivl_max = self.reconnect_ivl_max
            socket.ipv6 = "[" in self._address
            if self.session.server_key:
                encrypt(socket, self.session.server_key)
            self._configure(socket)
            socket.connect(self._address)
        except zmq.ZMQError as exc:
            socket.close(0)
            raise InvalidArgument(f"cannot connect the {self.name} channel to {self._address!r}: {exc}") from exc
        except BaseException:
            socket.close(0)
            raise
        self._attach(socket)

    def _attach(self, socket: zmq.Socket[Any]) -> None:
        self._wire = ZmqStream(self._owner, socket, self, reader=self._reader_of(socket), name=self.name)
        self._retire = weakref.finalize(self, self._owner.run_here, self._wire.close)
        self._retire.atexit = False

    def _close(self) -> None:
        if self._retire is not None:
            self._retire()
        self._wire = None

    def _check(self) -> ZmqStream:
        """The wire, for a call that needs it; raises what a closed, dead or foreign channel raises."""
        self._owner.check()
        if self._is_stopped:
            raise ChannelClosed(self.name)
        if self._wire is None:
            raise InvalidState(f"the {self.name} channel is not running; start it, or call start_channels()")
        return self._wire

    def _check_failure(self, msg_id: str | None = None) -> None:
        if self._failure is not None:
            raise self._failure(msg_id)

    def _drop(self, reason: str, error: Exception) -> None:
        self.dropped[reason] += 1
        log_soon(log(), WARNING, "dropped a message on %s: %s", self.name, error)

    @property
    def handles(self) -> bool:
        """True if someone has overridden `call_handlers`."""
        return type(self).call_handlers is not Channel.call_handlers or "call_handlers" in self.__dict__

    def _deliver(self, *args: Any) -> None:
        """Hand `args` to `call_handlers`, if anybody listens, after those before them."""
        if self.handles:
            self._deliverer.add(self.call_handlers, *args)


def last_look(channels: Sequence[Channel], deadline: Deadline) -> None:
    """Take in what has come, if the deadline is over; only a little where it left no time, as for one who polls."""
    for channel in channels if deadline.is_over else ():
        now = monotonic()
        is_long = deadline.timeout and now > channel.looked_at + LOOK_AGAIN
        if is_long:
            channel.looked_at = now
        channel.drain(LAST_LOOK if is_long else TURN)


def spin(channels: Sequence[Channel], is_waiting: Callable[[], bool], deadline: Deadline) -> None:
    """Look at the sockets again and again, without a turn of the loop, while `is_waiting()` and until the deadline.

    Not in the hub, where nothing may wait.
    """
    if getcurrent() is get_hub():
        return
    while is_waiting() and not deadline.is_over:
        for channel in channels:
            channel.glance()


class MessageChannel(Channel):
    """A channel of messages, with an inbox of those that nobody else claimed."""

    topics: ClassVar[int] = 0
    """Frames that come before the delimiter of a message."""

    def __init__(self, context: zmq.Context[Any], session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        self.peer = Peer()
        self._arrived = Parking(self._owner)

    @abstractmethod
    def _route(self, message: Message) -> None:
        """Give `message` to whoever it is for."""

    @property
    @abstractmethod
    def inbox(self) -> Inbox:
        """What nobody claimed: how many messages it may hold, of how many bytes, and how many it had to drop.

        Its `max_messages` and `max_bytes` may be set.
        """

    @abstractmethod
    def _next_unclaimed(self) -> Message:
        """Take the oldest message out of the inbox; raises KeyError if it is empty."""

    def get_msg(self, block: bool = True, timeout: float | None = None) -> Message:
        """The next message that nobody else claimed, in order of arrival.

        Raises KernelTimeout when none came within `timeout` seconds, at once if `block` is False.
        """
        deadline = Deadline(timeout if block else 0)
        with self._owner.call():
            return self._wait_for(
                lambda: self._next_unclaimed() if self.inbox else None, self._arrived, "message", deadline
            )

    def _wait_for(self, take: Callable[[], Message | None], arrived: Parking, what: str, deadline: Deadline) -> Message:
        """The message that `take()` takes out of the inbox, which it may do whenever `arrived` wakes."""
        self._check().drain()
        failures, is_late = self._failures, False
        while (message := take()) is None:
            self._check()
            self._check_failure()
            if self._failures != failures and self._last_failure is not None:  # reopened meanwhile, by a restart
                raise self._last_failure(None)
            if is_late:
                raise KernelTimeout(f"{what} on the {self.name} channel", deadline.timeout)
            if not arrived.wait(deadline):
                self._look_around(deadline)
                is_late = deadline.is_over
        return message

    def msg_ready(self) -> bool:
        """True if `get_msg` would return at once."""
        self._check().drain()
        return len(self.inbox) > 0

    def get_msgs(self) -> list[Message]:
        """Every message that has arrived and that nobody else claimed; does not wait."""
        messages = []
        while self.msg_ready():
            messages.append(self._next_unclaimed())
        return messages

    def fail(self, failure: Failure) -> None:
        super().fail(failure)
        self._arrived.wake()

    def _reader_of(self, socket: zmq.Socket[Any]) -> FrameReader:
        return MessageReader(socket, self.topics)

    def receive(self, frames: list[bytes]) -> None:
        try:
            message = self.session.deserialize(frames)
        except BadMessage as exc:
            self._drop(exc.reason, exc)
            return
        version_4 = self.peer.version_4
        if version_4 is not None:
            version_4.incoming(message)
        self._route(message)
        self._deliver(message)
