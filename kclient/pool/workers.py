"""Workers: greenlets that start, warm up, renew and end the kernels of a pool, as its scheduler decides."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from copy import copy
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

MAX_WAITING_EVENTS: Final = 10_000
"""Events that wait for a slow on_event. Further events are dropped."""

LAST_EVENTS_WAIT_S: Final = 1.0
"""Seconds for which `close` waits until on_event has got all events."""


class Workers:
    """The parts of a pool. Its greenlets and watchers refer to this object, so the KernelPool itself can be dropped."""

    def __init__(self, scheduler: Scheduler, recipe: Recipe, on_event: Callable[[PoolEvent], object] | None) -> None:
        self.scheduler = scheduler
        self.recipe = recipe
        self.owner = Owner()
        self._lent: weakref.WeakKeyDictionary[LentKernel, PoolEntry | None] = weakref.WeakKeyDictionary()
        self._on_event = on_event
        self._callbacks = CallbackQueue("on_event of a KernelPool")
        self._timer = Timer(self.owner, self.act)
        self._changed = Parking(self.owner)
        self._greenlets: set[gevent.Greenlet[..., None]] = set()
        self._is_over = self._has_dropped = False
        self._untold = 0

    # For callers

    def acquire(self, timeout: float | None) -> LentKernel:
        deadline = Deadline(timeout)
        parking = Parking(self.owner)
        checkout: Checkout | None = None
        try:
            with self.owner.call():
                while True:
                    checkout = self.scheduler.ask(monotonic(), parking.wake)
                    self.act()
                    self._await(checkout, parking, deadline)
                    entry = checkout.entry
                    if entry is not None and entry.kernel is not None and entry.state == BUSY:
                        return self._hand_over(entry.kernel, entry, checkout)
                    # The kernel was shut down while it was handed over: ask for another.
        except BaseException:
            if checkout is not None and not self.owner.forked:
                if checkout.entry is not None and checkout.entry.kernel is not None:
                    self._lent.pop(checkout.entry.kernel, None)
                self.scheduler.withdraw(checkout)
                self.act()
            raise

    def _await(self, checkout: Checkout, parking: Parking, deadline: Deadline) -> None:
        if not checkout.is_settled:
            self.scheduler.counters.waits += 1
        while not checkout.is_settled:
            if not parking.wait(deadline) and deadline.is_over and not checkout.is_settled:
                self.scheduler.counters.timeouts += 1
                self._tell("timeout", seconds=monotonic() - checkout.since)
                raise KernelTimeout("free kernel", deadline.timeout, hint=self._describe())
        if checkout.error is not None:
            raise checkout.error

    def _hand_over(self, kernel: LentKernel, entry: PoolEntry, checkout: Checkout) -> LentKernel:
        kernel.lend()
        self._lent[kernel] = entry
        seconds = monotonic() - checkout.since
        self.scheduler.checked_out(seconds)
        self._tell("acquired", entry, seconds=seconds)
        return kernel

    def knows(self, kernel: object) -> bool:
        """True if the kernel was acquired here, also if it was given back."""
        return isinstance(kernel, LentKernel) and kernel in self._lent

    def give_back(self, kernel: KernelManager) -> bool:
        """End the use of a kernel; False if it had ended already."""
        if self.owner.forked:
            return True
        with self.owner.call():
            if not isinstance(kernel, LentKernel) or (entry := self._lent.get(kernel)) is None:
                return False
            self._lent[kernel] = None
            reusable = self.scheduler.max_uses > 1 and not kernel.is_returned and kernel.is_clean
            kernel.end_use()
            self.scheduler.give_back(entry, monotonic(), reusable=reusable)
            self._tell("released", entry)
            self.act()
        return True

    def stats(self) -> PoolStats:
        self.owner.check()
        return self.scheduler.stats()

    def kernels(self) -> list[PooledKernel]:
        self.owner.check()
        now = monotonic()
        return [_listed(entry, now) for entry in self.scheduler]

    def shut_down(self, kernel_id: str) -> None:
        with self.owner.call():
            entry = self.scheduler.find(kernel_id)
            if entry is None:
                raise InvalidArgument(f"the pool has no kernel {kernel_id!r}; kernels() lists those that it has")
            self.scheduler.remove(entry)
            self.act()
            while self.scheduler.find(kernel_id) is entry:
                self._changed.wait(Deadline(None))

    def wait_until_warm(self, timeout: float | None) -> None:
        deadline = Deadline(timeout)
        with self.owner.call():
            while self.scheduler.is_closed or self.scheduler.count(IDLE) < self.scheduler.size:
                obstacle = self.scheduler.obstacle(monotonic())
                if obstacle is not None:
                    raise copy(obstacle)
                if not self._changed.wait(deadline) and deadline.is_over:
                    raise KernelTimeout(f"{self.scheduler.size} idle kernels", deadline.timeout, hint=self._describe())

    def close(self) -> None:
        if self.owner.forked:
            return
        with self.owner.call():
            self._begin_to_close()
            while self._greenlets - {gevent.getcurrent()}:
                self._changed.wait(Deadline(None))
            if not self._is_over:
                self._is_over = True
                self._tell("closed")
            if self._on_event is not None and not in_callback():
                self._await_events()

    def abandon(self) -> None:
        """The pool was dropped, its thread is not over: kill the kernels not in use; close in the loop's next turn."""
        if self.owner.forked or self.scheduler.is_closed:
            return
        if self.owner.is_here:
            self._leave_to_users()
            for entry in self.scheduler:
                if entry.kernel is not None and entry.kernel.process is not None:
                    entry.kernel.process.kill()
        self.owner.hub.loop.run_callback_threadsafe(self._close_dropped)

    # Carrying out what the scheduler decides

    def act(self) -> None:
        """Hand out idle kernels, and carry out the next steps. Never waits."""
        with self.owner.call():  # a Ctrl-C here would leave steps undone for ever
            self._lend()
            now = monotonic()
            steps = self.scheduler.next_steps(now)
            for checkout in steps.wake:
                checkout.wake()
            for entry in steps.start:
                entry.starter = self._spawn(self._start, entry)
            for entry in steps.renew:
                entry.starter = self._spawn(self._renew, entry, entry.kernel)
            for entry in steps.end:
                if entry.kernel is not None:
                    entry.kernel.end_use()
                self._spawn(self._end, entry)
            seconds = self.scheduler.next_look(now)
            if seconds is None:
                self._timer.cancel()
            else:
                self._timer.set(seconds)
            self._changed.wake()

    def _lend(self) -> None:
        while (entry := self.scheduler.offered()) is not None:
            kernel = cast(LentKernel, entry.kernel)
            if kernel.is_alive() and not kernel.is_about_to_exit:
                self.scheduler.lend().wake()
            else:
                self._died(entry, kernel)

    def _leave_to_users(self) -> None:
        for entry in self.scheduler:
            if entry.state == BUSY and entry.kernel is not None:
                entry.kernel.leave_pool()
                self._lent[entry.kernel] = None
                entry.kernel = None

    def _close_dropped(self) -> None:
        self._leave_to_users()
        self._begin_to_close()

    def _begin_to_close(self) -> None:
        if not self.scheduler.is_closed:
            self.scheduler.close()
            self.act()

    def _spawn(self, work: Callable[..., None], *args: Any) -> gevent.Greenlet[..., None]:
        greenlet = gevent.spawn(self._work, work, *args)
        self._greenlets.add(greenlet)
        greenlet.rawlink(self._has_worked)
        return greenlet

    def _work(self, work: Callable[..., None], *args: Any) -> None:
        if not self.owner.forked:  # a forked child inherits greenlets that have not begun
            work(*args)

    def _has_worked(self, greenlet: gevent.Greenlet[..., None]) -> None:
        self._greenlets.discard(greenlet)
        self._changed.wake()

    def _start(self, entry: PoolEntry) -> None:
        began = monotonic()
        try:
            kernel = self.recipe.make(entry.kernel_id, self)
        except BaseException as exc:  # callers get the error, whatever a launcher raises
            if entry.state == STARTING:
                error = _as_error(exc)
                self.scheduler.start_failed(entry, error, monotonic())
                self._tell("start_failed", entry, seconds=monotonic() - began, error=error)
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                self.act()
                raise
        else:
            self._is_ready(entry, kernel, "started", monotonic() - began)
        self.act()

    def _renew(self, entry: PoolEntry, former: LentKernel) -> None:
        try:
            kernel = self.recipe.renew(former, self)
        except KClientError as exc:
            log().debug("the kernel %s is replaced, because it does not get ready again: %s", entry.kernel_id, exc)
            self.scheduler.remove(entry)
        except BaseException:
            self.scheduler.remove(entry)
            self.act()
            raise
        else:
            self._is_ready(entry, kernel, "recycled")
        self.act()

    def _is_ready(self, entry: PoolEntry, kernel: LentKernel, kind: str, seconds: float | None = None) -> None:
        entry.kernel = kernel
        self.scheduler.ready(entry, monotonic())
        self._tell(kind, entry, seconds=seconds)
        if not kernel.is_alive():  # it died before `entry.kernel` was set
            self._died(entry, kernel)

    def _end(self, entry: PoolEntry) -> None:
        """Kill the kernel, without asking it to exit, and remove its files. It may end an answer that is no code."""
        try:
            if entry.starter is not None:
                entry.starter.kill()
            if entry.kernel is not None:
                entry.kernel.end_use()
                entry.kernel.let_it_answer()
                entry.kernel.shutdown_kernel(now=True)
        except Exception:  # noqa: BLE001 - no caller waits for it, and no more can be done
            log().exception("the kernel %s of a pool could not be ended", entry.kernel_id)
        finally:
            entry.kernel = entry.starter = None
            self.scheduler.ended(entry)
            self._tell("ended", entry)
            self.act()

    def kernel_died(self, kernel: LentKernel) -> None:
        """A kernel has ended by itself."""
        entry = next((entry for entry in self.scheduler if entry.kernel is kernel), None)
        if entry is not None:
            self._died(entry, kernel)
            self.act()

    def _died(self, entry: PoolEntry, kernel: LentKernel) -> None:
        death = kernel.death()
        self.scheduler.died(entry, death, monotonic())
        self._tell("died", entry, exit_code=death.exit_code, error=death)

    # Reports

    def _describe(self) -> str:
        """The state of the pool, for the error of a caller that got no kernel."""
        scheduler = self.scheduler
        others = scheduler.waiting - 1
        text = f"busy: {scheduler.count(BUSY)}, starting: {scheduler.count(STARTING)}, max_size: {scheduler.max_size}"
        if others > 0:
            text += f", other callers that wait: {others}"
        if scheduler.is_failing and scheduler.last_failure is not None:
            text += f"; the last failure: {scheduler.last_failure}"
        return text

    def _tell(self, kind: str, entry: PoolEntry | None = None, **facts: Any) -> None:
        if self._on_event is None:
            return
        if self._untold >= MAX_WAITING_EVENTS:
            if not self._has_dropped:
                log().warning("on_event of a KernelPool does not keep up: events are dropped from here on")
            self._has_dropped = True
            return
        self._untold += 1
        kernel_id = None if entry is None else entry.kernel_id
        self._callbacks.add(self._deliver, self._on_event, PoolEvent(kind, kernel_id, **facts))

    def _deliver(self, on_event: Callable[[PoolEvent], object], event: PoolEvent) -> None:
        self._untold -= 1
        if not self.owner.forked:  # else the parent and the child would both report it
            on_event(event)

    def _await_events(self) -> None:
        told = Parking(self.owner)
        is_told: list[bool] = []

        def note() -> None:
            is_told.append(True)
            told.wake()

        self._callbacks.add(note)
        deadline = Deadline(LAST_EVENTS_WAIT_S)
        while not is_told and not deadline.is_over:
            told.wait(deadline)
        self._callbacks.stop()


def _listed(entry: PoolEntry, now: float) -> PooledKernel:
    process = None if entry.kernel is None else entry.kernel.process
    pid = None if process is None else process.pid
    return PooledKernel(entry.kernel_id, entry.state, pid, entry.uses, now - entry.began)


def _as_error(exc: BaseException) -> Exception:
    """The error for callers: a KClientError as it is; any other, for example a gevent.Timeout, as a LaunchError."""
    if isinstance(exc, KClientError):
        return exc
    error = LaunchError(f"cannot start the kernel: {type(exc).__name__}: {exc}")
    error.__cause__ = exc
    return error
