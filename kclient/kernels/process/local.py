"""Kernel processes: start one, notice its end at once, signal it.

`Launcher` and `KernelProcess` are the Protocols that kclient calls. To run kernels in another way, for example in a
container or through ``ssh`` or ``nice``, pass an object of your own as ``launcher=``. Often it only changes the
command line::

    class NiceLauncher:
        def start(self, argv, **where):
            return LocalLauncher().start(["nice", *argv], **where)
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from gevent.event import Event

from kclient.concurrency.half_made import half_made_too
from kclient.concurrency.owner import Owner
from kclient.concurrency.unpatched import waitpid
from kclient.errors import InvalidArgument, InvalidState
from kclient.kernels.process.exit_watcher import ExitWatcher
from kclient.kernels.process.output import Output, Streams, cannot_start, reason, tail_of
from kclient.kernels.process.spawn import spawn


class KernelProcess(Protocol):
    """The process of one kernel. No method blocks, and none raises because the process has ended."""

    @property
    def pid(self) -> int:
        """The process id, or another number that identifies the process where it runs."""

    @property
    def exited(self) -> Event:
        """Set as soon as the process has ended. It belongs to the hub in which `Launcher.start` was called.

        kclient waits on it: when it is set, every call that waits for the kernel raises DeadKernelError.
        """

    @property
    def exit_code(self) -> int | None:
        """The exit code; minus the signal's number if a signal ended the process; None while it runs or if unknown.

        It is set before `exited`.
        """

    def is_alive(self) -> bool:
        """True while the process runs. The answer is up to date: False even if the hub has not set `exited` yet."""

    def send_signal(self, signum: int) -> None:
        """Send a signal to the kernel and its children; does nothing after its end."""

    def kill(self) -> None:
        """End the kernel and its children by force, as SIGKILL does; does nothing after its end. It does not wait."""

    def stderr_tail(self) -> str:
        """The end of the kernel's output, for error messages; empty if it is not known."""

    def close(self) -> None:
        """Close files and pipes of this object. It does not end the process; `exited` and `exit_code` still work."""


class Launcher(Protocol):
    """Starts kernel processes. One launcher may start many kernels, also for several greenlets at the same time."""

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: Output = None,
        stderr: Output = None,
    ) -> KernelProcess:
        """Start the command `argv` and return its process; raises LaunchError if it cannot be started.

        `env` is the whole environment of the process (None: that of this program). `cwd` is its working directory
        (None: that of this program). `stdout` and `stderr` are as in `subprocess`; None keeps the output for
        `KernelProcess.stderr_tail`.

        `start` may wait, as gevent does. kclient ends the wait with a gevent.Timeout when the caller's timeout is over.
        """


class AnyExitWatcher(Protocol):
    """The part of an exit watcher that LocalProcess uses. ExitWatcher has it, and so has that of the fork server."""

    pid: int
    exited: Event
    exit_code: int | None

    def has_ended(self) -> bool:
        """True if the process has ended. The answer is up to date without a turn of the loop; any thread may call."""

    def signal_group(self, signum: int) -> None:
        """Signal the process group that the process leads; does nothing after its end or in a forked child."""

    def let_go(self) -> None:
        """The program needs the process no more. Its end is still watched, unless the watcher's thread has ended."""


class LocalProcess:
    """A process on this machine that leads its own session. `stdout` and `stderr` are its pipes, or None.

    Its children end with it, unless they moved to another session or process group.
    """

    def __init__(self, exit_watcher: AnyExitWatcher, streams: Streams) -> None:
        self.stdout, self.stderr = streams.pipes
        self._owner = Owner()
        self._exit_watcher = exit_watcher
        self._output = streams.hidden
        self._tail = ""

    @half_made_too
    def __repr__(self) -> str:
        return f"<LocalProcess {self.pid}, {'ended' if self.exited.is_set() else 'running'}>"

    @property
    def pid(self) -> int:
        return self._exit_watcher.pid

    @property
    def exited(self) -> Event:
        return self._exit_watcher.exited

    @property
    def exit_code(self) -> int | None:
        return self._exit_watcher.exit_code

    def is_alive(self) -> bool:
        """True while the process runs. The answer is up to date without a turn of the loop; any thread may call."""
        return not self._exit_watcher.has_ended()

    def send_signal(self, signum: int) -> None:
        """Signal the process and its children: its process group. Does nothing after its end or in a forked child.

        Raises InvalidArgument for a number that is no signal, and InvalidState for a process of another user.
        """
        if not isinstance(signum, int) or signum not in signal.valid_signals():
            raise InvalidArgument(f"not a signal: {signum!r}")
        try:
            self._exit_watcher.signal_group(signum)
        except PermissionError as exc:
            raise InvalidState(f"may not signal process {self.pid}, which runs as another user") from exc

    def kill(self) -> None:
        """Send SIGKILL to the process and its children; does nothing after its end or in a forked child."""
        self.send_signal(signal.SIGKILL)

    def stderr_tail(self) -> str:
        """The last 16 KiB of the output that was not passed to `stdout=` or `stderr=`. Works after `close`, too."""
        if self._output is not None and not self._owner.forked:
            self._tail = tail_of(self._output)
        return self._tail

    def close(self) -> None:
        """Close the pipes and the file with the output. The exit is still watched. Does nothing in a forked child."""
        if self._owner.forked:
            return
        self.stderr_tail()
        for file in (self.stdout, self.stderr, self._output):
            if file is not None:
                file.close()
        self._output = None
        self._exit_watcher.let_go()


class LocalLauncher:
    """The default launcher: starts kernels as child processes. It works in every thread, monkey-patched or not."""

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: Output = None,
        stderr: Output = None,
    ) -> LocalProcess:
        """Start `argv`, see `Launcher.start`. The LaunchError says what is wrong with `argv`, `cwd` or `env`."""
        streams = None
        try:
            streams = Streams(argv, stdout, stderr)
            pid = spawn(argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=streams.stdout, stderr=streams.stderr)
        except (OSError, ValueError, TypeError, IndexError) as exc:  # IndexError: an empty argv
            if streams is not None:
                streams.close()
            raise cannot_start(argv, reason(exc)) from exc
        streams.started()
        return LocalProcess(_watch_exit(pid), streams)


def _watch_exit(pid: int) -> ExitWatcher:
    try:
        return ExitWatcher(pid)
    except BaseException:  # no thread left, or Ctrl-C: the caller never gets this process, so end it here
        os.killpg(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            waitpid(pid, 0)
        raise
