"""The objects that the channels of one client share, and the client as each channel sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from kclient.concurrency.deadline import Deadline
from kclient.protocol.comms import CommRoutes, OpenComm
from kclient.protocol.messages import Message
from kclient.protocol.peer import Peer
from kclient.protocol.pending_answers import PendingAnswers
from kclient.transport.base import Transport

if TYPE_CHECKING:
    from kclient.protocol.session import Session


class LooksAround(Protocol):
    """The client, as any channel sees it."""

    def look(self) -> None:
        """Take in messages on all channels, and notice the death of the kernel, without a turn of the loop."""


class MessageClient(LooksAround, Protocol):
    """The client, as any channel of messages sees it."""

    def cut(self, channel: str) -> None:
        """The connection of that channel was cut, or cannot be made. Told once after each `watch_connection`."""

    def rejected(self, is_seen: bool) -> None:
        """The kernel has closed a connection in the middle of its handshake, or may have: `is_seen` is False."""


class RequestClient(MessageClient, Protocol):
    """The client, as the shell and the control channel see it."""

    def admit(self, message: Message, deadline: Deadline | None) -> None:
        """Raise UnsupportedFeature, or InvalidArgument, for a request that the kernel would not understand."""

    def answer_is_owed(self) -> None:
        """A call waits for a reply, or an idle status, from here on. It may get lost."""

    def answers_input(self) -> bool:
        """True if an input request would get an answer, by a callback or by a greenlet that waits for the request."""

    def subshell_deleted(self) -> None:
        """The kernel has deleted a subshell; it does not say which."""

    def awaits_end(self, msg_id: str) -> bool:
        """True while the execution of that id has not ended."""

    def at_work(self, subshell_id: str | None) -> str:
        """What that shell is busy with, and since when, for an error message; empty if that is not known."""


class IOPubClient(MessageClient, Protocol):
    """The client, as the iopub channel sees it."""

    def answer_is_owed(self) -> None: ...

    def reconnected(self) -> None:
        """The connection was cut and is back, or another kernel has taken the place of the one before."""

    def subshell_deleted(self) -> None: ...


class StdInClient(MessageClient, Protocol):
    """The client, as the stdin channel sees it."""

    def claim_input(self, message: Message) -> bool:
        """Take an input request over; False leaves it in the inbox."""

    def reconnected(self) -> None: ...


class HeartbeatClient(LooksAround, Protocol):
    """The client, as the heartbeat channel sees it."""

    def heart_missed(self) -> None:
        """The kernel has not answered for `time_to_dead` seconds."""


class ChannelClient(RequestClient, IOPubClient, StdInClient, HeartbeatClient, Protocol):
    """The client, as all five channels see it."""


class NoClient:
    """Stands in for the client of a channel that belongs to none."""

    def look(self) -> None:
        """There are no other channels."""

    def admit(self, message: Message, deadline: Deadline | None) -> None:
        """A channel that belongs to no client sends every request."""

    def answer_is_owed(self) -> None:
        """Only clients notice lost answers."""

    def answers_input(self) -> bool:
        return False

    def claim_input(self, message: Message) -> bool:
        return False

    def subshell_deleted(self) -> None:
        """No call waits for a subshell."""

    def awaits_end(self, msg_id: str) -> bool:
        return False

    def at_work(self, subshell_id: str | None) -> str:
        return ""

    def reconnected(self) -> None:
        """No call waits for what was lost."""

    def cut(self, channel: str) -> None:
        """Never called: only clients watch connections."""

    def rejected(self, is_seen: bool) -> None:
        """The call that waits ends with its timeout, and says what may be wrong."""

    def heart_missed(self) -> None:
        """`call_handlers` tells of it."""


class _NoComms:
    """Opens no comms: a channel that belongs to no client has no targets."""

    def feed(self, message: Message) -> None:
        """Never called, without targets."""


@attrs.define(eq=False)
class Shared:
    """The objects that the channels of one client share.

    `spin` is the time in seconds for which a call looks at its connections before it waits for the loop.
    """

    transport: Transport
    client: ChannelClient
    comm_routes: CommRoutes[OpenComm]
    spin: float = 0.0
    peer: Peer = attrs.field(factory=Peer)
    pending: PendingAnswers = attrs.field(factory=PendingAnswers)

    @classmethod
    def of_one(cls, transport: Transport, session: Session) -> Shared:
        """For a channel that belongs to no client."""
        return cls(transport, NoClient(), CommRoutes(session.session, _NoComms()))


def shared_by(context: object, session: Session, address: str | tuple[str, int]) -> Shared:
    """The `Shared` of a channel that was made by ``Channel(context, session, address)``.

    `context` is a `Shared`, or a ZeroMQ context. With the latter the channel belongs to no client, and connects to
    `address`.
    """
    if isinstance(context, Shared):
        return context
    from kclient.transport.zmq.transport import (
        OneAddress,
        ZmqTransport,
    )  # imported late: a client has made its transport

    transport = ZmqTransport(OneAddress(address), session, context=context)  # type: ignore[arg-type]
    return Shared.of_one(transport, session)
