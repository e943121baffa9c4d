"""The end of a thread that has used kclient. No call can be made there any more, and its hub never runs again.

At the end of a thread Python frees what is in the thread's own storage. An object of ours is there, as long as the
thread runs. It closes the sockets of the thread, and the hub too if kclient has made that: a hub takes two descriptors.
A hub that the program has used before kclient did is the program's own: `gevent.get_hub().destroy()` closes it.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from gevent.hub import Hub

from kclient.concurrency import unpatched


class Thread:
    """A thread that uses kclient, and is not the main one. `is_over` is True from its end on."""

    def __init__(self) -> None:
        self.is_over = False
        self._pid = os.getpid()
        self._ident = unpatched.get_ident()
        self._at_end: dict[weakref.WeakMethod[Callable[[], object]], None] = {}
        self._posted: deque[Callable[[], object]] = deque()

    def at_end(self, method: Callable[[], object]) -> None:
        """Call `method`, which is held weakly, at the end of the thread, in the thread."""
        self._at_end[weakref.WeakMethod(method, lambda reference: self._at_end.pop(reference, None))] = None

    def post(self, hub: Hub, function: Callable[[], object]) -> None:
        """Call `function` from the loop of `hub`, which is that of the thread, or at the thread's end; from any thread.

        If the thread is over it is called here and now.
        """
        self._posted.append(function)
        loop = hub.loop
        if loop is not None and not self.is_over:
            with suppress(ValueError):  # the loop was destroyed just now
                loop.run_callback_threadsafe(self._call_posted)
                return
        self._call_posted()

    def end(self, hub: Hub, *, is_hub_ours: bool) -> None:
        """The thread ends. Does nothing elsewhere: a forked child, and the end of Python, free the storage as well."""
        if self._pid != os.getpid() or self._ident != unpatched.get_ident():
            return
        self.is_over = True
        self._call_at_end()
        if is_hub_ours and hub.loop is not None:
            hub.destroy(destroy_loop=True)
        self._call_posted()

    def _call_at_end(self) -> None:
        # Not in `end`: the hub keeps the frames that destroy it, and would keep the last method with its object.
        for reference in list(self._at_end):
            method = reference()
            if method is not None:
                method()

    def _call_posted(self) -> None:
        with suppress(IndexError):  # another thread was faster
            while self._posted:
                self._posted.popleft()()


class _Guest:
    """Lives in the storage of a thread, and so as long as the thread."""

    def __init__(self, thread: Thread, hub: Hub, *, is_hub_ours: bool) -> None:
        self._ends = (thread, hub, is_hub_ours)

    def __del__(self) -> None:
        thread, hub, is_hub_ours = self._ends
        thread.end(hub, is_hub_ours=is_hub_ours)


_storage: Final[Any] = unpatched.new_local()

_threads: weakref.WeakKeyDictionary[Hub, Thread] = weakref.WeakKeyDictionary()


def thread_of(hub: Hub, *, is_new: bool) -> Thread:
    """The thread that runs, whose hub is `hub`; `is_new`: kclient has just made that hub."""
    thread = _threads.get(hub)
    if thread is None:
        thread = _threads[hub] = Thread()
        _storage.guest = _Guest(thread, hub, is_hub_ours=is_new)
    return thread
