"""Who may call: an object belongs to the hub and the process that made it."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from gevent import get_hub
from gevent._hub_local import get_hub_if_exists  # get_hub() would make a hub in a foreign thread
from gevent.hub import Hub, Waiter

from kclient.concurrency import program_end, sigint
from kclient.concurrency.thread_end import Thread, thread_of
from kclient.errors import ForkedProcess, WrongThread

_pid = os.getpid()


def _remember_fork() -> None:
    global _pid
    _pid = os.getpid()


os.register_at_fork(after_in_child=_remember_fork)


class _Held(AbstractContextManager[None]):
    """A public call, to its end. All calls of a hub share one object: to make one costs as much as to hold a Ctrl-C."""

    __slots__ = ("_hub",)

    def __init__(self, hub: Hub) -> None:
        self._hub = hub

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        sigint.release(self._hub)


_NOT_HELD: Final = nullcontext()


class Wakeups:
    """The greenlets that are woken in one hub: by the loop at its next turn or, while a pump reads, by the pump.

    The pump of a socket sets `woken` to a list and switches to the greenlets in it. That takes 0.5 us; a callback of
    the loop takes 3.
    """

    __slots__ = ("woken",)

    def __init__(self) -> None:
        self.woken: list[Waiter[bool]] | None = None


_wakeups: weakref.WeakKeyDictionary[Hub, Wakeups] = weakref.WeakKeyDictionary()


class Owner:
    """The hub and the process that made an object. Nothing else may use the object.

    A thread id does not tell: after ``monkey.patch_all()`` each greenlet has another one.
    """

    __slots__ = ("_held", "_pid", "_thread", "hub", "wakeups")

    def __init__(self) -> None:
        is_hub_new = get_hub_if_exists() is None
        self.hub: Hub = get_hub()
        self.wakeups = _wakeups.setdefault(self.hub, Wakeups())
        self._held = _Held(self.hub)
        self._pid = _pid
        self._thread: Thread | None = None  # of the main thread, which lasts as long as the program
        if not self.hub.loop.default:
            program_end.note_thread(self.hub)
            self._thread = thread_of(self.hub, is_new=is_hub_new)

    def check(self) -> None:
        """Raise ForkedProcess or WrongThread if the caller is not in the owner's hub."""
        if get_hub_if_exists() is not self.hub or self._pid != _pid:
            self._refuse()

    def _refuse(self) -> None:
        if self._pid != _pid:
            raise ForkedProcess("made before a fork: sockets do not survive it; make a new one in the child")
        if self.is_gone:
            raise WrongThread("made in a thread that has ended: it can only be closed or shut down; make a new one")
        raise WrongThread("made in another thread, which alone may use it; make one of your own in this thread")

    def call(self) -> AbstractContextManager[None]:
        """`check`; then, for a `with` block, put off a Ctrl-C until the call waits or ends: nothing is half done."""
        self.check()
        return self._held if sigint.hold(self.hub) else _NOT_HELD

    @property
    def forked(self) -> bool:
        """True in a forked child, where cleaning up would harm the parent."""
        return self._pid != _pid

    @property
    def is_here(self) -> bool:
        """True if the caller is in the owner's hub and process."""
        return get_hub_if_exists() is self.hub and self._pid == _pid

    @property
    def is_gone(self) -> bool:
        """True if the owner's thread has ended, or its hub was destroyed. Any thread may then free what it holds."""
        return self.hub.loop is None or (self._thread is not None and self._thread.is_over)

    def at_thread_end(self, method: Callable[[], object]) -> None:
        """Call `method`, which is held weakly, when the owner's thread ends. The main thread does not."""
        if self._thread is not None:
            self._thread.at_end(method)

    def run_here(self, function: Callable[[], object]) -> None:
        """Run `function` in the owner's hub, from whatever thread (a finalizer runs in any); here if that is gone."""
        if self.forked:
            return
        if self.is_here or self.is_gone:
            function()
        elif self._thread is not None:
            self._thread.post(self.hub, function)
        else:
            self.hub.loop.run_callback_threadsafe(function)
