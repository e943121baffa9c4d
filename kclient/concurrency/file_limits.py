"""File descriptors: are there enough for what is about to be opened?

libzmq ends the whole process where it cannot get the first of them, and goes on trying to connect, in silence, where it
cannot get the others. So who opens a client or starts a kernel asks here first.
"""

from __future__ import annotations

import os
import resource
import select
import sys
import weakref
from collections.abc import Callable
from time import monotonic
from typing import Final

from kclient.concurrency.unpatched import new_poll
from kclient.errors import TooManyFiles

CHANNEL: Final = 2 if sys.platform == "linux" else 3
"""Of an open channel: its connection, and what ZeroMQ signals its socket by, a pair where there is no eventfd."""

CLIENT: Final = 5 * CHANNEL
"""Of a client with all of its channels."""

PROCESS: Final = 2
"""Of a kernel's process: its pidfd, and the hidden file with its output."""

PORTS: Final = 5
"""That hold the ports of a kernel until it has bound them."""

KERNEL: Final = PROCESS + PORTS + CLIENT
"""Of a kernel that starts, and of the client to it; without `PORTS` when it is ready."""

RESERVE: Final = 16
"""Left free for what comes once, the loop's and the ZeroMQ context's 9, or for a moment: a fork, a restart, a knock."""

LAPSE: Final = 60.0
"""Seconds; who never waits until a kernel is ready cannot say that all is open."""

_MOST: Final = 2**31 - 1
"""A descriptor is a C int, whatever the limit."""

_claims: set[weakref.ref[FileDescriptorReservation]] = set()

os.register_at_fork(after_in_child=_claims.clear)  # they are the parent's


class FileDescriptorReservation:
    """Descriptors that will be opened soon, by libzmq's thread perhaps: nobody else may count on them meanwhile.

    `is_over`, a method, tells whether they are open by now; it is asked only when there seem to be too few for others.
    """

    def __init__(self, is_over: Callable[[], bool] | None = None) -> None:
        self._is_over = None if is_over is None else weakref.WeakMethod(is_over)
        self._count = 0
        self._until = 0.0
        self._ref = weakref.ref(self, _claims.discard)
        hash(self._ref)  # it keeps this; to ask first when we are gone, as `discard` would, is an error

    def take(self, count: int, what: str, *, later: int, reserve: int = RESERVE) -> None:
        """`count` of them are needed for `what`, the last `later` some time after this.

        Raises TooManyFiles unless they, and a `reserve`, are free and not claimed by others.
        """
        self.end()
        check(count, what, reserve=reserve)
        self._count = later
        self._until = monotonic() + LAPSE
        _claims.add(self._ref)

    def end(self) -> None:
        """All is open, or will never be. Idempotent."""
        _claims.discard(self._ref)

    @classmethod
    def total(cls, *, thoroughly: bool = False) -> int:
        """How many are claimed by all; `thoroughly` ends those that are over."""
        found, now = 0, monotonic()
        for claim in [ref() for ref in list(_claims)]:  # a list in one step: other threads claim some, too
            if claim is None:
                continue
            is_over = claim._is_over() if thoroughly and claim._is_over is not None else None
            if claim._until <= now or (is_over is not None and is_over()):
                claim.end()
            else:
                found += claim._count
        return found


def check(count: int, what: str, *, reserve: int = RESERVE) -> None:
    """Raise TooManyFiles unless so many for `what`, and a `reserve`, are free.

    It takes 5 us for a client, and 0.2 ms where 300 others are about to connect.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or _are_free(count + reserve + FileDescriptorReservation.total(), soft):
        return
    claimed = FileDescriptorReservation.total(thoroughly=True)
    if _are_free(count + reserve + claimed, soft):
        return
    in_use = soft - _free(soft, soft)
    raise TooManyFiles(
        f"{what}: that takes {count} file descriptors"
        + (f", and {reserve} are to be left for what comes later" if reserve else "")
        + f"; of the {soft} that this process may have {in_use} are open"
        + (f" and {claimed} about to be opened" if claimed else "")
        + f"; close what is not needed, or raise the limit: {_remedy(soft, hard)}",
        needed=count,
        in_use=in_use,
        limit=soft,
        hard_limit=None if hard == resource.RLIM_INFINITY else hard,
    )


def _remedy(soft: int, hard: int) -> str:
    if hard == soft:
        return "it is the hard limit, too: the system raises it (systemd: LimitNOFILE=, containers: --ulimit nofile=)"
    most = "resource.RLIM_INFINITY" if hard == resource.RLIM_INFINITY else str(hard)
    shell = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    return f"`ulimit -n {shell}` in the shell, or resource.setrlimit(resource.RLIMIT_NOFILE, ({most}, {most}))"


def _are_free(wanted: int, limit: int) -> bool:
    return _free(wanted, limit) >= wanted


def _free(wanted: int, limit: int) -> int:
    """How many numbers below `limit` are free; it stops counting at `wanted`.

    The system gives out the lowest: those at the top are free, unless the process is near its limit, or was once.
    """
    found, top, window = 0, min(limit, _MOST), wanted
    while top > 0 and found < wanted:
        bottom = max(0, top - window)
        poll = new_poll()
        for number in range(bottom, top):
            poll.register(number, 0)
        found += sum(event == select.POLLNVAL for _, event in poll.poll(0))
        top, window = bottom, 2 * window
    return found
