"""The seam between channels and transports: messages cross it, never frames.

A transport knows how to reach one kernel. It makes a line for each channel. A line carries the messages of one channel
and hands those that arrive to a receiver, the channel. Signatures, replay checks, identities, encryption, reconnecting
and the question whether anything listens at the other end stand behind this seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.waiting import TURN_S
from kclient.errors import KClientError
from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.messages import Message


def held(address: str, pids: Sequence[int]) -> str:
    """The words for a kernel that has ended, while processes that it had forked hold its address."""
    numbers = ", ".join(map(str, pids))
    return f"the kernel died; processes that it had started hold {address} and do not serve it: end them ({numbers})"


class Receiver(Protocol):
    """A channel, as its line sees it. No method blocks or raises."""

    def receive(self, message: Message) -> None:
        """Take in a message that arrived."""

    def drop(self, reason: str, error: Exception) -> None:
        """Count a message that could not be read; `reason` is one word, as in BadMessage."""

    def reconnected(self) -> None:
        """The connection was cut and is back. Messages may have been lost."""

    def cut(self) -> None:
        """The connection was cut, or cannot be made. Told once after each `watch_connection` of the line."""

    def rejected(self) -> None:
        """The program at the other end has closed the connection because of its keys, as far as the line can tell."""

    def lost(self) -> None:
        """The connection was closed from outside, for good."""


class HeartbeatReceiver(Protocol):
    """The heartbeat channel, as its line sees it. No method blocks or raises."""

    def beat(self) -> None:
        """The kernel has answered a ping."""

    def lost(self) -> None:
        """The connection was closed from outside, for good."""


class Connection(Protocol):
    """The part that the lines of all channels have in common. A closed line may be opened again."""

    def open(self) -> None:
        """Connect, without waiting; raises InvalidState, InvalidArgument and TooManyFiles."""

    def close(self) -> None:
        """Disconnect at once. Messages that were not sent are dropped. Idempotent."""

    def drain(self, seconds: float = TURN_S) -> None:
        """Take in the messages that have arrived, without waiting, for at most so many seconds."""

    def glance(self) -> None:
        """Take in one message, if there is one."""

    def mend(self) -> None:
        """Make sure that the loop still watches the line."""

    def disconnect(self) -> None:
        """Stop trying to reach a kernel that is dead. Messages that have arrived can still be taken in."""

    def adopt(self, former: Connection) -> bool:
        """Go on with the connection of `former`, which is closed by that; False if this is not possible."""


class Line(Connection, Protocol):
    """Carries the messages of one channel."""

    def send(self, message: Message) -> None:
        """Send, without waiting. A Ctrl-C is raised when the message is out.

        Raises InvalidArgument for a message that cannot be written, ChannelClosed, and InvalidState if the kernel is
        not connected and the line does not keep messages for later.
        """

    def watch_connection(self, is_wanted: bool) -> None:
        """Tell the receiver of the next cut and of rejections, or do so no longer. It may take descriptors meanwhile.

        A line that cannot tell does nothing.
        """

    def is_connected(self) -> bool:
        """True if the kernel is connected, as far as the line can tell."""

    def wait_until_connected(self, deadline: Deadline) -> bool:
        """Wait until the kernel is connected; False if it is not within the deadline."""


class HeartbeatLine(Connection, Protocol):
    """Carries pings, and tells its receiver of each answer."""

    def ping(self) -> None:
        """Ask the kernel for a sign of life; raises InvalidState if it is not connected, and ChannelClosed."""


class Transport(Protocol):
    """The way to one kernel."""

    @property
    def channels(self) -> Sequence[str]:
        """The names of the channels that the kernel has, of "shell", "iopub", "stdin", "control" and "hb"."""

    @property
    def is_encrypted(self) -> bool:
        """True if the lines encrypt the messages."""

    def address(self, channel: str) -> str:
        """The address of that channel, for people to read; raises InvalidPortNumber if it is not known."""

    def file_descriptors(self, channels: int) -> int:
        """How many file descriptors the lines of so many channels take."""

    def line(self, channel: str, receiver: Receiver) -> Line:
        """A line for that channel, not open yet; raises InvalidPortNumber."""

    def second_line(self, channel: str, receiver: Receiver) -> Line | None:
        """A line over a connection of its own, beside that of the channel; None if the transport has none."""

    def heartbeat(self, receiver: HeartbeatReceiver) -> HeartbeatLine | None:
        """A line for pings; None if the transport has none."""

    def is_refused(self, channels: Sequence[str] = ("hb", "shell")) -> bool | None:
        """True if no program listens at the addresses of those channels that the kernel has, None if that is unknown.

        Waits 1 s at most for each of them.
        """

    def left_to(self) -> Sequence[int]:
        """The processes of this machine that hold the addresses of a kernel that has ended, and serve none of them.

        Empty if the kernel may live. Waits 2 s at most.
        """

    def rejection(self, *, is_seen: bool) -> KClientError | None:
        """The error to raise if the keys are not those of the kernel, as far as its greeting tells; else None.

        `is_seen`: it has closed connections in the middle of their handshake. Waits 2 s at most.
        """

    def find_obstacle(self, deadline: Deadline) -> KClientError | None:
        """The error to raise instead of a wait for a kernel that this program did not start, if it cannot answer.

        Nothing is sent to the kernel. Waits for no more than the look-up of a host name, within the deadline.
        """

    def another_key(self) -> KClientError:
        """The error to raise for a kernel that signs its messages with another key than this client has."""

    def hint(self) -> str:
        """Why a kernel may be silent to a new client, and what to do, for an error message."""


class KernelTransport(Transport, Protocol):
    """The way to a kernel that has a connection file, and that this program may start and restart."""

    def own(self) -> None:
        """This program has started the kernel, and so is told of its end."""

    def move(self, connection: ConnectionInfo) -> None:
        """The kernel has other addresses since it was restarted. Lines that are opened from here on lead there."""
