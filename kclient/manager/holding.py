"""Holding: ends the kernel of a manager that is dropped."""

from __future__ import annotations

from kclient.kernels.provisioner import Provisioner


class Holding:
    """Holds the kernel that a lifecycle has now. A finalizer holds this, and nothing else of the manager."""

    def __init__(self, provisioner: Provisioner) -> None:
        self._provisioner = provisioner

    @property
    def provisioner(self) -> Provisioner:
        """The kernel."""
        return self._provisioner

    def replace(self, provisioner: Provisioner) -> Provisioner:
        """Hold that kernel from now on; returns the one before."""
        former, self._provisioner = self._provisioner, provisioner
        return former

    def abandon(self) -> None:
        """The manager was dropped, or the program ends: kill the process, and remove its files."""
        self._provisioner.abandon()
