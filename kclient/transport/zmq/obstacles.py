"""What makes it impossible to talk to a kernel, as far as can be seen before anything is sent to it."""

from __future__ import annotations

import os
from contextlib import suppress
from time import localtime, strftime
from typing import Final

from kclient.concurrency.deadline import Deadline
from kclient.errors import ConnectionFileError, DeadKernelError, KClientError
from kclient.protocol.connection import CHANNELS, ConnectionInfo
from kclient.transport.base import held
from kclient.transport.zmq import local_processes
from kclient.transport.zmq.reachability import (
    CONNECT_S,
    GREETING_S,
    Encounter,
    Met,
    is_here,
    is_number,
    look_up,
    meet,
    refuses,
)

PLAIN: Final = "NULL"
ENCRYPTS: Final = "CURVE"
"""The two mechanisms of ZeroMQ that kernels have (rfc.zeromq.org/spec/23)."""

NO_KEYS: Final = (
    "the kernel at {} wants an encrypted connection; its connection file has the keys for it, curve_publickey and "
    "curve_secretkey: connect with that file"
)
NEEDLESS_KEYS: Final = (
    "the kernel at {} does not encrypt, and the connection file has curve_publickey; "
    "is it the file of another kernel, or of an earlier one? to start such a kernel, pass encryption='off'"
)
ANOTHER_CURVE_KEY: Final = (
    "the kernel at {} has another key than the curve_publickey of this connection; "
    "is its connection file that of another kernel, or of an earlier one?"
)
SILENT_S: Final = 0.5
"""Seconds to wait for the greeting of a kernel that has missed a heartbeat. Its answer may be waited for for longer:
that no process is left that could give it shows in the system's tables."""

OTHER_PROGRAM: Final = "the program at {} is no kernel: it does not speak ZeroMQ, and said {}"


def find_obstacle(info: ConnectionInfo, deadline: Deadline) -> KClientError | None:
    """The error to raise instead of a wait for the kernel of `info`; None if the kernel may answer.

    Waits for the look-up of a host name, for `GREETING_S` for the greeting of a kernel of this machine, and for nothing
    else. A kernel elsewhere is not looked at: its answers take longer than a look may.
    """
    if info.transport == "tcp":
        host = _host_of(info.address("shell"))
        if not is_number(host):
            try:
                host = look_up(host, deadline)[0]
            except (OSError, UnicodeError) as exc:
                reason = f"{info.where}the host {info.ip!r} is not known: {getattr(exc, 'strerror', '') or exc}"
                return ConnectionFileError(f"{reason}; correct its ip", path=info.path)
        if not is_here(host):
            return None
    encounter = meet(info.address("shell"), deadline.at_most(GREETING_S))
    if encounter.met is not Met.REFUSAL:
        problem = mismatch(encounter, info.address("shell"), encrypts=bool(info.curve_publickey))
        return ConnectionFileError(f"{info.where}{problem}", path=info.path) if problem else None
    if info.path is None or not all(refuses(info.address(name)) for name in CHANNELS if info.port(name)):
        return None
    # A kernel gets its connection file before it listens.
    return None if local_processes.started_with(info.path) is not None else DeadKernelError(_gone(info, info.path))


def _host_of(address: str) -> str:
    """The host of a tcp address, as a number if it is one."""
    host = address.removeprefix("tcp://").rpartition(":")[0].strip("[]")
    return "127.0.0.1" if host == "localhost" else host


def mismatch(encounter: Encounter, address: str, *, encrypts: bool) -> str:
    """Why a program that was met at `address` will never answer; empty if it may. `encrypts`: we have its key."""
    if encounter.met is Met.OTHER_PROGRAM:
        return OTHER_PROGRAM.format(address, encounter.text)
    if encounter.met is Met.GREETING and encounter.text in (PLAIN, ENCRYPTS):
        if encounter.text == ENCRYPTS and not encrypts:
            return NO_KEYS.format(address)
        if encounter.text == PLAIN and encrypts:
            return NEEDLESS_KEYS.format(address)
    return ""


def left_to(address: str) -> list[int]:
    """The processes that hold `address`, and send no greeting, since the kernel that listened there has ended."""
    silent = meet(address, Deadline(SILENT_S)).met in (Met.SILENCE, Met.NO_ROUTE)  # the latter: too many have connected
    return _holders(address) if silent else []


def _holders(address: str) -> list[int]:
    host = _host_of(address)
    is_local = address.startswith("ipc:") or (is_number(host) and is_here(host))
    return local_processes.LISTENERS.left_to(address) if is_local else []


def rejection(address: str, *, encrypts: bool, is_seen: bool) -> str:
    """Why a kernel that listens at `address` rejects our connection; empty if it does not listen there, or may not.

    `is_seen`: it has closed connections in the middle of their handshake.
    """
    encounter = meet(address, Deadline(CONNECT_S))
    if is_seen and encrypts and encounter == (Met.GREETING, ENCRYPTS):
        return ANOTHER_CURVE_KEY.format(address)
    return mismatch(encounter, address, encrypts=encrypts)


def _gone(info: ConnectionInfo, path: str) -> str:
    written = ""
    with suppress(OSError):
        written = strftime(" of %Y-%m-%d %H:%M:%S", localtime(os.stat(path).st_mtime))
    return (
        f"no kernel listens at {info.address('shell')}, nor at the other addresses of the connection file "
        f"{path}{written}; its kernel has ended: remove the file, and start a kernel"
    )


def hint(address: str, *, encrypts: bool) -> str:
    """Why nothing has come from the kernel whose shell channel is at `address`, and what to do."""
    encounter = meet(address, Deadline(2 * GREETING_S), connect_s=GREETING_S)
    if encounter.met is Met.REFUSAL:
        return f"no program listens at {address}: the kernel has ended, or does not listen yet"
    if encounter.met is Met.NO_ROUTE:
        return f"{address} cannot be reached: {encounter.text}"
    if encounter.met is Met.SILENCE:
        if holders := _holders(address):
            return held(address, holders)
        return (
            f"a program listens at {address} and sends no greeting of ZeroMQ: it is no kernel, or it is stopped "
            "(kill -CONT lets it go on), or far away"
        )
    return mismatch(encounter, address, encrypts=encrypts) or (
        f"the program at {address} speaks ZeroMQ, and nothing else has come from it: the kernel may be busy, which an "
        "interrupt ends, or have another key than this one"
    )
