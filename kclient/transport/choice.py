"""The choice of a transport: the one place that knows which there are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kclient.transport.base import KernelTransport

if TYPE_CHECKING:
    from kclient.protocol.connection import ConnectionInfo
    from kclient.protocol.session import Session


def new_transport(connection: ConnectionInfo, session: Session, *, is_ours: bool) -> KernelTransport:
    """The way to the kernel of a connection file. `is_ours`: this program started the kernel."""
    from kclient.transport.zmq.transport import ZmqTransport  # takes longer to import than the rest of kclient

    return ZmqTransport(connection, session, is_ours=is_ours)
