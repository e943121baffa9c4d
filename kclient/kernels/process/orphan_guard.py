"""Kernels end with us even if we are killed: a small process of its own waits for our end, and then ends them.

There is one such process at most, for all hubs of this program, from the first kernel that wants it to the end of the
last. `orphan_guard_main` is what it runs.
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

_SEND: Final = getattr(socket, "MSG_NOSIGNAL", 0)
"""No SIGPIPE for a guard that is dead: some programs let that end them."""

_PATIENCE: Final = 5.0
"""Seconds for a new guard to take in what does not fit into the socket, which is the news of some 800 kernels."""


class _Guard:
    """The guard process of this process, and what it has to know; any thread may call.

    What it was told is kept, so that another can take the place of one that was killed.
    """

    def __init__(self) -> None:
        self._records: dict[str, bytes] = {}
        self._pid = 0
        self._line: socket.socket | None = None
        # A real lock, since threads share the guard, that the garbage collector may enter again for a finalizer.
        # No greenlet switches while it has it.
        self._lock: Any = new_rlock()
        self.before_fork = self._lock.acquire
        self.after_fork_in_parent = self._lock.release

    def after_fork_in_child(self) -> None:
        """Let go of the line, or the guard would not see the end of the parent; the kernels are the parent's."""
        if self._line is not None:
            self._line.close()
        self._line, self._pid = None, 0
        self._records.clear()
        self._lock.release()

    def tell(self, token: str, record: bytes) -> None:
        """Add to what is known of a kernel; starts the guard if need be. Raises OSError if that cannot be done."""
        with self._lock:
            self._records[token] = self._records.get(token, b"") + record
            self._pass_on(record)

    def tell_of(self, token: str, record: bytes) -> None:
        """`tell`, if the kernel is known still."""
        with self._lock:
            if token in self._records:
                self.tell(token, record)

    def forget(self, token: str) -> None:
        """The kernel has ended, its files are removed; after the last one the guard ends, too. Never raises."""
        with self._lock:
            if self._records.pop(token, None) is None:
                return
            if not self._records:
                self._stop()
                return
            try:
                self._pass_on(_record("forget", token))
            except OSError as exc:
                log_soon(log(), WARNING, "the orphan guard has ended, and no other can be started: %s", exc)

    def _pass_on(self, record: bytes) -> None:
        if self._line is not None:
            with suppress(OSError):  # it is dead, or does not read
                if self._line.send(record, _SEND) == len(record):
                    return
        self._stop()
        self._start()

    def _start(self) -> None:
        """Start a guard that knows all there is to know."""
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
                start_new_session=True,  # neither a Ctrl-C nor a signal to our process group is for it
            )
            popen.returncode = 0  # so that Popen never waits
            try:
                ours.settimeout(_PATIENCE)
                ours.sendall(b"".join(self._records.values()), _SEND)
                ours.setblocking(False)
            except BaseException:
                end_child(popen.pid)
                raise
            self._line, self._pid = ours, popen.pid
        except BaseException:
            ours.close()
            raise
        finally:
            its.close()

    def _stop(self) -> None:
        """End the guard, which has nothing to do or does not do it."""
        line, pid = self._line, self._pid
        self._line, self._pid = None, 0
        if line is not None:
            line.close()
            end_child(pid)


class GuardedKernel:
    """One kernel that ends, and whose `files` are removed, when this process is killed.

    `orphan_guard_main` says what `files` hold.

    It is under guard from here on, before it is started with `environment`, to its `release`. Raises LaunchError if
    there can be no guard.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._token = uuid.uuid4().hex
        self.environment = {orphan_guard_main.MARK: self._token}
        try:
            self._tell("expect", *files)
        except BaseException:
            self.release()
            raise

    def take(self, process: KernelProcess) -> None:
        """The kernel has started; raises InvalidArgument if it is not a child of this process."""
        if not isinstance(process, LocalProcess):
            raise InvalidArgument(
                f"orphan_guard=True needs a launcher that returns a LocalProcess, as LocalLauncher does, since no "
                f"other process can be ended from here; it returned {process!r}"
            )
        start = orphan_guard_main.start_of(process.pid).decode() if os.path.isdir("/proc/self") else ""
        self._tell("group", str(process.pid), start)

    def ended(self) -> None:
        """The kernel has ended: its number may become another's, which the guard must leave alone."""
        with suppress(OSError):  # no other guard can be started: then nobody is killed by mistake
            _guard.tell_of(self._token, _record("ended", self._token))

    def release(self) -> None:
        """The kernel has ended and its files are gone; once is enough."""
        _guard.forget(self._token)

    def _tell(self, verb: str, *fields: str) -> None:
        try:
            _guard.tell(self._token, _record(verb, self._token, *fields))
        except OSError as exc:
            raise LaunchError(
                f"cannot start the guard that orphan_guard=True asks for: {reason(exc)}; "
                "make room for another process, or start the kernel without it"
            ) from exc


def _record(*fields: str) -> bytes:
    return b"\0".join(os.fsencode(field) for field in fields if field) + b"\0\0"


_guard = _Guard()

os.register_at_fork(
    before=_guard.before_fork,
    after_in_parent=_guard.after_fork_in_parent,
    after_in_child=_guard.after_fork_in_child,
)
