"""KernelManager: owns a kernel process, and a client to it."""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from kclient.client.connection import KernelConnection
from kclient.client.execution import Execution
from kclient.client.interface import KernelInterface
from kclient.client.interrupts import interrupt_kernel
from kclient.client.kernel_client import KernelClient
from kclient.concurrency.deadline import Deadline, Timeout, as_deadline, check_spin
from kclient.concurrency.half_made import half_made_too
from kclient.concurrency.owner import Owner
from kclient.concurrency.program_end import when_gone
from kclient.concurrency.waiting import weakly
from kclient.errors import InvalidState
from kclient.kernels.connection.endpoint import Endpoint
from kclient.kernels.connection.files import find_connection_file
from kclient.kernels.launch import Launch
from kclient.kernels.process.local import KernelProcess, Launcher, LocalLauncher
from kclient.kernels.process.output import Output
from kclient.kernels.provisioner import Provisioner
from kclient.kernels.specs.spec import KernelSpec
from kclient.manager.abandoned import restart_unless_it_ends
from kclient.manager.autorestart import AutoRestart, Restarter, as_policy
from kclient.manager.client_holder import ClientHolder
from kclient.manager.lifecycle import Lifecycle

if TYPE_CHECKING:
    from kclient.protocol.session import Session

_Self = TypeVar("_Self", bound="KernelManager")


class KernelManager(KernelInterface):
    """Starts, restarts and ends one kernel, and talks to it; a context manager.

    `transport` is ``"tcp"`` or ``"ipc"``. `ip` is an address of this machine (``"*"`` means all of them) or, for ipc, a
    path prefix. Both have safe defaults. `connection_file` is the path to write, by default in Jupyter's runtime
    directory. `launcher` starts the process. `encryption`, `handshake`, `orphan_guard`, `restart` and `spin` are those
    of `kclient.start_kernel`. Raises NoSuchKernel when the kernel spec is first needed.
    """

    kernel_id: str
    """A random UUID that identifies this manager's kernel, also after a restart."""

    shutdown_wait_time: float = 5.0
    """Seconds that a kernel has to exit after its shutdown_request, before it gets a SIGTERM.

    One that has replied has half of them: raise this for a kernel that saves for longer before it exits.
    """

    def __init__(
        self,
        kernel_name: str = "python3",
        *,
        transport: str = "tcp",
        ip: str | None = None,
        connection_file: str | os.PathLike[str] | None = None,
        encryption: str = "auto",
        launcher: Launcher | None = None,
        spin: float = 0.0,
        orphan_guard: bool = False,
        handshake: str = "auto",
        restart: bool | AutoRestart = False,
    ) -> None:
        self.kernel_name = kernel_name
        self.kernel_id = str(uuid.uuid4())
        self._owner = Owner()
        check_spin(spin)

        def new_provisioner() -> Provisioner:
            endpoint = Endpoint(kernel_name, transport, ip, connection_file, encryption)
            starter = launcher or LocalLauncher()
            return Provisioner(kernel_name, endpoint, starter, orphan_guard=orphan_guard, handshake=handshake)

        provisioner = new_provisioner()
        policy = as_policy(restart)
        manager = weakref.ref(self)
        self._lifecycle = Lifecycle(
            self._owner,
            ClientHolder(self, provisioner.endpoint.new_session(), spin),
            provisioner,
            new_provisioner,
            lambda lifecycle: None if policy is None else Restarter(policy, manager, lifecycle),
            weakly(self._kernel_died),
        )
        when_gone(self, self._lifecycle.holding.abandon)

    @half_made_too
    def __repr__(self) -> str:
        state = f"pid {self.process.pid}" if self.process is not None else "not started"
        return f"<{type(self).__name__} {self.kernel_name!r} {state}>"

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.shutdown_kernel()
        except BaseException:  # a Ctrl-C, for example; no other call will end the kernel
            self.shutdown_kernel(now=True)
            raise

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel spec, looked up when first needed; raises NoSuchKernel."""
        return self._lifecycle.provisioner.spec

    @property
    def client(self) -> KernelClient:
        """The client. After a shutdown there is a new one. While it is in use, this manager and its kernel live on."""
        client = self._lifecycle.client
        client.kernel_connection.keeps_alive = self
        return client

    @property
    def kernel_connection(self) -> KernelConnection:
        """The parts of the client."""
        return self._lifecycle.connection

    @property
    def _handed_out(self) -> KernelConnection:
        return self.client.kernel_connection

    @property
    def session(self) -> Session:
        """Key and message ids of the conversation."""
        return self._lifecycle.clients.session

    @property
    def process(self) -> KernelProcess | None:
        """The kernel's process, from its start to its shutdown."""
        return self._lifecycle.provisioner.process

    @property
    def has_kernel(self) -> bool:
        """True from the start of a kernel to its shutdown, also when it has died meanwhile."""
        return self._lifecycle.has_kernel

    # Channels

    def start_channels(
        self, shell: bool = True, iopub: bool = True, stdin: bool = True, hb: bool = True, control: bool = True
    ) -> None:
        """Connect those channels; the heartbeat starts paused. Raises InvalidPortNumber before a kernel has ports."""
        self._lifecycle.provisioner.reservation.release()
        self._lifecycle.client.start_channels(shell=shell, iopub=iopub, stdin=stdin, hb=hb, control=control)

    def stop_channels(self) -> None:
        """Disconnect every channel; calls that wait get ChannelClosed."""
        client = self._lifecycle.clients.current
        if client is not None:
            client.stop_channels()

    @property
    def channels_running(self) -> bool:
        """True if any channel runs."""
        return self._lifecycle.clients.channels_running

    def wait_for_ready(self, timeout: Timeout = None) -> None:
        """Wait until the kernel answers and its outputs arrive here.

        Raises LaunchError if the process ends, and KernelTimeout after `timeout` seconds. Both show its output.
        """
        deadline = as_deadline(timeout)
        with self._owner.call():
            self._lifecycle.await_ready(deadline)

    # The process

    def start_kernel(
        self,
        *,
        extra_arguments: Sequence[str] = (),
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str | None] | None = None,
        clean_env: bool = False,
        stdout: Output = None,
        stderr: Output = None,
        timeout: Timeout = 60,
    ) -> None:
        """Write the connection file and start the process. `wait_for_ready` then waits until the kernel answers.

        A kernel that chooses its ports itself has `timeout` seconds to report them; its connection file is written
        after that. It is killed if it does not report them (KernelTimeout), or if they are unusable
        (RemoteProtocolError).

        `env` and `clean_env` are those of `kclient.start_kernel`. `stdout` and `stderr` are as in `subprocess`; by
        default the output goes to a hidden file, and error messages show its end. Raises NoSuchKernel, LaunchError,
        ConnectionFileError and TooManyFiles. Raises InvalidState, a RuntimeError, if a kernel runs already, or if `ip`
        is no address of this machine; the error lists those.
        """
        self._owner.check()
        self._lifecycle.start(Launch(extra_arguments, cwd, env, stdout, stderr, clean_env), as_deadline(timeout))

    def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Ask the kernel to exit, wait, and force it if it does not exit. `now` kills it at once.

        Then, unless a `restart` will follow, it stops the channels and removes the files, also if there is no kernel.
        If the thread of the manager has ended, any thread may call it: it kills the kernel.
        """
        if self._owner.forked:
            return
        if self._owner.is_gone:
            self._lifecycle.holding.abandon()
            return
        self._owner.check()
        self._lifecycle.shut_down(now=now, restart=restart, exit_wait_s=self.shutdown_wait_time)

    def restart_kernel(self, now: bool = False, *, timeout: float | None = 60, **launch: Any) -> None:
        """End the process and start another, with the same keys and connection file.

        The ports stay the same, unless the kernel chooses them itself, or a process that the old one has left behind
        holds one. `launch` changes arguments of the last start_kernel. Calls that wait raise KernelRestarted. The old
        kernel is killed if it does not exit within half of `timeout`. If channels run, it returns when the new kernel
        is ready, or raises as `wait_for_ready` does. Raises InvalidState, a RuntimeError, if no kernel was started yet.
        After a TooManyFiles the old kernel still runs.
        """
        self._owner.check()
        self._lifecycle.restart(Deadline(timeout), launch, now=now, exit_wait_s=self.shutdown_wait_time)

    def _can_restart(self) -> bool:
        return self.has_kernel

    def _restart_unless_it_ends(self, execution: Execution) -> None:
        restart_unless_it_ends(self, self._lifecycle, execution)

    def interrupt_kernel(self) -> None:
        """Interrupt the code that the kernel runs now, by SIGINT or by message as its spec says; does not wait."""
        with self._owner.call():
            self._lifecycle.provisioner.require()
            interrupt_kernel(self.kernel_connection.channels)

    def signal_kernel(self, signum: int) -> None:
        """Send a signal to the kernel and its children; raises InvalidState if there is no kernel."""
        self._owner.check()
        self._lifecycle.provisioner.require().send_signal(signum)

    def kill_kernel(self) -> None:
        """Send SIGKILL to the kernel and its children, and wait for the end.

        `restart_kernel` and `start_kernel` start another, with the same keys and connection file. If the thread of the
        manager has ended, any thread may call it, and there is no other start.
        """
        if self._owner.is_gone:
            self._lifecycle.holding.abandon()
            return
        self._owner.check()
        self._lifecycle.kill()

    def is_alive(self) -> bool:
        """True while the process runs. For a kernel that was not started here: while its heartbeat does not fail."""
        self._owner.check()
        if self.has_kernel:
            return self._lifecycle.provisioner.is_alive()
        client = self._lifecycle.clients.current
        return client is not None and client.channels_running and client.is_alive()

    # The connection file

    @property
    def connection_file(self) -> str | None:
        """The path of the connection file; None while none is chosen."""
        return self._endpoint.path

    def get_connection_info(self) -> dict[str, Any]:
        """The content of the connection file, keys included."""
        return self._endpoint.info.to_dict()

    def write_connection_file(self) -> None:
        """Choose ports, keys and path, if they are not chosen yet. Write the file, readable by this user only.

        Unless encryption is off, the kernel spec says whether there are keys to encrypt: raises NoSuchKernel.
        """
        self._owner.check()
        if self._endpoint.may_get_keys:
            self._endpoint.encrypt(self.kernel_spec)
        self._endpoint.write()
        self._lifecycle.clients.fit(self._lifecycle.provisioner)

    def load_connection_file(self, connection_file: str | os.PathLike[str] | None = None) -> None:
        """Take the ports and the key of an existing file; raises ConnectionFileError."""
        self._owner.check()
        if self.has_kernel or self.channels_running:
            raise InvalidState("a kernel or its channels run; shut them down before loading another connection file")
        path = connection_file if connection_file is not None else self.connection_file
        if path is None:
            raise InvalidState("no connection file was named; pass its path")
        self._endpoint.load(
            find_connection_file(path)
        )  # the file must exist: `load` removes the one that was written here
        self._lifecycle.clients.use_session(self._endpoint.new_session())
        self._lifecycle.drop_client()

    def cleanup_connection_file(self) -> None:
        """Remove the connection file, if it was written here."""
        self._owner.check()
        self._endpoint.remove_connection_file()

    def cleanup_ipc_files(self) -> None:
        """Remove the sockets of an ipc kernel."""
        self._owner.check()
        self._endpoint.remove_ipc_files()

    @property
    def _endpoint(self) -> Endpoint:
        return self._lifecycle.provisioner.endpoint

    def _kernel_died(self) -> None:
        """The kernel has ended by itself. Does nothing here."""
