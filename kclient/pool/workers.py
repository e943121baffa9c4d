"""Workers: the greenlets that start, warm up, renew and end the kernels of a pool, as its roster says."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import copy
from functools import partial
from time import monotonic
from typing import Any, Final, cast

import gevent

from kclient.concurrency.callbacks import CallbackQueue, in_callback
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking, Timer
from kclient.errors import InvalidArgument, KClientError, KernelTimeout, LaunchError
from kclient.manager.kernel_manager import KernelManager
from kclient.pool.events import PooledKernel, PoolEvent, PoolStats
from kclient.pool.lent_kernel import LentKernel, Recipe
from kclient.pool.scheduler import BUSY, IDLE, STARTING, Checkout, PoolEntry, Scheduler

MAX_UNTOLD: Final = 10_000
"""Events that are kept for an on_event that does not keep up; later ones are dropped."""

LAST_EVENTS: Final = 1.0
"""Seconds that `close` leaves to on_event for what it has not been told yet."""


class Workers:
    """What a pool consists of. Its greenlets and watchers know this, so that the KernelPool itself can be dropped."""

    def __init__(self, roster: Scheduler, recipe: Recipe, on_event: Callable[[PoolEvent], object] | None) -> None:
        self.roster = roster
        self.recipe = recipe
        self.owner = Owner()
        self._lent: weakref.WeakKeyDictionary[LentKernel, PoolEntry | None] = weakref.WeakKeyDictionary()
        self._on_event = on_event
        self._deliverer = CallbackQueue("on_event of a KernelPool")
        self._alarm = Timer(self.owner, self.act)
        self._changed = Parking(self.owner)
        self._workers: set[gevent.Greenlet[..., None]] = set()
        self._is_over = self._has_dropped = False
        self._untold = 0

    # For callers

    def acquire(self, timeout: float | None) -> LentKernel:
        deadline = Deadline(timeout)
        parking = Parking(self.owner)
        ticket: Checkout | None = None
        try:
            with self.owner.call():
                while True:
                    ticket = self.roster.ask(monotonic(), parking.wake)
                    self.act()
                    self._await(ticket, parking, deadline)
                    member = ticket.member
                    if member is not None and member.kernel is not None and member.state == BUSY:
                        return self._hand_over(member.kernel, member, ticket)
                    # It was shut down in the moment when it was handed over.
        except BaseException:
            if ticket is not None and not self.owner.forked:
                if ticket.member is not None and ticket.member.kernel is not None:
                    self._lent.pop(ticket.member.kernel, None)
                self.roster.withdraw(ticket)
                self.act()
            raise

    def _await(self, ticket: Checkout, parking: Parking, deadline: Deadline) -> None:
        if not ticket.is_settled:
            self.roster.counters.waits += 1
        while not ticket.is_settled:
            if not parking.wait(deadline) and deadline.is_over and not ticket.is_settled:
                self.roster.counters.timeouts += 1
                self._tell("timeout", seconds=monotonic() - ticket.since)
                raise KernelTimeout("free kernel", deadline.timeout, hint=self._plight())
        if ticket.error is not None:
            raise ticket.error

    def _hand_over(self, kernel: LentKernel, member: PoolEntry, ticket: Checkout) -> LentKernel:
        kernel.lend(self.give_back)
        self._lent[kernel] = member
        seconds = monotonic() - ticket.since
        self.roster.checked_out(seconds)
        self._tell("acquired", member, seconds=seconds)
        return kernel

    def knows(self, kernel: object) -> bool:
        """True for what was acquired here, also if it was given back."""
        return isinstance(kernel, LentKernel) and kernel in self._lent

    def give_back(self, kernel: KernelManager) -> bool:
        """End its use; False if that was so already."""
        if self.owner.forked:
            return True
        with self.owner.call():
            if not isinstance(kernel, LentKernel) or (member := self._lent.get(kernel)) is None:
                return False
            self._lent[kernel] = None
            reusable = self.roster.max_uses > 1 and not kernel.is_returned and kernel.is_clean
            kernel.end_use()
            self.roster.give_back(member, monotonic(), reusable=reusable)
            self._tell("released", member)
            self.act()
        return True

    def stats(self) -> PoolStats:
        self.owner.check()
        return self.roster.stats()

    def kernels(self) -> list[PooledKernel]:
        self.owner.check()
        now = monotonic()
        return [_listed(member, now) for member in self.roster]

    def shut_down(self, kernel_id: str) -> None:
        with self.owner.call():
            member = self.roster.find(kernel_id)
            if member is None:
                raise InvalidArgument(f"the pool has no kernel {kernel_id!r}; kernels() lists those that it has")
            self.roster.remove(member)
            self.act()
            while self.roster.find(kernel_id) is member:
                self._changed.wait(Deadline(None))

    def wait_until_warm(self, timeout: float | None) -> None:
        deadline = Deadline(timeout)
        with self.owner.call():
            while self.roster.is_closed or self.roster.count(IDLE) < self.roster.size:
                obstacle = self.roster.obstacle(monotonic())
                if obstacle is not None:
                    raise copy(obstacle)
                if not self._changed.wait(deadline) and deadline.is_over:
                    raise KernelTimeout(f"{self.roster.size} idle kernels", deadline.timeout, hint=self._plight())

    def close(self) -> None:
        if self.owner.forked:
            return
        with self.owner.call():
            self._begin_to_close()
            while self._workers - {gevent.getcurrent()}:
                self._changed.wait(Deadline(None))
            if not self._is_over:
                self._is_over = True
                self._tell("closed")
            if self._on_event is not None and not in_callback():
                self._await_events()

    def abandon(self) -> None:
        """The pool was dropped, at a moment when anything may be half done: kill now, and close at the loop's turn."""
        if self.owner.forked or self.roster.is_closed:
            return
        if self.owner.is_here:
            for member in self.roster:
                if member.kernel is not None and member.kernel.process is not None:
                    member.kernel.process.kill()
        if self.owner.hub.loop is not None:
            self.owner.hub.loop.run_callback_threadsafe(self._begin_to_close)

    # What the roster decides

    def act(self) -> None:
        """Hand out what is idle, and do what else is to be done; at once, it never waits."""
        with self.owner.call():  # what a Ctrl-C left undone here, nobody would do
            self._lend()
            now = monotonic()
            steps = self.roster.next_steps(now)
            for ticket in steps.wake:
                ticket.wake()
            for member in steps.start:
                member.starter = self._spawn(self._start, member)
            for member in steps.renew:
                member.starter = self._spawn(self._renew, member, member.kernel)
            for member in steps.end:
                if member.kernel is not None:
                    member.kernel.end_use()
                self._spawn(self._end, member)
            seconds = self.roster.next_look(now)
            if seconds is None:
                self._alarm.cancel()
            else:
                self._alarm.set(seconds)
            self._changed.wake()

    def _lend(self) -> None:
        while (member := self.roster.offered()) is not None:
            kernel = cast(LentKernel, member.kernel)
            if kernel.is_alive():
                self.roster.lend().wake()
            else:
                self._died(member, kernel)

    def _begin_to_close(self) -> None:
        if not self.roster.is_closed:
            self.roster.close()
            self.act()

    def _spawn(self, work: Callable[..., None], *args: Any) -> gevent.Greenlet[..., None]:
        greenlet = gevent.spawn(self._work, work, *args)
        self._workers.add(greenlet)
        greenlet.rawlink(self._has_worked)
        return greenlet

    def _work(self, work: Callable[..., None], *args: Any) -> None:
        if not self.owner.forked:  # a fork takes greenlets along that have not begun
            work(*args)

    def _has_worked(self, greenlet: gevent.Greenlet[..., None]) -> None:
        self._workers.discard(greenlet)
        self._changed.wake()

    def _start(self, member: PoolEntry) -> None:
        began = monotonic()
        try:
            kernel = self.recipe.make(member.kernel_id)
        except BaseException as exc:  # whatever a launcher raises is the callers' to know
            if member.state == STARTING:
                error = _as_error(exc)
                self.roster.start_failed(member, error, monotonic())
                self._tell("start_failed", member, seconds=monotonic() - began, error=error)
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                self.act()
                raise
        else:
            self._is_ready(member, kernel, "started", monotonic() - began)
        self.act()

    def _renew(self, member: PoolEntry, former: LentKernel) -> None:
        try:
            kernel = self.recipe.renew(former)
        except KClientError as exc:
            log().debug("the kernel %s is replaced, since it is not ready for its next user: %s", member.kernel_id, exc)
            self.roster.remove(member)
        except BaseException:
            self.roster.remove(member)
            self.act()
            raise
        else:
            self._is_ready(member, kernel, "recycled")
        self.act()

    def _is_ready(self, member: PoolEntry, kernel: LentKernel, kind: str, seconds: float | None = None) -> None:
        member.kernel = kernel
        kernel.on_death = partial(self._on_death, member, kernel)
        self.roster.ready(member, monotonic())
        self._tell(kind, member, seconds=seconds)
        if not kernel.is_alive():  # it died when nobody listened yet
            self._died(member, kernel)

    def _end(self, member: PoolEntry) -> None:
        """Nobody wants it any more: it is not asked, but killed."""
        try:
            if member.starter is not None:
                member.starter.kill()
            if member.kernel is not None:
                member.kernel.end_use()
                member.kernel.shutdown_kernel(now=True)
        except Exception:  # noqa: BLE001 - nobody waits for it, and nothing more can be done
            log().exception("the kernel %s of a pool did not end as it should", member.kernel_id)
        finally:
            member.kernel = member.starter = None
            self.roster.ended(member)
            self._tell("ended", member)
            self.act()

    def _on_death(self, member: PoolEntry, kernel: LentKernel) -> None:
        self._died(member, kernel)
        self.act()

    def _died(self, member: PoolEntry, kernel: LentKernel) -> None:
        death = kernel.death()
        self.roster.died(member, death, monotonic())
        self._tell("died", member, exit_code=death.exit_code, error=death)

    # What is told

    def _plight(self) -> str:
        """How things are, for a caller who got no kernel."""
        roster = self.roster
        others = roster.waiting - 1
        text = f"of {roster.max_size} at most {roster.count(BUSY)} are busy and {roster.count(STARTING)} starting"
        if others > 0:
            text += f"; {others} more callers wait"
        if roster.is_failing and roster.last_failure is not None:
            text += f"; the last failure: {roster.last_failure}"
        return text

    def _tell(self, kind: str, member: PoolEntry | None = None, **facts: Any) -> None:
        if self._on_event is None:
            return
        if self._untold >= MAX_UNTOLD:
            if not self._has_dropped:
                log().warning("on_event of a KernelPool does not keep up: events are dropped from here on")
            self._has_dropped = True
            return
        self._untold += 1
        kernel_id = None if member is None else member.kernel_id
        self._deliverer.add(self._deliver, self._on_event, PoolEvent(kind, kernel_id, **facts))

    def _deliver(self, on_event: Callable[[PoolEvent], object], event: PoolEvent) -> None:
        self._untold -= 1
        if not self.owner.forked:  # what the parent will be told, too
            on_event(event)

    def _await_events(self) -> None:
        told = Parking(self.owner)
        is_told: list[bool] = []

        def note() -> None:
            is_told.append(True)
            told.wake()

        self._deliverer.add(note)
        deadline = Deadline(LAST_EVENTS)
        while not is_told and not deadline.is_over:
            told.wait(deadline)
        self._deliverer.stop()


def _listed(member: PoolEntry, now: float) -> PooledKernel:
    process = None if member.kernel is None else member.kernel.process
    pid = None if process is None else process.pid
    return PooledKernel(member.kernel_id, member.state, pid, member.uses, now - member.began)


def _as_error(exc: BaseException) -> Exception:
    """What a caller may be raised: a gevent.Timeout, or what else a launcher raises, is no error of theirs."""
    if isinstance(exc, KClientError):
        return exc
    error = LaunchError(f"cannot start the kernel: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error
