"""The pipe that wakes the loop of the main thread's hub when a signal comes.

Without it a signal that comes just before the loop goes to sleep is not seen until something else wakes the loop.

A forked child gets a pipe of its own: a signal of the child must not wake the parent. A daemon closes all descriptors,
the pipe as well, and may open others with the same numbers. So the system is asked whether a descriptor is still that
of the pipe: at the first wait in a child, and before the pipe is read or closed.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Final

from gevent.hub import Hub

from kclient.concurrency.unpatched import close

_READ_BYTES: Final = 4096

NO_FD: Final = -1
"""For `signal.set_wakeup_fd`: a signal writes nothing."""


class _WakeupPipe:
    """A pipe whose read end the loop of `hub` watches. Python writes a byte for each signal into `fd`.

    `is_sure` is False in a forked child until it was looked whether the pipe is open.
    """

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self.is_sure = True
        self._out, self.fd = _new_pipe()
        self._identity = _identity(self.fd)
        self._watcher: Any = hub.loop.io(self._out, 1, ref=False)
        self._watcher.start(self._empty)

    def is_open(self) -> bool:
        """True unless other code has closed the pipe."""
        return _identity(self._out) == _identity(self.fd) == self._identity

    def replace(self) -> None:
        """Put another pipe under the same numbers, in a forked child. The loop's watcher need not know of it."""
        self.is_sure = False
        if not self.is_open():
            return
        with suppress(OSError):  # no descriptor is left: the child keeps the parent's pipe
            out, fd = _new_pipe()
            os.dup2(out, self._out, inheritable=False)
            os.dup2(fd, self.fd, inheritable=False)
            close(out)
            close(fd)
            self._identity = _identity(self.fd)

    def close(self) -> None:
        """Close the pipe: the main thread has a new hub, or other code has closed it."""
        if self.hub.loop is not None:  # else the hub was destroyed
            self._watcher.stop()
        if self.is_open():
            close(self._out)
            close(self.fd)

    def _empty(self) -> None:
        if not self.is_open():
            self._watcher.stop()
            return
        with suppress(BlockingIOError):
            os.read(self._out, _READ_BYTES)


def _new_pipe() -> tuple[int, int]:
    out, fd = os.pipe()
    for end in (out, fd):
        os.set_blocking(end, False)
    return out, fd


def _identity(fd: int) -> tuple[int, int] | None:
    """Device and inode: both ends of a pipe have the same; None if nothing is open."""
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


_pipe: _WakeupPipe | None = None


def wakeup_fd(hub: Hub) -> int:
    """The descriptor for `signal.set_wakeup_fd`. The pipe is made when it is first needed.

    Returns NO_FD if no descriptor is left for it: a Ctrl-C is then seen with the next event.
    """
    if _pipe is None or _pipe.hub is not hub:
        return new_wakeup_fd(hub)
    if not _pipe.is_sure:
        if not _pipe.is_open():
            return new_wakeup_fd(hub)
        _pipe.is_sure = True
    return _pipe.fd


def new_wakeup_fd(hub: Hub) -> int:
    """The same, of a new pipe. The former one belongs to another hub, or other code has closed it."""
    global _pipe
    if _pipe is not None:
        _pipe.close()
        _pipe = None
    try:
        _pipe = _WakeupPipe(hub)
    except OSError:
        return NO_FD
    return _pipe.fd


def _replace_in_child() -> None:
    if _pipe is not None:
        _pipe.replace()


os.register_at_fork(after_in_child=_replace_in_child)
