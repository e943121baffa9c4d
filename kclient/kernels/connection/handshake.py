"""Where a kernel reports the ports that it chose: the socket and the file of the handshake of protocol 5.6."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from contextlib import ExitStack, suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import zmq

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import WARNING, log, log_soon
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import READABLE, Parking
from kclient.errors import BadMessage, LaunchError
from kclient.kernels.connection.files import write_private
from kclient.kernels.connection.ports import numeric_address
from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.registration import Registration
from kclient.transport.zmq.context import context

if TYPE_CHECKING:
    from kclient.kernels.process.local import KernelProcess

MAX_FRAME: Final = 64 * 1024
"""Bytes of a frame, some hundred times what a registration needs; who sends more is disconnected."""

LINGER: Final = 1000
"""Milliseconds for the receipt to reach the kernel after the socket is closed."""

TURN: Final = 0.001
"""Seconds for which the socket may be read before the loop must turn, whoever floods it."""

PAUSE: Final = 0.001
"""Seconds that the loop, and with it every other greenlet, then has for itself."""


class Registrar:
    """Awaits the report of one kernel, at one start of it, and leads the kernel there by a file that it puts at `path`.

    It listens where the kernel is to listen itself, on a port of its own. Raises LaunchError if it cannot, and
    ConnectionFileError.
    """

    def __init__(self, info: ConnectionInfo, path: str) -> None:
        self.path = path
        self.dropped: Counter[str] = Counter()
        self._owner = Owner()
        host = numeric_address(info.ip)
        with ExitStack() as undo:
            undo.callback(_remove, path)
            try:
                self._socket: zmq.Socket[bytes] = undo.enter_context(zmq.Socket(context(), zmq.ROUTER))
                port = _listen(self._socket, host)
            except zmq.ZMQError as exc:
                raise LaunchError(
                    f"cannot start the kernel: no socket at {host!r} for its registration: {exc}"
                ) from exc
            self.registration = Registration(info, uuid.uuid4().hex, host, port)
            write_private(self.registration.to_dict(), path)
            self._undo = undo.pop_all()

    def wait(self, process: KernelProcess, deadline: Deadline) -> list[int] | None:
        """The ports of the kernel, in the order of CHANNELS; None after the deadline, or when its process has ended.

        What is not from the kernel is counted in `dropped` and ignored, and the first of a kind is logged. Raises
        RemoteProtocolError for ports that cannot be used.
        """
        parking = Parking(self._owner)
        process.exited.rawlink(parking.wake)
        # The loop looks at the level, so the descriptor, on which an edge counts, tells until the socket was found
        # empty; nobody else touches the socket.
        watcher: Any = self._owner.hub.loop.io(self._socket.fileno(), READABLE)
        watcher.start(parking.wake)
        try:
            while True:
                is_empty, ports = self._take_in()
                if ports is not None or deadline.is_over or process.exited.is_set() or not process.is_alive():
                    return ports
                parking.wait(deadline if is_empty else deadline.at_most(PAUSE))
        finally:
            process.exited.unlink(parking.wake)
            watcher.stop()
            watcher.close()

    def _take_in(self) -> tuple[bool, list[int] | None]:
        """Read what is there, for one turn at most: whether the socket is empty, and the kernel's ports."""
        until = monotonic() + TURN
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return True, None
            try:
                identities, ports = self.registration.read_report(frames)
            except BadMessage as exc:
                self.dropped[exc.reason] += 1
                if self.dropped[exc.reason] == 1:  # whoever finds the port may send thousands
                    log_soon(log(), WARNING, "dropped a registration of a kernel: %s", exc)
                if monotonic() >= until:
                    return False, None
                continue
            self._socket.send_multipart(self.registration.receipt(identities), zmq.DONTWAIT)
            return False, ports

    def clues(self) -> list[str]:
        """What to say, in an error, of what was dropped."""
        return [f"{count} came and had to be ignored ({reason})" for reason, count in self.dropped.items()]

    def close(self) -> None:
        """Stop listening, and remove the file; once is enough."""
        self._undo.close()


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _listen(socket: zmq.Socket[bytes], host: str) -> int:
    """Bind to a free port, and return it."""
    socket.setsockopt(zmq.LINGER, LINGER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME)
    socket.setsockopt(zmq.IPV6, int(":" in host))
    socket.bind(f"tcp://[{host}]:*" if ":" in host else f"tcp://{host}:*")
    return int(socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
