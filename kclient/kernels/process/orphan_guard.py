"""The orphan guard: a small process that kills the kernels of this process when this process ends, even by SIGKILL.

All hubs of this process share one guard. It starts with the first kernel that wants a guard, and ends with the last.
Its program is `orphan_guard_main`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

from kclient.concurrency.log import WARNING, log, log_soon
from kclient.concurrency.unpatched import new_rlock, popen_class, socket
from kclient.errors import InvalidArgument, LaunchError
from kclient.kernels.process import orphan_guard_main
from kclient.kernels.process.exit_watcher import end_child
from kclient.kernels.process.local import KernelProcess, LocalProcess
from kclient.kernels.process.output import reason

_SEND_FLAGS: Final = getattr(socket, "MSG_NOSIGNAL", 0)
"""No SIGPIPE if the guard process is dead: in some programs SIGPIPE ends the process."""

_START_WAIT_S: Final = 5.0
"""Seconds for a new guard process to read the records that do not fit into the socket's buffer.

The buffer holds the records of some 800 kernels.
"""


class _Guard:
    """The guard process, and the records that it was sent. Any thread may call.

    The records are kept. If the guard process is killed, a new one gets them all.
    """

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}
        self._pid = 0
        self._socket: socket.socket | None = None
        # A lock of threads, since threads share the guard. It is re-entrant, since a finalizer may call `forget` while
        # its own thread holds the lock. No greenlet switches while it holds the lock.
        self._lock: Any = new_rlock()
        self.before_fork = self._lock.acquire
        self.after_fork_in_parent = self._lock.release

    def after_fork_in_child(self) -> None:
        """Close the child's copy of the socket: only then does the guard see the end of the parent.

        The child forgets the records, since the kernels belong to the parent.
        """
        if self._socket is not None:
            self._socket.close()
        self._socket, self._pid = None, 0
        self._records.clear()
        self._lock.release()

    def tell(self, token: str, record: bytes) -> None:
        """Send the guard a record about a kernel. Starts the guard if none runs; raises OSError if that fails."""
        with self._lock:
            self._records[token] = self._records.get(token, b"") + record
            self._send(record)

    def tell_if_known(self, token: str, record: bytes) -> None:
        """`tell`, if the kernel is not forgotten."""
        with self._lock:
            if token in self._records:
                self.tell(token, record)

    def forget(self, token: str) -> None:
        """Forget a kernel that has ended and whose files are removed; end the guard after the last. Never raises."""
        with self._lock:
            if self._records.pop(token, None) is None:
                return
            if not self._records:
                self._stop()
                return
            try:
                self._send(_record("forget", token))
            except OSError as exc:
                log_soon(log(), WARNING, "the orphan guard has ended, and no other can be started: %s", exc)

    def _send(self, record: bytes) -> None:
        """Send a record. If the guard is dead or does not read, replace it by a new one that gets all records."""
        if self._socket is not None:
            with suppress(OSError):
                if self._socket.send(record, _SEND_FLAGS) == len(record):
                    return
        self._stop()
        self._start()

    def _start(self) -> None:
        """Start a guard process, and send it all records."""
        if not sys.executable:
            raise OSError("sys.executable does not say which Python runs")
        ours, its = socket.socketpair()
        try:
            popen = popen_class()(
                [sys.executable, "-I", "-S", orphan_guard_main.__file__],
                stdin=its.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                start_new_session=True,  # so neither a Ctrl-C nor a signal to our process group reaches it
            )
            popen.returncode = 0  # so that Popen never waits
            try:
                ours.settimeout(_START_WAIT_S)
                ours.sendall(b"".join(self._records.values()), _SEND_FLAGS)
                ours.setblocking(False)
            except BaseException:
                end_child(popen.pid)
                raise
            self._socket, self._pid = ours, popen.pid
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()

    def _stop(self) -> None:
        """End the guard process, if there is one."""
        sock, pid = self._socket, self._pid
        self._socket, self._pid = None, 0
        if sock is not None:
            sock.close()
            end_child(pid)


class GuardedKernel:
    """One kernel that the guard process kills, and whose files it removes, when this process ends.

    Make it before the kernel starts, and start the kernel with `environment` added to its own. Then call `take` after
    the start, `ended` when its process has ended, and `release` when its files are removed, too. The guard looks for
    the kernel by its environment if this process ends before `take`.
    """

    def __init__(self, files: Iterable[str]) -> None:
        """`files` have the format that `orphan_guard_main` describes. Raises LaunchError if no guard can be started."""
        self._token = uuid.uuid4().hex
        self.environment = {orphan_guard_main.MARK: self._token}
        try:
            self._tell("expect", *files)
        except BaseException:
            self.release()
            raise

    def take(self, process: KernelProcess) -> None:
        """Tell the guard the process of the kernel. Raises InvalidArgument if it is not a LocalProcess."""
        if not isinstance(process, LocalProcess):
            raise InvalidArgument(
                f"orphan_guard=True needs a launcher that returns a LocalProcess, as LocalLauncher does, since the "
                f"guard can only end processes of this machine; the launcher returned {process!r}"
            )
        start = orphan_guard_main.start_of(process.pid).decode() if os.path.isdir("/proc/self") else ""
        self._tell("group", str(process.pid), start)

    def ended(self) -> None:
        """Tell the guard that the kernel has ended: another process may get its pid, and must not be killed."""
        with suppress(OSError):  # no guard runs and none can be started, so no process is killed by mistake
            _guard.tell_if_known(self._token, _record("ended", self._token))

    def release(self) -> None:
        """Tell the guard that the kernel has ended and its files are removed. A second call does nothing."""
        _guard.forget(self._token)

    def _tell(self, verb: str, *fields: str) -> None:
        try:
            _guard.tell(self._token, _record(verb, self._token, *fields))
        except OSError as exc:
            raise LaunchError(
                f"cannot start the guard process that orphan_guard=True asks for: {reason(exc)}; "
                "end some process to make room, or start the kernel without orphan_guard"
            ) from exc


def _record(*fields: str) -> bytes:
    return b"\0".join(os.fsencode(field) for field in fields if field) + b"\0\0"


_guard = _Guard()

os.register_at_fork(
    before=_guard.before_fork,
    after_in_parent=_guard.after_fork_in_parent,
    after_in_child=_guard.after_fork_in_child,
)
