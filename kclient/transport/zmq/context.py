"""The ZeroMQ context of this process. All of its sockets share it."""

from __future__ import annotations

import os
from errno import EMFILE
from typing import Any, Final

import zmq
import zmq.green

from kclient.concurrency.file_limits import check
from kclient.concurrency.thread_limits import check_threads
from kclient.errors import InvalidState, KClientError, TooManyFiles

CONTEXT_DESCRIPTORS: Final = 6
"""File descriptors of a context that has no socket yet. If libzmq cannot get them, it ends the process."""

CONTEXT_THREADS: Final = 2
"""Of a context: one for all connections, and one that closes sockets. libzmq starts both with its first socket."""

_contexts: dict[int, zmq.green.Context[Any]] = {}


def context() -> zmq.green.Context[Any]:
    """The ZeroMQ context of this process, made when first needed. A forked child makes its own.

    Raises TooManyFiles, and InvalidState if its threads cannot be started.
    """
    pid = os.getpid()
    if pid not in _contexts:
        check(CONTEXT_DESCRIPTORS, "the ZeroMQ context", spare=0)
        check_threads(CONTEXT_THREADS, "the ZeroMQ context")
        made = zmq.green.Context()
        made.set(zmq.MAX_SOCKETS, made.get(zmq.SOCKET_LIMIT))
        return _contexts.setdefault(pid, made)
    return _contexts[pid]


def libzmq_version() -> str:
    """The version of libzmq, the library under pyzmq."""
    return zmq.zmq_version()


def no_socket(what: str, within: zmq.Context[Any], error: zmq.ZMQError) -> KClientError:
    """The error to raise if the context `within` opens no socket for `what`; `error` is what pyzmq raised."""
    if error.errno != EMFILE:
        return InvalidState(f"cannot open a socket for {what}: {error}")
    check(1, what, spare=0)
    limit, hard_limit = within.get(zmq.MAX_SOCKETS), within.get(zmq.SOCKET_LIMIT)
    return TooManyFiles(
        f"{what}: the ZeroMQ context has its {limit} sockets already; close some, or set its MAX_SOCKETS, "
        f"{hard_limit} at most, before its first socket",
        needed=1,
        in_use=limit,
        limit=limit,
        hard_limit=hard_limit,
    )
