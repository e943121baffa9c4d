"""The `kclient` command in a process of its own, with pipes or at a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import termios
from types import TracebackType
from typing import IO

import attrs
import leaks

TIME = 40
"""Seconds for a command that takes one second on an idle machine."""

KCLIENT = [sys.executable, "-m", "kclient"]

# A terminal becomes the session's only if the session's leader asks for it.
AT_TERMINAL = [
    *(sys.executable, "-c"),
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.executable, sys.argv[1:])",
]


def environment(**changes: str) -> dict[str, str]:
    """This environment, without the variables that announce a test run or forbid colours."""
    hidden = {"PYTEST_CURRENT_TEST", "NO_COLOR", "COLUMNS"}  # ipykernel catches no output of children with the first
    return {**{name: value for name, value in os.environ.items() if name not in hidden}, "TERM": "xterm", **changes}


@attrs.frozen
class Done:
    code: int
    out: str
    err: str


def kclient_command(*arguments: str, stdin: str | bytes | None = None, **env: str) -> Done:
    """Run the command to its end, without a terminal."""
    done = subprocess.run(
        [*KCLIENT, *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        env=environment(**env),
        timeout=TIME,
        check=False,
    )
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


class Running:
    """Run the command with pipes; at the end of the block it is killed if it still runs."""

    def __init__(self, *arguments: str, **env: str) -> None:
        self.process: subprocess.Popen[str] = subprocess.Popen(
            [*KCLIENT, *arguments],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment(**env),
        )

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self.out.close()
        self.err.close()

    @property
    def out(self) -> IO[str]:
        assert self.process.stdout is not None
        return self.process.stdout

    @property
    def err(self) -> IO[str]:
        assert self.process.stderr is not None
        return self.process.stderr

    def line(self) -> str:
        """The next line of standard output, returned as soon as it has arrived."""
        return self.out.readline().rstrip("\n")

    def wait_for_full_pipe(self) -> None:
        """Return when the pipe of standard output is full."""
        writer = os.open(f"/proc/self/fd/{self.out.fileno()}", os.O_WRONLY | os.O_NONBLOCK)
        try:
            while select.select([], [writer], [], 0)[1]:
                leaks.turn_loop(0.005)  # no event tells that a pipe is full
        finally:
            os.close(writer)

    def signal(self, signum: int) -> None:
        self.process.send_signal(signum)

    def end(self) -> Done:
        """Wait for the end of the command; returns the output that `line` has not returned yet."""
        out, err = self.process.communicate(timeout=TIME)
        return Done(self.process.returncode, out, err)


class Terminal:
    """A command at a terminal of its own, into which a test can type."""

    def __init__(self, *arguments: str) -> None:
        self._number, terminal = pty.openpty()
        self.text = ""
        self._seen = 0
        try:
            self.process = subprocess.Popen(
                [*AT_TERMINAL, *KCLIENT, *arguments],
                stdin=terminal,
                stdout=terminal,
                stderr=terminal,
                start_new_session=True,
                env=environment(),
            )
        finally:
            os.close(terminal)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if self._number >= 0:
            self.hang_up()

    def type(self, keys: str) -> None:
        os.write(self._number, keys.encode())

    def wait_for(self, text: str) -> None:
        """Read until `text` has appeared behind the text of the last such wait."""
        while (found := self.text.find(text, self._seen)) < 0:
            some = self._read()
            assert some, f"ended without {text!r}: {self.text}"
            self.text += some
        self._seen = found + len(text)

    def rest_of_line(self, text: str) -> str:
        """The rest of the line that begins with `text`."""
        self.wait_for(text)
        start = self._seen
        self.wait_for("\r\n")
        return self.text[start : self._seen].strip()

    def echoes(self) -> bool:
        """True if the terminal shows typed text."""
        return bool(termios.tcgetattr(self._number)[3] & termios.ECHO)

    def end(self) -> Done:
        """Wait for the end of the command; returns all that has appeared."""
        while some := self._read():
            self.text += some
        return Done(self.process.wait(TIME), self.text.replace("\r\n", "\n"), "")

    def hang_up(self) -> None:
        os.close(self._number)
        self._number = -1

    def _read(self) -> str:
        try:
            return os.read(self._number, 4096).decode(errors="replace")
        except OSError:  # EIO: no process has the terminal open any more
            return ""


def is_gone(pid: str) -> bool:
    """True if there is no process with that number any more."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    return False


def check_complaint(done: Done, code: int, *words: str) -> None:
    """Assert that standard error holds one clear line and standard output nothing."""
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("kclient: ")
    assert done.err.count("\n") == 1, done.err
    for word in words:
        assert word in done.err
