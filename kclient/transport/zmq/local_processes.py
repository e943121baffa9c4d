"""The processes of this machine, as far as this user can see them in /proc. Where there is none, nothing is seen."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from socket import AF_INET, AF_INET6, inet_pton
from time import monotonic
from typing import Final

LOOK_SHARE: Final = 0.05
"""Share of the time that `Listeners` takes to look, however many ask."""

LISTENS: Final = "0A"
"""The state of a listening socket in /proc/net/tcp; see proc_net(5)."""

LISTENS_UNIX: Final = 0x10000
"""The flag of one in /proc/net/unix: __SO_ACCEPTCON of Linux."""

THREADS_OF_LIBZMQ: Final = "ZMQbg"
"""The beginning of the names of libzmq's threads."""


def started_with(path: str) -> int | None:
    """The number of a process that has the file `path` among its arguments; None if there is none.

    This process and those that it descends from do not count: they may have got the path to connect to. The folder
    does not count either: a kernel in a container may see the file in another one.
    """
    name, ours = os.path.basename(path), set(ancestors(os.getpid()))
    for pid in _pids():
        if pid not in ours and any(_file_of(argument) == name for argument in _arguments(pid)):
            return pid
    return None


class Listeners:
    """The sockets that listen on this machine, and the processes that hold them.

    One look goes through all descriptors of all processes, and the hub stands still meanwhile: 20 ms, where there are
    10,000 of them. So its result counts until `LOOK_SHARE` of the time has gone into looks.
    """

    def __init__(self) -> None:
        self._until = 0.0
        self._inodes: dict[str, list[str]] = {}
        self._holders: dict[str, list[int]] = {}

    def left_to(self, address: str) -> list[int]:
        """The processes that hold the listening socket of a ZeroMQ `address` since its kernel has ended.

        They are forks of that kernel: libzmq is in their memory, and its threads are not, so they serve no connection.
        Empty if one of the holders may serve it, or if no holder can be seen.
        """
        if monotonic() >= self._until:
            self._look()
        inodes = [inode for end in _ends(address) for inode in self._inodes.get(end, [])]
        holders = sorted({pid for inode in inodes for pid in self._holders.get(inode, [])})
        return [] if any(map(_may_serve, holders)) else holders

    def _look(self) -> None:
        began = monotonic()
        self._inodes = {}
        with suppress(OSError):
            for end, inode in (*tcp_listeners(), *unix_listeners()):
                self._inodes.setdefault(end, []).append(inode)
        self._holders = {inode: [] for inodes in self._inodes.values() for inode in inodes}
        for pid in _pids():
            with suppress(OSError):
                for inode in sockets_of(pid) & self._holders.keys():
                    self._holders[inode].append(pid)
        ended = monotonic()
        self._until = ended + (ended - began) * (1 / LOOK_SHARE - 1)


LISTENERS: Final = Listeners()
"""What all clients of this process have seen."""


def sockets_of(pid: int) -> set[str]:
    """The inode numbers of the sockets that a process has open; empty if it has ended. Raises PermissionError."""
    sockets: set[str] = set()
    with suppress(FileNotFoundError, ProcessLookupError):
        for number in os.listdir(f"/proc/{pid}/fd"):
            with suppress(FileNotFoundError):  # the process has closed the descriptor
                kind, _, inode = os.readlink(f"/proc/{pid}/fd/{number}").partition(":")
                if kind == "socket":
                    sockets.add(inode.strip("[]"))
    return sockets


def tcp_listeners() -> Iterator[tuple[str, str]]:
    """The end and the inode number of each tcp socket that listens. The end is an address and a port in hexadecimal.

    There are none where there is no /proc. Raises PermissionError.
    """
    for name in ("tcp", "tcp6"):
        for line in _lines(f"/proc/net/{name}"):
            found = line.split()
            if found[3] == LISTENS:
                yield found[1], found[9]


def unix_listeners() -> Iterator[tuple[str, str]]:
    """The path and the inode number of each Unix socket that listens; else as `tcp_listeners`."""
    for line in _lines("/proc/net/unix"):
        found = line.split(maxsplit=7)
        if len(found) > 7 and int(found[3], 16) & LISTENS_UNIX:
            yield found[7], found[6]


def _file_of(argument: str) -> str:
    return os.path.basename(argument.rpartition("=")[2])  # --file=path


def _pids() -> Iterator[int]:
    with suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdecimal())


def _arguments(pid: int) -> list[str]:
    """The arguments of a process after its first; an empty list if it has ended."""
    return [os.fsdecode(argument) for argument in _read(f"/proc/{pid}/cmdline").split(b"\0")[1:]]


def ancestors(pid: int) -> Iterator[int]:
    """`pid`, its parent, and so on."""
    while pid > 0:
        yield pid
        pid = _parent(pid)


def _parent(pid: int) -> int:
    with suppress(ValueError, IndexError):
        return int(_read(f"/proc/{pid}/stat").rpartition(b")")[2].split()[1])
    return 0


def _may_serve(pid: int) -> bool:
    """False for a process with libzmq, and without its threads: a fork has only the thread that forked."""
    threads: list[str] = []
    with suppress(OSError):
        threads = os.listdir(f"/proc/{pid}/task")
    names = [os.fsdecode(_read(f"/proc/{pid}/task/{thread}/comm")) for thread in threads]
    has_libzmq = b"zmq" in _read(f"/proc/{pid}/maps")
    return not has_libzmq or any(name.startswith(THREADS_OF_LIBZMQ) for name in names)


def _ends(address: str) -> list[str]:
    """Where a socket may listen for the connections to a ZeroMQ address, as /proc/net has it."""
    transport, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    return [where] if transport == "ipc" else [f"{host}:{int(port):04X}" for host in _hosts(host)]


def _hosts(host: str) -> list[str]:
    """The address `host` as /proc/net has it, in words of four bytes, and the addresses that stand for all hosts."""
    host = "127.0.0.1" if host == "localhost" else host.strip("[]")
    everywhere = ["0" * 8, "0" * 32]
    with suppress(OSError, ValueError):
        packed = inet_pton(AF_INET6 if ":" in host else AF_INET, host)
        words = (int.from_bytes(packed[start : start + 4], "little") for start in range(0, len(packed), 4))
        return ["".join(f"{word:08X}" for word in words), *everywhere]
    return []


def _lines(path: str) -> list[str]:
    """The lines of a table in /proc, without its head; none if there is no such table."""
    with suppress(FileNotFoundError), open(path, "rb") as table:
        return [os.fsdecode(line).rstrip("\n") for line in table][1:]
    return []


def _read(path: str) -> bytes:
    """The content of a file in /proc; empty if its process has ended, or belongs to another user."""
    with suppress(OSError), open(path, "rb") as file:
        return file.read()
    return b""
