"""The end of a forked kernel as an event in a gevent hub. The exit code comes from its parent, the fork server."""

from __future__ import annotations

import os
from contextlib import suppress
from errno import EINVAL
from select import POLLHUP, POLLIN
from signal import SIGKILL, pidfd_send_signal
from typing import Any, Final, Protocol

from gevent.event import Event

from kclient.concurrency.owner import Owner
from kclient.concurrency.unpatched import close, new_poll
from kclient.concurrency.waiting import READABLE, until_done
from kclient.kernels.process.exit_watcher import code_kept_by_linux, kill_group_of_reaped, reap_group

_TO_GROUP: Final = 1 << 2
"""PIDFD_SIGNAL_PROCESS_GROUP, of Linux 6.9 and later."""

_REAP_WAIT_S: Final = 0.05
"""Seconds for the system to reap a kernel whose fork server has ended."""

NO_PIPE: Final = -1
"""In place of the keep-alive pipe's descriptor once the pipe is closed, or has another owner."""


class Reaper(Protocol):
    """The parent of a forked kernel, as `ServerProcess` is one."""

    def reap(self, watcher: ForkedExitWatcher, *, at_once: bool = False) -> None:
        """The kernel has ended: settle its watcher, before this returns if `at_once` and the parent answers soon."""


class ForkedExitWatcher:
    """Watches a kernel that is a child of the process of `server`, as ExitWatcher watches a child of this process.

    `keep_alive_pipe` is the write end of a pipe. The kernel is killed when it is closed, here or by the end of this
    process. `exit_code` stays None if the server has ended, too, and Linux does not keep it (it does from 6.15 on).
    """

    def __init__(self, server: Reaper, pid: int, pidfd: int, keep_alive_pipe: int) -> None:
        self.pid = pid
        self.exited = Event()
        self.exit_code: int | None = None
        self._server = server
        self._pidfd = pidfd
        self._keep_alive_pipe = keep_alive_pipe
        self._is_let_go = self._is_freed = False
        self._owner = Owner()
        self._owner.at_thread_end(self._at_thread_end)
        self._watcher: Any = self._owner.hub.loop.io(pidfd, READABLE)
        self._watcher.start(until_done(self._owner, self._on_exit))

    def has_ended(self) -> bool:
        """True if the process has ended, seen now, without a turn of the loop; from any thread."""
        if self.exited.is_set() or self._owner.forked:
            return self.exited.is_set()
        if self._is_freed:
            return True
        ended = has_event(self._pidfd, POLLIN)
        if ended and self._owner.is_here:
            with self._owner.call():
                self._server.reap(self, at_once=True)
        return ended

    def signal_group(self, signum: int) -> None:
        """Signal the process group that the kernel leads; not after its end, and not from a forked process.

        No other process can have the kernel's pid then: it stays the kernel's own until the server is asked to reap.
        """
        if not self._owner.forked and not self.has_ended():
            with suppress(ProcessLookupError):
                if not _signal_group(self._pidfd, signum):
                    os.killpg(self.pid, signum)

    def let_go(self) -> None:
        """The program needs the kernel no more, and has killed it if it had not ended. It is still reaped.

        If the thread of the watcher has ended, or ends, this frees there and then what it holds.
        """
        self._is_let_go = True
        if self._owner.is_gone:
            self._free()

    def _at_thread_end(self) -> None:
        if self._is_let_go:
            self._free()

    def _free(self) -> None:
        if not self._is_freed and not self.exited.is_set():
            self._is_freed = True
            self.close_pipe()
            close(self._pidfd)

    def settle(self, exit_code: int | None) -> None:
        """The process has been reaped, with that exit code. If it is None, the server does not know; ask the system."""
        if self.exited.is_set():
            return
        if exit_code is None:
            with suppress(ProcessLookupError, PermissionError):
                if not _signal_group(self._pidfd, SIGKILL):
                    kill_group_of_reaped(self.pid)
            has_event(self._pidfd, POLLHUP, _REAP_WAIT_S)
            exit_code = code_kept_by_linux(self._pidfd)
        reap_group(self.pid)
        self.exit_code = exit_code
        self._watcher.stop()
        self._watcher.close()
        close(self._pidfd)
        self.close_pipe()
        self.exited.set()

    def close_pipe(self) -> None:
        """Close the keep-alive pipe: after the kernel's end, to bring that about, or a forked child's copy of it."""
        pipe, self._keep_alive_pipe = self._keep_alive_pipe, NO_PIPE
        if pipe != NO_PIPE:
            close(pipe)

    def _on_exit(self) -> None:
        if self.exited.is_set():
            return
        if not self._owner.forked:
            self._server.reap(self)
        self._watcher.stop()  # last: after a Ctrl-C before this line the loop calls again


def _signal_group(pidfd: int, signum: int) -> bool:
    """Signal the group of that leader, also of one that has ended. Returns False where Linux is too old for that."""
    try:
        pidfd_send_signal(pidfd, signum, None, _TO_GROUP)
    except OSError as exc:
        if exc.errno != EINVAL:
            raise
        return False
    return True


def has_event(descriptor: int, event: int, seconds: float = 0.0) -> bool:
    """True if the event has come by then. Of a pidfd, POLLIN is the end, POLLHUP that the process has been reaped."""
    poll = new_poll()
    poll.register(descriptor, event)
    return bool(poll.poll(seconds * 1000))
