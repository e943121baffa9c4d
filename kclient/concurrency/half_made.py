"""The repr of an object whose `__init__` has raised: a debugger and a report of an error show it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any


def half_made_too(repr_of: Callable[[Any], str]) -> Callable[[Any], str]:
    """`__repr__` for a class whose objects it may meet before all of their attributes are set."""

    @wraps(repr_of)
    def repr_now(self: Any) -> str:
        try:
            return repr_of(self)
        except AttributeError:
            return f"<{type(self).__name__} half made>"

    return repr_now
