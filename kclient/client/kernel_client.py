"""KernelClient: talk to a running kernel."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from kclient.channels.base import Channel
from kclient.channels.shared import Shared
from kclient.client.channel_set import ChannelSet
from kclient.client.connection import KernelConnection
from kclient.client.interface import KernelInterface
from kclient.client.interrupts import interrupt_kernel
from kclient.client.process import Kernel
from kclient.concurrency.deadline import Timeout, as_deadline
from kclient.concurrency.file_limits import FileDescriptorReservation
from kclient.concurrency.half_made import half_made_too
from kclient.concurrency.owner import Owner
from kclient.errors import ConnectionFileError, KClientError
from kclient.protocol.connection import ConnectionInfo
from kclient.transport.choice import new_transport

if TYPE_CHECKING:
    from kclient.protocol.session import Session

Connection = str | os.PathLike[str] | Mapping[str, Any] | ConnectionInfo
"""How to reach a kernel: the path of a connection file, its values, or a ConnectionInfo."""

_Self = TypeVar("_Self", bound="KernelClient")


class KernelClient(KernelInterface):
    """Requests to one kernel, and their replies; greenlets of one hub may share it.

    `connection` is a connection file's path, its values, or a ConnectionInfo. `on_input(prompt, password)`, if
    set, answers the input requests of every execution that has no on_input of its own. `spin` is that of
    `kclient.connect`. `kernel` is the process, if this program has started it. Then `on_death()` is called if a call
    finds the process dead before the loop has told so.
    """

    def __init__(
        self,
        connection: Connection,
        *,
        kernel: Kernel | None = None,
        session: Session | None = None,
        spin: float = 0.0,
        on_death: Callable[[], None] | None = None,
    ) -> None:
        from kclient.protocol.session import Session  # imports orjson, a quarter of the time of importing kclient

        self.connection = as_connection_info(connection)
        self.session = session or Session(self.connection.key, signature_scheme=self.connection.signature_scheme)
        self._owner = Owner()
        self._transport = new_transport(self.connection, self.session, is_ours=kernel is not None)
        self._reservation = FileDescriptorReservation(self._is_connected)
        self._kernel_connection = KernelConnection(
            self._owner,
            self._transport,
            self.session,
            self._make_channel,
            kernel=kernel,
            spin=spin,
            on_death=on_death,
        )

    @property
    def kernel_connection(self) -> KernelConnection:
        """The parts of the client."""
        return self._kernel_connection

    @property
    def _channels(self) -> ChannelSet:
        return self._kernel_connection.channels

    @half_made_too
    def __repr__(self) -> str:
        running = ", ".join(channel.name for channel in self._channels.running()) or "no channel running"
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

        Raises InvalidPortNumber if the kernel's ports are not chosen yet, and TooManyFiles before a channel is opened.
        """
        wanted = {"shell": shell, "iopub": iopub, "stdin": stdin, "hb": hb, "control": control}
        with self._owner.call():
            there = self._transport.channels
            names = [
                name
                for name, is_wanted in wanted.items()
                if is_wanted and name in there and not self._channels.runs(name)
            ]
            if names:  # libzmq's thread connects them, some time later
                what = f"a client with {len(names)} channels"
                self._reservation.reserve(self._transport.file_descriptors(len(names)), what, later=len(names))
            for name in names:
                self._channels.start_channel(name)
            self._kernel_connection.kernel_death.watch_again()

    def _is_connected(self) -> bool:
        """True if libzmq has connected the channels, as far as stdin tells: the other channels cannot tell."""
        with suppress(KClientError):
            return self._owner.is_here and self._channels.runs("stdin") and self._channels.stdin.wait_for_peer(0)
        return False

    def stop_channels(self) -> None:
        """Disconnect every channel; calls that wait get ChannelClosed. `start_channels` opens new ones.

        If the thread of the client has ended, any thread may call it.
        """
        if self._owner.forked:
            return
        if self._owner.is_gone:
            self._reservation.release()
            self._channels.stop()
            return
        with self._owner.call():
            self._reservation.release()
            self._kernel_connection.stop()

    def close(self) -> None:
        """The same as `stop_channels`."""
        self.stop_channels()

    def move(self, connection: ConnectionInfo) -> None:
        """The kernel was restarted and has other addresses: connect there. Its keys are the same."""
        self.connection = connection
        with self._owner.call():
            self._channels.move(lambda: self._transport.move(connection))

    @property
    def has_heartbeat(self) -> bool:
        """True if the kernel has a heartbeat channel."""
        return "hb" in self._transport.channels

    def use_channel_classes_of(self, other: KernelInterface) -> None:
        """Make channels of the classes that `other` names."""
        self.shell_channel_class = other.shell_channel_class
        self.control_channel_class = other.control_channel_class
        self.iopub_channel_class = other.iopub_channel_class
        self.stdin_channel_class = other.stdin_channel_class
        self.hb_channel_class = other.hb_channel_class

    def own(self, kernel: Kernel) -> None:
        """This program has started the kernel: `kernel` is its process from here on."""
        self._transport.own()
        self._channels.own(kernel)

    def is_alive(self) -> bool:
        """True unless the process has ended. For a kernel that this program did not start: unless its heartbeat fails.

        A heartbeat that is paused, or does not run, does not fail.
        """
        self._owner.check()
        if self._channels.failure is not None:
            return False
        if self._channels.kernel is not None:
            return self._channels.kernel.is_alive()
        return not self._channels.runs("hb") or self.hb_channel.is_paused or self.hb_channel.is_beating() is not False

    def wait_for_ready(self, timeout: Timeout = None) -> None:
        """Wait until the kernel answers kernel_info. If iopub runs, also wait until its outputs arrive here.

        Raises KernelTimeout after `timeout` seconds, and DeadKernelError.
        """
        deadline = as_deadline(timeout)
        with self._owner.call():
            self._kernel_connection.availability.wait_until_usable(deadline)
            self._kernel_connection.readiness.wait_for_ready(deadline)
            self.release_reservation()

    def release_reservation(self) -> None:
        """All file descriptors of the client are open: end their reservation."""
        self._reservation.release()

    def watch(self, dead_after: float | None = None) -> None:
        """Watch, by its heartbeat, a kernel that this program did not start. Its death wakes calls that wait.

        The kernel counts as dead if its addresses refuse connections after a missed heartbeat. A remote host that is
        gone refuses nothing: then the kernel counts as dead after `dead_after` seconds of silence (None: never).
        """
        self._kernel_connection.kernel_death.watch(dead_after)

    def interrupt_kernel(self) -> None:
        """Interrupt the code that the kernel runs now; does not wait. For one execution: `Execution.interrupt`."""
        interrupt_kernel(self._channels)

    def _make_channel(self, name: str, shared: Shared) -> Channel:
        classes: dict[str, type[Channel]] = {
            "shell": self.shell_channel_class,
            "control": self.control_channel_class,
            "iopub": self.iopub_channel_class,
            "stdin": self.stdin_channel_class,
            "hb": self.hb_channel_class,
        }
        return classes[name](shared, self.session, shared.transport.address(name))


def as_connection_info(connection: Connection) -> ConnectionInfo:
    """The ConnectionInfo that `connection` is, or describes; raises ConnectionFileError."""
    if isinstance(connection, ConnectionInfo):
        return connection
    if isinstance(connection, Mapping):
        return ConnectionInfo.from_dict(connection)
    if not isinstance(connection, (str, os.PathLike)):
        raise ConnectionFileError(
            f"connection must be the path of a connection file, its values or a ConnectionInfo, "
            f"not of type {type(connection).__name__}"
        )
    from kclient.kernels.connection.files import find_connection_file, read_connection_file

    return read_connection_file(find_connection_file(os.fspath(connection)))
