"""CurveZMQ (rfc.zeromq.org/spec/26): sockets that encrypt, and talk only to the kernel that has the key."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import zmq

from kclient.errors import InvalidState


@lru_cache(maxsize=1)
def _own_keys() -> tuple[bytes, bytes]:
    """The key pair of this process. A kernel accepts any; a client only has to know the kernel's public key."""
    return zmq.curve_keypair()


def encrypt(socket: zmq.Socket[Any], server_key: bytes) -> None:
    """Encrypt a socket that is about to connect to the kernel with that public key; raises InvalidState."""
    if not zmq.has("curve"):
        raise InvalidState("the kernel wants encryption, and this libzmq was built without CurveZMQ; install another")
    socket.curve_publickey, socket.curve_secretkey = _own_keys()
    socket.curve_serverkey = server_key
