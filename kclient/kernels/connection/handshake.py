"""Registrar: the socket on which a kernel reports the ports that it chose (the handshake of protocol 5.6)."""

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
from kclient.concurrency.waiting import READABLE, TURN_S, Parking, until_done
from kclient.errors import BadMessage, LaunchError
from kclient.kernels.connection.files import write_private
from kclient.kernels.connection.ports import numeric_address
from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.registration import Registration
from kclient.transport.zmq.context import context

if TYPE_CHECKING:
    from kclient.kernels.process.local import KernelProcess

MAX_FRAME_BYTES: Final = 64 * 1024
"""Size limit of a frame: a hundred times that of a registration. libzmq disconnects the sender of a larger one."""

LINGER_MS: Final = 1000
"""Milliseconds for the receipt to reach the kernel after the socket is closed."""

PAUSE_S: Final = 0.001
"""Seconds for the other greenlets after each `TURN_S` of reading, if the socket is not empty yet."""


class Registrar:
    """Waits for the report of one kernel during one start.

    It listens on the ip on which the kernel will listen, on a free port, and writes that address to a registration
    file at `path`. The kernel reads this file. Raises LaunchError if it cannot listen, and ConnectionFileError if it
    cannot write the file.
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

        A message that is not from the kernel is ignored and counted in `dropped`, by reason. The first message of each
        reason is logged. Raises RemoteProtocolError if the kernel reports ports that cannot be used.
        """
        parking = Parking(self._owner)
        wake = until_done(self._owner, parking.wake)
        process.exited.rawlink(wake)
        # One event of libzmq's descriptor may stand for many messages. The descriptor stays readable until the socket
        # was found empty, and the watcher fires as long as it is readable. No other code may read this socket.
        watcher: Any = self._owner.hub.loop.io(self._socket.fileno(), READABLE)
        watcher.start(wake)
        try:
            while True:
                is_empty, ports = self._take_in()
                if ports is not None or deadline.is_over or process.exited.is_set() or not process.is_alive():
                    return ports
                parking.wait(deadline if is_empty else deadline.at_most(PAUSE_S))
        finally:
            process.exited.unlink(wake)
            watcher.stop()
            watcher.close()

    def _take_in(self) -> tuple[bool, list[int] | None]:
        """Read the socket for at most `TURN_S`; returns whether it is empty, and the kernel's ports or None."""
        until = monotonic() + TURN_S
        while True:
            try:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return True, None
            try:
                identities, ports = self.registration.read_report(frames)
            except BadMessage as exc:
                self.dropped[exc.reason] += 1
                if self.dropped[exc.reason] == 1:  # another program could send thousands
                    log_soon(log(), WARNING, "dropped a registration of a kernel: %s", exc)
                if monotonic() >= until:
                    return False, None
                continue
            self._socket.send_multipart(self.registration.receipt(identities), zmq.DONTWAIT)
            return False, ports

    def clues(self) -> list[str]:
        """Clauses for an error message: how many messages were dropped, by reason."""
        return [
            f"messages ignored at the registration port: {count} ({reason})" for reason, count in self.dropped.items()
        ]

    def close(self) -> None:
        """Stop listening, and remove the file. A second call does nothing."""
        self._undo.close()


def _remove(path: str) -> None:
    with suppress(OSError):
        os.unlink(path)


def _listen(socket: zmq.Socket[bytes], host: str) -> int:
    """Bind to a free port, and return it."""
    socket.setsockopt(zmq.LINGER, LINGER_MS)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.IPV6, int(":" in host))
    socket.bind(f"tcp://[{host}]:*" if ":" in host else f"tcp://{host}:*")
    return int(socket.get_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
