"""Starts a program in a session of its own, in which SIGINT and SIGTERM work."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kclient.concurrency.thread_limits import REMEDY
from kclient.concurrency.unpatched import close, popen_class
from kclient.kernels.process import reset_signals_main
from kclient.kernels.process.exit_watcher import end_child

_NEEDED: Final = (signal.SIGINT, signal.SIGTERM)
"""The signals that interrupt and end a kernel."""


def spawn(argv: Sequence[str], *, env: Mapping[str, str] | None, pass_fds: Sequence[int] = (), **options: Any) -> int:
    """Start `argv` as `subprocess.Popen` does, and return its pid. Raises what Popen raises.

    A program inherits which signals are blocked and ignored. A shell's ``&`` ignores SIGINT, and a server may block
    both. Then another Python resets them before it becomes the program. This process cannot: a signal that waits would
    come through. And a `preexec_fn` would run Python after a fork, among locks that other threads held.
    """
    if not argv or not sys.executable or not _are_changed():
        return _popen(argv, env=env, pass_fds=pass_fds, **options)
    keeps_locale = "LC_CTYPE" in (os.environ if env is None else env)  # Python may set it in its own environment
    reading, writing = os.pipe()
    pid = 0
    try:
        command = [sys.executable, "-I", "-S", reset_signals_main.__file__, str(writing), str(int(keeps_locale)), *argv]
        try:
            pid = _popen(command, env=env, pass_fds=[*pass_fds, writing], **options)
        finally:
            close(writing)
        if number := os.read(reading, 16):  # there is nothing to read when the program runs
            raise OSError(int(number), os.strerror(int(number)), argv[0])
    except BaseException:
        if pid:
            end_child(pid)
        raise
    finally:
        close(reading)
    return pid


def _are_changed() -> bool:
    """True if this thread blocks one of the signals, or the program ignores one."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    return any(signum in blocked or signal.getsignal(signum) is signal.SIG_IGN for signum in _NEEDED)


def _popen(argv: Sequence[str], **options: Any) -> int:
    try:  # in a session of its own, so that a Ctrl-C in the terminal does not reach it
        process = popen_class()(argv, start_new_session=True, **options)
    except BlockingIOError as exc:  # EAGAIN of fork
        raise OSError(f"a limit of processes and threads is reached: {REMEDY}") from exc
    process.returncode = 0  # so that Popen never waits: another part of kclient reaps the child
    return int(process.pid)
