"""KernelClient: talk to a running kernel."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from kclient.channels.base import Channel
from kclient.client.connection import Kernel, KernelConnection
from kclient.client.heartbeat_watch import HeartbeatWatch
from kclient.client.interface import KernelInterface
from kclient.concurrency.deadline import Timeout, as_deadline
from kclient.concurrency.file_limits import CHANNEL, FileDescriptorReservation
from kclient.concurrency.owner import Owner
from kclient.errors import ConnectionFileError, KClientError
from kclient.protocol.connection import ConnectionInfo
from kclient.transport.zmq.context import context

if TYPE_CHECKING:
    from kclient.protocol.session import Session

Connection = str | os.PathLike[str] | Mapping[str, Any] | ConnectionInfo
"""What a client connects to: the path of a connection file, its values, or a ConnectionInfo."""

_Self = TypeVar("_Self", bound="KernelClient")


class KernelClient(KernelInterface):
    """Requests to one kernel, and their replies; greenlets of one hub may share it.

    `connection` is a connection file's path, its values, or a ConnectionInfo. `on_input(prompt, password)`, if
    set, answers the input requests of every execution that has no on_input of its own. `spin` is that of
    `kclient.connect`.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        kernel: Kernel | None = None,
        session: Session | None = None,
        spin: float = 0.0,
    ) -> None:
        from kclient.protocol.session import Session  # imports orjson, a quarter of the time of importing kclient

        self.connection = as_connection_info(connection)
        self.session = session or Session(self.connection.key, signature_scheme=self.connection.signature_scheme)
        self.session.server_key = self.connection.curve_publickey
        self._owner = Owner()
        self.claim = FileDescriptorReservation(self._is_connected)
        self._death_watch: HeartbeatWatch | None = None
        self._link = KernelConnection(self._owner, self.session, self._make_channel, kernel, spin)

    @property
    def link(self) -> KernelConnection:
        return self._link

    def __repr__(self) -> str:
        running = ", ".join(channel.name for channel in self.link.running()) or "no channel running"
        return f"<{type(self).__name__} {self.connection.transport} {self.connection.ip}: {running}>"

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def start_channels(
        self, shell: bool = True, iopub: bool = True, stdin: bool = True, hb: bool = True, control: bool = True
    ) -> None:
        """Connect those channels; the heartbeat starts paused. A channel that the kernel does not have is left out.

        Raises InvalidPortNumber if the kernel's ports are not chosen yet, and TooManyFiles before any is open.
        """
        wanted = {"shell": shell, "iopub": iopub, "stdin": stdin, "hb": hb, "control": control}
        with self._owner.call():
            names = [name for name, is_wanted in wanted.items() if is_wanted and self._may_start(name)]
            if names:  # libzmq's thread connects them, some time later
                what = f"a client with {len(names)} channels"
                self.claim.take(CHANNEL * len(names), what, later=len(names))
            for name in names:
                self.link.start_channel(name)
            if self._death_watch is not None and not self._death_watch.is_running and self.link.runs("hb"):
                self.watch(self._death_watch.dead_after)

    def _may_start(self, name: str) -> bool:
        """False if it runs, or if the kernel has no such channel."""
        is_missing = self.connection.shell_port and not self.connection.port(name)
        return not is_missing and not self.link.runs(name)

    def _is_connected(self) -> bool:
        """True if libzmq has got to the channels, which is known of stdin alone."""
        with suppress(KClientError):
            return self._owner.is_here and self.link.runs("stdin") and self.link.stdin.wait_for_peer(0)
        return False

    def stop_channels(self) -> None:
        """Disconnect every channel; whoever waits gets ChannelClosed. `start_channels` opens new ones."""
        if self._owner.forked:
            return
        with self._owner.call():
            self.claim.end()
            if self._death_watch is not None:
                self._death_watch.stop()
            self.link.stop()

    def close(self) -> None:
        """The same as `stop_channels`."""
        self.stop_channels()

    def move(self, connection: ConnectionInfo) -> None:
        """Go on with the same kernel, which listens elsewhere since it was restarted; its keys are the same."""
        self.connection = connection
        with self._owner.call():
            self.link.move(connection)

    def is_alive(self) -> bool:
        """True unless the process has ended or, for a kernel that nobody here started, its heartbeat fails.

        While the heartbeat is paused, or does not run, it does not say that the kernel is dead.
        """
        self._owner.check()
        if self.link.failure is not None:
            return False
        if self.link.kernel is not None:
            return self.link.kernel.is_alive()
        return not self.link.runs("hb") or self.hb_channel.is_paused or self.hb_channel.is_beating()

    def wait_for_ready(self, timeout: Timeout = None) -> None:
        """Wait until the kernel answers kernel_info and, if iopub runs, its outputs arrive here.

        Raises KernelTimeout after `timeout` seconds, and DeadKernelError.
        """
        deadline = as_deadline(timeout)
        with self._owner.call():
            self.link.wait_until_usable(deadline)
            self.link.prober.wait_for_ready(deadline)
            self.claim.end()

    def watch(self, dead_after: float | None = None) -> None:
        """Watch, by its heartbeat, over a kernel that nobody here started; its death wakes whoever waits.

        It is dead when, after a missed heartbeat, its addresses refuse connections; a remote one, from whose host no
        refusal can come, after `dead_after` seconds of silence (None: never).
        """
        self._death_watch = HeartbeatWatch(
            self.hb_channel, self.shell_channel.address, dead_after, self.link.deaths.bury
        )
        self.hb_channel.unpause()

    def interrupt_kernel(self) -> None:
        """Interrupt whatever the kernel runs now; does not wait. For one execution: `Execution.interrupt`."""
        self.link.interrupt_kernel()

    def _make_channel(self, name: str) -> Channel:
        classes: dict[str, type[Channel]] = {
            "shell": self.shell_channel_class,
            "control": self.control_channel_class,
            "iopub": self.iopub_channel_class,
            "stdin": self.stdin_channel_class,
            "hb": self.hb_channel_class,
        }
        return classes[name](context(), self.session, self.connection.address(name))


def as_connection_info(connection: Connection) -> ConnectionInfo:
    """The ConnectionInfo that `connection` is, or describes; raises ConnectionFileError."""
    if isinstance(connection, ConnectionInfo):
        return connection
    if isinstance(connection, Mapping):
        return ConnectionInfo.from_dict(connection)
    if not isinstance(connection, (str, os.PathLike)):
        raise ConnectionFileError(
            f"connection must be the path of a connection file, its values or a ConnectionInfo, not {connection!r}"
        )
    from kclient.kernels.connection.files import find_connection_file, read_connection_file

    return read_connection_file(find_connection_file(os.fspath(connection)))
