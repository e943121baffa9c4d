"""ClientHolder: has the client of a manager. It makes it when first needed, and a new one after a shutdown."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING

from kclient.client.connection import KernelConnection
from kclient.client.interface import KernelInterface
from kclient.client.kernel_client import KernelClient
from kclient.errors import DeadKernelError
from kclient.kernels.provisioner import Provisioner

if TYPE_CHECKING:
    from kclient.protocol.session import Session


class ClientHolder:
    """Holds the `current` client of a manager, None while there is none.

    The next client answers input requests and accepts comms as the one before did. Its channels are of the classes
    that `manager` names. This object holds `manager` weakly.
    """

    def __init__(self, manager: KernelInterface, session: Session, spin: float) -> None:
        self.current: KernelClient | None = None
        self._session = session
        self._manager = weakref.ref(manager)
        self._spin = spin
        self._former: KernelConnection | None = None

    @property
    def session(self) -> Session:
        """Key and message ids of the current client, and of the next one."""
        return self._session

    @property
    def connection(self) -> KernelConnection | None:
        """The parts of the current client."""
        return None if self.current is None else self.current.kernel_connection

    @property
    def channels_running(self) -> bool:
        """True if any channel runs."""
        return self.current is not None and self.current.channels_running

    def make(self, provisioner: Provisioner, on_death: Callable[[], None] | None) -> KernelClient:
        """Make a client of that kernel. It is the current one from here on."""
        kernel = provisioner if provisioner.process is not None else None
        info = provisioner.endpoint.info
        client = KernelClient(info, kernel=kernel, session=self._session, spin=self._spin, on_death=on_death)
        manager = self._manager()
        if manager is not None:
            client.use_channel_classes_of(manager)
        if self._former is not None:
            client.kernel_connection.inherit(self._former)
        self._former = None
        self.current = client
        return client

    def fit(self, provisioner: Provisioner) -> None:
        """Let session and client use the keys and the ports that the kernel has now."""
        info = provisioner.endpoint.info
        provisioner.endpoint.give_key_to(self._session)
        if self.current is not None and self.current.connection != info:
            self.current.move(info)

    def death_of(self, provisioner: Provisioner) -> DeadKernelError:
        """The error that says how that kernel ended, and whether it was asked to."""
        if self.connection is None:
            return provisioner.death()
        channels = self.connection.channels
        if provisioner.process is not None and provisioner.process.exit_code == 0:
            channels.drain()  # the answer that says so may still be unread
        return provisioner.death(channels.peer.exit_reason)

    def use_session(self, session: Session) -> None:
        """Use that session for the next client."""
        self._session = session

    def drop(self) -> None:
        """Close the client. The next call of `make` makes a new one."""
        if self.current is not None:
            self._former = self.current.kernel_connection
            self._former.keeps_alive = None
            self.current.stop_channels()
            self.current = None
