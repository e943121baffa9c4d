"""A native thread with a hub of its own, for a fake kernel whose client blocks its whole thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event

from kclient.concurrency.unpatched import allocate_lock, start_new_thread


class HubThread:
    """Calls `open` in the thread, serves, and calls `close` there before the thread ends."""

    def __init__(self, open: Callable[[], None], close: Callable[[], None]) -> None:
        self._open = open
        self._close = close
        self._started = allocate_lock()
        self._ended = allocate_lock()
        self._error: BaseException | None = None
        self._end: Any = None

    def start(self) -> None:
        """Return when `open` has returned; raises what it raised."""
        self._started.acquire()
        self._ended.acquire()
        start_new_thread(self._run, ())
        self._started.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Return when `close` has returned and the thread is about to end."""
        self._end.send()
        self._ended.acquire()

    def _run(self) -> None:
        hub = gevent.get_hub()
        end = Event()
        try:
            self._end = hub.loop.async_()
            self._end.start(end.set)
            self._open()
        except BaseException as exc:  # noqa: BLE001 - `start` raises it
            self._error = exc
        self._started.release()
        if self._error is None:
            end.wait()
            self._close()
        self._end.stop()
        self._end.close()
        hub.destroy(destroy_loop=True)
        self._ended.release()
