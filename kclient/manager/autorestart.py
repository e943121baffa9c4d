"""Automatic restarts: a manager replaces a kernel that has died by itself."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from time import monotonic
from typing import Any, Final, Protocol

import attrs
import gevent

from kclient.client.availability import READ_ON_S, Availability
from kclient.client.interface import KernelInterface
from kclient.concurrency.callbacks import check_callback
from kclient.concurrency.deadline import Deadline, check_seconds
from kclient.concurrency.log import log
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Timer
from kclient.errors import DeadKernelError, InvalidArgument, InvalidState, KClientError, copies_of
from kclient.manager.backoff import RESTART_LIMIT, STABLE_START_TIME_S, Backoff

OnRestart = Callable[[Any, DeadKernelError, int], object]
"""Called as ``on_restart(manager, death, count)``; `manager` is a KernelManager."""

OnGiveUp = Callable[[Any, DeadKernelError], object]
"""Called as ``on_give_up(manager, error)``; `manager` is a KernelManager."""

START_TIMEOUT_S: Final = 60.0
"""The same as the default timeout of start_kernel."""


@attrs.frozen
class AutoRestart:
    """How a kernel that dies is restarted: pass it as `restart=` to KernelManager or start_kernel.

    Calls that wait when the kernel dies raise DeadKernelError, since they may be the cause. Later calls wait for the
    next kernel, within their timeout. The first restart comes at once, the second 0.1 s after a failure, and each
    further pause is twice as long, up to 30 s. After `limit` restarts in a row (None: no limit) the kernel is given up:
    every call raises DeadKernelError, until restart_kernel(). The row ends, and the count begins anew, when a kernel
    has run for `stable_start_time` seconds. A start has failed if the kernel is not ready after `start_timeout` seconds
    (None: it never fails for that reason).

    `on_restart(manager, death, count)` is called when the next kernel is ready, before the calls of other greenlets get
    to it. So it can run set-up code. `count` is the number of restarts in a row. It must not wait for a greenlet that
    calls the kernel. `on_give_up(manager, error)` is called when the kernel is given up. Both run in a greenlet of the
    manager. Their exceptions are logged.

    A kernel that the program ends itself (shutdown_kernel, kill_kernel) is not restarted. One that a signal ends is.
    """

    limit: int | None = RESTART_LIMIT
    stable_start_time: float = STABLE_START_TIME_S
    on_restart: OnRestart | None = None
    on_give_up: OnGiveUp | None = None
    start_timeout: float | None = attrs.field(default=START_TIMEOUT_S, kw_only=True)

    def __attrs_post_init__(self) -> None:
        self.backoff()
        if self.start_timeout is not None:
            check_seconds(self.start_timeout, "start_timeout", alternative=", or None")
        check_callback(self.on_restart, "on_restart")
        check_callback(self.on_give_up, "on_give_up")

    def backoff(self) -> Backoff:
        """A new Backoff with this limit and this stable_start_time."""
        return Backoff(self.limit, self.stable_start_time)


def as_policy(restart: object) -> AutoRestart | None:
    """The AutoRestart that the argument `restart=` means, or None; raises InvalidArgument."""
    if restart is True:
        return AutoRestart()
    if restart is False:
        return None
    if not isinstance(restart, AutoRestart):
        raise InvalidArgument(f"restart must be True, False or an AutoRestart, not {restart!r}")
    return restart


class Life(Protocol):
    """The kernel that is restarted, as the Restarter sees it."""

    @property
    def availability(self) -> Availability:
        """Whether calls may go to the kernel."""

    def revive(self, deadline: Deadline) -> None:
        """Start another kernel in the place of the dead one."""


class Restarter:
    """Restarts a kernel by `life.revive`, in a greenlet that runs only during a restart.

    Between restarts only a timer waits. It keeps no manager alive, and a manager that is dropped is not restarted.
    """

    def __init__(self, policy: AutoRestart, manager: Callable[[], KernelInterface | None], life: Life) -> None:
        self._policy = policy
        self._backoff = policy.backoff()
        self._owner = Owner()
        self._manager = manager
        self._life_reference = weakref.ref(life)
        self._timer = Timer(self._owner, self._go_on)
        self._death: DeadKernelError | None = None
        self._gives_up = False
        self._greenlet: gevent.Greenlet[..., Any] | None = None
        self._trying: object = None
        self._since: float | None = None

    @property
    def _life(self) -> Life:
        """Held weakly, as the manager is: a failed restart keeps frames, and so would keep the manager."""
        life = self._life_reference()
        if life is None:
            raise InvalidState("the manager of this kernel was dropped")
        return life

    @property
    def is_at_work(self) -> bool:
        """True from a death until all calls may go to the next kernel, or until the kernel is given up."""
        return self._death is not None or self._greenlet is not None

    def started(self) -> None:
        """The kernel runs from now on."""
        self._since = monotonic()

    def died(self, death: DeadKernelError) -> None:
        """The kernel has died. Restart it after a pause, in which its latest messages are read."""
        lasted = 0.0 if self._since is None else monotonic() - self._since
        self._since = None
        wait = self._backoff.after(lasted)
        self._death = death
        self._gives_up = wait is None
        self._timer.set(max(READ_ON_S, wait or 0.0))

    def make_way(self) -> None:
        """End a restart that is under way. It is made again unless `cancel` follows."""
        if self._greenlet is not None and self._trying is self._greenlet and not self.is_here():
            self._greenlet.kill(block=False)

    def cancel(self) -> None:
        """The program starts or ends the kernel itself: make no restart, and count failures anew."""
        self._timer.cancel()
        self._backoff.reset()
        self._death = self._since = None
        if self._greenlet is not None and not self.is_here():
            self._greenlet.kill(block=False)
        self._greenlet = None

    def is_here(self) -> bool:
        """True in the greenlet that restarts, unless the restart was cancelled."""
        return gevent.getcurrent() is self._greenlet

    def _go_on(self) -> None:
        if self._greenlet is None and self._death is not None:  # else a callback must end first
            self._greenlet = gevent.spawn(self._run)

    def _run(self) -> None:
        manager = self._manager()
        if manager is None:  # it was dropped, and its kernel with it
            self._death = self._greenlet = None
            return
        try:
            self._see_to(manager)
        finally:
            if self.is_here():
                self._greenlet = None
            if not self._timer.is_set:
                self._go_on()

    def _see_to(self, manager: KernelInterface) -> None:
        death, self._death = self._death, None
        if death is None or self._owner.forked:
            return
        self._life.availability.break_off(copies_of(death))
        if self._gives_up:
            self._give_up(manager, death)
        elif self._try(manager, death):
            self._let_in(manager, death)

    def _try(self, manager: KernelInterface, death: DeadKernelError) -> bool:
        """Restart. True if the next kernel is ready, and has not died since."""
        log().warning("%s; it is restarted (%d in a row)", death.headline, self._backoff.failures)
        self._trying = me = gevent.getcurrent()
        try:
            self._life.revive(Deadline(self._policy.start_timeout))
        except Exception as exc:  # noqa: BLE001 - a launcher of the program may raise anything
            if self.is_here():
                failure = _as_death(exc)
                self.died(failure)
                self._life.availability.begin_restart(failure.headline)
        except BaseException:
            if self.is_here():  # `make_way` ended it
                self._death = death
                self._timer.set(READ_ON_S)
            raise
        finally:
            if self._trying is me:  # else it was cancelled, and another greenlet restarts
                self._trying = None
        return self.is_here() and self._death is None

    def _let_in(self, manager: KernelInterface, death: DeadKernelError) -> None:
        """Call on_restart, then let every call through."""
        self._life.availability.admit(gevent.getcurrent())
        try:
            self._call(self._policy.on_restart, manager, death, self._backoff.failures)
        finally:
            if self.is_here() and self._death is None:
                self._life.availability.end_restart()

    def _give_up(self, manager: KernelInterface, death: DeadKernelError) -> None:
        error = DeadKernelError(
            f"{death.message}; {self._count()}: restart_kernel() starts another",
            exit_code=death.exit_code,
            stderr=death.stderr,
        )
        self._backoff.reset()
        log().error("%s", error.headline)
        self._life.availability.fail(copies_of(error))
        self._life.availability.end_restart()
        self._call(self._policy.on_give_up, manager, error)

    def _count(self) -> str:
        limit = self._policy.limit
        if not limit:
            return "it is not restarted, since the limit is 0"
        times = "once" if limit == 1 else f"{limit} times in a row"
        return f"it was restarted {times} and did not last {self._policy.stable_start_time:g} s, so it is given up"

    def _call(self, function: Callable[..., object] | None, *args: object) -> None:
        if function is None:
            return
        try:
            function(*args)
        except (gevent.GreenletExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - a gevent.Timeout, too
            log().exception("a callback of the automatic restarts failed")


def _as_death(error: Exception) -> DeadKernelError:
    """The error of a restart that has failed, as a DeadKernelError. The kernel need not have died."""
    if isinstance(error, DeadKernelError):
        return error
    if not isinstance(error, KClientError):
        log().error("an automatic restart failed", exc_info=error)
    return DeadKernelError(f"the kernel could not be restarted: {error}")
