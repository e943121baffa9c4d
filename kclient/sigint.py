"""Ctrl-C, delivered to the main greenlet where that waits, and never half-way through a message or a call.

Python's own handler raises KeyboardInterrupt wherever the main thread happens to be: between two frames, between a
request and the note of who awaits its reply, or in the hub, which prints it. While a call is under way or a socket is
used, ours stands in: a Ctrl-C is raised at the call's next wait, or when it ends. A handler of the user's own is left
alone.
"""

from __future__ import annotations

import os

# The functions of `signal` wrap these at 14 times the price: 6.8 us a wait instead of 0.5.
from _signal import SIGINT, default_int_handler, getsignal, set_wakeup_fd  # type: ignore[import-not-found]
from _signal import signal as set_handler
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
_came = False
_is_held = False


def hold(hub: Hub) -> bool:
    """Put off a Ctrl-C until the next wait, or `release`; False if that is so already, or is not ours to do."""
    global _came, _is_held
    if getsignal(SIGINT) is not default_int_handler or not hub.loop.default:
        return False
    _came, _is_held = False, True
    set_handler(SIGINT, _note)
    return True


def release(hub: Hub) -> None:
    """End `hold`. A Ctrl-C that has come since is raised here or, if this is not the main greenlet, there."""
    global _is_held
    if getsignal(SIGINT) is _note:
        set_handler(SIGINT, default_int_handler)
    _is_held = False
    if _came:
        _raise_what_came(hub)


def pause(hub: Hub) -> bool:
    """End `hold` for a function of the user's; True if there was one, which `hold` then begins again."""
    if getsignal(SIGINT) is not _note or not hub.loop.default:
        return False
    release(hub)
    return True


def _note(signum: int, frame: FrameType | None) -> None:
    global _came
    if not _is_held:  # somebody found this handler during a call, and has put it back
        default_int_handler(signum, frame)
    _came = True


def _raise_what_came(hub: Hub) -> None:
    global _came
    _came = False
    if getcurrent().parent is None:
        raise KeyboardInterrupt
    hub.loop.run_callback(hub.handle_system_error, KeyboardInterrupt, KeyboardInterrupt())


def wait(waiter: Waiter[bool], hub: Hub) -> bool:
    """`waiter.get()`; in the main greenlet of the main thread a Ctrl-C ends it with KeyboardInterrupt.

    Handlers of the user's own, of whatever signal, run as soon as it comes.
    """
    handler = getsignal(SIGINT)
    if not hub.loop.default:
        return bool(waiter.get())
    if getcurrent().parent is not None:
        return _wait_elsewhere(waiter, hub, handler)
    if _came and handler is _note:
        _raise_what_came(hub)
    stands_in = handler is default_int_handler or handler is _note
    is_interrupted = is_over = False

    def on_sigint(signum: int, frame: FrameType | None) -> None:
        nonlocal is_interrupted
        if is_over:  # somebody found this handler during the wait, and has put it back
            default_int_handler(signum, frame)
        is_interrupted = True
        hub.loop.run_callback(waiter.switch, False)

    new_fd = _wakeup_fd(hub)
    if stands_in:
        set_handler(SIGINT, on_sigint)
    old_fd = set_wakeup_fd(new_fd, warn_on_full_buffer=False)
    if old_fd != -1:
        set_wakeup_fd(old_fd)
    try:
        woken = bool(waiter.get())
    finally:
        if old_fd == -1:
            set_wakeup_fd(-1)
        if stands_in and getsignal(SIGINT) is on_sigint:
            set_handler(SIGINT, handler)
        is_over = True
    if is_interrupted:
        raise KeyboardInterrupt
    return woken


def _wait_elsewhere(waiter: Waiter[bool], hub: Hub, handler: object) -> bool:
    """While another greenlet waits, a Ctrl-C is none of its business."""
    if handler is not _note:
        return bool(waiter.get())
    release(hub)
    try:
        return bool(waiter.get())
    finally:
        hold(hub)


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
