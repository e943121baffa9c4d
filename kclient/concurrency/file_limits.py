"""File descriptors: are there enough for what is about to be opened?

libzmq ends the whole process if it cannot get the descriptors of its context. If it cannot get those of a connection,
it tries for ever to connect, and reports no error. So kclient asks here before it opens a client or starts a kernel.
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

CHANNEL_DESCRIPTORS: Final = 2 if sys.platform == "linux" else 3
"""Of an open channel: its connection, and the eventfd by which ZeroMQ signals the socket, or a pair instead of it."""

CLIENT_DESCRIPTORS: Final = 5 * CHANNEL_DESCRIPTORS
"""Of a client with all of its channels."""

PROCESS_DESCRIPTORS: Final = 2
"""Of a kernel's process: its pidfd, and the hidden file with its output."""

PORT_DESCRIPTORS: Final = 5
"""Of the sockets that hold the ports of a kernel until the kernel has bound them."""

KERNEL_DESCRIPTORS: Final = PROCESS_DESCRIPTORS + PORT_DESCRIPTORS + CLIENT_DESCRIPTORS
"""Of a kernel that starts, and of the client to it. A kernel that is ready takes `PORT_DESCRIPTORS` fewer."""

SPARE_DESCRIPTORS: Final = 16
"""To keep free: 9 that the loop and the ZeroMQ context open once, others for a fork, a restart, a nudge."""

LAPSE_S: Final = 60.0
"""Seconds after which a reservation ends by itself: a caller that never waits for the kernel does not end it."""

_MAX_DESCRIPTORS: Final = 2**31 - 1
"""A descriptor is a C int, whatever the limit is."""

_reservations: set[weakref.ref[FileDescriptorReservation]] = set()

os.register_at_fork(after_in_child=_reservations.clear)  # they are the parent's


class FileDescriptorReservation:
    """Descriptors that will be opened soon, perhaps by libzmq's thread. Until then they are not free for others.

    `is_over`, a method, tells whether they are open by now. It is called only if there seem to be too few for others.
    """

    def __init__(self, is_over: Callable[[], bool] | None = None) -> None:
        self._is_over = None if is_over is None else weakref.WeakMethod(is_over)
        self._count = 0
        self._until = 0.0
        self._ref = weakref.ref(self, _reservations.discard)
        hash(self._ref)  # the reference keeps its hash; `discard` needs it when this object is gone

    def reserve(self, count: int, what: str, *, later: int, spare: int = SPARE_DESCRIPTORS) -> None:
        """`what` needs `count` descriptors: reserve the last `later` of them, which are not opened at once.

        Replaces its earlier reservation. Raises TooManyFiles unless `count` descriptors and `spare` more are
        free and not reserved by others.
        """
        self.release()
        check(count, what, spare=spare)
        self._count = later
        self._until = monotonic() + LAPSE_S
        _reservations.add(self._ref)

    def release(self) -> None:
        """All descriptors are open by now, or will never be opened. Idempotent."""
        _reservations.discard(self._ref)

    @classmethod
    def total_reserved(cls, *, thoroughly: bool = False) -> int:
        """How many descriptors are reserved by all; `thoroughly` first releases the reservations that are over."""
        found, now = 0, monotonic()
        for reservation in [ref() for ref in list(_reservations)]:  # a list in one step: other threads add some, too
            if reservation is None:
                continue
            is_over = reservation._is_over() if thoroughly and reservation._is_over is not None else None
            if reservation._until <= now or (is_over is not None and is_over()):
                reservation.release()
            else:
                found += reservation._count
        return found


def check(count: int, what: str, *, spare: int = SPARE_DESCRIPTORS) -> None:
    """Raise TooManyFiles unless `count` descriptors for `what`, and `spare` more, are free.

    It takes 5 us for a client, and 0.2 ms if 300 others are about to connect.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or _are_free(count + spare + FileDescriptorReservation.total_reserved(), soft):
        return
    reserved = FileDescriptorReservation.total_reserved(thoroughly=True)
    if _are_free(count + spare + reserved, soft):
        return
    in_use = soft - _free(soft, soft)
    raise TooManyFiles(
        f"{what} takes {count} file descriptors"
        + (f", and {spare} more must stay free" if spare else "")
        + f"; of the {soft} that this process may have, {in_use} are open"
        + (f" and {reserved} about to be opened" if reserved else "")
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
    """How many descriptors below `limit` are free; stops counting at `wanted`.

    The system gives out the lowest numbers. Those at the top are free, unless the process is, or was, near its limit.
    """
    found, top, window = 0, min(limit, _MAX_DESCRIPTORS), wanted
    while top > 0 and found < wanted:
        bottom = max(0, top - window)
        poll = new_poll()
        for number in range(bottom, top):
            poll.register(number, 0)
        found += sum(event == select.POLLNVAL for _, event in poll.poll(0))
        top, window = bottom, 2 * window
    return found
