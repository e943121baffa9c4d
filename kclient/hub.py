"""One hub, one owner, one budget: who may call, and how a greenlet waits.

Everything that blocks in kclient blocks in `Parking.wait`.
"""

from __future__ import annotations

import atexit
import math
import os
import sys
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from time import monotonic
from typing import Any, Final, TypeVar

from gevent import get_hub, getcurrent
from gevent._hub_local import get_hub_if_exists  # get_hub() would make a hub in a foreign thread
from gevent.hub import Hub, Waiter

from kclient import sigint
from kclient.errors import ForkedProcess, InvalidArgument, InvalidState, WrongThread

_T = TypeVar("_T")

_pid = os.getpid()


def _remember_fork() -> None:
    global _pid
    _pid = os.getpid()


os.register_at_fork(after_in_child=_remember_fork)

FREEZE: Final = 0.1
"""Seconds that the end of the program waits for the hub of a daemon thread to stand still."""

_hubs_of_threads: weakref.WeakSet[Hub] = weakref.WeakSet()


@atexit.register
def _freeze_threads() -> None:
    """Let the hubs of daemon threads stand still: one that wakes while Python goes down crashes the program.

    CPython ends such a thread by unwinding its stack, which with greenlets is not what it takes it for.
    """
    if not _hubs_of_threads:
        return
    from gevent import monkey

    allocate_lock = monkey.get_original("_thread", "allocate_lock")
    running = sys._current_frames()
    for hub in list(_hubs_of_threads):
        if hub.loop is None or hub.thread_ident not in running:
            continue
        stands, never = allocate_lock(), allocate_lock()
        stands.acquire()
        never.acquire()
        hub.loop.run_callback_threadsafe(_stand_still, stands, never)
        stands.acquire(timeout=FREEZE)


def _stand_still(stands: Any, never: Any) -> None:
    stands.release()
    never.acquire()


class _Held(AbstractContextManager[None]):
    """A public call, to its end; one object for all, since to make one takes as long as to hold a Ctrl-C."""

    __slots__ = ("_hub",)

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        sigint.release(self._hub)


_NOT_HELD: Final = nullcontext()


class Owner:
    """The hub and the process that made an object, the only ones that may use it.

    A thread id would not do: after ``monkey.patch_all()`` it differs for each greenlet.
    """

    __slots__ = ("_held", "_pid", "hub", "wakeups")

    def __init__(self) -> None:
        self.hub: Hub = get_hub()
        self.wakeups = _wakeups_of(self.hub)
        self._held = _Held(self.hub)
        self._pid = _pid
        if not self.hub.loop.default:
            _hubs_of_threads.add(self.hub)

    def check(self) -> None:
        """Raise ForkedProcess or WrongThread if the caller is not in the owner's hub."""
        if get_hub_if_exists() is not self.hub or self._pid != _pid:
            self._refuse()

    def _refuse(self) -> None:
        if self._pid != _pid:
            raise ForkedProcess("made before a fork: sockets do not survive it; make a new one in the child")
        raise WrongThread("made in another thread, which alone may use it; make one of your own in this thread")

    def call(self) -> AbstractContextManager[None]:
        """`check`, and for a `with` block put off a Ctrl-C until it waits or ends: nothing is left half done."""
        self.check()
        return self._held if sigint.hold(self.hub) else _NOT_HELD

    @property
    def forked(self) -> bool:
        """True in a forked child, where cleaning up would harm the parent."""
        return self._pid != _pid

    @property
    def is_here(self) -> bool:
        return get_hub_if_exists() is self.hub and self._pid == _pid

    def run_here(self, function: Callable[[], object]) -> None:
        """Run `function` in the owner's hub, from whatever thread (a finalizer runs in any)."""
        if self.forked:
            return
        if self.is_here:
            function()
        elif self.hub.loop is not None:
            self.hub.loop.run_callback_threadsafe(function)


class Deadline:
    """The one budget of a blocking call: `timeout` seconds from now, or None for ever."""

    __slots__ = ("_at", "timeout")

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._at: float | None = None
        if timeout is not None:
            self._at = monotonic() + check_seconds(timeout, "timeout", alternative=", or None")

    def left(self) -> float | None:
        """Seconds left, never negative; None for ever."""
        return None if self._at is None else max(0.0, self._at - monotonic())

    @property
    def is_over(self) -> bool:
        return self._at is not None and monotonic() >= self._at

    def half(self) -> Deadline:
        """A deadline for one step of the call, which leaves as much for the others."""
        left = self.left()
        return Deadline(None if left is None else left / 2)

    def at_most(self, seconds: float) -> Deadline:
        """A deadline for one step of the call: `seconds` from now, or this one if it is sooner."""
        left = self.left()
        return Deadline(seconds if left is None else min(seconds, left))


def check_seconds(seconds: Any, name: str, *, alternative: str = "") -> float:
    """`seconds` if it is a number, 0 or more; else raises InvalidArgument."""
    if isinstance(seconds, (int, float)) and not isinstance(seconds, bool):
        with suppress(OverflowError):
            number = float(seconds)
            if number >= 0:
                return number
    raise InvalidArgument(f"{name} must be a number of seconds, 0 or more{alternative}; not {seconds!r}")


SPIN_AT_MOST: Final = 1.0
"""Seconds; while a call spins, every other greenlet stands still."""


def check_spin(seconds: Any) -> float:
    """`seconds` if it is a number from 0 to SPIN_AT_MOST; else raises InvalidArgument."""
    if check_seconds(seconds, "spin") > SPIN_AT_MOST:
        raise InvalidArgument(f"spin must be at most {SPIN_AT_MOST:g} s, for which other greenlets stand still")
    return float(seconds)


def check_callback(function: _T, name: str) -> _T:
    if function is not None and not callable(function):
        raise InvalidArgument(f"{name} must be a function or None, not {function!r}")
    return function


def as_deadline(timeout: Timeout) -> Deadline:
    """The deadline of a call, which may be one step of another that has one already."""
    return timeout if isinstance(timeout, Deadline) else Deadline(timeout)


Timeout = float | Deadline | None
"""Seconds for the whole call, or None to wait for ever; a Deadline is passed only within kclient."""

_in_callback: set[object] = set()


def call_back(function: Callable[..., _T], *args: Any) -> _T:
    """Run a user's callback in this greenlet, which is then known to be in one; a Ctrl-C hits it as any other code."""
    me = getcurrent()
    is_outermost = me not in _in_callback
    hub = get_hub()
    was_held = sigint.holds()
    try:
        _in_callback.add(me)
        try:
            if was_held:
                sigint.release(hub)
            return function(*args)
        finally:
            if was_held:
                sigint.hold(hub)
    finally:  # also after a Ctrl-C just before the hold
        if is_outermost:
            _in_callback.discard(me)


def in_callback() -> bool:
    """True in a greenlet that runs a user's callback, which must not wait for what comes after it."""
    return getcurrent() in _in_callback


def weakly(method: Callable[..., object]) -> Callable[..., None]:
    """`method`, for a watcher of the loop, which shall not keep the object alive."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        target = reference()
        if target is not None:
            target(*args)

    return call


class Alarm:
    """Calls `method` once, some time after `set`; the loop does not keep the method's object alive."""

    __slots__ = ("_call", "_hub", "_pid", "_timer")

    def __init__(self, hub: Hub, method: Callable[..., object]) -> None:
        self._hub = hub
        self._pid = _pid
        self._call = weakly(method)
        self._timer: Any = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, seconds: float, *args: object) -> None:
        """Call `method(*args)` in `seconds` from now, and no earlier call that was asked for."""
        self.cancel()
        # A new timer: one that has fired, started again, fires at once.
        self._timer = self._hub.loop.timer(max(0.0, seconds))
        self._timer.start(self._ring, args, update=True)

    def cancel(self) -> None:
        """Do not call, if it has not happened yet."""
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.stop()
            timer.close()

    def _ring(self, args: tuple[object, ...]) -> None:
        self.cancel()
        if self._pid == _pid:  # a forked child has the parent's timers, and none of its business
            self._call(*args)


class Wakeups:
    """Who is woken in one hub: at the loop's next turn or, while the pump of a wire takes in, by the wire.

    The pump sets `woken` to a list and switches to those in it: that takes 0.5 us, a callback of the loop 3.
    """

    __slots__ = ("woken",)

    def __init__(self) -> None:
        self.woken: list[Waiter[bool]] | None = None


def switch_soon(waiters: list[Waiter[bool]]) -> None:
    """Let `waiters` go on at the loop's next turn; those that have gone on already are not disturbed."""
    for waiter in waiters:
        waiter.hub.loop.run_callback(waiter.switch, True)


_wakeups: weakref.WeakKeyDictionary[Hub, Wakeups] = weakref.WeakKeyDictionary()


def _wakeups_of(hub: Hub) -> Wakeups:
    return _wakeups.setdefault(hub, Wakeups())


class Parking:
    """Greenlets that wait for something to change, until someone says `wake`."""

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
