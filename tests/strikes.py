"""A Ctrl-C at a chosen line of kclient."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import leaks

import kclient

PACKAGE = str(Path(kclient.__file__).parent)


class Strike:
    """A SIGINT at the `at`-th line of kclient that runs during `call`.

    With `within`, the code of a callback, only lines count that run in that callback, or in what it calls.
    """

    def __init__(self, at: int, within: CodeType | None = None) -> None:
        self.where = ""
        self.left = at
        self._within = within

    def during(self, call: Callable[[], object]) -> BaseException | None:
        """The exception that `call` raised, or None."""
        sys.settrace(self._trace)
        try:
            call()
        except BaseException as exc:
            return exc
        finally:
            sys.settrace(None)
        return None

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and self._counts(frame):
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.where = leaks.lines(frame, 12)
                signal.raise_signal(signal.SIGINT)
        return self._trace

    def _counts(self, frame: FrameType | None) -> bool:
        if self._within is None:
            return True
        while frame is not None and frame.f_code is not self._within:
            frame = frame.f_back
        return frame is not None
