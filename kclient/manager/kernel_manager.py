"""KernelManager: own a kernel process and a client to it."""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from kclient.client.connection import KernelConnection
from kclient.client.interface import KernelInterface
from kclient.client.kernel_client import KernelClient
from kclient.concurrency.deadline import Deadline, Timeout, as_deadline, check_spin
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import weakly
from kclient.errors import InvalidState, copies_of
from kclient.kernels.connection.endpoint import Endpoint
from kclient.kernels.process.local import KernelProcess, Launcher, LocalLauncher
from kclient.kernels.process.output import Output
from kclient.kernels.provisioner import Launch, Provisioner
from kclient.kernels.specs.spec import KernelSpec
from kclient.manager.autorestart import AutoRestart, Restarter, as_policy
from kclient.manager.connection_file import ConnectionFileMixin
from kclient.manager.lifecycle import Lifecycle
from kclient.protocol.session import Session

_Self = TypeVar("_Self", bound="KernelManager")


class KernelManager(Lifecycle, ConnectionFileMixin, KernelInterface):
    """Starts, restarts and ends one kernel, and talks to it; a context manager.

    `transport` is ``"tcp"`` or ``"ipc"``; `ip` an address of this machine (``"*"`` means all of them) or, for ipc, a
    path prefix; both have safe defaults. `connection_file` is the path to write, by default in Jupyter's runtime
    directory. `launcher` runs the process. `encryption`, `handshake`, `orphan_guard`, `restart` and `spin` are those
    of `kclient.start_kernel`. Raises NoSuchKernel when the kernel spec is first needed.
    """

    kernel_id: str
    """Tells this manager's kernel from others, also after a restart; a random UUID."""

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
        self._spin = check_spin(spin)
        self._endpoint = Endpoint(kernel_name, transport, ip, connection_file, encryption)
        self._kernel = Provisioner(
            kernel_name, self._endpoint, launcher or LocalLauncher(), orphan_guard=orphan_guard, handshake=handshake
        )
        self._finalizer = weakref.finalize(self, self._kernel.abandon)
        self._session = self._endpoint.new_session()
        self._client: KernelClient | None = None
        self._former: KernelConnection | None = None
        policy = as_policy(restart)
        self._restarter = None if policy is None else Restarter(policy, self, weakly(self._revive))
        super().__init__()

    def __repr__(self) -> str:
        state = f"pid {self.process.pid}" if self.process is not None else "not started"
        return f"<{type(self).__name__} {self.kernel_name!r} {state}>"

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.shutdown_kernel()
        except BaseException:  # Ctrl-C, say; nobody else will end it
            self.shutdown_kernel(now=True)
            raise

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel spec, looked up when first needed; raises NoSuchKernel."""
        return self._kernel.spec

    @property
    def client(self) -> KernelClient:
        """The client; a new one after a shutdown."""
        if self._client is None:
            kernel = self._kernel if self.has_kernel else None
            info = self._endpoint.info
            self._client = KernelClient(info, kernel=kernel, session=self._session, spin=self._spin)
            for name in ("shell", "control", "iopub", "stdin", "hb"):
                setattr(self._client, f"{name}_channel_class", getattr(self, f"{name}_channel_class"))
            self._client.link.inherit(self._former)
            self._former = None
            if self._restarter is not None:
                self._client.link.deaths.on_death = weakly(self._on_exit)
            if self.has_kernel and not self._kernel.is_alive():
                self._on_exit()
                if self._restarter is None or not self._restarter.is_at_work:
                    self._client.link.fail(copies_of(self._kernel.death()))
        return self._client

    @property
    def link(self) -> KernelConnection:
        return self.client.link

    @property
    def session(self) -> Session:
        """Key and message ids of the conversation."""
        return self._session

    @property
    def process(self) -> KernelProcess | None:
        """The kernel's process, from its start to its shutdown."""
        return self._kernel.process

    @property
    def has_kernel(self) -> bool:
        """True from the start of a kernel to its shutdown, also when it has died meanwhile."""
        return self.process is not None

    # Channels

    def start_channels(
        self, shell: bool = True, iopub: bool = True, stdin: bool = True, hb: bool = True, control: bool = True
    ) -> None:
        """Connect those channels; the heartbeat starts paused. Raises InvalidPortNumber before a kernel has ports."""
        self._kernel.claim.end()
        self.client.start_channels(shell=shell, iopub=iopub, stdin=stdin, hb=hb, control=control)

    def stop_channels(self) -> None:
        """Disconnect every channel; whoever waits gets ChannelClosed."""
        if self._client is not None:
            self._client.stop_channels()

    @property
    def channels_running(self) -> bool:
        """True if any channel runs."""
        return self._client is not None and self._client.channels_running

    def wait_for_ready(self, timeout: Timeout = None) -> None:
        """Wait until the kernel answers and its outputs arrive here.

        Raises LaunchError if its process ends instead, and KernelTimeout after `timeout` seconds; both show its output.
        """
        deadline = as_deadline(timeout)
        with self._owner.call():
            if self.link.is_restarting or self._restarter is not None:
                self.link.wait_until_usable(deadline)
            self._await_ready(deadline)

    # The process

    def start_kernel(
        self,
        *,
        extra_arguments: Sequence[str] = (),
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        stdout: Output = None,
        stderr: Output = None,
        timeout: Timeout = 60,
    ) -> None:
        """Write the connection file and start the process; `wait_for_ready` waits until it answers.

        A kernel that chooses its ports itself has `timeout` seconds to report them; then the connection file is there.
        Raises KernelTimeout if it does not, and RemoteProtocolError if nobody can connect to them; it is killed then.

        `env` is added to the environment; `stdout` and `stderr` are as in `subprocess`, by default a hidden file whose
        end error messages show. Raises NoSuchKernel, LaunchError, ConnectionFileError, TooManyFiles, and InvalidState,
        a RuntimeError, if a kernel runs already or the ip is not one of this machine, which it then lists.
        """
        self._owner.check()
        with self._lock, self._owner.call():
            if self.has_kernel:
                raise InvalidState("a kernel was started already; restart_kernel() or shutdown_kernel() it first")
            if self._restarter is not None:
                self._restarter.cancel()
            self._kernel.claim_descriptors()
            link = self._client.link if self._client is not None else None
            if link is not None:
                link.begin_restart()  # calls wait: nobody knows yet where the kernel will listen
                if link.failure is not None:  # of the kernel before
                    link.reopen()
            try:
                self._launch(Launch(extra_arguments, cwd, env, stdout, stderr), as_deadline(timeout))
            except BaseException:
                self._kernel.abandon()
                self._drop_client()
                raise
            finally:
                if link is not None:
                    link.end_restart()

    def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Ask the kernel to exit, wait, and force it if it does not; `now` kills it at once.

        Stops the channels and removes the files, unless a `restart` is to follow. Without a kernel it just cleans up.
        """
        if self._owner.forked:
            return
        self._owner.check()
        with self._in_charge(Deadline(None), now=now):
            self._fail_pending(self._end_process(Deadline(None), now=now, restart=restart))
            if not restart:
                self._kernel.clean_up()
                self._drop_client()

    def restart_kernel(self, now: bool = False, *, timeout: float | None = 60, **launch: Any) -> None:
        """End the process and start another with the same keys and connection file, and ports unless it chooses them.

        `launch` changes arguments of the last start_kernel. What is pending fails with KernelRestarted. If channels
        run, it returns when the new kernel is ready, or raises as `wait_for_ready` does; the old one has half of
        `timeout` at most to exit before it is killed. Raises InvalidState, a RuntimeError, before any start, and
        TooManyFiles, with which the old kernel goes on.
        """
        self._owner.check()
        deadline = Deadline(timeout)
        self._changed_launch(launch)
        with self._in_charge(deadline):
            link = self.link
            link.begin_restart()
            try:
                self._replace(deadline, self._changed_launch(launch), now=now)
            except BaseException:
                if not self._kernel.is_alive():
                    link.fail(copies_of(self._kernel.death()))
                raise
            finally:
                link.end_restart()

    def interrupt_kernel(self) -> None:
        """Interrupt what the kernel runs now, by SIGINT or by message as its spec says; does not wait."""
        with self._owner.call():
            self._kernel.require()
            self.link.interrupt_kernel()

    def signal_kernel(self, signum: int) -> None:
        """Send a signal to the kernel and its children; raises InvalidState if there is no kernel."""
        self._owner.check()
        self._kernel.require().send_signal(signum)

    def kill_kernel(self) -> None:
        """SIGKILL the kernel and its children, and wait for the end.

        `restart_kernel` and `start_kernel` start another, with the same keys and connection file.
        """
        self._owner.check()
        if self._restarter is None or not self._restarter.is_at_work:
            self._kernel.require()
        with self._in_charge(Deadline(None), now=True):
            self._fail_pending(self._end_process(Deadline(None), now=True, restart=True))

    def is_alive(self) -> bool:
        """True while the process runs or, for a kernel that was not started here, while its heartbeat does not fail."""
        self._owner.check()
        if self.has_kernel:
            return self._kernel.is_alive()
        return self._client is not None and self.channels_running and self._client.is_alive()

    def _fit_client(self) -> None:
        """Let session and client go on with the keys and the ports of now."""
        self._session.server_key = self._endpoint.info.curve_publickey
        if self._client is not None and self._client.connection != self._endpoint.info:
            self._client.move(self._endpoint.info)

    def _drop_client(self) -> None:
        if self._client is not None:
            self._former = self._client.link
            self._was_beating = False
            self._client.stop_channels()
            self._client = None
