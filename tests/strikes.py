"""A Ctrl-C at a chosen line of a callback that the loop calls."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

import gevent


class CallbackStrike:
    """A SIGINT at the `at`-th line that runs in a callback, or in what that calls. `code` is that of the callback."""

    def __init__(self, code: CodeType, at: int) -> None:
        self.where = ""
        self._code = code
        self._left = at

    def during(self, wait: Callable[[], object]) -> None:
        """Call `wait`, in the main greenlet, and let no KeyboardInterrupt of the strike out."""
        old = signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.settrace(self._trace)
        try:
            wait()
            gevent.sleep(0)  # a Ctrl-C noted in the hub is raised with the loop's next turn
        except KeyboardInterrupt:
            assert self.where
        finally:
            sys.settrace(None)
            signal.signal(signal.SIGINT, old)

    def _trace(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line" and self._is_under(frame):
            self._left -= 1
            if self._left == 0:
                sys.settrace(None)
                self.where = f"{frame.f_code.co_name}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGINT)
        return self._trace

    def _is_under(self, frame: FrameType | None) -> bool:
        while frame is not None and frame.f_code is not self._code:
            frame = frame.f_back
        return frame is not None
