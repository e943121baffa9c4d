"""Calls of user code, in order, in a greenlet of their own: never in the hub, a reader or another caller's send."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import gevent

from kclient.hub import call_back
from kclient.log import log


class Deliverer:
    """Calls what it is given, one after the other; its greenlet lives while there is something to call.

    What such a call raises is logged, as that of `name`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._greenlet: gevent.Greenlet[..., Any] | None = None
        self._is_calling = False

    def add(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function(*args)` after those that were added before."""
        self._calls.append((function, args))
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._call_all)

    def stop(self) -> None:
        """End the call that is under way, unless it is this one, and forget the others; more may be added."""
        self._calls.clear()
        # One that has not begun would, if killed, not even learn of what is added.
        if self._is_calling and self._greenlet is not None and self._greenlet is not gevent.getcurrent():
            self._greenlet.kill(block=False)

    def _call_all(self) -> None:
        try:
            while self._calls:
                function, args = self._calls.popleft()
                self._is_calling = True
                try:
                    call_back(function, *args)
                except (gevent.GreenletExit, KeyboardInterrupt, SystemExit):
                    raise
                except BaseException:  # noqa: BLE001 - a gevent.Timeout, too
                    log().exception("%s failed", self._name)
        finally:
            self._is_calling = False
            self._greenlet = None
            if self._calls:
                self._greenlet = gevent.spawn(self._call_all)
