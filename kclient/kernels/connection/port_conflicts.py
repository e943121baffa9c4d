"""Which addresses of a kernel are taken by another program. A kernel that cannot bind one does not always say so."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Final

from kclient.concurrency.unpatched import socket
from kclient.errors import LaunchError
from kclient.kernels.connection.ports import can_bind
from kclient.protocol.connection import CHANNELS, ConnectionInfo
from kclient.transport.zmq.local_processes import sockets_of, tcp_listeners, unix_listeners

_IN_USE: Final = "ddress already in use"
"""Part of what a kernel prints if a port was taken. The port may be free again when kclient checks it."""


def taken_ports(info: ConnectionInfo, kernel: int | None = None) -> list[int]:
    """The ports of `info` that another program has now: tcp ports are tried with bind, ipc addresses with connect.

    `kernel` is the process group of the kernel, if it runs. Ports on which its own processes listen are not taken. If
    these cannot be found out (no /proc, a kernel of another user) the list is empty.
    """
    ports = [info.port(channel) for channel in CHANNELS if info.port(channel)]
    if info.transport == "ipc":
        return [port for port in ports if kernel is None and is_taken(f"{info.ip}-{port}")]
    taken = [port for port in ports if not can_bind(info.ip, port)]
    if taken and kernel is not None:
        own = _listening(kernel)
        return [port for port in taken if own is not None and port not in own]
    return taken


def were_taken(error: LaunchError) -> bool:
    """True if a kernel failed to start because another program had one of its ports, perhaps only for a moment."""
    return bool(error.taken_ports) or _IN_USE in error.stderr


def is_taken(path: str) -> bool:
    """True if a program listens on that socket file, or if the file is no socket. libzmq would replace either."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return True
        with closing(socket.socket(socket.AF_UNIX)) as sock:
            sock.setblocking(False)
            sock.connect(path)
    except OSError as exc:  # no file, or the socket file of a program that has ended
        return exc.errno == errno.EAGAIN  # the program listens, and its queue of connections is full
    return True


def describe(info: ConnectionInfo, taken: Sequence[int]) -> str:
    """A clause about `taken_ports` for an error message; empty if there are none."""
    if not taken:
        return ""
    if info.transport == "ipc":
        word, plural, names = "address", "addresses", [f"{info.ip}-{port}" for port in taken]
    else:
        word, plural, names = "port", "ports", [str(port) for port in taken]
    subject = f"{word} {names[0]} is" if len(names) == 1 else f"{plural} {', '.join(names)} are"
    return f"{subject} taken by another program; end that program, or let kclient choose the {plural}"


def members(group: int) -> Iterator[int]:
    """The processes of a group, from /proc."""
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        with suppress(ProcessLookupError):  # the process has ended
            if os.getpgid(pid) == group:
                yield pid


def listening(info: ConnectionInfo, pids: Iterable[int]) -> set[int]:
    """Those of the processes that have the socket on which the kernel listens for shell. Raises OSError."""
    port = info.port("shell")
    if info.transport == "ipc":
        sockets = {inode for path, inode in unix_listeners() if path == f"{info.ip}-{port}"}
    else:
        sockets = {inode for number, inode in _tcp_ports() if number == port}
    return {pid for pid in pids if sockets & sockets_of(pid)}


def _listening(group: int) -> set[int] | None:
    """The tcp ports on which the processes of a group listen; None if /proc does not show them."""
    try:
        own = {inode for pid in members(group) for inode in sockets_of(pid)}
        return {port for port, inode in _tcp_ports() if inode in own}
    except OSError:
        return None


def _tcp_ports() -> Iterator[tuple[int, str]]:
    """The port and the inode number of each tcp socket that listens."""
    for end, inode in tcp_listeners():
        yield int(end.rpartition(":")[2], 16), inode
