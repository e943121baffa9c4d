"""ExitWatcher: waits for the end of a child process in a gevent hub, reaps it, and kills the rest of its group."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from select import POLLIN
from signal import SIG_DFL, SIGCHLD, SIGKILL, getsignal
from typing import Any, Final

from gevent.event import Event
from gevent.hub import Hub

from kclient.concurrency.owner import Owner
from kclient.concurrency.unpatched import allocate_lock, close, is_patched, new_poll, start_new_thread, waitpid
from kclient.concurrency.waiting import READABLE, until_done

_PIDFD_GET_INFO: Final = 0xC040FF0B
"""_IOWR(0xFF, 11, struct pidfd_info) of <linux/pidfd.h>."""

_PIDFD_INFO_EXIT: Final = 1 << 3
"""Asks for the exit code, which Linux 6.15 and later keep for as long as the pidfd is open."""

LET_GO_S: Final = 1.0
"""Seconds for a child that was killed to end."""

_PIDFD_INFO: Final = struct.Struct("QQ11Ii")
"""mask, cgroupid, eleven ids of process and users, and the exit code in the form of waitpid(2)."""


class ExitWatcher:
    """Watches a child process and reaps it. When it has ended, `exit_code` is set, then `exited` in the owner's hub.

    The child leads a process group. Processes that are left in that group get a SIGKILL then. A process that has moved
    to another session or group lives on.

    `exit_code` is negative for a signal. It stays None if another part of the program has reaped the child first, and
    neither gevent nor Linux has kept the code. There is no `close`: at the end of the child the watcher frees what it
    holds.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.exited = Event()
        self.exit_code: int | None = None
        self._owner = Owner()
        self._thread_is_done = False
        self._by_gevent = _watch_by_gevent(pid, self._owner.hub)
        self._pidfd = open_pidfd(pid)
        self._has_pidfd = self._pidfd is not None
        self._is_reaped = self._is_let_go = False
        self._owner.at_thread_end(self._at_thread_end)
        loop = self._owner.hub.loop
        self._watcher: Any = loop.async_() if self._pidfd is None else loop.io(self._pidfd, READABLE)
        self._watcher.start(until_done(self._owner, self._on_exit))
        if self._pidfd is None:
            _start_thread(self._wait_in_thread)

    def has_ended(self) -> bool:
        """True if the process has ended. The answer is up to date without a turn of the loop; any thread may call."""
        if self.exited.is_set() or self._owner.forked:
            return self.exited.is_set()
        if self._pidfd is None:
            return self._thread_is_done
        if not self._has_pidfd:  # after `_free`
            return True
        ended = _is_dead(self._pidfd)
        if ended and self._owner.is_here:
            with self._owner.call():
                self._settle()
        return ended

    def signal_group(self, signum: int) -> None:
        """Signal the process group that the child leads; does nothing after its end or in a forked process.

        So the signal cannot reach another process with the same pid: a child keeps its pid until it is reaped, and only
        this hub reaps it. (Without a pidfd a thread reaps it, some microseconds before the hub can know.)
        """
        if not self._owner.forked and not self.has_ended():
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signum)

    def let_go(self) -> None:
        """The program needs the child no more, and has killed it if it had not ended. It is still reaped.

        If the thread of the watcher has ended, or ends, it is reaped there and then, if it ends within `LET_GO_S`.
        """
        self._is_let_go = True
        if self._owner.is_gone:
            self._free()

    def _at_thread_end(self) -> None:
        if self._is_let_go:
            self._free()

    def _free(self) -> None:
        pidfd = self._pidfd
        if pidfd is None or not self._has_pidfd or self.exited.is_set():
            return
        poll = new_poll()
        poll.register(pidfd, POLLIN)
        if poll.poll(LET_GO_S * 1000):
            self._reap(pidfd)
            self._has_pidfd = False
            close(pidfd)

    def _on_exit(self) -> None:
        if self._owner.forked:  # a forked process inherits the pidfd and its watcher, which would fire for ever
            self._watcher.stop()
        elif not self.exited.is_set() and (self._is_reaped or self._pidfd is None or _is_dead(self._pidfd)):
            self._settle()

    def _settle(self) -> None:
        """Reap and finish now. If gevent may have reaped the child, finish soon: on libuv its watcher fires later.

        After a Ctrl-C this is called again, and so is `_finish`.
        """
        if self._pidfd is not None and not self._is_reaped:
            self._reap(self._pidfd)
            self._is_reaped = True
        if self.exit_code is None and self._by_gevent is not None:
            until_done(self._owner, self._finish)()
            self._watcher.stop()
        else:
            self._finish()

    def _reap(self, pidfd: int) -> None:
        """Reap the child, which has ended, and kill its group."""
        options = os.WEXITED | os.WNOHANG
        try:
            found = os.waitid(os.P_PIDFD, pidfd, options | os.WNOWAIT)
            if found is not None:
                self.exit_code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            _kill_group(self.pid)  # safe: no other process can have the pid of a child that is not reaped
            os.waitid(os.P_PIDFD, pidfd, options)
        except OSError:  # another part of the program has reaped it
            if self.exit_code is None:
                self.exit_code = self._code_seen_by_gevent()
            kill_group_of_reaped(self.pid)
        reap_group(self.pid)

    def _finish(self) -> None:
        if self.exited.is_set():
            return
        if self.exit_code is None:
            self.exit_code = self._code_seen_by_gevent()
        if self.exit_code is None and self._has_pidfd and self._pidfd is not None:
            self.exit_code = code_kept_by_linux(self._pidfd)
        for watcher in (self._watcher, self._by_gevent):
            if watcher is not None:
                watcher.stop()
                watcher.close()
        if self._has_pidfd and self._pidfd is not None:
            self._has_pidfd = False
            close(self._pidfd)
        self.exited.set()

    def _wait_in_thread(self, begun: Any) -> None:
        begun.release()
        try:
            self.exit_code = os.waitstatus_to_exitcode(waitpid(self.pid, 0)[1])
        except ChildProcessError:
            self.exit_code = self._code_seen_by_gevent()
        kill_group_of_reaped(self.pid)
        self._thread_is_done = True
        with suppress(ValueError):  # the hub was destroyed, so no greenlet waits there
            self._watcher.send()
        reap_group(self.pid)

    def _code_seen_by_gevent(self) -> int | None:
        watcher = self._by_gevent
        return os.waitstatus_to_exitcode(watcher.rstatus) if watcher is not None and watcher.rpid == self.pid else None


def _is_dead(pidfd: int) -> bool:
    """True if the child has ended. It does not reap it: no two threads may do that."""
    try:
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except OSError:  # another part of the program has reaped it, or the hub has reaped it and closed the pidfd
        return True


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # no process is left, or only processes of another user
        os.killpg(pid, SIGKILL)


def kill_group_of_reaped(pid: int) -> None:
    """Kill the processes that are left in a group whose leader is already reaped.

    The system gives no new process a pid that is still the number of a group. So if a process has this pid, the old
    group is gone. If no process has it, a group of that number is the old one.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        _kill_group(pid)
    except PermissionError:  # a process of another user has the pid
        pass


def reap_group(pid: int) -> None:
    """Reap the killed processes of a group that are children of this program: as PID 1 or subreaper it gets orphans.

    The leader, `pid`, must be reaped already. Those that are not dead yet are waited for in a thread.
    """
    if not _reap_dead(pid):
        with suppress(RuntimeError):  # no thread left
            _start_thread(lambda begun: (begun.release(), _reap_dead(pid, 0)))


def _reap_dead(group: int, options: int = os.WNOHANG) -> bool:
    """Reap the children in that group. False if there are some that have not ended."""
    try:
        while os.waitid(os.P_PGID, group, os.WEXITED | options) is not None:
            pass
    except (AttributeError, OSError):  # there is none: always so in an ordinary program
        return True
    return False


def _start_thread(function: Callable[[Any], object]) -> None:
    """Run `function(begun)` in a thread. It must release the lock `begun`."""
    begun = allocate_lock()
    begun.acquire()
    start_new_thread(function, (begun,))
    begun.acquire()  # wait: CPython may crash if the program ends while a thread begins


def end_child(pid: int) -> int | None:
    """Kill a child and reap it, which takes a millisecond.

    Returns its exit code, or None if another part of the program has reaped it.
    """
    try:
        found, status = waitpid(pid, os.WNOHANG)
        if not found:  # not reaped, so the pid is still the child's
            os.kill(pid, SIGKILL)
            status = waitpid(pid, 0)[1]
    except ChildProcessError:  # already reaped, for example by gevent's SIGCHLD handler
        return None
    return os.waitstatus_to_exitcode(status)


def _watch_by_gevent(pid: int, hub: Hub) -> Any:
    """A child watcher of gevent, which keeps the exit status if gevent reaps the child; None if gevent does not reap.

    gevent installs its SIGCHLD handler at the first use of gevent.subprocess or gevent.os.fork, and never removes it.
    The handler reaps every child of the process, so that the standard subprocess loses their exit codes. A child
    watcher installs the handler, too. So kclient makes one only if the handler is there or to be expected. Child
    watchers work on the default loop only, the one of the main thread.
    """
    if not hub.loop.default or not (_is_patched() or _has_foreign_sigchld_handler()):
        return None
    watcher = hub.loop.child(pid, ref=False)
    watcher.start(lambda: None)
    return watcher


def _is_patched() -> bool:
    return is_patched("subprocess", "Popen") or is_patched("os", "fork")


def _has_foreign_sigchld_handler() -> bool:
    """True if SIGCHLD has a handler that was not set by Python: libev's. Linux only, see proc_pid_status(5)."""
    if getsignal(SIGCHLD) not in (SIG_DFL, None):
        return False
    with suppress(OSError), open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"SigCgt:"):
                return bool(int(line.split()[1], 16) >> (SIGCHLD - 1) & 1)
    return False


def open_pidfd(pid: int) -> int | None:
    """A pidfd that waitid accepts, or None if the system has none."""
    try:
        pidfd = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux; or Linux before 5.3, a sandbox, no descriptor left
        return None
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return pidfd
    except (AttributeError, OSError):  # Linux 5.3 can open a pidfd but not wait for it
        close(pidfd)
        return None
    return pidfd


def code_kept_by_linux(pidfd: int) -> int | None:
    """The exit code of a process that another part of the program has reaped; None before Linux 6.15."""
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
