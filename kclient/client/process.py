"""The process of a kernel that this program started, as its client sees it."""

from __future__ import annotations

from typing import Protocol

from kclient.errors import DeadKernelError


class Kernel(Protocol):
    """A kernel process that this program started. No method waits."""

    def is_alive(self) -> bool:
        """True until the process has ended."""

    def interrupt(self) -> bool:
        """Signal the process; False if the kernel wants an interrupt_request instead."""

    def death(self, reason: str = "") -> DeadKernelError:
        """The error that tells how the process ended, and for which reason, if one is known."""
