"""Output and error messages of commands that run no kernel."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

import click

ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # control sequences: colours, for the most part
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"  # strings: links and titles
    r"|\x1b[ -/]*[0-~]?"  # all others, and a string without an end
)
"""What a terminal obeys and does not show: escape and control sequences and control strings, ECMA-48 section 5."""


def say(text: str) -> None:
    """Print `text`; characters that the encoding of standard output lacks are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # None: closed, or no file of text
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def complain(text: str) -> None:
    """Print an error message on standard error, if that can be written."""
    with suppress(OSError):
        click.echo(f"kclient: {printable_lines(text)}", err=True)


def printable(text: str) -> str:
    """`text` on one line, with control characters replaced: they would move the cursor or change a colour."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def printable_lines(text: str) -> str:
    """`text` without what a terminal obeys: for messages of several lines, such as those with the end of a stderr."""
    return "\n".join(printable(line.replace("\t", "    ")) for line in ESCAPES.sub("", text).split("\n"))


def drop_unwritten() -> None:
    """Discard unwritten output, so that Python does not try at its exit to write it again."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


class _Warnings(logging.Handler):
    def __init__(self, show: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self._show = show

    def emit(self, record: logging.LogRecord) -> None:
        self._show(printable(record.getMessage()))


@contextmanager
def warnings_shown(show: Callable[[str], None] = complain) -> Iterator[None]:
    """Pass each warning that the library logs on to `show`, during the block. By default it is printed as an error."""
    handler = _Warnings(show)
    logger = logging.getLogger("kclient")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
