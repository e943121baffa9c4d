"""The terminal of the `kclient` command: outputs as plain text, and prompts for input.

Nothing here blocks the hub. A slow reader of the output, or a slow answer to a prompt, delays neither a signal, nor a
timeout, nor the report of the kernel's death.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import termios
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Final, TextIO

import gevent
from gevent.socket import wait_read, wait_write

from kclient.channels.stdin import StdInChannel
from kclient.cli.say import ESCAPES, printable_lines
from kclient.errors import KClientError
from kclient.protocol.kept_outputs import error_fields
from kclient.protocol.messages import Message
from kclient.protocol.result import ErrorInfo

CLEAR_LINE: Final = "\r\x1b[2K"

END_OF_FILE: Final = "\x04"
"""The answer for which ipykernel's input() raises EOFError; jupyter_console sends the same."""

PROMPT_DELAY_S: Final = 0.01
"""A prompt waits so long for output that was printed before it: that comes over another socket."""


class OutputLost(Exception):
    """The output cannot be written; `errno` is EPIPE if its reader has gone."""

    def __init__(self, exc: OSError) -> None:
        super().__init__(f"cannot write the output: {exc.strerror or exc}")
        self.errno = exc.errno


class Stream:
    """Standard output or standard error. `file` is None if it was closed before the start; then writes do nothing."""

    def __init__(self, file: TextIO | None) -> None:
        self._fd = None if file is None else file.fileno()
        self._encoding = "utf-8" if file is None else file.encoding
        self.is_terminal = self._fd is not None and os.isatty(self._fd)
        self.at_line_start = True
        self._waits = self.is_terminal or self._is_pipe()
        self._pending = bytearray()

    def is_same_file(self, other: Stream) -> bool:
        """True if both end up in one place, such as a terminal."""
        if self._fd is None or other._fd is None:
            return False
        return os.path.samestat(os.fstat(self._fd), os.fstat(other._fd))

    def write(self, text: str) -> None:
        """Return when all of `text` is written; raises OutputLost."""
        if not text or self._fd is None:
            return
        self.at_line_start = text.endswith("\n")
        self._pending += text.encode(self._encoding, "backslashreplace")
        try:
            while self._pending:
                self._write_some(self._fd)
        except OSError as exc:
            self._pending.clear()
            raise OutputLost(exc) from exc

    def write_lines(self, text: str) -> None:
        """Write `text` on lines of its own."""
        start = "" if self.at_line_start else "\n"
        end = "" if text.endswith("\n") else "\n"
        self.write(start + text + end)

    def _write_some(self, fd: int) -> None:
        if self._waits:
            wait_write(fd)
        with suppress(BlockingIOError):  # another process that shares the file made it non-blocking
            # A writable pipe takes PIPE_BUF bytes at once.
            del self._pending[: os.write(fd, self._pending[: select.PIPE_BUF])]

    def _is_pipe(self) -> bool:
        if self._fd is None:
            return False
        mode = os.fstat(self._fd).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)


class Screen:
    """Shows output messages as plain text, as they come."""

    def __init__(self) -> None:
        self.out = Stream(sys.stdout)
        self.err = Stream(sys.stderr)
        if self.out.is_same_file(self.err):
            self.err = self.out  # both share one cursor
        self.shows_colours = self.err.is_terminal and not os.environ.get("NO_COLOR")
        self.has_shown_error = False
        self._clears_next = False

    def show(self, message: Message) -> None:
        """Write the content of `message` at once; raises OutputLost."""
        content = message.content
        if message.msg_type == "clear_output":
            self._clears_next = True
            if content.get("wait"):
                return
        if self._clears_next:
            self._clear()
        if message.msg_type == "stream":
            stream = self.err if content.get("name") == "stderr" else self.out
            stream.write(str(content.get("text", "")))
        elif message.msg_type == "error":
            self.show_error(ErrorInfo(**error_fields(content)))
        elif message.msg_type in ("execute_result", "display_data", "update_display_data"):
            text = plain_text(content.get("data"))
            if text:
                self.out.write_lines(text)

    def show_error(self, error: ErrorInfo) -> None:
        """Write the traceback, to standard error."""
        self.has_shown_error = True
        if is_success(error):
            return
        text = "\n".join(error.traceback) or f"{error.ename}: {error.evalue}"
        self.err.write_lines(text if self.shows_colours else ESCAPES.sub("", text))

    def complain(self, text: str) -> None:
        """Write an error message to standard error, if that can be written."""
        with suppress(OutputLost):
            self.err.write_lines(f"kclient: {printable_lines(text)}")

    def prompt(self, text: str) -> None:
        """Write the prompt to the terminal."""
        self._terminal.write(text)

    def note_typing(self, *, at_line_start: bool) -> None:
        """Note that the terminal has echoed typed characters: the end of a line, or ``^C``."""
        if self._terminal.is_terminal:
            self._terminal.at_line_start = at_line_start

    @property
    def _terminal(self) -> Stream:
        return self.out if self.out.is_terminal else self.err

    def _clear(self) -> None:
        """Clear the current line of a terminal; in a file, begin a new line. Earlier lines cannot be taken back."""
        self._clears_next = False
        if not self.out.at_line_start:
            self.out.write(CLEAR_LINE if self.out.is_terminal else "\n")
            self.out.at_line_start = True


def is_success(error: ErrorInfo) -> bool:
    """True for the SystemExit of ``sys.exit(0)``, with which many Python scripts end."""
    return error.ename == "SystemExit" and error.evalue in ("", "0", "None")


def plain_text(data: Any) -> str:
    """The text/plain of a mime bundle; if it has none, the types that it has."""
    if not isinstance(data, Mapping) or not data:
        return ""
    text = data.get("text/plain", f"<{', '.join(map(str, data))}>")
    return "".join(map(str, text)) if isinstance(text, list) else str(text)


class Prompter:
    """Answers the input requests of a kernel from the terminal that is our standard input, inside a `with`."""

    def __init__(self, channel: StdInChannel, screen: Screen) -> None:
        self._channel = channel
        self._screen = screen
        self._fd = sys.stdin.fileno()
        self._asking: gevent.Greenlet[..., Any] | None = None
        self._server = gevent.Greenlet(self._serve)

    def __enter__(self) -> Prompter:
        self._server.start()
        gevent.sleep(0)  # start waiting before the code is sent: only then may the code ask
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A killed greenlet that asks for a password turns the terminal's echo on again.
        gevent.killall([greenlet for greenlet in (self._server, self._asking) if greenlet is not None])

    def cancel(self) -> None:
        """Stop asking, because the code is interrupted."""
        if self._asking is not None:
            self._asking.kill(block=False)

    def _serve(self) -> None:
        with suppress(KClientError):  # closed or dead: the wait for the code raises it too
            while True:
                self._asking = gevent.spawn(self._ask, self._channel.get_msg())
                self._asking.join()

    def _ask(self, request: Message) -> None:
        gevent.sleep(PROMPT_DELAY_S)
        prompt = str(request.content.get("prompt", ""))
        if request.content.get("password"):
            with self._no_echo():
                answer = self._read_line(prompt)
            self._screen.prompt("\n")
        else:
            answer = self._read_line(prompt)
            self._screen.note_typing(at_line_start=True)
        with suppress(KClientError):
            self._channel.answer(request, answer)

    def _read_line(self, prompt: str) -> str:
        """A line without its end, or END_OF_FILE. The terminal's own editing is on, so a read gets a line."""
        self._screen.prompt(prompt)
        wait_read(self._fd)
        try:
            line = os.read(self._fd, 4096)
        except OSError:  # EIO: the terminal was hung up
            line = b""
        return line.rstrip(b"\n").decode(sys.stdin.encoding, "replace") if line else END_OF_FILE

    @contextmanager
    def _no_echo(self) -> Iterator[None]:
        attributes = termios.tcgetattr(self._fd)
        silent = [*attributes]
        silent[3] &= ~termios.ECHO
        termios.tcsetattr(self._fd, termios.TCSAFLUSH, silent)
        try:
            yield
        finally:
            termios.tcsetattr(self._fd, termios.TCSAFLUSH, attributes)
