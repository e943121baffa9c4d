"""Notice that a client has gone while there is nothing to send to it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent import socket

READ = 1
"""What libev calls the event that a socket can be read from."""


class HungUp(ConnectionResetError):
    """The client is gone, or does not read; a WSGI server ends a request that raises it without a word."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ECONNRESET, message)


@contextmanager
def raised_at_hang_up(client: socket.socket | None) -> Iterator[None]:
    """Raise HungUp in this greenlet, wherever in the `with` block it waits, as soon as the client hangs up.

    It works as gevent.Timeout does, with the end of the stream for the end of the time. A client that closes
    only its sending side counts as gone, too. Without a socket nothing is watched.
    """
    if client is None:
        yield
        return
    # A socket of our own, which never waits: we look in the hub, where nothing may.
    peer = socket.fromfd(client.fileno(), client.family, client.type)
    peer.setblocking(False)
    watcher: Any = gevent.get_hub().loop.io(peer.fileno(), READ)
    request = gevent.getcurrent()

    def look() -> None:
        try:
            is_there = bool(peer.recv(1, socket.MSG_PEEK))
        except BlockingIOError:  # nothing to read after all
            return
        except OSError:
            is_there = False
        watcher.stop()
        if not is_there:  # else it has sent its next request, behind which its end cannot be seen
            request.throw(HungUp("the client has hung up"))

    watcher.start(look)
    try:
        yield
    finally:
        watcher.stop()
        watcher.close()
        peer.close()
