"""What the channels of one client share, and what a channel tells its client and asks it."""

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
    """The client of any channel."""

    def look(self) -> None:
        """Take in, without the help of the loop, messages on all channels, and the death of the kernel."""


class RequestClient(LooksAround, Protocol):
    """The client of the shell and the control channel."""

    def admit(self, message: Message, deadline: Deadline | None) -> None:
        """Raise UnsupportedFeature, or InvalidArgument, for a request that the kernel would not understand."""

    def answer_is_owed(self) -> None:
        """A reply, or an idle status, is awaited from here on; it may get lost."""

    def answers_input(self) -> bool:
        """True if an input request would be answered, by a callback or by a greenlet that waits for it."""

    def subshell_deleted(self) -> None:
        """The kernel has deleted a subshell; it does not say which."""


class IOPubClient(LooksAround, Protocol):
    """The client of the iopub channel."""

    def answer_is_owed(self) -> None: ...

    def reconnected(self) -> None:
        """The connection was cut and is back, or another kernel has taken the place of the one before."""

    def subshell_deleted(self) -> None: ...


class StdInClient(LooksAround, Protocol):
    """The client of the stdin channel."""

    def claim_input(self, message: Message) -> bool:
        """Take an input request over; False leaves it in the inbox."""

    def reconnected(self) -> None: ...


class HeartbeatClient(LooksAround, Protocol):
    """The client of the heartbeat channel."""

    def heart_missed(self) -> None:
        """The kernel has not answered for `time_to_dead` seconds."""


class ChannelClient(RequestClient, IOPubClient, StdInClient, HeartbeatClient, Protocol):
    """The client of all five channels."""


class NoClient:
    """In place of a client, for a channel that stands alone."""

    def look(self) -> None:
        """There are no other channels."""

    def admit(self, message: Message, deadline: Deadline | None) -> None:
        """A channel that stands alone sends whatever it is told to send."""

    def answer_is_owed(self) -> None:
        """Lost answers are noticed by clients only."""

    def answers_input(self) -> bool:
        return False

    def claim_input(self, message: Message) -> bool:
        return False

    def subshell_deleted(self) -> None:
        """No call waits for a subshell."""

    def reconnected(self) -> None:
        """No call waits for what was lost."""

    def heart_missed(self) -> None:
        """`call_handlers` tells of it."""


class _NoComms:
    """Opens no comms: a channel that stands alone has no targets."""

    def feed(self, message: Message) -> None:
        """Never called, without targets."""


@attrs.define(eq=False)
class Shared:
    """What the channels of one client share: the way to the kernel, the client, and what is known of the kernel.

    `spin` is the time in seconds for which a call looks at its sockets before it waits for the loop.
    """

    transport: Transport
    client: ChannelClient
    comm_routes: CommRoutes[OpenComm]
    spin: float = 0.0
    peer: Peer = attrs.field(factory=Peer)
    pending: PendingAnswers = attrs.field(factory=PendingAnswers)

    @classmethod
    def of_one(cls, transport: Transport, session: Session) -> Shared:
        """For a channel that stands alone."""
        return cls(transport, NoClient(), CommRoutes(session.session, _NoComms()))


def shared_by(context: object, session: Session, address: str | tuple[str, int]) -> Shared:
    """What a channel shares that was made by ``Channel(context, session, address)``.

    `context` is a `Shared`, or a ZeroMQ context: then the channel stands alone, and connects to `address`.
    """
    if isinstance(context, Shared):
        return context
    from kclient.transport.zmq.transport import OneAddress, ZmqTransport  # a client brings a transport of its own

    transport = ZmqTransport(OneAddress(address), session, context=context)  # type: ignore[arg-type]
    return Shared.of_one(transport, session)
