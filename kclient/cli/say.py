"""What a command that runs no kernel has to say, and why it was not done."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import click


def say(text: str) -> None:
    """Print it; what our output's encoding has no sign for is escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # None: closed, or no file of text
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def complain(text: str) -> None:
    """Say, on standard error, why it was not done; nobody may be there to read it."""
    with suppress(OSError):
        click.echo(f"kclient: {text}", err=True)


def printable(text: str) -> str:
    """`text` on one line, without what would move the cursor or change a colour."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def drop_unwritten() -> None:
    """Let Python not try again, at its exit, to write what could not be written."""
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
    """Pass on to `show` each warning that the library logs: by default it is among our complaints."""
    handler = _Warnings(show)
    logger = logging.getLogger("kclient")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
