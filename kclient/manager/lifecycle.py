"""Lifecycle: starts, restarts and ends the kernel of a manager, and keeps its client in step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gevent.lock import RLock

from kclient.client.availability import Availability
from kclient.client.connection import KernelConnection
from kclient.client.kernel_client import KernelClient
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import weakly
from kclient.errors import DeadKernelError, Failure, InvalidState, KernelTimeout, LaunchError, copies_of
from kclient.kernels.connection.port_conflicts import were_taken
from kclient.kernels.launch import Launch
from kclient.kernels.provisioner import Provisioner
from kclient.manager.client_holder import ClientHolder
from kclient.manager.holding import Holding
from kclient.manager.phases import HAD_ANSWERED, TRANSITIONS, Event, Phase, Reaction
from kclient.manager.shutdown import ask_to_exit
from kclient.manager.start_words import words_of

if TYPE_CHECKING:
    from kclient.manager.autorestart import Restarter


class Lifecycle:
    """One call at a time starts, restarts or ends the kernel. That call holds the lock.

    `new_provisioner()` makes a kernel that is not started yet. `on_death()` is called when the kernel has ended by
    itself. `new_restarter(lifecycle)` makes the object that restarts it then, or returns None.
    """

    def __init__(
        self,
        owner: Owner,
        clients: ClientHolder,
        provisioner: Provisioner,
        new_provisioner: Callable[[], Provisioner],
        new_restarter: Callable[[Lifecycle], Restarter | None],
        on_death: Callable[[], None],
    ) -> None:
        self.holding = Holding(provisioner)
        self.clients = clients
        self.phase = Phase.NONE
        self._owner = owner
        self._new_provisioner = new_provisioner
        self._on_death = on_death
        self._waiting = 0
        self._retired: Failure | None = None
        self._lock = RLock()
        self.restarter = new_restarter(self)

    @property
    def provisioner(self) -> Provisioner:
        """The kernel, also before its start and after its end."""
        return self.holding.provisioner

    @property
    def has_kernel(self) -> bool:
        """True from the start of a kernel to its shutdown, also when it has died meanwhile."""
        return self.provisioner.process is not None

    @property
    def client(self) -> KernelClient:
        """The client, made if there is none. The calls of a dead kernel's client raise."""
        if self.clients.current is not None:
            return self.clients.current
        restarter = self.restarter
        client = self.clients.make(self.provisioner, None if restarter is None else weakly(self.exited))
        self.holding.serves(client.kernel_connection)
        if self.has_kernel and not self.provisioner.is_alive():
            self.exited()
            if restarter is None or not restarter.is_at_work:
                client.kernel_connection.availability.fail(copies_of(self.provisioner.death()))
        return client

    @property
    def connection(self) -> KernelConnection:
        """The parts of the client."""
        return self.client.kernel_connection

    @property
    def availability(self) -> Availability:
        """Whether the client's calls may go to the kernel."""
        return self.connection.availability

    # Start

    def start(self, launch: Launch, deadline: Deadline) -> None:
        """Start the process; raises what KernelManager.start_kernel raises."""
        with self._lock, self._owner.call():
            if self.has_kernel:
                raise InvalidState("a kernel was started already; restart_kernel() or shutdown_kernel() it first")
            if self.restarter is not None:
                self.restarter.cancel()
            self.provisioner.reserve_descriptors()
            connection = self.clients.connection
            try:
                if connection is not None:
                    connection.availability.begin_restart()  # calls wait: the kernel's addresses are not known yet
                    if connection.availability.failure is not None:  # of the kernel before
                        connection.reopen()
                self._launch(launch, deadline)
            except BaseException:
                self._note(Event.ENDED)
                self.provisioner.abandon()
                self.drop_client()
                raise
            finally:
                if connection is not None:
                    connection.availability.end_restart()

    def await_ready(self, deadline: Deadline) -> None:
        """Wait until the kernel answers; raises LaunchError if it ends instead, and KernelTimeout."""
        if self.availability.is_restarting or self.restarter is not None:
            self.availability.wait_until_usable(deadline)
        self._await_ready(deadline)

    def changed_launch(self, arguments: Mapping[str, Any]) -> Launch:
        """The arguments of the latest start, with some changed; raises InvalidState before the first start."""
        if self.provisioner.launch is None:
            raise InvalidState("no kernel was started that could be restarted; call start_kernel() first")
        return self.provisioner.launch.changed(arguments)

    # Restart and end

    def restart(self, deadline: Deadline, arguments: Mapping[str, Any], *, now: bool, exit_wait_s: float) -> None:
        """End the process and start another; raises what KernelManager.restart_kernel raises."""
        self.changed_launch(arguments)
        with self.in_charge(deadline):
            availability = self.availability
            availability.begin_restart()
            try:
                self._replace(deadline, self.changed_launch(arguments), now=now, exit_wait_s=exit_wait_s)
            except BaseException:
                if not self.provisioner.is_alive():
                    availability.fail(copies_of(self.provisioner.death()))
                raise
            finally:
                availability.end_restart()

    def revive(self, deadline: Deadline) -> None:
        """Start another kernel in the place of a dead one. A Restarter calls this in its greenlet, while calls wait."""
        with self._lock, self._owner.call():
            if self.restarter is None or not self.restarter.is_here():
                return
            try:
                self._replace(deadline, self.changed_launch({}), now=True, exit_wait_s=0.0)
            except BaseException as exc:
                self._note(Event.END)
                if self.provisioner.process is not None:
                    self.provisioner.process.kill()
                if isinstance(exc, LaunchError) and were_taken(exc):
                    self.provisioner.endpoint.change_ports()
                raise

    def shut_down(self, *, now: bool, restart: bool, exit_wait_s: float) -> None:
        """End the process. Unless a restart will follow, remove its files and drop the client."""
        with self.in_charge(Deadline(None), now=now):
            self._fail_pending(self._end_process(Deadline(None), now=now, restart=restart, exit_wait_s=exit_wait_s))
            if not restart:
                self.provisioner.clean_up()
                self.drop_client()

    def kill(self) -> None:
        """Send SIGKILL to the process, and wait for its end; raises InvalidState if there is none."""
        if self.restarter is None or not self.restarter.is_at_work:
            self.provisioner.require()
        with self.in_charge(Deadline(None), now=True):
            self._fail_pending(self._end_process(Deadline(None), now=True, restart=True, exit_wait_s=0.0))

    def drop_client(self) -> None:
        """Close the client. A retired one stays, so that its calls say why they fail."""
        if self._retired is None:
            self.clients.drop()
        elif self.clients.current is not None:
            self.clients.current.stop_channels()
            self.retire(self._retired)

    # Handing the kernel over to another manager

    def retire(self, failure: Failure) -> None:
        """The manager must no longer be used: new calls, and calls that wait, raise `failure` from here on."""
        self._retired = failure
        connection = self.clients.connection
        if connection is not None:
            connection.availability.fail(failure)

    def give_away(self) -> Provisioner:
        """Return the kernel, for another lifecycle to take over. This one has none from here on."""
        provisioner = self.holding.replace(self._new_provisioner())
        self._note(Event.ENDED)
        if self.clients.current is not None:
            self.clients.current.own(self.provisioner)
        return provisioner

    def take_over(self, provisioner: Provisioner) -> None:
        """Go on with a kernel that another lifecycle gave away. It counts as not ready until it answers."""
        self.holding.replace(provisioner)
        self.clients.use_session(provisioner.endpoint.new_session())
        self._note(Event.LAUNCH)
        self._note(Event.GIVE_UP)
        provisioner.tell_of_exit(weakly(self.exited))

    def answered(self) -> None:
        """The kernel answers."""
        self._note(Event.ANSWER)

    # Steps

    def exited(self) -> None:
        """The process has ended."""
        if self._retired is not None:
            return
        reaction = self._note(Event.EXIT)
        if reaction is Reaction.NOTHING:
            return
        death = self.clients.death_of(self.provisioner)
        if reaction is Reaction.RESTART and self.restarter is not None:
            self.restarter.died(death)
            self.availability.begin_restart(death.headline)
        connection = self.clients.connection
        if connection is not None:
            connection.availability.died(copies_of(death))
        if self.has_kernel:
            self._on_death()

    def _note(self, event: Event) -> Reaction:
        self.phase, reaction = TRANSITIONS[self.phase, event]
        return reaction

    @contextmanager
    def _awaited(self) -> Iterator[None]:
        self._waiting += 1
        try:
            yield
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._note(Event.GIVE_UP)

    @contextmanager
    def in_charge(self, deadline: Deadline, *, now: bool = False) -> Iterator[None]:
        """Lock out other calls that end or restart the kernel, and cancel automatic restarts."""
        if now and self.provisioner.process is not None:
            self.provisioner.process.kill()  # a restart_kernel in another greenlet may be waiting for it
        restarter = self.restarter
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
            connection = self.clients.connection
            is_at_work = restarter is not None and restarter.is_at_work
            if connection is not None and connection.availability.is_restarting and not is_at_work:
                if not self.provisioner.is_alive():
                    connection.availability.fail(copies_of(self.provisioner.death()))
                connection.availability.end_restart()
            self._lock.release()

    def _launch(self, launch: Launch, deadline: Deadline) -> None:
        self._note(Event.LAUNCH)
        with self._awaited():
            self.provisioner.start(launch, weakly(self.exited), deadline)
        self.clients.fit(self.provisioner)
        if self.clients.current is not None:
            self.clients.current.own(self.provisioner)
        if self.restarter is not None and not self.clients.channels_running:
            self.restarter.started()

    def _await_ready(self, deadline: Deadline) -> None:
        before = self.phase  # of this kernel: another may have been started when its death is raised
        self._note(Event.AWAIT)
        with self._awaited():
            try:
                self.connection.readiness.wait_for_ready(deadline)
            except (KernelTimeout, DeadKernelError) as exc:
                if before in HAD_ANSWERED or self.phase in HAD_ANSWERED or not self.has_kernel:
                    raise
                words = words_of(self.connection.channels)
                if isinstance(exc, KernelTimeout):
                    raise self.provisioner.never_answered(exc, words=words) from None
                raise self.provisioner.never_came_up(exc, words=words) from None
            if self.restarter is not None and self.phase not in HAD_ANSWERED:
                self.restarter.started()
            self._note(Event.ANSWER)
        self.provisioner.came_up()
        if self.clients.current is not None:
            self.clients.current.release_reservation()

    def _replace(self, deadline: Deadline, launch: Launch, *, now: bool, exit_wait_s: float) -> None:
        """End the process and start another, with the same client."""
        connection = self.connection
        self.provisioner.reserve_descriptors(spare=0)
        try:
            self._end_process(deadline.half(), now=now, restart=True, exit_wait_s=exit_wait_s)
            connection.reopen()
            self._launch(launch, deadline)
            if connection.channels.runs("shell"):
                self._await_ready(deadline)
        finally:
            self.provisioner.reservation.release()
        if connection.channels.runs("hb"):
            connection.channels.hb.resume()

    def _end_process(
        self, deadline: Deadline, *, now: bool, restart: bool, exit_wait_s: float
    ) -> DeadKernelError | None:
        """Ask the process to exit, then force it; returns how it ended, None if there was no kernel."""
        if not self.has_kernel:
            return None
        self._note(Event.END)
        try:
            connection = self.clients.connection
            if connection is not None and connection.channels.runs("hb"):
                connection.channels.hb.suspend()
            if now:
                self.provisioner.kill()
            elif self.provisioner.is_alive():
                wait = deadline.at_most(exit_wait_s)
                ask_to_exit(self.connection.channels, self.provisioner.wait_for_exit, wait, restart=restart)
                self.provisioner.end(deadline)
        except BaseException:  # given up half-way: the kernel may have been asked, and may end at any time
            self._note(Event.LEAVE)
            if not self.provisioner.is_alive():
                self.exited()
            raise
        death = self.provisioner.death()
        self.provisioner.forget()
        self.provisioner.endpoint.remove_ipc_files()  # before the client reopens: a child may still listen there
        self._note(Event.ENDED)
        return death

    def _fail_pending(self, death: DeadKernelError | None) -> None:
        if (connection := self.clients.connection) is None or self._retired is not None:
            return
        if death is not None or connection.availability.is_restarting:
            connection.availability.fail(copies_of(death or self.provisioner.death()))
            connection.availability.end_restart()
