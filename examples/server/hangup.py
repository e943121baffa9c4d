"""Notice that a client has hung up, also while there is nothing to send to it."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gevent
from gevent import socket

READ = 1
"""The event mask of libev for a socket that can be read."""


class HungUp(ConnectionResetError):
    """The client has hung up, or does not read. A WSGI server ends a request that raises it and logs nothing."""

    def __init__(self, message: str) -> None:
        super().__init__(errno.ECONNRESET, message)


@contextmanager
def raised_at_hang_up(client: socket.socket | None) -> Iterator[None]:
    """Raise HungUp in this greenlet as soon as the client hangs up, wherever in the `with` block the greenlet waits.

    It works as gevent.Timeout does; the end of the stream takes the place of the end of the time. A client that closes
    only its sending side counts as gone, too. If `client` is None nothing is watched.
    """
    if client is None:
        yield
        return
    # A second, non-blocking socket: `look` runs in the hub, where no call may wait.
    peer = socket.fromfd(client.fileno(), client.family, client.type)
    peer.setblocking(False)
    watcher: Any = gevent.get_hub().loop.io(peer.fileno(), READ)
    request = gevent.getcurrent()

    def look() -> None:
        try:
            is_there = bool(peer.recv(1, socket.MSG_PEEK))
        except BlockingIOError:  # there is nothing to read after all
            return
        except OSError:
            is_there = False
        watcher.stop()
        if not is_there:  # else it has sent its next request, and the end of the stream behind that cannot be seen
            request.throw(HungUp("the client has hung up"))

    watcher.start(look)
    try:
        yield
    finally:
        watcher.stop()
        watcher.close()
        peer.close()
