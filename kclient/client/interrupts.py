"""The interrupt of one execution, which must reach its code and no other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from kclient.concurrency.log import log
from kclient.concurrency.waiting import Timer
from kclient.errors import KClientError
from kclient.protocol.transcript import Transcript

if TYPE_CHECKING:
    from kclient.client.connection import KernelConnection
    from kclient.client.execution import Execution

INTERRUPT_AGAIN: Final = 0.5
"""Seconds without any sign after which an interrupt is sent once more: one that comes too early is lost."""


class Interrupt:
    """Sent while the kernel is at the code of `execution`: at once, or as soon as it gets to it."""

    def __init__(self, execution: Execution, link: KernelConnection, transcript: Transcript) -> None:
        self._is_due = False
        self._execution = execution
        self._link = link
        self._transcript = transcript
        self._again = Timer(link.owner, self._send_again)

    def ask(self) -> None:
        """Interrupt the code when it runs."""
        self._is_due = True
        self._link.drain()
        self.send_if_running()

    def send_if_running(self) -> None:
        """Interrupt the code now, if the kernel is at it."""
        if not self._is_due or not self._link.is_busy_with(self._execution.msg_id):
            return
        self._is_due = False
        # An interrupt that comes before the code does is lost; execute_input tells that it has come.
        version = self._transcript.version if self._transcript.has_input else None
        self._send()
        self._again.set(INTERRUPT_AGAIN, version)

    def cancel(self) -> None:
        """The execution has ended."""
        self._again.cancel()

    def _send_again(self, version: int | None) -> None:
        """Interrupt what has printed nothing since that version of its outputs; who handles an interrupt may print."""
        self._link.drain()
        has_effect = version is not None and self._transcript.version != version
        if self._execution.is_running() and not has_effect and self._link.is_busy_with(self._execution.msg_id):
            self._send()

    def _send(self) -> None:
        try:
            self._link.interrupt_kernel()
        except (KClientError, OSError) as exc:  # closed or dead: then the execution ends anyway
            log().debug("cannot interrupt %s: %s", self._execution.msg_id, exc)
