"""ChannelSet: the channels of one client, made when needed, and started, failed, reopened and stopped together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Final, Protocol

from kclient.channels.base import Channel, spin
from kclient.channels.heartbeat import HBChannel
from kclient.channels.iopub import IOPubChannel
from kclient.channels.shared import Shared
from kclient.channels.shell import ControlChannel, RequestChannel, ShellChannel
from kclient.channels.stdin import StdInChannel
from kclient.client.process import Kernel
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.errors import Failure, KernelRestarted, UnsupportedFeature
from kclient.protocol.peer import Peer
from kclient.protocol.pending_answers import PendingAnswers
from kclient.protocol.routing import Outputs
from kclient.transport.base import HeartbeatReceiver, Line, Receiver, Transport

if TYPE_CHECKING:
    from kclient.protocol.session import Session

_TEMPORARY: Final[dict[str, type[RequestChannel]]] = {"control": ControlChannel, "shell": ShellChannel}


class Ended(Protocol):
    """An execution that has ended."""

    msg_id: str
    subshell_id: str | None

    @property
    def is_incomplete(self) -> bool: ...


class ChannelSet:
    """The five channels of a client. `make(name)` makes the channel of that name.

    `kernel` is the process behind them; None for a kernel that this program did not start. `failure` makes the error
    that new calls raise; None unless the kernel is dead. `peer` has the facts that the kernel has told of itself.
    `pending` has the answers of which one half, the reply or the idle status, has come. `spin` is the time in seconds
    for which a call looks at its connections before it waits for the loop.
    """

    def __init__(
        self,
        owner: Owner,
        session: Session,
        shared: Shared,
        make: Callable[[str, Shared], Channel],
        kernel: Kernel | None,
    ) -> None:
        self.owner = owner
        self.session = session
        self.kernel = kernel
        self.transport: Transport = shared.transport
        self.peer: Peer = shared.peer
        self.pending: PendingAnswers = shared.pending
        self.spin = shared.spin
        self.failure: Failure | None = None
        self._shared = shared
        self._make = make
        self._channels: dict[str, Channel] = {}  # the name tells the class; a cast would cost a call for each message

    @property
    def shell(self) -> ShellChannel:
        return self._channels.get("shell") or self.channel("shell")  # type: ignore[return-value]

    @property
    def control(self) -> ControlChannel:
        return self.channel("control")  # type: ignore[return-value]

    @property
    def iopub(self) -> IOPubChannel:
        return self._channels.get("iopub") or self.channel("iopub")  # type: ignore[return-value]

    @property
    def stdin(self) -> StdInChannel:
        return self.channel("stdin")  # type: ignore[return-value]

    @property
    def hb(self) -> HBChannel:
        return self.channel("hb")  # type: ignore[return-value]

    @property
    def outputs(self) -> Outputs | None:
        """The routing of outputs, while iopub runs."""
        return self.iopub.outputs if self.runs("iopub") else None

    def channel(self, name: str) -> Channel:
        """The channel of that name, made when first asked for."""
        channel = self._channels.get(name)
        if channel is None:
            channel = self._channels[name] = self._make(name, self._shared)
            if self.failure is not None:
                channel.fail(self.failure)
        return channel

    def start_channel(self, name: str) -> None:
        """Connect the channel of that name. A stopped channel is replaced by a new one."""
        channel = self._channels.get(name)
        if channel is not None and channel.is_stopped:
            del self._channels[name]
        self.channel(name).start()

    @contextmanager
    def temporary_channel(self, name: str) -> Iterator[RequestChannel]:
        """A shell or control channel over a connection of its own, for a `with` block.

        Raises UnsupportedFeature if the transport has no second connection.
        """
        transport = _SecondLines(self.transport)
        shared = Shared.of_one(transport, self.session)
        channel = _TEMPORARY[name](shared, self.session, transport.address(name))
        try:
            channel.start()
            yield channel
        finally:
            channel.stop()

    def runs(self, name: str) -> bool:
        """True if the channel of that name runs."""
        channel = self._channels.get(name)
        return channel is not None and channel.is_alive()

    def running(self) -> list[Channel]:
        """The channels that run."""
        return [channel for channel in self._channels.values() if channel.is_alive()]

    def have_another_key(self) -> bool:
        """True if the kernel has sent only messages whose signatures are wrong, as far as this client knows."""
        is_understood = self.peer.info is not None or (self.outputs is not None and self.outputs.subscribed)
        return not is_understood and any(channel.dropped["signature"] for channel in self.running())

    def drain(self) -> None:
        """Take in the messages that have arrived, without waiting."""
        for channel in self.running():
            channel.drain()

    def look(self) -> None:
        """Take in messages, and notice the death of the process, without a turn of the loop."""
        self._shared.client.look()

    def spin_while(self, is_waiting: Callable[[], bool], deadline: Deadline) -> None:
        """Look again and again at the connections that an execution depends on."""
        channels = [self._channels[name] for name in ("shell", "iopub", "stdin") if name in self._channels]
        spin(channels, is_waiting, deadline)

    def refuse_if_answering(self, subshell_id: str | None) -> None:
        """Raise InvalidState inside an on_input: the main shell waits for the input and answers no request."""
        if "shell" in self._channels and self.shell.answering:
            self.shell.refuse_if_answering(subshell_id)

    def is_busy_with(self, msg_id: str) -> bool:
        """True if the kernel, or a subshell of it, is busy with the code of the request `msg_id`."""
        return msg_id in self.executing().values()

    def executing(self) -> dict[str | None, str]:
        """The request whose code each shell runs, as far as is known. Code has ended when its reply has come."""
        outputs, ended = self.outputs, self.pending.owed_idle
        if outputs is None:
            return {}
        return {shell: msg_id for shell, msg_id in outputs.executing.items() if msg_id not in ended}

    def at_work(self, subshell_id: str | None = None) -> str:
        """What that shell of the kernel is busy with, and since when, for an error message; empty if it is not busy."""
        outputs = self.outputs
        msg_id = None if outputs is None else outputs.executing.get(subshell_id)
        if outputs is None or msg_id is None:
            return ""
        sink = outputs.executions.get(msg_id)
        code = "" if sink is None else sink.describe()
        if not code:
            code = "code of this client" if msg_id.startswith(self.session.session) else "code of another client"
        return f"for {perf_counter() - outputs.executing_since[subshell_id]:.1f} s the kernel has been running {code}"

    def forget(self, execution: Ended) -> None:
        """Route nothing more to an execution that has ended."""
        if "iopub" in self._channels:
            self.iopub.outputs.executions.pop(execution.msg_id, None)
        if execution.is_incomplete:
            self.pending.owed_idle.pop(execution.msg_id, None)
            outputs, shell = self.outputs, execution.subshell_id
            if outputs is not None and outputs.executing.get(shell) == execution.msg_id:
                del outputs.executing[shell], outputs.executing_since[shell]
        self.next_turn()

    def next_turn(self) -> None:
        """Send the requests that had to wait for others, if they need not any more."""
        if "shell" in self._channels and (shell := self.shell).turns.rows:
            shell.next_turn()

    def own(self, kernel: Kernel) -> None:
        """The kernel is this process, which this program started."""
        self.kernel = kernel

    def refuse(self, failure: Failure) -> None:
        """The kernel is dead: new calls raise the error that `failure` makes."""
        self.failure = failure

    def break_off(self, failure: Failure) -> None:
        """Wake every call that waits for an answer with an error."""
        is_dead = self.kernel is None or not self.kernel.is_alive()
        for channel in self.running():
            channel.drain()
            if is_dead:
                channel.disconnect()
            channel.fail(failure)

    def move(self, change: Callable[[], None]) -> None:
        """`change` the addresses of the kernel. Channels that lead elsewhere then connect anew."""
        before = {channel: channel.address for channel in self.running()}
        change()
        for channel, address in before.items():
            if channel.address != address:
                channel.reopen()

    def reopen(self) -> None:
        """Fail the calls that wait with KernelRestarted. Connect anew, to a kernel that need not be there yet."""
        for channel in self.running():
            if not channel.has_failed:  # else the calls that waited have failed already
                channel.fail(KernelRestarted)
        self.failure = None
        self.peer.forget()
        for channel in self.running():
            channel.reopen()

    def stop(self) -> None:
        """Close every channel and forget it; calls that wait get ChannelClosed."""
        for channel in self._channels.values():
            channel.stop()
        self._channels.clear()
        if self.kernel is None:  # another program may start the kernel again
            self.failure = None


class _SecondLines:
    """A transport whose lines have connections of their own, beside those of `transport`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.channels = transport.channels
        self.is_encrypted = transport.is_encrypted
        self.address = transport.address
        self.file_descriptors = transport.file_descriptors
        self.second_line = transport.second_line
        self.is_refused = transport.is_refused
        self.left_to = transport.left_to
        self.rejection = transport.rejection
        self.find_obstacle = transport.find_obstacle
        self.another_key = transport.another_key
        self.hint = transport.hint

    def line(self, channel: str, receiver: Receiver) -> Line:
        line = self._transport.second_line(channel, receiver)
        if line is None:
            raise UnsupportedFeature(
                "the transport to this kernel has no second connection", feature="second connection"
            )
        return line

    def heartbeat(self, receiver: HeartbeatReceiver) -> None:
        """None: only shell and control have a second line."""
