"""The part that all channels share: start and stop, delivery to `call_handlers`, and waiting for messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

from gevent import get_hub, getcurrent

from kclient.channels import message_log
from kclient.channels.shared import shared_by
from kclient.concurrency import log as logs
from kclient.concurrency.callbacks import CallbackQueue
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.half_made import half_made_too
from kclient.concurrency.log import DEBUG, WARNING, log, log_soon
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import TURN_S, Parking
from kclient.errors import ChannelClosed, Failure, InvalidState, KernelTimeout
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import Message
from kclient.transport.base import Connection, Line, Transport

if TYPE_CHECKING:
    from kclient.protocol.session import Session

LAST_LOOK_S: Final = 0.02
"""Seconds for which a call whose time is up takes in messages: its answer may stand behind many others."""

LOOK_AGAIN_S: Final = 0.04
"""Seconds from one such look to the next. During a flood, many of them in a row would stop the loop."""

INBOX_BYTES: Final = 64 * 2**20
"""Memory of the messages in an inbox. If they take more, the oldest are dropped."""


class Channel(ABC):
    """A channel to one kernel, served in the hub that made it: ``Channel(context, session, address)``.

    `context` is a ZeroMQ context and `address` a ZeroMQ URL or an (ip, port) pair; port 0 raises InvalidPortNumber. The
    connection is encrypted if the session has a server_key. A client passes a `Shared` as `context`; it has the
    transport to the kernel. A subclass may override `call_handlers`. It sees every message once, in its own greenlet.
    """

    name: ClassVar[str]

    def __init__(self, context: Any, session: Session, address: str | tuple[str, int]) -> None:
        self.dropped: Counter[str] = Counter()
        self._looked_at = 0.0
        self._made_of = context, address
        self._session = session
        self._shared = shared_by(context, session, address)
        self._owner = Owner()
        self._connection: Connection = self._new_connection(self._shared.transport)
        self._is_started = self._is_stopped = False
        self._failure: Failure | None = None
        self._last_failure: Failure | None = None
        self._failures = 0
        self._callbacks = CallbackQueue(f"call_handlers of the {self.name} channel")

    @half_made_too
    def __repr__(self) -> str:
        state = "running" if self.is_alive() else "stopped" if self._is_stopped else "not started"
        return f"<{type(self).__name__} {self.address} {state}>"

    @abstractmethod
    def _new_connection(self, transport: Transport) -> Connection:
        """The line of this channel; raises InvalidPortNumber."""

    @property
    def session(self) -> Session:
        """Key and message ids. It may be set before the start, if the channel belongs to no client."""
        return self._session

    @session.setter
    def session(self, session: Session) -> None:
        context, address = self._made_of
        if self._is_started or context is self._shared:
            raise InvalidState(f"the session of the {self.name} channel can no longer be changed; make a new channel")
        self._session = session
        self._shared = shared_by(context, session, address)
        self._connection = self._new_connection(self._shared.transport)

    @property
    def context(self) -> Any:
        """The ZeroMQ context; None if the transport is not ZeroMQ."""
        return getattr(self._shared.transport, "context", None)

    @property
    def address(self) -> str:
        """The address of the channel. Over ZeroMQ it is the URL that the channel connects to."""
        return self._shared.transport.address(self.name)

    def start(self) -> None:
        """Connect. Idempotent; after `stop` it raises InvalidState, a RuntimeError: make a new channel."""
        self._owner.check()
        if self._is_stopped:
            raise InvalidState(f"the {self.name} channel was stopped and cannot start again; make a new one")
        if not self._is_started:
            self._open()

    def stop(self) -> None:
        """Disconnect; calls that wait get ChannelClosed. Idempotent, and without effect in a forked child.

        If the thread of the channel has ended, any thread may call it.
        """
        if self._owner.forked:
            return
        if self._owner.is_gone:  # no call waits, and none can be made
            self._is_stopped = True
            self._connection.close()
            return
        self._owner.check()
        self._is_stopped = True
        self._connection.close()
        message_log.write()
        if self._failure is None:  # else it has told the calls that wait what has happened
            self.fail(lambda msg_id: ChannelClosed(self.name))
        self._callbacks.stop()

    def is_alive(self) -> bool:
        """True between start and stop."""
        return self._is_started and not self._is_stopped

    @property
    def is_stopped(self) -> bool:
        """True after `stop`."""
        return self._is_stopped

    @property
    def has_failed(self) -> bool:
        """True from `fail` to `reopen`."""
        return self._failure is not None

    def call_handlers(self, msg: Any) -> None:
        """Override to see every message, after it was routed. Exceptions are logged. Does nothing here."""

    def fail(self, failure: Failure) -> None:
        """Wake every waiting call with an error, and refuse new ones until `reopen`."""
        self._failure = self._last_failure = failure
        self._failures += 1

    def reopen(self) -> None:
        """Connect anew. Messages that were sent and not delivered are dropped."""
        self._connection.close()
        self._is_started = False
        self._failure = None
        self._open()

    def adopt(self, former: Channel) -> bool:
        """Start with the connection of `former`, a running channel of the same kind, which is stopped by that.

        False, and nothing has changed, if the connection cannot be handed on.
        """
        former.check_running()
        if not self._connection.adopt(former._connection):
            return False
        former.stop()
        self._is_started = True
        self._opened()
        return True

    def disconnect(self) -> None:
        """Stop trying to reach a kernel that is dead."""
        self._connection.disconnect()

    def drain(self, seconds: float = TURN_S) -> None:
        """Take in the messages that have arrived, without waiting, for at most so many seconds."""
        self._owner.check()
        self._connection.drain(seconds)

    def mend(self) -> None:
        """Make sure that the loop still watches the connection."""
        self._connection.mend()

    def glance(self) -> None:
        """Take in one message, if there is one."""
        self._connection.glance()

    def look_once_more(self, *, is_polling: bool) -> None:
        """Take in messages before a call gives up: for a moment only if it polls, or soon after such a look."""
        now = monotonic()
        is_long = not is_polling and now > self._looked_at + LOOK_AGAIN_S
        if is_long:
            self._looked_at = now
        self.drain(LAST_LOOK_S if is_long else TURN_S)

    def lost(self) -> None:
        """The connection was closed from outside: other code has closed the socket, or its context."""
        self.stop()

    def check_running(self) -> None:
        """Raise ChannelClosed after `stop`, InvalidState before `start`, and WrongThread in another thread."""
        self._owner.check()
        if self._is_stopped:
            raise ChannelClosed(self.name)
        if not self._is_started:
            raise InvalidState(f"the {self.name} channel is not running; start it, or call start_channels()")

    @property
    def handles(self) -> bool:
        """True if `call_handlers` is overridden."""
        return type(self).call_handlers is not Channel.call_handlers or "call_handlers" in self.__dict__

    def _look_around(self, deadline: Deadline) -> None:
        """Before a call gives up: take in messages, and notice the death of the kernel."""
        last_look([self], deadline)
        self._shared.client.look()

    def _open(self) -> None:
        self._connection.open()
        self._is_started = True
        self._opened()

    def _opened(self) -> None:
        """The connection is open. A subclass does here what must follow."""

    def _check_failure(self, msg_id: str | None = None) -> None:
        if self._failure is not None:
            raise self._failure(msg_id)

    def _deliver(self, *args: Any) -> None:
        """Call `call_handlers(*args)`, if that is overridden, after the earlier calls of it."""
        if self.handles:
            self._callbacks.add(self.call_handlers, *args)


def last_look(channels: Sequence[Channel], deadline: Deadline) -> None:
    """Take in the messages that have come, if the deadline is over. A timeout of 0 means that the caller polls."""
    for channel in channels if deadline.is_over else ():
        channel.look_once_more(is_polling=not deadline.timeout)


def spin(channels: Sequence[Channel], is_waiting: Callable[[], bool], deadline: Deadline) -> None:
    """Look at the connections again and again, without a turn of the loop, while `is_waiting()`, until the deadline.

    Does nothing in the hub, which may not wait.
    """
    if getcurrent() is get_hub():
        return
    while is_waiting() and not deadline.is_over:
        for channel in channels:
            channel.glance()


class MessageChannel(Channel):
    """A channel of messages, with an inbox of those that no call claimed."""

    def __init__(self, context: Any, session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        self.peer = self._shared.peer
        self._arrived = Parking(self._owner)

    def _new_connection(self, transport: Transport) -> Line:
        self._line = transport.line(self.name, self)
        return self._line

    def receive(self, message: Message) -> None:
        """Take in a message that arrived; never raises."""
        if logs.is_enabled(DEBUG):
            message_log.received(self.name, message)
        version_4 = self.peer.version_4
        if version_4 is not None:
            version_4.incoming(message)
        self._route(message)
        if self.handles:
            self._deliver(message)

    def drop(self, reason: str, error: Exception) -> None:
        """Count a message that could not be read."""
        self.dropped[reason] += 1
        log_soon(log(), WARNING, "dropped a message on %s: %s", self.name, error)

    def reconnected(self) -> None:
        """The connection was cut and is back. Only the stdin line tells of that."""

    def watch_connection(self, is_wanted: bool) -> None:
        """Tell the client of the next cut of the connection, or do so no longer."""
        self._line.watch_connection(is_wanted)

    def cut(self) -> None:
        """The connection was cut, or cannot be made."""
        self._shared.client.cut(self.name)

    def rejected(self, *, is_seen: bool = True) -> None:
        """The program at the other end closes the connection because of its keys, or may do so: `is_seen` is False."""
        self._shared.client.rejected(is_seen)

    @abstractmethod
    def _route(self, message: Message) -> None:
        """Give `message` to the call, or the execution, that it belongs to."""

    @property
    @abstractmethod
    def inbox(self) -> Inbox:
        """The messages that no call claimed, and the number of those that it `dropped`.

        Its bounds, `max_messages` and `max_bytes`, may be set.
        """

    @abstractmethod
    def _next_unclaimed(self) -> Message:
        """Take the oldest message out of the inbox; raises KeyError if it is empty."""

    def get_msg(self, block: bool = True, timeout: float | None = None) -> Message:
        """The next message that no other call claimed, in order of arrival.

        Raises KernelTimeout when none came within `timeout` seconds, at once if `block` is False.
        """
        deadline = Deadline(timeout if block else 0)
        with self._owner.call():
            return self._wait_for(
                lambda: self._next_unclaimed() if self.inbox else None, self._arrived, "message", deadline
            )

    def _wait_for(self, take: Callable[[], Message | None], arrived: Parking, what: str, deadline: Deadline) -> Message:
        """The message that `take()` takes out of the inbox. `take` is called again each time that `arrived` wakes."""
        self.check_running()
        self._line.drain()
        failures, is_late = self._failures, False
        while (message := take()) is None:
            self._check_failure()
            if self._failures != failures and self._last_failure is not None:  # a restart has reopened it meanwhile
                raise self._last_failure(None)
            if is_late:
                raise KernelTimeout(f"{what} on the {self.name} channel", deadline.timeout)
            if not arrived.wait(deadline):
                self._look_around(deadline)
                is_late = deadline.is_over
        return message

    def msg_ready(self) -> bool:
        """True if `get_msg` would return at once."""
        self.check_running()
        self._line.drain()
        return len(self.inbox) > 0

    def get_msgs(self) -> list[Message]:
        """Every message that has arrived and that no other call claimed; does not wait."""
        messages = []
        while self.msg_ready():
            messages.append(self._next_unclaimed())
        return messages

    def fail(self, failure: Failure) -> None:
        super().fail(failure)
        self._arrived.wake()
