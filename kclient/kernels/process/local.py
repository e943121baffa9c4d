"""Kernel processes: start one, know of its end at once, signal it.

`Launcher` and `KernelProcess` say what kclient needs. To run kernels elsewhere, in a container or through ``ssh`` or
``nice``, pass ``launcher=`` an object of your own; most need no more than another command line::

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

from kclient.concurrency.owner import Owner
from kclient.concurrency.unpatched import popen_class, waitpid
from kclient.errors import InvalidArgument, InvalidState
from kclient.kernels.process.exit_watcher import ExitWatcher
from kclient.kernels.process.output import Output, Streams, cannot_start, reason, tail_of


class KernelProcess(Protocol):
    """A kernel's process. Its methods answer at once; none raises because the process has ended."""

    @property
    def pid(self) -> int:
        """Its process id, or whatever number tells it from others where it runs."""

    @property
    def exited(self) -> Event:
        """Set, in the hub that called `Launcher.start`, as soon as the process has ended. This wakes every waiter."""

    @property
    def exit_code(self) -> int | None:
        """Negative for a signal; None while it runs, and for good where nobody can know it."""

    def is_alive(self) -> bool:
        """False once the process has ended, even if the hub has had no turn to notice."""

    def send_signal(self, signum: int) -> None:
        """Signal the kernel and its children; does nothing after its end."""

    def kill(self) -> None:
        """End the kernel and its children without asking; does nothing after its end."""

    def stderr_tail(self) -> str:
        """The end of what the kernel printed, for error messages; empty if that is not known."""

    def close(self) -> None:
        """Close files and pipes. The process is not touched; `exited` and `exit_code` still work."""


class Launcher(Protocol):
    """Starts kernels. One launcher may start many."""

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: Output = None,
        stderr: Output = None,
    ) -> KernelProcess:
        """Start `argv` with exactly the environment `env` (None: ours); raises LaunchError if that cannot be done."""


class Watch(Protocol):
    """Knows of the end of one process, as ExitWatcher does."""

    pid: int
    exited: Event
    exit_code: int | None

    def has_ended(self) -> bool:
        """True if the process has ended, seen now; from any thread."""

    def signal_group(self, signum: int) -> None:
        """Signal the process group that it leads; does nothing after its end or in a forked child."""


class LocalProcess:
    """A process of this machine that leads a session of its own. `stdout` and `stderr` are its pipes, if asked for.

    Its own children end with it, unless they left for a session or process group of their own.
    """

    def __init__(self, watch: Watch, streams: Streams) -> None:
        self.stdout, self.stderr = streams.pipes
        self._owner = Owner()
        self._watch = watch
        self._output = streams.hidden
        self._tail = ""

    def __repr__(self) -> str:
        return f"<LocalProcess {self.pid}, {'ended' if self.exited.is_set() else 'running'}>"

    @property
    def pid(self) -> int:
        return self._watch.pid

    @property
    def exited(self) -> Event:
        return self._watch.exited

    @property
    def exit_code(self) -> int | None:
        return self._watch.exit_code

    def is_alive(self) -> bool:
        """False once the process has ended, even if the hub has had no turn to notice; from any thread."""
        return not self._watch.has_ended()

    def send_signal(self, signum: int) -> None:
        """Signal the process and its children, its process group; does nothing after its end or in a forked child.

        Raises InvalidArgument for a number that is no signal, and InvalidState for a process of another user.
        """
        if not isinstance(signum, int) or signum not in signal.valid_signals():
            raise InvalidArgument(f"not a signal: {signum!r}")
        try:
            self._watch.signal_group(signum)
        except PermissionError as exc:
            raise InvalidState(f"may not signal process {self.pid}, which runs as another user") from exc

    def kill(self) -> None:
        """SIGKILL for the process and its children."""
        self.send_signal(signal.SIGKILL)

    def stderr_tail(self) -> str:
        """The last 16 KiB that the process printed, unless its output went elsewhere; also after `close`."""
        if self._output is not None and not self._owner.forked:
            self._tail = tail_of(self._output)
        return self._tail

    def close(self) -> None:
        """Close the pipes and the file with the output; the exit is still watched. Nothing in a forked child."""
        if self._owner.forked:
            return
        self.stderr_tail()
        for file in (self.stdout, self.stderr, self._output):
            if file is not None:
                file.close()
        self._output = None


class LocalLauncher:
    """Starts kernels as child processes, in any thread's hub, whether or not gevent has patched the program."""

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: Output = None,
        stderr: Output = None,
    ) -> LocalProcess:
        """Start `argv`; raises LaunchError, which says what is wrong with the command, its directory or environment."""
        streams = None
        try:
            streams = Streams(argv, stdout, stderr)
            popen = popen_class()(
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=streams.stdout,
                stderr=streams.stderr,
                start_new_session=True,  # a Ctrl-C in the terminal is not for the kernel
            )
        except (OSError, ValueError, TypeError, IndexError) as exc:  # IndexError: an empty argv
            if streams is not None:
                streams.close()
            raise cannot_start(argv, reason(exc)) from exc
        streams.started()
        popen.returncode = 0  # so that Popen never waits: ExitWatcher reaps
        return LocalProcess(_watch(popen.pid), streams)


def _watch(pid: int) -> ExitWatcher:
    try:
        return ExitWatcher(pid)
    except BaseException:  # no thread left, or Ctrl-C: nobody would ever hear of this process again
        os.killpg(pid, signal.SIGKILL)
        with suppress(ChildProcessError):
            waitpid(pid, 0)
        raise
