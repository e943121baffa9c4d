"""The ZeroMQ context of this process, which all of its sockets share."""

from __future__ import annotations

import os
from typing import Any

import zmq
import zmq.green

_contexts: dict[int, zmq.green.Context[Any]] = {}


def context() -> zmq.green.Context[Any]:
    """The ZeroMQ context of this process, made when first needed: one from before a fork is of no use."""
    pid = os.getpid()
    if pid not in _contexts:
        made = zmq.green.Context()
        made.set(zmq.MAX_SOCKETS, made.get(zmq.SOCKET_LIMIT))
        return _contexts.setdefault(pid, made)
    return _contexts[pid]
