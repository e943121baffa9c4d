"""The processes that a process has started, which of them are kernels, and their memory. It needs /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

PROC = Path("/proc")


def descendants(pid: int) -> dict[int, int]:
    """The children of a process, their children and so on: the parent of each, by pid."""
    children = defaultdict(list)
    for entry in os.listdir(PROC):
        if entry.isdecimal():
            try:
                children[parent_of(int(entry))].append(int(entry))
            except OSError:  # the process has ended
                continue
    found: dict[int, int] = {}
    left = [pid]
    while left:
        parent = left.pop()
        found |= dict.fromkeys(children[parent], parent)
        left += children[parent]
    return found


def kernels_of(pid: int) -> list[int]:
    """The kernels below that process.

    A kernel has the command of ipykernel, or it was forked and has the command of its parent.
    """
    kernels = []
    for child, parent in descendants(pid).items():
        command = command_of(child)
        if b"ipykernel_launcher" in command or (parent != pid and command and command == command_of(parent)):
            kernels.append(child)
    return kernels


def parent_of(pid: int) -> int:
    _, _, rest = (PROC / str(pid) / "stat").read_bytes().rpartition(b")")
    return int(rest.split()[1])


def command_of(pid: int) -> bytes:
    """The command line; empty once the process has ended, even if it is not reaped."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def own_kib(pid: int) -> int:
    """RssAnon in KiB: the memory of a process without that of mapped files; 0 once it has ended."""
    return kib(pid, "status", "RssAnon:")


def share_kib(pid: int) -> int:
    """The same, but memory that forked processes share counts in equal parts: the values of processes may be added."""
    return kib(pid, "smaps_rollup", "Pss_Anon:")


def kib(pid: int, file: str, field: str) -> int:
    """The sum of the lines in /proc/PID/`file` that begin with `field`, in KiB; 0 once the process has ended."""
    try:
        with (PROC / str(pid) / file).open(encoding="ascii", errors="replace") as lines:
            return sum(int(line.split()[1]) for line in lines if line.startswith(field))
    except OSError:
        return 0
