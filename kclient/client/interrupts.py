"""Interrupts: of the code that the kernel runs now, or of one execution and no other."""

from __future__ import annotations

from typing import Final, Protocol

from kclient.client.channel_set import ChannelSet
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Timer
from kclient.errors import KClientError
from kclient.protocol.transcript import Transcript

INTERRUPT_AGAIN_S: Final = 0.5
"""Seconds without a sign of effect after which an interrupt is sent once more: one that comes too early is lost."""


def interrupt_kernel(channels: ChannelSet) -> None:
    """Interrupt the code that the kernel runs now, by signal or by message. The reply to the message is discarded."""
    if channels.kernel is not None and channels.kernel.interrupt():
        return
    channel = channels.control if channels.runs("control") else channels.shell
    channel.requests.abandon(channel.post(channels.session.msg("interrupt_request")))


class Interruptible(Protocol):
    """An execution, as its interrupt sees it."""

    msg_id: str

    def is_running(self) -> bool: ...


class Interrupt:
    """The interrupt of `execution`. It is sent at once if the kernel runs that code, else as soon as it begins."""

    def __init__(self, execution: Interruptible, channels: ChannelSet, transcript: Transcript) -> None:
        self._is_due = False
        self._execution = execution
        self._channels = channels
        self._transcript = transcript
        self._timer = Timer(channels.owner, self._send_again)

    def ask(self) -> None:
        """Interrupt the code when it runs."""
        self._is_due = True
        self._channels.drain()
        self.send_if_running()

    def send_if_running(self) -> None:
        """Interrupt the code now, if the kernel runs it."""
        if not self._is_due or not self._channels.is_busy_with(self._execution.msg_id):
            return
        self._is_due = False
        # An interrupt that comes before the code does is lost; execute_input tells that the code has come.
        version = self._transcript.version if self._transcript.has_input else None
        self._send()
        self._timer.set(INTERRUPT_AGAIN_S, version)

    def cancel(self) -> None:
        """The execution has ended."""
        self._timer.cancel()

    def _send_again(self, version: int | None) -> None:
        """Send again if the code runs and has had no output since that version. Output may come from its handler."""
        self._channels.drain()
        has_effect = version is not None and self._transcript.version != version
        if self._execution.is_running() and not has_effect and self._channels.is_busy_with(self._execution.msg_id):
            self._send()

    def _send(self) -> None:
        try:
            interrupt_kernel(self._channels)
        except (KClientError, OSError) as exc:  # closed or dead: then the execution ends anyway
            log().debug("cannot interrupt %s: %s", self._execution.msg_id, exc)
