"""The processes of this machine, as far as this user can see them in /proc. Where there is none, nothing is seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress


def started_with(path: str) -> int | None:
    """The number of a process that has the file `path` among its arguments; None if there is none.

    This process and those that it descends from do not count: they may have got the path to connect to.
    """
    name, ours = os.path.basename(path), set(_ancestors(os.getpid()))
    for pid in _pids():
        if pid not in ours and any(_is_called(name, argument) for argument in _arguments(pid)):
            return pid
    return None


def _is_called(name: str, argument: str) -> bool:
    """True if an argument is that file. A kernel in a container may have it in another folder."""
    where = argument.rpartition("=")[2]  # --file=path
    return os.path.basename(where) == name


def _pids() -> Iterator[int]:
    with suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _arguments(pid: int) -> list[str]:
    """The arguments of a process after its first; an empty list if it has ended."""
    with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        return [os.fsdecode(argument) for argument in file.read().split(b"\0")[1:]]
    return []


def _ancestors(pid: int) -> Iterator[int]:
    """`pid`, its parent, and so on."""
    while pid > 0:
        yield pid
        pid = _parent(pid)


def _parent(pid: int) -> int:
    with suppress(OSError, ValueError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
    return 0
