"""Output and error messages of commands that run no kernel."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import click


def say(text: str) -> None:
    """Print `text`; characters that the encoding of standard output lacks are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # None: closed, or no file of text
    click.echo(text.encode(encoding, "backslashreplace").decode(encoding))


def complain(text: str) -> None:
    """Print an error message on standard error, if that can be written."""
    with suppress(OSError):
        click.echo(f"kclient: {text}", err=True)


def printable(text: str) -> str:
    """`text` on one line, with control characters replaced: they would move the cursor or change a colour."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


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
