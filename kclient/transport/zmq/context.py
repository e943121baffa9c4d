"""The ZeroMQ context of this process, which all of its sockets share."""

from __future__ import annotations

import os
from errno import EMFILE
from typing import Any, Final

import zmq
import zmq.green

from kclient.concurrency.file_limits import check
from kclient.errors import InvalidState, KClientError, TooManyFiles

OWN: Final = 6
"""File descriptors of a context with no socket yet: where it cannot have them libzmq ends the process."""

_contexts: dict[int, zmq.green.Context[Any]] = {}


def context() -> zmq.green.Context[Any]:
    """The ZeroMQ context of this process, made when first needed: one from before a fork is of no use.

    Raises TooManyFiles.
    """
    pid = os.getpid()
    if pid not in _contexts:
        check(OWN, "the ZeroMQ context", reserve=0)
        made = zmq.green.Context()
        made.set(zmq.MAX_SOCKETS, made.get(zmq.SOCKET_LIMIT))
        return _contexts.setdefault(pid, made)
    return _contexts[pid]


def libzmq_version() -> str:
    """The version of the library that pyzmq stands on."""
    return zmq.zmq_version()


def no_socket(what: str, within: zmq.Context[Any], error: zmq.ZMQError) -> KClientError:
    """What to raise for `error`, of a context that gave `what` no socket."""
    if error.errno != EMFILE:
        return InvalidState(f"cannot open a socket for {what}: {error}")
    check(1, what, reserve=0)
    limit, hard_limit = within.get(zmq.MAX_SOCKETS), within.get(zmq.SOCKET_LIMIT)
    return TooManyFiles(
        f"{what}: the ZeroMQ context has its {limit} sockets; close what is not needed, or set its MAX_SOCKETS, "
        f"{hard_limit} at most, before its first socket",
        needed=1,
        in_use=limit,
        limit=limit,
        hard_limit=hard_limit,
    )
