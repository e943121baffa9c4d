"""Threads: can as many be started as are about to be?

libzmq ends the whole process if it cannot start the threads of its context. So kclient asks here before it makes one.
"""

from __future__ import annotations

import os
from threading import get_native_id
from time import monotonic
from typing import Any, Final

from kclient.concurrency.unpatched import allocate_lock, start_new_thread
from kclient.errors import InvalidState

END_WAIT_S: Final = 0.1
"""Seconds, at most, to wait for the end of threads that do nothing."""

REMEDY: Final = (
    "end some processes or threads of this user, or raise the limit: `ulimit -u` in the shell, TasksMax= of systemd, "
    "--pids-limit of a container"
)
"""What to do if the system starts no thread or process. It does not say which of the limits is reached."""


def check_threads(count: int, what: str) -> None:
    """Raise InvalidState unless `count` threads for `what` can be started. It takes 0.5 ms.

    No number tells that: a limit may be one of the user, of a container, or of the service. So it starts threads, and
    waits until they have ended: libzmq would count them, too.
    """
    end = allocate_lock()
    end.acquire()
    threads: list[int] = []
    try:
        for _ in range(count + 1):  # one more: the program may start another meanwhile
            begun = allocate_lock()
            begun.acquire()
            start_new_thread(_wait, (begun, end, threads))
            begun.acquire()
    except RuntimeError as exc:
        raise InvalidState(
            f"{what} takes {count} threads, and the system starts no more ({exc}); a limit of processes and threads "
            f"is reached: {REMEDY}"
        ) from exc
    finally:
        end.release()
        _wait_until_gone(threads)


def _wait(begun: Any, end: Any, threads: list[int]) -> None:
    threads.append(get_native_id())
    begun.release()
    with end:
        pass


def _wait_until_gone(threads: list[int]) -> None:
    """Wait for threads that are about to end. Each look lets them have the interpreter. No event tells of a thread."""
    until = monotonic() + END_WAIT_S
    for thread in threads:
        while os.path.exists(f"/proc/self/task/{thread}") and monotonic() < until:
            pass
