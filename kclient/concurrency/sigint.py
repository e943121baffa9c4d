"""Ctrl-C, delivered to the main greenlet where that waits, and never half-way through a message or a call.

Python's own handler raises KeyboardInterrupt wherever the main thread happens to be: between two frames, between a
request and the note of who awaits its reply, or in the hub, which prints it. While a call is under way or a socket is
used, ours stands in: a Ctrl-C is raised at the call's next wait, or when it ends. A handler of the user's own is left
alone.
"""

from __future__ import annotations

import os

# The functions of `signal` wrap these at 14 times the price: 6.8 us a wait instead of 0.5.
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIGINT,
    SIGURG,
    default_int_handler,
    getsignal,
    set_wakeup_fd,
)
from _signal import signal as set_handler
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

from gevent import getcurrent
from gevent.hub import Hub, Waiter


class Wakeup:
    """A pipe that wakes the loop of `hub` when a signal comes.

    Without it a signal that comes just before the loop goes to sleep is not seen until something else wakes it.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._out, self.fd = os.pipe()
        for end in (self._out, self.fd):
            os.set_blocking(end, False)
        self._watcher = hub.loop.io(self._out, 1, ref=False)
        self._watcher.start(self._empty)

    def _empty(self) -> None:
        with suppress(BlockingIOError):  # a forked child, whose pipe it is as well, was faster
            os.read(self._out, 4096)

    def close(self) -> None:
        """Give the pipe back, when the main thread has a new hub."""
        os.close(self._out)
        os.close(self.fd)


_wakeup: Wakeup | None = None
_came: object = None
"""The greenlet that ran, and held it, when a Ctrl-C came."""

_holders: set[object] = set()
"""The greenlets that hold a Ctrl-C: another one must neither end that for them nor, while they wait, begin it again."""

_getsig: Callable[[int], int | None] | None = None
_handler_of_python: int | None = None


def hold(hub: Hub) -> bool:
    """Put off a Ctrl-C until this greenlet waits, or `release`; False if that is so already, or is not ours to do."""
    me = getcurrent()
    if me in _holders or not hub.loop.default:
        return False
    handler = getsignal(SIGINT)
    if handler is default_int_handler and _is_pythons():
        set_handler(SIGINT, _note)
    elif handler is not _note:
        return False
    _holders.add(me)  # last: whoever is among them must be released
    return True


def release(hub: Hub) -> None:
    """End `hold`. A Ctrl-C that has come since is raised here or, if this is not the main greenlet, there."""
    _holders.discard(getcurrent())
    if not _holders and getsignal(SIGINT) is _note:
        set_handler(SIGINT, default_int_handler)
    if _came is not None:
        _raise_what_came(hub)


def holds() -> bool:
    """True if this greenlet holds a Ctrl-C."""
    return getcurrent() in _holders


def _note(signum: int, frame: FrameType | None) -> None:
    """Note a Ctrl-C for later; but if who holds it waits for something else than kclient, there is nothing to spare."""
    global _came
    me = getcurrent()
    if me not in _holders:
        default_int_handler(signum, frame)
    _came = me


def _raise_what_came(hub: Hub) -> None:
    global _came
    me = getcurrent()
    if _came is not me:
        return
    _came = None
    if me.parent is None:
        raise KeyboardInterrupt
    hub.loop.run_callback(hub.handle_system_error, KeyboardInterrupt, KeyboardInterrupt())


def wait(waiter: Waiter[bool], hub: Hub) -> bool:
    """`waiter.get()`; in the main greenlet of the main thread a Ctrl-C ends it with KeyboardInterrupt.

    Handlers of the user's own, of whatever signal, run as soon as it comes.
    """
    if not hub.loop.default:
        return bool(waiter.get())
    if getcurrent().parent is not None:
        return _wait_elsewhere(waiter, hub)
    handler = getsignal(SIGINT)
    stands_in = handler is _note or (handler is default_int_handler and _is_pythons())
    # Lists, since whoever traces this function, a debugger say, sets its variables back (bpo-30744).
    interrupts: list[int] = []
    is_over: list[bool] = []

    def on_sigint(signum: int, frame: FrameType | None) -> None:
        if is_over:  # somebody found this handler during the wait, and has put it back
            default_int_handler(signum, frame)
        interrupts.append(signum)
        hub.loop.run_callback(waiter.switch, False)

    new_fd = _wakeup_fd(hub)
    if stands_in:
        set_handler(SIGINT, on_sigint)
    old_fd = set_wakeup_fd(new_fd, warn_on_full_buffer=False)
    if old_fd != -1:
        set_wakeup_fd(old_fd)
    try:
        if _came is not None:
            _raise_what_came(hub)
        woken = bool(waiter.get())
    finally:
        if old_fd == -1:
            set_wakeup_fd(-1)
        if stands_in and getsignal(SIGINT) is on_sigint:
            set_handler(SIGINT, _note if _holders else default_int_handler)
        is_over.append(True)
    if interrupts:
        raise KeyboardInterrupt
    return woken


def _wait_elsewhere(waiter: Waiter[bool], hub: Hub) -> bool:
    """While another greenlet waits, a Ctrl-C is none of its business."""
    if not holds():
        return bool(waiter.get())
    release(hub)
    try:
        return bool(waiter.get())
    finally:
        hold(hub)


def _is_pythons() -> bool:
    """False if `gevent.signal_handler` has taken the signal over, of which Python knows nothing."""
    if _getsig is None:
        _learn()
    return _getsig is None or _getsig(SIGINT) == _handler_of_python


def _learn() -> None:
    """What the operating system calls for a signal that Python handles: the same for all of them."""
    global _getsig, _handler_of_python
    import ctypes  # takes 5 ms, once

    getsig = ctypes.pythonapi.PyOS_getsig
    getsig.restype, getsig.argtypes = ctypes.c_void_p, [ctypes.c_int]
    old = set_handler(SIGURG, _note)
    _handler_of_python = getsig(SIGURG)
    set_handler(SIGURG, SIG_DFL if old is None else old)
    _getsig = getsig


def _wakeup_fd(hub: Hub) -> int:
    """Of the pipe, made when first needed; -1 if no descriptor is left: a Ctrl-C is then seen with the next event."""
    global _wakeup
    if _wakeup is None or _wakeup.hub is not hub:
        if _wakeup is not None:
            _wakeup.close()
            _wakeup = None
        try:
            _wakeup = Wakeup(hub)
        except OSError:
            return -1
    return _wakeup.fd
