"""The end of a child process as an event in a gevent hub, with its exit code; it takes its process group along."""

from __future__ import annotations

import os
import struct
import sys
from contextlib import suppress
from signal import SIG_DFL, SIGCHLD, SIGKILL, getsignal
from typing import Any, Final

from gevent.event import Event
from gevent.hub import Hub

from kclient.concurrency.owner import Owner
from kclient.concurrency.unpatched import allocate_lock, close, is_patched, start_new_thread, waitpid
from kclient.concurrency.waiting import READABLE

_PIDFD_GET_INFO: Final = 0xC040FF0B
"""_IOWR(0xFF, 11, struct pidfd_info) of <linux/pidfd.h>."""

_PIDFD_INFO_EXIT: Final = 1 << 3
"""Asks for the exit code, which Linux 6.15 and later keep for as long as the pidfd is open."""

_PIDFD_INFO: Final = struct.Struct("QQ11Ii")
"""mask, cgroupid, eleven ids of process and users, and the exit code in the form of waitpid(2)."""


class ExitWatcher:
    """Watches a child and reaps it: `exited` is set in the owner's hub when it has ended, then `exit_code` is known.

    What is left of the process group that the child leads gets a SIGKILL then. A process that has left for a session
    or a group of its own is on its own.

    There is nothing to close: what it holds goes with the child. `exit_code` is negative for a signal; it stays None
    if another part of the program reaped the child first, and neither gevent nor Linux can tell what that part saw.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exited = Event()
        self.exit_code: int | None = None
        self._owner = Owner()
        self._thread_is_done = False
        self._by_gevent = _watch_by_gevent(pid, self._owner.hub)
        self._pidfd = open_pidfd(pid)
        loop = self._owner.hub.loop
        self._watcher: Any = loop.async_() if self._pidfd is None else loop.io(self._pidfd, READABLE)
        self._watcher.start(self._on_exit)
        if self._pidfd is None:
            self._start_thread()

    def has_ended(self) -> bool:
        """True if the process has ended, seen now, without a turn of the loop; from any thread."""
        if self.exited.is_set() or self._owner.forked:
            return self.exited.is_set()
        if self._pidfd is None:
            return self._thread_is_done
        ended = self._look(self._pidfd)
        if ended and self._owner.is_here:
            self._settle()
        return ended

    def signal_group(self, signum: int) -> None:
        """Signal the process group that the child leads; not once it has ended, and not from a forked process.

        So no other process can have its pid: a child keeps that until it is reaped, which happens in this hub only.
        (Where a thread stands in, it is reaped there, some microseconds before the hub can know.)
        """
        if not self._owner.forked and not self.has_ended():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signum)

    def _look(self, pidfd: int) -> bool:
        """Reap the child if it has ended, and end its group; from another thread only look, lest two take its code."""
        options = os.WEXITED | os.WNOHANG
        try:
            found = os.waitid(os.P_PIDFD, pidfd, options | os.WNOWAIT)
            if found is None or not self._owner.is_here:
                return found is not None
            self.exit_code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            _kill_group(self.pid)  # nobody else can have the number of a child that is not reaped
            os.waitid(os.P_PIDFD, pidfd, options)
        except OSError:  # another part of the program has reaped it, or the hub has and closed the pidfd
            if self._owner.is_here:
                if self.exit_code is None:
                    self.exit_code = self._code_seen_by_gevent()
                kill_group_of_reaped(self.pid)
        return True

    def _on_exit(self) -> None:
        if self._owner.forked:  # a fork takes the pidfd and its watcher along, which would fire for ever
            self._watcher.stop()
        elif self._pidfd is None or self._look(self._pidfd):
            self._settle()

    def _settle(self) -> None:
        """Finish, but if gevent may have reaped the child let it speak first: on libuv it does so a bit later."""
        if self.exit_code is None and self._by_gevent is not None:
            self._watcher.stop()
            self._owner.hub.loop.run_callback(self._finish)
        else:
            self._finish()

    def _finish(self) -> None:
        if self.exited.is_set():
            return
        if self.exit_code is None:
            self.exit_code = self._code_seen_by_gevent()
        if self.exit_code is None and self._pidfd is not None:
            self.exit_code = code_kept_by_linux(self._pidfd)
        for watcher in (self._watcher, self._by_gevent):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        if self._pidfd is not None:
            close(self._pidfd)
        self.exited.set()

    def _start_thread(self) -> None:
        begun = allocate_lock()
        begun.acquire()
        start_new_thread(self._wait_in_thread, (begun,))
        begun.acquire()  # CPython may crash if the program ends while a thread begins

    def _wait_in_thread(self, begun: Any) -> None:
        begun.release()
        try:
            self.exit_code = os.waitstatus_to_exitcode(waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self.exit_code = self._code_seen_by_gevent()
        kill_group_of_reaped(self.pid)
        self._thread_is_done = True
        with suppress(ValueError):  # the hub was destroyed: nobody waits there any more
            self._watcher.send()

    def _code_seen_by_gevent(self) -> int | None:
        watcher = self._by_gevent
        return os.waitstatus_to_exitcode(watcher.rstatus) if watcher is not None and watcher.rpid == self.pid else None


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nobody is left, or only processes of another user
        os.killpg(pid, SIGKILL)


def kill_group_of_reaped(pid: int) -> None:
    """End what is left of the group of a leader that has been reaped already.

    The system gives no process a number that is still a group's. So while no process has it the group is the old one;
    if one has, the old group is gone.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        _kill_group(pid)
    except PermissionError:  # another user's process has the number
        pass


def end_child(pid: int) -> int | None:
    """Kill a child and reap it, which takes a millisecond; returns its exit code, None if somebody else has that."""
    try:
        found, status = waitpid(pid, os.WNOHANG)
        if not found:  # so the number is still its own
            os.kill(pid, SIGKILL)
            status = waitpid(pid, 0)[1]
    except ChildProcessError:  # gevent's SIGCHLD handler has reaped it
        return None
    return os.waitstatus_to_exitcode(status)


def _watch_by_gevent(pid: int, hub: Hub) -> Any:
    """A child watcher that keeps the status if gevent reaps the child, or None where gevent does not.

    gevent's SIGCHLD handler is there for good from the first use of gevent.subprocess or gevent.os.fork on. It reaps
    every child of the process, whoever started it. So do not install it where it is not to be expected, since the
    standard subprocess loses its exit codes then; it works for the default loop only, the one of the main thread.
    """
    if not hub.loop.default or not (_is_patched() or _has_foreign_sigchld_handler()):
        return None
    watcher = hub.loop.child(pid, ref=False)
    watcher.start(lambda: None)
    return watcher


def _is_patched() -> bool:
    return is_patched("subprocess", "Popen") or is_patched("os", "fork")


def _has_foreign_sigchld_handler() -> bool:
    """True if SIGCHLD has a handler that Python knows nothing of: libev's. Linux only, see proc_pid_status(5)."""
    if getsignal(SIGCHLD) not in (SIG_DFL, None):
        return False
    with suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"SigCgt:"):
                return bool(int(line.split()[1], 16) >> (SIGCHLD - 1) & 1)
    return False


def open_pidfd(pid: int) -> int | None:
    """A pidfd that can be waited for, or None where there is no such thing."""
    try:
        pidfd = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux; Linux before 5.3, a sandbox, no fd left
        return None
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return pidfd
    except (AttributeError, OSError):  # Linux 5.3 can open but not wait for one
        close(pidfd)
        return None
    return pidfd


def code_kept_by_linux(pidfd: int) -> int | None:
    if sys.platform != "linux":
        return None
    import fcntl

    info = bytearray(_PIDFD_INFO.size)
    _PIDFD_INFO.pack_into(info, 0, _PIDFD_INFO_EXIT, *[0] * 13)
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    mask, *_, status = _PIDFD_INFO.unpack(info)
    return os.waitstatus_to_exitcode(status) if mask & _PIDFD_INFO_EXIT else None
