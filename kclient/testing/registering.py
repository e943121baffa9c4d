"""The kernel's side of the handshake: read a registration file, and report the ports."""

from __future__ import annotations

import json
import os
from typing import Final

import zmq

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking
from kclient.errors import BadMessage, InvalidArgument, KernelTimeout
from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.registration import Registration
from kclient.transport.zmq.context import context
from kclient.transport.zmq.stream import ZmqStream

RECEIPT_WAIT_S: Final = 5.0
"""Seconds for the launcher's receipt. A kernel that gets none should end (JEP 66)."""


def read_registration(path: str | os.PathLike[str]) -> Registration:
    """The content of a registration file; raises InvalidArgument."""
    try:
        with open(path, encoding="utf-8") as file:
            values = json.load(file)
    except (OSError, ValueError) as exc:
        raise InvalidArgument(f"cannot read a registration file: {exc}") from exc
    return Registration.from_dict(values)


def register(owner: Owner, registration: Registration, info: ConnectionInfo) -> None:
    """Report the ports of `info`, and return when the receipt has come; raises KernelTimeout."""
    receipts = _Receipts(owner, registration)
    socket = context().socket(zmq.DEALER)
    socket.connect(registration.address)
    stream = ZmqStream(owner, socket, receipts)
    try:
        stream.send(registration.report(info))
        receipts.wait(Deadline(RECEIPT_WAIT_S))
    finally:
        stream.close()


class _Receipts:
    """Waits for the launcher's receipt."""

    def __init__(self, owner: Owner, registration: Registration) -> None:
        self._registration = registration
        self._came = Parking(owner)
        self._is_in = False

    def receive(self, frames: list[bytes]) -> None:
        try:
            self._registration.read_receipt(frames)
        except BadMessage as exc:
            log().info("the fake kernel dropped a receipt: %s", exc)
            return
        self._is_in = True
        self._came.wake()

    def lost(self) -> None:
        """The context was closed."""

    def wait(self, deadline: Deadline) -> None:
        while not self._is_in:
            if not self._came.wait(deadline) and deadline.is_over:
                raise KernelTimeout("receipt of the registration", deadline.timeout)
