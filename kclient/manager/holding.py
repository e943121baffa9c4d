"""Holding: ends the kernel of a manager that is dropped."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Final

from kclient.client.connection import KernelConnection
from kclient.errors import DeadKernelError, copies_of
from kclient.kernels.provisioner import Provisioner

DROPPED: Final = "the manager of the kernel was dropped, or the program ends, and the kernel was ended with it"


class Holding:
    """Holds the kernel that a lifecycle has now. A finalizer holds this, and nothing else of the manager."""

    def __init__(self, provisioner: Provisioner) -> None:
        self._provisioner = provisioner
        self._connection: Callable[[], KernelConnection | None] = lambda: None

    @property
    def provisioner(self) -> Provisioner:
        """The kernel."""
        return self._provisioner

    def replace(self, provisioner: Provisioner) -> Provisioner:
        """Hold that kernel from now on; returns the one before."""
        former, self._provisioner = self._provisioner, provisioner
        return former

    def serves(self, connection: KernelConnection) -> None:
        """The calls that wait for the kernel wait at `connection`, which is not kept alive by this."""
        self._connection = weakref.ref(connection)

    def abandon(self) -> None:
        """The manager was dropped, or the program ends: kill the process, remove its files, and fail calls."""
        had_kernel = self._provisioner.process is not None
        self._provisioner.abandon()
        connection = self._connection()
        if connection is not None and had_kernel:
            connection.owner.run_here(lambda: _end_calls(connection))


def _end_calls(connection: KernelConnection) -> None:
    if connection.owner.is_gone:  # no call waits in a thread that has ended
        connection.channels.stop()
        return
    connection.availability.fail(copies_of(DeadKernelError(DROPPED)))
    connection.stop()
