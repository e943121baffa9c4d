"""KernelConnection: the channels of one client, opened, failed, closed and reopened together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol, cast

from gevent import getcurrent

from kclient.channels.base import Channel, MessageChannel, spin
from kclient.channels.heartbeat import HBChannel
from kclient.channels.iopub import IOPubChannel
from kclient.channels.shell import ControlChannel, RequestChannel, ShellChannel
from kclient.channels.stdin import StdInChannel
from kclient.client.execution import Execution
from kclient.client.input_requests import InputRequests
from kclient.client.kernel_death import KernelDeath
from kclient.client.readiness import Readiness
from kclient.client.subshells import Subshells
from kclient.client.watchdog import Watchdog
from kclient.concurrency.deadline import Deadline, check_spin
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking
from kclient.errors import DeadKernelError, Failure, InvalidState, KernelRestarted, KernelTimeout
from kclient.protocol.messages import Content, check_code
from kclient.protocol.peer import Peer
from kclient.protocol.pending_answers import PendingAnswers
from kclient.protocol.routing import Outputs

if TYPE_CHECKING:
    from kclient.client.comms import Comms
    from kclient.protocol.connection import ConnectionInfo
    from kclient.protocol.session import Session

RECONNECT_IVL_MAX: Final = 200
"""Milliseconds between attempts to reach a kernel that nobody here started, and that may be gone for good."""


class Kernel(Protocol):
    """What a client needs to know of a kernel process that somebody here started."""

    def is_alive(self) -> bool: ...

    def interrupt(self) -> bool:
        """Signal the process; False if the kernel wants an interrupt_request instead."""

    def death(self) -> DeadKernelError: ...


class KernelConnection:
    """`make(name)` makes the channel of that name; `kernel` is None for a kernel that nobody here started.

    `spin` is the time in seconds for which a call looks at its sockets before it waits for the loop.
    """

    def __init__(
        self,
        owner: Owner,
        session: Session,
        make: Callable[[str], Channel],
        kernel: Kernel | None = None,
        spin: float = 0.0,
    ) -> None:
        self.owner = owner
        self.session = session
        self.kernel = kernel
        self.spin = check_spin(spin)
        self.watchdog = Watchdog(self)
        self.prober = Readiness(self)
        self.failure: Failure | None = None
        self.prompts = InputRequests(self)
        self._comms: Comms | None = None
        self._make = make
        self._channels: dict[str, Channel] = {}
        self.ledger = PendingAnswers()
        self.peer = Peer()
        self.support = Subshells(self)
        self.deaths = KernelDeath(self)
        self.is_restarting = False
        self._why = ""
        self._admitted: object = None
        self._restarted = Parking(owner)
        self._epoch = 0
        self._identity = session.identity

    # The channels

    @property
    def shell(self) -> ShellChannel:
        return cast(ShellChannel, self._channels.get("shell") or self.channel("shell"))

    @property
    def control(self) -> ControlChannel:
        return cast(ControlChannel, self.channel("control"))

    @property
    def iopub(self) -> IOPubChannel:
        return cast(IOPubChannel, self.channel("iopub"))

    @property
    def stdin(self) -> StdInChannel:
        return cast(StdInChannel, self.channel("stdin"))

    @property
    def hb(self) -> HBChannel:
        return cast(HBChannel, self.channel("hb"))

    @property
    def outputs(self) -> Outputs | None:
        """The routing of outputs, while iopub runs."""
        return self.iopub.outputs if self.runs("iopub") else None

    @property
    def comms(self) -> Comms:
        """The comms of this client, made when first asked for."""
        if self._comms is None:
            from kclient.client.comms import Comms  # most clients have none

            self._comms = Comms(self)
            if "iopub" in self._channels:
                self.iopub.outputs.comms = self._comms.routes
        return self._comms

    @property
    def open_comms(self) -> list[str]:
        """The ids of the comms that are open."""
        return [] if self._comms is None else list(self._comms)

    def inherit(self, former: KernelConnection | None) -> None:
        """Answer input requests and take comms as `former` did, in whose place this one is."""
        if former is not None:
            self.prompts.on_input = former.prompts.on_input
            if former._comms is not None:
                self.comms.routes.targets.update(former._comms.routes.targets)

    def channel(self, name: str) -> Channel:
        """The channel of that name, made when first asked for."""
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = self._make(name)
            self._join(channel)
        return channel

    def start_channel(self, name: str) -> None:
        """Connect the channel of that name; a new one for one that was stopped."""
        channel = self._channels.get(name)
        if channel is not None and channel.is_stopped:
            del self._channels[name]
            if name != "stdin":
                self.renew_identity()
            if name == "shell" and self.runs("stdin"):
                self.stdin.identity = self._identity
                self.stdin.reopen()
        self.channel(name).start()

    def runs(self, name: str) -> bool:
        channel = self._channels.get(name)
        return channel is not None and channel.is_alive()

    def running(self) -> list[Channel]:
        return [channel for channel in self._channels.values() if channel.is_alive()]

    def drain(self) -> None:
        """Take in what is on the sockets now, without waiting."""
        for channel in self.running():
            channel.drain()

    def spin_while(self, is_waiting: Callable[[], bool], deadline: Deadline) -> None:
        """Look again and again at the sockets that an execution has to do with."""
        channels = [self._channels[name] for name in ("shell", "iopub", "stdin") if name in self._channels]
        spin(channels, is_waiting, deadline)

    def look(self) -> None:
        """Take in what there is to know without the help of the loop: messages, and the death of the process."""
        self.drain()
        self.deaths.look()

    def interrupt_kernel(self) -> None:
        """Interrupt what the kernel runs now, by signal or by message; nobody waits for the reply to that."""
        if self.kernel is not None and self.kernel.interrupt():
            return
        channel = self.control if self.runs("control") else self.shell
        channel.requests.abandon(channel.post(self.session.msg("interrupt_request")))

    def _join(self, channel: Channel) -> None:
        """Let the channel share what the channels of a client share."""
        if self.failure is not None:
            channel.fail(self.failure)
        channel.look = self.look
        if self.kernel is None:  # of whose death perhaps nobody will tell
            channel.reconnect_ivl_max = RECONNECT_IVL_MAX
        if isinstance(channel, MessageChannel):
            channel.peer = self.peer
        if isinstance(channel, RequestChannel):
            channel.identity = self._identity
            channel.admit = self.support.admit
            channel.requests.ledger = self.ledger
            channel.on_wait = self.watchdog.arm
            channel.spin = self.spin
        if isinstance(channel, ShellChannel):
            channel.expects_input = self.prompts.are_answered
        elif isinstance(channel, IOPubChannel):
            channel.outputs.ledger = self.ledger
            channel.outputs.comms = None if self._comms is None else self._comms.routes
            channel.on_unanswered = self.watchdog.arm
            channel.on_new_kernel = self.reconnected
            channel.on_deleted_subshell = self.support.subshell_deleted
        elif isinstance(channel, StdInChannel):
            shell = self._channels.get("shell")
            channel.identity = shell.identity if isinstance(shell, ShellChannel) else self._identity
            channel.claim = self.prompts.claim
            channel.on_reconnect = self.reconnected

    # Life and death

    def stop(self) -> None:
        """Close every channel, and forget them; whoever waits gets ChannelClosed."""
        self.watchdog.stop()
        self.support.stop()
        self.deaths.forget()
        if self._comms is not None:
            self._comms.deliverer.stop()
        for channel in self._channels.values():
            channel.stop()
        self._channels.clear()
        self.prompts.stop()
        if self.kernel is None:  # somebody may start it again
            self.failure = None
        self.renew_identity()

    def renew_identity(self) -> bytes:
        """A ROUTER may ignore a peer whose identity it still knows from a connection that has just been closed."""
        self._epoch += 1
        self._identity = b"%s-%d" % (self.session.identity, self._epoch)
        return self._identity

    def fail(self, failure: Failure) -> None:
        """Wake whoever waits with an error, and refuse new calls."""
        self.failure = failure
        self.break_off(failure)
        self._restarted.wake()

    def break_off(self, failure: Failure) -> None:
        """Wake whoever waits for an answer with an error."""
        is_dead = self.kernel is None or not self.kernel.is_alive()
        self.deaths.forget()
        for channel in self.running():
            channel.drain()
            if is_dead:
                channel.disconnect()
            channel.fail(failure)

    def reconnected(self) -> None:
        """The connection was cut and is back, or another kernel has taken the place of the one we knew."""
        if self.kernel is None and self.failure is None:  # a restart of our own is no news
            self.prober.reconnected()
            self.watchdog.reconnected()

    def begin_restart(self, why: str = "") -> None:
        """Let new calls wait until the restarted kernel is ready."""
        self.is_restarting = True
        self._why = why

    def admit(self, greenlet: object) -> None:
        """Let the calls of one greenlet in already."""
        self._admitted = greenlet

    def reopen(self) -> None:
        """Fail what is pending with KernelRestarted and connect anew, to a kernel that is not there yet."""
        self.deaths.forget()
        for channel in self.running():
            if not channel.has_failed:  # else who waited has been told already, and may be about to hear it
                channel.fail(KernelRestarted)
        self.failure = None
        self.peer.forget()
        self.support.forget()
        for channel in self.running():
            channel.reopen()

    def move(self, connection: ConnectionInfo) -> None:
        """Connect to a kernel that listens elsewhere; what was sent and not delivered is dropped."""
        for name, channel in self._channels.items():
            channel.move(connection.address(name))

    def wait_until_usable(self, deadline: Deadline) -> None:
        """Return when no restart is under way; raises KernelTimeout, what became of the kernel, or WrongThread."""
        self.owner.check()
        if self.deaths.on_death is not None:
            self.deaths.take_in()
        while self.is_restarting and self.failure is None and getcurrent() is not self._admitted:
            if not self._restarted.wait(deadline) and deadline.is_over:
                raise KernelTimeout("kernel after its restart", deadline.timeout, hint=self._why)
        if self.failure is not None:
            raise self.failure(None)

    def end_restart(self) -> None:
        self.is_restarting = False
        self._admitted = None
        self._restarted.wake()

    # Executions

    def start(self, execution: Execution, content: Content, subshell_id: str | None, deadline: Deadline) -> None:
        """Send the request of `execution`, whose outputs and reply it gets from now on."""
        outputs = self.await_outputs(deadline)
        message = self.session.msg("execute_request", content)
        if subshell_id is not None:
            message.header["subshell_id"] = check_code(subshell_id, "subshell_id")
            self.support.admit(message, deadline)
        execution.sent(message)
        outputs.executions[message.msg_id] = execution
        self.watchdog.arm()
        try:
            self.shell.post(message, execution.on_settled)
        except BaseException:
            outputs.executions.pop(message.msg_id, None)
            raise

    def await_outputs(self, deadline: Deadline) -> Outputs:
        """The routing of outputs, when what the kernel publishes from here on will arrive."""
        self.wait_until_usable(deadline)
        if not self.runs("iopub") or not self.runs("shell"):
            raise InvalidState(
                "run, submit and comms need the shell and the iopub channel; call start_channels() first"
            )
        outputs = self.iopub.outputs
        if not outputs.subscribed:
            self.prober.subscribe_in(deadline)
        return outputs

    def refuse_if_answering(self, subshell_id: str | None) -> None:
        """Raise InvalidState in an on_input, for which the main shell waits; it answers nothing meanwhile."""
        shell = self._channels.get("shell")
        if isinstance(shell, RequestChannel) and shell.answering:
            shell.refuse_if_answering(subshell_id)

    def forget(self, execution: Execution) -> None:
        """`execution` has ended."""
        iopub = self._channels.get("iopub")
        if isinstance(iopub, IOPubChannel):
            iopub.outputs.executions.pop(execution.msg_id, None)
        if execution.is_incomplete:
            self.ledger.owed_idle.pop(execution.msg_id, None)

    def is_busy_with(self, msg_id: str) -> bool:
        """True if the latest code that the kernel, or a subshell of it, is busy with is that of `msg_id`."""
        return self.outputs is not None and msg_id in self.outputs.executing.values()
