"""A second transport: two queues in memory for each channel, and a relay behind them that speaks to the kernel.

It proves that the seam of `kclient.transport.base` is one: messages cross it, never frames. Like a server it has no
second line and no heartbeat, and cannot tell whether the kernel's addresses refuse connections.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from gevent import get_hub

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.waiting import TURN_S, weakly
from kclient.errors import ChannelClosed, InvalidState
from kclient.transport.zmq.transport import ZmqTransport

if TYPE_CHECKING:
    from kclient.protocol.connection import ConnectionInfo
    from kclient.protocol.messages import Message
    from kclient.protocol.session import Session
    from kclient.transport.base import Connection, HeartbeatReceiver, Line, Receiver


class QueueLine:
    """A queue to the kernel and a queue from it. `make_relay(receiver)` makes the relay's own line to the kernel."""

    def __init__(self, session: Session, channel: str, receiver: Receiver, make_relay: Callable[[Any], Line]) -> None:
        self._session = session
        self._channel = channel
        self._receiver = receiver
        self._to_kernel: deque[Message] = deque()
        self._from_kernel: deque[Message] = deque()
        self._relay = make_relay(self)
        self._hub = get_hub()
        self._is_open = self._is_delivering = False
        self.reconnected = receiver.reconnected
        self.drop = receiver.drop
        self.lost = receiver.lost
        self.cut = receiver.cut
        self.rejected = receiver.rejected
        self.disconnect = self._relay.disconnect
        self.mend = self._relay.mend
        self.is_connected = self._relay.is_connected
        self.watch_connection = self._relay.watch_connection

    def open(self) -> None:
        self._relay.open()
        self._is_open = True

    def close(self) -> None:
        self._relay.close()
        self._is_open = False
        self._to_kernel.clear()
        self._from_kernel.clear()

    def adopt(self, former: Connection) -> bool:
        return False

    def send(self, message: Message) -> None:
        if not self._is_open:
            raise ChannelClosed(self._channel)
        self._session.serialize(message)  # a message that cannot be written is refused here
        self._to_kernel.append(deepcopy(message))
        self._hub.loop.run_callback(weakly(self._pass_on))

    def receive(self, message: Message) -> None:
        """The relay has received a message of the kernel."""
        self._from_kernel.append(message)
        self._hub.loop.run_callback(weakly(self._deliver))

    def drain(self, seconds: float = TURN_S) -> None:
        self._pass_on()
        self._relay.drain(seconds)
        self._deliver()

    def glance(self) -> None:
        self.drain(0)

    def wait_until_connected(self, deadline: Deadline) -> bool:
        return self._relay.wait_until_connected(deadline)

    def _pass_on(self) -> None:
        while self._is_open and self._to_kernel:
            message = self._to_kernel.popleft()
            with suppress(InvalidState):  # the kernel is gone: the message is lost, as it would be on a server
                self._relay.send(message)

    def _deliver(self) -> None:
        if self._is_delivering:
            return
        self._is_delivering = True
        try:
            while self._is_open and self._from_kernel:
                self._receiver.receive(self._from_kernel.popleft())
        finally:
            self._is_delivering = False


class QueueTransport:
    """Takes the arguments of ZmqTransport, which the relay uses."""

    def __init__(self, addresses: Any, session: Session, *, context: Any = None, is_ours: bool = True) -> None:
        self._session = session
        self._relay = ZmqTransport(addresses, session, context=context, is_ours=is_ours)
        self.address = self._relay.address
        self.file_descriptors = self._relay.file_descriptors
        self.hint = self._relay.hint
        self.another_key = self._relay.another_key
        self.own = self._relay.own

    @property
    def channels(self) -> Sequence[str]:
        return [name for name in self._relay.channels if name != "hb"]

    @property
    def is_encrypted(self) -> bool:
        return self._relay.is_encrypted

    def line(self, channel: str, receiver: Receiver) -> QueueLine:
        return QueueLine(self._session, channel, receiver, lambda queues: self._relay.line(channel, queues))

    def second_line(self, channel: str, receiver: Receiver) -> None:
        """None: there is one connection to the relay."""

    def heartbeat(self, receiver: HeartbeatReceiver) -> None:
        """None: the relay answers no pings."""

    def left_to(self) -> Sequence[int]:
        """Empty: the relay does not know."""
        return []

    def rejection(self, *, is_seen: bool) -> None:
        """None: the relay reports none."""

    def is_refused(self, channels: Sequence[str] = ()) -> None:
        """None: the relay does not know."""

    def find_obstacle(self, deadline: Deadline) -> None:
        """None: the relay does not know."""

    def move(self, connection: ConnectionInfo) -> None:
        self._relay.move(connection)
