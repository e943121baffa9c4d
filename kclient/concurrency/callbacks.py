"""Users' callbacks: how they are run, and the queue of those that run in a greenlet of their own.

A callback never runs in the hub, in a reader or inside another caller's send.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
from gevent import get_hub, getcurrent

from kclient.concurrency import sigint
from kclient.concurrency.log import log
from kclient.errors import InvalidArgument

_T = TypeVar("_T")

_in_callback: set[object] = set()


def check_callback(function: _T, name: str) -> _T:
    """`function` if it is one, or None; else raises InvalidArgument."""
    if function is not None and not callable(function):
        raise InvalidArgument(f"{name} must be a function or None, not {function!r}")
    return function


def call_back(function: Callable[..., _T], *args: Any) -> _T:
    """Run a user's callback in this greenlet. A Ctrl-C hits it as it hits any other code.

    Meanwhile `in_callback` is true in this greenlet.
    """
    me = getcurrent()
    is_outermost = me not in _in_callback
    hub = get_hub()
    was_held = sigint.holds()
    try:
        _in_callback.add(me)
        try:
            if was_held:
                sigint.release(hub)
            return function(*args)
        finally:
            if was_held:
                sigint.hold(hub)
    finally:  # also after a Ctrl-C just before the hold
        if is_outermost:
            _in_callback.discard(me)


def in_callback() -> bool:
    """True in a greenlet that runs a user's callback. It must not wait for what comes after the callback."""
    return getcurrent() in _in_callback


class CallbackQueue:
    """Calls what it is given, one after the other, in a greenlet that lives while there is something to call.

    What such a call raises is logged, as that of `name`.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        # None until the first call: an empty deque takes 0.7 KiB, and few queues are ever used.
        self._calls: deque[tuple[Callable[..., object], tuple[Any, ...]]] | None = None
        self._greenlet: gevent.Greenlet[..., Any] | None = None
        self._is_calling = False

    def add(self, function: Callable[..., object], *args: Any) -> None:
        """Call `function(*args)` after those that were added before."""
        if self._calls is None:
            self._calls = deque()
        self._calls.append((function, args))
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._call_all)

    def stop(self) -> None:
        """End the call that is under way, unless it is this one, and forget the others; more may be added."""
        if self._calls is not None:
            self._calls.clear()
        # A greenlet that has not begun would, if killed, not even learn of what is added.
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
