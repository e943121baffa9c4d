"""Interrupts a kernel whose command is a wrapper, and not the wrapper, which would die of it.

The wrapper, for example ``conda run`` or a Python that calls `subprocess.call`, leads the process group. The kernel is
its child, and is known by the port on which it listens.
"""

from __future__ import annotations

import os
from contextlib import suppress
from signal import SIGINT, pidfd_send_signal

from kclient.kernels.connection.port_conflicts import listening, members
from kclient.protocol.connection import ConnectionInfo
from kclient.transport.zmq.local_processes import ancestors


def interrupt_behind_wrapper(group: int, info: ConnectionInfo) -> bool:
    """SIGINT to the processes of the group but those that wrap the kernel. False if there is no wrapper, or no /proc.

    Then nothing was sent.
    """
    try:
        if not _has_children(group) or listening(info, [group]):  # most kernels: it takes 0.1 ms to see that
            return False
        kernels = listening(info, members(group))
        if not kernels:
            return False
        wrappers = {parent for pid in kernels for parent in ancestors(pid)} - kernels
        for pid in members(group):
            if pid not in wrappers:
                _interrupt(pid, group)
    except (OSError, AttributeError):  # no /proc, a process of another user, no pidfds
        return False
    return True


def _has_children(pid: int) -> bool:
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(FileNotFoundError), open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
            if file.read(1):
                return True
    return False


def _interrupt(pid: int, group: int) -> None:
    """SIGINT to that process, unless it has ended, or has left the group, or its number is another's now."""
    with suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            if os.getpgid(pid) == group:
                pidfd_send_signal(pidfd, SIGINT)
        finally:
            os.close(pidfd)
