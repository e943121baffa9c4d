"""The end of the program: the kernels end after all other calls that were registered with `atexit`."""

from __future__ import annotations

import atexit
import sys
import weakref
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from gevent.hub import Hub

from kclient.concurrency import unpatched

FREEZE_WAIT_S: Final = 0.1
"""Seconds that the end of the program waits until the hub of a daemon thread stands still."""

_to_call: dict[int, Callable[[], None]] = {}
_numbers: Final = count()
_hubs_of_threads: weakref.WeakSet[Hub] = weakref.WeakSet()


def when_gone(target: object, function: Callable[..., object], *args: object) -> Callable[[], None]:
    """Call ``function(*args)`` once: when `target` is garbage-collected, or when the returned function is called.

    If neither happens, it is called at the end of the program. `weakref.finalize` alone calls too early then: before
    the calls that were registered with `atexit` earlier than the first `finalize` of the program was made. This module
    is imported with kclient, so all calls that are registered after ``import kclient`` come before it.
    """
    number = next(_numbers)

    def call() -> None:
        if _to_call.pop(number, None) is not None:
            function(*args)

    _to_call[number] = call
    weakref.finalize(target, call).atexit = False
    return call


def note_thread(hub: Hub) -> None:
    """`hub` is that of a thread other than the main one."""
    _hubs_of_threads.add(hub)


@atexit.register
def _end() -> None:
    """End all that is left, the latest first. Kernels end before the threads stand still, which may hold a lock."""
    for call in reversed(list(_to_call.values())):  # no finalizer of `weakref` works any more here
        try:
            call()
        except Exception:  # noqa: BLE001 - the others must end, too
            sys.excepthook(*sys.exc_info())
    _freeze_threads()


def _freeze_threads() -> None:
    """Stop the hubs of daemon threads: one that wakes while Python shuts down crashes the program.

    CPython ends such a thread by unwinding its stack. With greenlets the stack is not what CPython expects.
    """
    if not _hubs_of_threads:
        return
    running = sys._current_frames()
    for hub in list(_hubs_of_threads):
        if hub.loop is None or hub.thread_ident not in running:
            continue
        stands, never = unpatched.allocate_lock(), unpatched.allocate_lock()
        stands.acquire()
        never.acquire()
        hub.loop.run_callback_threadsafe(_stand_still, stands, never)
        stands.acquire(timeout=FREEZE_WAIT_S)


def _stand_still(stands: Any, never: Any) -> None:
    stands.release()
    never.acquire()
