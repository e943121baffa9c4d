"""The life of a manager's kernel: its process comes up, is replaced by another and ends, and its client with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gevent.lock import RLock

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import weakly
from kclient.errors import DeadKernelError, InvalidState, KernelTimeout, LaunchError, copies_of
from kclient.kernels.connection.endpoint import Endpoint
from kclient.kernels.connection.port_conflicts import were_taken
from kclient.kernels.process.local import KernelProcess
from kclient.kernels.provisioner import Launch, Provisioner
from kclient.manager.autorestart import Restarter
from kclient.manager.shutdown import ask_to_exit

if TYPE_CHECKING:
    from kclient.client.connection import KernelConnection
    from kclient.client.kernel_client import KernelClient


class Lifecycle(ABC):
    """What a manager does with its kernel's process, one step at a time; who takes such a step holds the lock."""

    shutdown_wait_time: float = 5.0
    """Seconds that a kernel has to exit after its shutdown_request, before it gets a SIGTERM."""

    _owner: Owner
    _endpoint: Endpoint
    _kernel: Provisioner
    _client: KernelClient | None

    _restarter: Restarter | None

    def __init__(self) -> None:
        self._was_ready = self._expects_exit = self._was_told = False
        self._was_beating = False
        self._awaited = 0
        self._mourned: KernelProcess | None = None
        self._lock = RLock()

    @property
    @abstractmethod
    def link(self) -> KernelConnection: ...

    @property
    @abstractmethod
    def channels_running(self) -> bool: ...

    @abstractmethod
    def _fit_client(self) -> None:
        """Let session and client go on with the keys and the ports of now."""

    def _revive(self, deadline: Deadline) -> None:
        """What a Restarter does in its greenlet, while calls wait: start another kernel in the place of a dead one."""
        with self._lock, self._owner.call():
            if self._restarter is None or not self._restarter.is_here():
                return
            try:
                self._replace(deadline, self._changed_launch({}), now=True)
            except BaseException as exc:
                self._expects_exit = True
                if self._kernel.process is not None:
                    self._kernel.process.kill()
                if isinstance(exc, LaunchError) and were_taken(exc):
                    self._endpoint.change_ports()
                raise

    def _changed_launch(self, arguments: Mapping[str, Any]) -> Launch:
        if self._kernel.launch is None:
            raise InvalidState("no kernel was started that could be restarted; call start_kernel() first")
        return self._kernel.launch.changed(arguments)

    def _replace(self, deadline: Deadline, launch: Launch, *, now: bool) -> None:
        """End the process and start another, to which the same client goes on."""
        link = self.link
        self._kernel.claim_descriptors(reserve=0)
        try:
            self._end_process(deadline.half(), now=now, restart=True)
            link.reopen()
            self._endpoint.remove_ipc_files()
            self._launch(launch, deadline)
            if link.runs("shell"):
                self._await_ready(deadline)
        finally:
            self._kernel.claim.end()
        if self._was_beating and link.runs("hb"):
            link.hb.unpause()
        self._was_beating = False

    @contextmanager
    def _in_charge(self, deadline: Deadline, *, now: bool = False) -> Iterator[None]:
        """For a call that ends or restarts the kernel: nobody else does meanwhile, and no automatic restart follows."""
        if now and self._kernel.process is not None:
            self._kernel.process.kill()  # also the kernel for which a restart_kernel in another greenlet waits
        restarter = self._restarter
        if restarter is not None:
            restarter.make_way()
        if not self._lock.acquire(timeout=deadline.left()):
            raise KernelTimeout("turn: another greenlet starts or ends the kernel", deadline.timeout)
        try:
            if restarter is not None:
                restarter.cancel()
            with self._owner.call():
                yield
        finally:
            link = self._client.link if self._client is not None else None
            if link is not None and link.is_restarting and (restarter is None or not restarter.is_at_work):
                if not self._kernel.is_alive():
                    link.fail(copies_of(self._kernel.death()))
                link.end_restart()
            self._lock.release()

    def _launch(self, launch: Launch, deadline: Deadline) -> None:
        self._was_ready = self._expects_exit = self._was_told = False
        self._awaited += 1
        try:
            self._kernel.start(launch, weakly(self._on_exit), deadline)
        finally:
            self._awaited -= 1
        self._fit_client()
        if self._client is not None:
            self._client.link.kernel = self._kernel
        if self._restarter is not None and not self.channels_running:
            self._restarter.started()

    def _await_ready(self, deadline: Deadline) -> None:
        was_ready = self._was_ready  # the kernel of now: there may be another when this one's death is heard of
        self._awaited += 1
        try:
            self.link.prober.wait_for_ready(deadline)
        except KernelTimeout as exc:
            if self._kernel.process is None:
                raise
            raise self._kernel.never_answered(exc) from None
        except DeadKernelError as exc:
            if was_ready or self._was_ready or self._kernel.process is None:
                raise
            raise self._kernel.never_came_up(exc) from None
        finally:
            self._awaited -= 1
        if self._restarter is not None and not self._was_ready:
            self._restarter.started()
        self._was_ready = True
        self._endpoint.let_go_of_ports()
        self._kernel.claim.end()
        if self._client is not None:
            self._client.claim.end()

    def _on_exit(self) -> None:
        """The process has ended, and nobody here meant it to."""
        process = self._kernel.process
        if self._expects_exit:
            return
        death = self._kernel.death()
        if self._restarter is not None and process is not self._mourned:
            self._mourned = process
            is_launch_error = self._awaited and not self._was_ready  # of the call that awaits it
            if not is_launch_error and not self._was_told:
                self._restarter.died(death)
                self.link.begin_restart(death.headline)
        if self._client is not None:
            self._client.link.deaths.bury(copies_of(death))

    def _end_process(self, deadline: Deadline, *, now: bool, restart: bool) -> DeadKernelError | None:
        """Message first, then force; returns how it ended, None if there was no kernel."""
        if self._kernel.process is None:
            return None
        self._expects_exit = True
        try:
            if self._client is not None and self._client.link.runs("hb") and not self._client.hb_channel.is_paused:
                self._was_beating = True
                self._client.hb_channel.pause()
            if now:
                self._kernel.kill()
            elif self._kernel.is_alive():
                polite = deadline.at_most(self.shutdown_wait_time)
                ask_to_exit(self.link, self._endpoint.info, self._kernel.wait_for_exit, polite, restart=restart)
                self._kernel.end(deadline)
        except BaseException:  # given up half-way: the kernel may have been told, and end at any time
            self._expects_exit, self._was_told = False, True
            if not self._kernel.is_alive():
                self._on_exit()
            raise
        death = self._kernel.death()
        self._kernel.forget()
        return death

    def _fail_pending(self, death: DeadKernelError | None) -> None:
        if self._client is not None and (death is not None or self._client.link.is_restarting):
            self._client.link.fail(copies_of(death or self._kernel.death()))
            self._client.link.end_restart()
