"""KernelConnection: the parts of a client, assembled. The channels report to it and ask it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kclient.channels.base import Channel
from kclient.channels.shared import Shared
from kclient.channels.turns import Turn
from kclient.client.availability import Availability
from kclient.client.channel_set import ChannelSet
from kclient.client.connection_watch import ConnectionWatch
from kclient.client.execution import Execution
from kclient.client.input_requests import InputRequests
from kclient.client.kernel_death import KernelDeath
from kclient.client.process import Kernel
from kclient.client.readiness import Readiness
from kclient.client.subshells import Subshells
from kclient.client.watchdog import Watchdog
from kclient.concurrency.deadline import Deadline, check_spin
from kclient.concurrency.owner import Owner
from kclient.errors import InvalidState
from kclient.protocol.comms import CommRoutes, OpenComm
from kclient.protocol.messages import Content, Message, check_code
from kclient.protocol.routing import Outputs
from kclient.transport.base import Transport

if TYPE_CHECKING:
    from kclient.client.comms import Comms
    from kclient.protocol.session import Session


class KernelConnection:
    """Assembles the parts of a client. Each part is given the few others that it uses.

    `make(name, shared)` makes the channel of that name. `kernel` is None for a kernel that this program did not start.
    `on_death()`, if given, is called if a call finds the kernel dead before the loop has told so; see `Availability`.
    """

    def __init__(
        self,
        owner: Owner,
        transport: Transport,
        session: Session,
        make: Callable[[str, Shared], Channel],
        *,
        kernel: Kernel | None = None,
        spin: float = 0.0,
        on_death: Callable[[], None] | None = None,
    ) -> None:
        self.owner = owner
        self.session = session
        self.keeps_alive: object = None
        """The manager, from when a caller was given the client, a channel or the comms: they use its kernel."""
        self._comms: Comms | None = None
        self._comm_routes: CommRoutes[OpenComm] = CommRoutes(session.session, _CommOpener(lambda: self.comms))
        shared = Shared(transport, self, self._comm_routes, check_spin(spin))
        self.channels = ChannelSet(owner, session, shared, make, kernel)
        self.availability = Availability(self.channels, on_death)
        self.readiness = Readiness(self.channels)
        self.subshells = Subshells(self.channels, self.readiness)
        self.connection_watch = ConnectionWatch(self.channels, self.availability)
        self.watchdog = Watchdog(self.channels, self.readiness, self._comm_routes, self.connection_watch)
        self.answer_is_owed = self.watchdog.arm  # the method itself: it is called with each message of iopub
        self.input_requests = InputRequests(self.channels)
        self.kernel_death = KernelDeath(self.channels, self.availability)

    @property
    def comms(self) -> Comms:
        """The comms of this client, made when first asked for."""
        if self._comms is None:
            from kclient.client.comms import Comms  # most clients have none

            self._comms = Comms(
                self.channels,
                self.availability,
                self._comm_routes,
                await_outputs=self.await_outputs,
                expect_status=self.watchdog.expect_status,
            )
        return self._comms

    def inherit(self, former: KernelConnection) -> None:
        """Take the place of `former`: answer input requests and accept comms as it did."""
        self.input_requests.on_input = former.input_requests.on_input
        self._comm_routes.targets.update(former._comm_routes.targets)

    # Executions

    def start(
        self,
        execution: Execution,
        content: Content,
        subshell_id: str | None,
        deadline: Deadline,
        turn: Turn = Turn.IN_ORDER,
    ) -> None:
        """Send the request of `execution` at its turn. Its outputs and its reply go to `execution`."""
        outputs = self.await_outputs(deadline)
        message = self.session.msg("execute_request", content)
        if subshell_id is not None:
            message.header["subshell_id"] = check_code(subshell_id, "subshell_id")
            self.subshells.admit(message, deadline)
        execution.sent(message)
        outputs.executions[execution.msg_id] = execution
        self.watchdog.arm()
        try:
            self.channels.shell.post(message, execution.on_settled, turn)
        except BaseException:
            outputs.executions.pop(execution.msg_id, None)
            raise

    def await_outputs(self, deadline: Deadline) -> Outputs:
        """Wait until everything that the kernel publishes from here on will arrive; returns the routing of outputs."""
        self.availability.wait_until_usable(deadline)
        channels = self.channels
        if not channels.runs("iopub") or not channels.runs("shell"):
            raise InvalidState(
                "run, submit and comms need the shell and the iopub channel; call start_channels() first"
            )
        outputs = channels.iopub.outputs
        if not outputs.subscribed:
            self.readiness.subscribe_in(deadline)
            self.availability.wait_until_usable(deadline)
        return outputs

    # Restart and end

    def reopen(self) -> None:
        """Fail the calls that wait with KernelRestarted. Connect anew, to a kernel that need not be there yet."""
        self.availability.forget_death()
        self.connection_watch.stop()
        self.channels.reopen()

    def stop(self) -> None:
        """Close every channel; calls that wait get ChannelClosed."""
        self.watchdog.stop()
        self.connection_watch.stop()
        self.subshells.stop()
        self.kernel_death.stop()
        self.availability.forget_death()
        if self._comms is not None:
            self._comms.stop()
        self.channels.stop()
        self.input_requests.stop()

    # For the channels

    def look(self) -> None:
        """Take in messages, and notice the death of the process, without a turn of the loop."""
        self.channels.drain()
        self.availability.look()

    def admit(self, message: Message, deadline: Deadline | None) -> None:
        """Raise UnsupportedFeature, or InvalidArgument, for a request that the kernel would not understand."""
        self.subshells.admit(message, deadline)

    def answers_input(self) -> bool:
        """True if an input request would be answered."""
        return self.input_requests.are_answered()

    def awaits_end(self, msg_id: str) -> bool:
        """True while the execution of that id has not ended."""
        outputs = self.channels.outputs
        return outputs is not None and msg_id in outputs.executions

    def at_work(self, subshell_id: str | None) -> str:
        """What that shell is busy with, and since when; empty if it is not busy, or if iopub does not run."""
        return self.channels.at_work(subshell_id)

    def claim_input(self, message: Message) -> bool:
        """Take an input request over; False leaves it in the inbox."""
        return self.input_requests.claim(message)

    def subshell_deleted(self) -> None:
        """The kernel has deleted a subshell; it does not say which."""
        self.subshells.deleted()

    def reconnected(self) -> None:
        """The connection was cut and is back, or another kernel has taken the place of the one before."""
        if self.channels.kernel is None and self.availability.failure is None:  # this program knows of its own restarts
            self.readiness.reconnected()
            self.watchdog.reconnected()

    def cut(self, channel: str) -> None:
        """The connection of that channel was cut, or cannot be made."""
        self.connection_watch.cut(channel)

    def rejected(self, is_seen: bool) -> None:
        """The kernel has closed a connection in the middle of its handshake, or may have: `is_seen` is False."""
        self.connection_watch.rejected(is_seen)

    def heart_missed(self) -> None:
        """The kernel has not answered the heartbeat for a while."""
        self.kernel_death.heart_missed()


class _CommOpener:
    """Gets the comm_open messages of the kernel. `comms()` makes the comms of the client when they are first needed."""

    def __init__(self, comms: Callable[[], Comms]) -> None:
        self._comms = comms

    def feed(self, message: Message) -> None:
        self._comms().opened(message)
