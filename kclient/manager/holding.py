"""What a manager leaves behind when it is dropped: the kernel that it has."""

from __future__ import annotations

from kclient.kernels.provisioner import Provisioner


class Holding:
    """The kernel that a lifecycle has now. A finalizer holds this, and nothing else of the manager."""

    def __init__(self, provisioner: Provisioner) -> None:
        self.provisioner = provisioner

    def abandon(self) -> None:
        """The manager was dropped, or the program ends: kill the process, and remove its files."""
        self.provisioner.abandon()
