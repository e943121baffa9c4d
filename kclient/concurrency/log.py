"""What the library says, on the logger `kclient`.

It prints nothing in a program that has no handler: the logger has a NullHandler from the first use on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import gevent
from gevent import getcurrent
from gevent._hub_local import get_hub_if_exists  # get_hub() would make a hub in a foreign thread

if TYPE_CHECKING:
    import logging

DEBUG: Final = 10

WARNING: Final = 30
"""Numbers of `logging`. Its import takes a fifteenth of the time of ours; it waits until there is something to say."""


def log() -> logging.Logger:
    """The library's logger."""
    global is_enabled
    import logging

    logger = logging.getLogger("kclient")
    if is_enabled is _is_enabled_yet:
        # Without it, and without a handler of the program, Python prints warnings on stderr.
        logger.addHandler(logging.NullHandler())
        is_enabled = logger.isEnabledFor
    return logger


def _is_enabled_yet(level: int) -> bool:
    return "logging" in sys.modules and log().isEnabledFor(level)


is_enabled: Callable[[int], bool] = _is_enabled_yet
"""True if the program wants lines of that level. It takes 0.1 us: `logging` keeps the answer. Do not import it by name.

It is a method of the logger as soon as `logging` is imported. Before that no program can want anything.
"""


def log_soon(logger: logging.Logger, level: int, message: str, *args: object) -> None:
    """Log from a greenlet of its own where a handler that blocks would stop the hub."""
    if not logger.isEnabledFor(level):
        return
    if getcurrent() is get_hub_if_exists():
        gevent.spawn(logger.log, level, message, *args)
    else:
        logger.log(level, message, *args)
