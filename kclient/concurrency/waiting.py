"""How a greenlet waits, and how it is woken. Everything that blocks in kclient blocks in `Parking.wait`."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from gevent import getcurrent
from gevent.hub import Waiter

from kclient.concurrency import sigint
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.errors import InvalidState

READABLE: Final = 1
"""The event mask of libev for a descriptor that can be read. The other loops of gevent use the same number."""

TURN_S: Final = 0.001
"""Seconds for which a socket may be read before the loop must turn."""


def weakly(method: Callable[..., object]) -> Callable[..., None]:
    """`method`, for a watcher of the loop. The watcher does not keep the method's object alive."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        target = reference()
        if target is not None:
            target(*args)

    return call


CALL_AGAIN_S: Final = 0.001
"""A `Timer` makes its call again after so long, if a Ctrl-C ended it."""


class Timer:
    """Calls `method` once, some time after `set`. The loop does not keep the method's object alive.

    A Ctrl-C that is raised before the call has ended, in any line of it, does not lose the call: it is made again.
    """

    __slots__ = ("_call", "_is_calling", "_owner", "_timer")

    def __init__(self, owner: Owner, method: Callable[..., object]) -> None:
        self._owner = owner
        self._call = weakly(method)
        self._timer: Any = None
        self._is_calling = False

    @property
    def is_set(self) -> bool:
        """True from `set` until the call begins, or `cancel`."""
        timer = self._timer
        return timer is not None and timer.active and not self._is_calling

    def set(self, seconds: float, *args: object) -> None:
        """Call `method(*args)` in `seconds` from now. A call that was asked for earlier is cancelled."""
        # A new timer: one that has fired, started again, fires at once. It goes ahead before the old one is stopped, so
        # that a Ctrl-C between these lines leaves one of both; one that is not `self._timer` stops itself.
        old, timer = self._timer, self._owner.hub.loop.timer(max(0.0, seconds), CALL_AGAIN_S)
        timer.start(self._fire, timer, args, update=True)
        self._timer, self._is_calling = timer, False
        _close(old)

    def cancel(self) -> None:
        """Do not call, if it has not happened yet."""
        timer, self._timer, self._is_calling = self._timer, None, False
        _close(timer)

    def _fire(self, timer: Any, args: tuple[object, ...]) -> None:
        """Runs every `CALL_AGAIN_S` until it stops `timer`. A Ctrl-C that is raised here prevents that."""
        if self._timer is not timer:  # a Ctrl-C came in `set` or `cancel`
            _close(timer)
            return
        self._is_calling = True
        try:
            if not self._owner.forked:  # a forked child inherits the parent's timers, and must not act on them
                self._call(*args)
        except Exception:
            self._end(timer)
            raise
        self._end(timer)

    def _end(self, timer: Any) -> None:
        if self._timer is timer:  # else the call has set another
            self.cancel()


def _close(timer: Any) -> None:
    if timer is not None:
        timer.stop()
        timer.close()


def until_done(owner: Owner, function: Callable[[], object]) -> Callable[..., None]:
    """Returns a callable for a watcher or an Event. It has the loop call `function` until a call has ended.

    A call that a Ctrl-C ends is made again after `CALL_AGAIN_S`. On libev the callable runs no line of Python, so that
    no Ctrl-C is raised in it, and the loop does not stop its watcher.
    """
    timer = owner.hub.loop.timer(0.0, CALL_AGAIN_S)

    def call(*args: object) -> None:
        is_held = sigint.hold(owner.hub)
        try:
            function()
            timer.stop()
        except Exception:
            timer.stop()
            raise
        finally:
            if is_held:
                sigint.release(owner.hub)

    return partial(timer.start, call)


def switch_soon(waiters: list[Waiter[bool]]) -> None:
    """Let `waiters` go on at the loop's next turn. A waiter that has gone on already is not disturbed."""
    for waiter in waiters:
        waiter.hub.loop.run_callback(waiter.switch, True)


class Parking:
    """Greenlets that wait for something to change, until `wake` is called."""

    __slots__ = ("_owner", "_waiters")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._waiters: list[Waiter[bool]] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def wait(self, deadline: Deadline) -> bool:
        """Park this greenlet until `wake` (True) or until the deadline is over (False).

        A KeyboardInterrupt during the wait is raised here, in the main greenlet of the main thread.
        """
        left = deadline.left()
        if left == 0:
            return False
        hub = self._owner.hub
        if getcurrent() is hub:
            raise InvalidState("a blocking call in the hub: it would stop every greenlet; spawn one for it")
        waiter: Waiter[bool] = Waiter(hub)
        self._waiters.append(waiter)
        timer = None
        if left is not None and left < math.inf:
            timer = hub.loop.timer(left)
            timer.start(waiter.switch, False, update=True)
        try:
            return sigint.wait(waiter, hub)
        finally:
            if timer is not None:
                timer.stop()
                timer.close()
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def wake(self, cause: object = None) -> None:
        """Let every parked greenlet go on, whatever the cause."""
        if self._waiters:
            waiters, self._waiters = self._waiters, []
            woken = self._owner.wakeups.woken
            if woken is None:
                switch_soon(waiters)
            else:
                woken += waiters
