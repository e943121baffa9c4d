"""What the library says, on the logger `kclient`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import gevent
from gevent import getcurrent
from gevent._hub_local import get_hub_if_exists  # get_hub() would make a hub in a foreign thread

if TYPE_CHECKING:
    import logging

WARNING: Final = 30
"""That of `logging`, which takes a fifteenth of the time of our import and waits until there is something to say."""


def log() -> logging.Logger:
    """The library's logger."""
    import logging

    return logging.getLogger("kclient")


def log_soon(logger: logging.Logger, level: int, message: str, *args: object) -> None:
    """Log from a greenlet of its own where a handler that blocks would stop the hub."""
    if not logger.isEnabledFor(level):
        return
    if getcurrent() is get_hub_if_exists():
        gevent.spawn(logger.log, level, message, *args)
    else:
        logger.log(level, message, *args)
