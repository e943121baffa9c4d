"""The end of a forked kernel as an event in a gevent hub; the fork server, its parent, tells of its exit code."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EINVAL
from select import POLLHUP, POLLIN
from signal import SIGKILL, pidfd_send_signal
from typing import TYPE_CHECKING, Any, Final

from gevent.event import Event

from kclient.concurrency.owner import Owner
from kclient.concurrency.unpatched import close, new_poll
from kclient.concurrency.waiting import READABLE
from kclient.kernels.process.exit_watcher import code_kept_by_linux, kill_group_of_reaped

if TYPE_CHECKING:
    from kclient.kernels.forkserver.server import ServerProcess

_TO_GROUP: Final = 1 << 2
"""PIDFD_SIGNAL_PROCESS_GROUP, of Linux 6.9 and later."""

_REAPED: Final = 0.05
"""Seconds for the system to reap a kernel that has no fork server any more."""


class ForkedExitWatcher:
    """What ExitWatcher is for a child, for a kernel that is a child of the fork server at the end of `line`.

    `leash` is the pipe that ends the kernel when it is closed, here or by the end of this process. `exit_code` stays
    None if the server has ended, too, and Linux does not keep it (it does from 6.15 on).
    """

    def __init__(self, line: ServerProcess, pid: int, pidfd: int, leash: int) -> None:
        self.pid = pid
        self.exited = Event()
        self.exit_code: int | None = None
        self._line = line
        self._pidfd = pidfd
        self._leash = leash
        self._owner = Owner()
        self._watcher: Any = self._owner.hub.loop.io(pidfd, READABLE)
        self._watcher.start(self._on_exit)

    def has_ended(self) -> bool:
        """True if the process has ended, seen now, without a turn of the loop; from any thread."""
        if self.exited.is_set() or self._owner.forked:
            return self.exited.is_set()
        ended = has_event(self._pidfd, POLLIN)
        if ended and self._owner.is_here:
            self._watcher.stop()
            self._line.reap(self, at_once=True)
        return ended

    def signal_group(self, signum: int) -> None:
        """Signal the process group that the kernel leads; not once it has ended, and not from a forked process.

        So no other process can have its pid: the server keeps that until it is asked to reap.
        """
        if not self._owner.forked and not self.has_ended():
            with suppress(ProcessLookupError):
                if not _signal_group(self._pidfd, signum):
                    os.killpg(self.pid, signum)

    def settle(self, exit_code: int | None) -> None:
        """The process has been reaped, with that exit code; None if only the system may know it."""
        if self.exited.is_set():
            return
        if exit_code is None:
            with suppress(ProcessLookupError, PermissionError):
                if not _signal_group(self._pidfd, SIGKILL):
                    kill_group_of_reaped(self.pid)
            has_event(self._pidfd, POLLHUP, _REAPED)
            exit_code = code_kept_by_linux(self._pidfd)
        self.exit_code = exit_code
        self._watcher.stop()
        self._watcher.close()
        close(self._pidfd)
        self.let_go()
        self.exited.set()

    def let_go(self) -> None:
        """Close the leash: after the end, or in a forked child, which is nobody to hold it."""
        leash, self._leash = self._leash, -1
        if leash >= 0:
            close(leash)

    def _on_exit(self) -> None:
        self._watcher.stop()
        if not self._owner.forked:
            self._line.reap(self)


def _signal_group(pidfd: int, signum: int) -> bool:
    """Signal the group of that leader, also of one that has ended; False where Linux is too old for it."""
    try:
        pidfd_send_signal(pidfd, signum, None, _TO_GROUP)
    except OSError as exc:
        if exc.errno != EINVAL:
            raise
        return False
    return True


def has_event(pidfd: int, event: int, wait: float = 0.0) -> bool:
    """True if the pidfd tells of an end (POLLIN), or that the process has been reaped as well (POLLHUP)."""
    poll = new_poll()
    poll.register(pidfd, event)
    return bool(poll.poll(wait * 1000))
