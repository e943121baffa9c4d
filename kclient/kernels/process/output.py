"""The output of a kernel process: the descriptors that the process gets, and the pipes and file that are read here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from subprocess import DEVNULL, PIPE, STDOUT
from typing import IO, Any, Final, TypeAlias

from kclient.concurrency.unpatched import close
from kclient.errors import LaunchError

Output: TypeAlias = "int | IO[Any] | None"
"""As in `subprocess`: PIPE, DEVNULL, STDOUT, a file or its number. None is a hidden file for `stderr_tail`."""

_TAIL_BYTES: Final = 16 * 1024
"""Bytes of output that `tail_of` returns: some ten long tracebacks."""

SHOWN_CHARACTERS: Final = 1000
"""Characters of the command that an error shows. A command that is too long for the system has some two million."""


class Streams:
    """The output of one kernel: `stdout` and `stderr` are the descriptors for the kernel process.

    This process reads `pipes`, for stdout and stderr (each None if not asked for), and `hidden`, the file that takes
    output for which no other place was asked.

    Raises OSError and ValueError, and LaunchError if the hidden file cannot be made; then nothing is left open.
    """

    def __init__(self, argv: Sequence[str], stdout: Output, stderr: Output) -> None:
        self.hidden: IO[bytes] | None = None
        self.pipes: list[IO[bytes] | None] = []
        self._given: list[int] = []
        try:
            if stdout is None or stderr is None:
                self.hidden = hidden_file(argv)
            if stdout == STDOUT:
                raise ValueError("STDOUT is for stderr only")
            self.stdout = self._open(self.hidden if stdout is None else stdout)
            self.stderr = self._open(self.hidden if stderr is None else stderr)
        except BaseException:
            self.close()
            raise

    def started(self) -> None:
        """Close the descriptors here that the kernel process has inherited."""
        while self._given:
            close(self._given.pop())

    def close(self) -> None:
        """Close everything: the kernel process was not started."""
        self.started()
        for file in (*self.pipes, self.hidden):
            if file is not None:
                file.close()

    def _open(self, wanted: Any) -> int:
        reading = None
        try:
            if wanted == STDOUT:
                return self.stdout
            if wanted == DEVNULL:
                self._given.append(os.open(os.devnull, os.O_RDWR))
                return self._given[-1]
            if wanted == PIPE:
                number, writing = os.pipe()
                self._given.append(writing)
                reading = open(number, "rb")  # noqa: SIM115 - the process has it from here on
                return writing
            return wanted if isinstance(wanted, int) else int(wanted.fileno())
        finally:
            self.pipes.append(reading)


def hidden_file(argv: Sequence[str]) -> IO[bytes]:
    """A temporary file without a name for the output. A pipe would block the kernel if it is not read."""
    try:
        return tempfile.TemporaryFile(prefix="kclient-", buffering=0)
    except OSError as exc:
        raise LaunchError(
            f"cannot start the kernel: cannot make a temporary file for its output: {reason(exc)}; "
            "set TMPDIR to a usable directory, or pass stdout= and stderr=",
            argv=argv,
        ) from exc


def tail_of(file: IO[bytes]) -> str:
    """The last 16 KiB of a hidden file."""
    number = file.fileno()
    size = os.fstat(number).st_size
    # pread, since this file shares its offset with the process that writes
    return os.pread(number, _TAIL_BYTES, max(0, size - _TAIL_BYTES)).decode(errors="replace")


def reason(exc: Exception) -> str:
    """The text of an error without its number, for an error message."""
    if isinstance(exc, OSError) and exc.strerror:
        return f"{exc.strerror}: {exc.filename!r}" if exc.filename is not None else exc.strerror
    return str(exc)


def cannot_start(argv: Sequence[str], why: str) -> LaunchError:
    """The error for a kernel process that could not be started; `why` is the reason."""
    text = repr(argv)
    shown = text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "..."
    return LaunchError(f"cannot start the kernel: {why}; the command was {shown}", argv=argv)
