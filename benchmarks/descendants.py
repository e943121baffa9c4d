"""What a process has started, seen from outside: its kernels, and the memory of all; where there is a /proc."""

from __future__ import annotations

import os
from collections import defaultdict
from pathlib import Path

PROC = Path("/proc")


def descendants(pid: int) -> dict[int, int]:
    """The processes below that one, each with its parent."""
    children = defaultdict(list)
    for entry in os.listdir(PROC):
        if entry.isdecimal():
            try:
                children[parent_of(int(entry))].append(int(entry))
            except OSError:  # it has ended
                continue
    found: dict[int, int] = {}
    left = [pid]
    while left:
        parent = left.pop()
        found |= dict.fromkeys(children[parent], parent)
        left += children[parent]
    return found


def kernels_of(pid: int) -> list[int]:
    """The kernels below that process: started by their command, or forked, with that of who forked them."""
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
    """Empty once it has ended, even if nobody has reaped it."""
    try:
        return (PROC / str(pid) / "cmdline").read_bytes()
    except OSError:
        return b""


def own_kib(pid: int) -> int:
    """RssAnon: memory of a process that no file backs; 0 once it has ended."""
    return kib(pid, "status", "RssAnon:")


def share_kib(pid: int) -> int:
    """The same with what forked processes share divided among them, so that one may add it up."""
    return kib(pid, "smaps_rollup", "Pss_Anon:")


def kib(pid: int, file: str, field: str) -> int:
    """The sum of the lines of that file that begin so; 0 once the process has ended."""
    try:
        with (PROC / str(pid) / file).open(encoding="ascii", errors="replace") as lines:
            return sum(int(line.split()[1]) for line in lines if line.startswith(field))
    except OSError:
        return 0
