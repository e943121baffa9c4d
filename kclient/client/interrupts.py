"""Interrupts: of the code that the kernel runs now, or of one execution and no other."""

from __future__ import annotations

from contextlib import suppress
from time import perf_counter
from typing import Final, Protocol

from kclient.channels.turns import Turn
from kclient.client.channel_set import ChannelSet
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Timer
from kclient.errors import KClientError
from kclient.protocol.messages import Message
from kclient.protocol.routing import Slot
from kclient.protocol.transcript import Transcript

INTERRUPT_AGAIN_S: Final = 0.5
"""Seconds after an interrupt that may have come too early until it is sent once more. An interrupt also waits so long
for the execute_input of code that the kernel is busy with."""

EARLY_S: Final = 0.2
"""Seconds after execute_input in which an interrupt may still come too early: a kernel for Java compiles then."""


def interrupt_kernel(channels: ChannelSet) -> None:
    """Interrupt the code that the kernel runs now, by signal or by message. The reply to the message is discarded.

    Up to version 7.4 ipykernel notices an interrupt of code that awaits only when a message comes to shell. So a
    kernel_info_request follows: after the signal, or when the kernel says that it has interrupted itself.
    """
    if channels.kernel is not None and channels.kernel.interrupt():
        _send_to_shell(channels)
        return
    request = channels.session.msg("interrupt_request")
    if not channels.runs("control"):
        channels.shell.requests.abandon(channels.shell.post(request, turn=Turn.AT_ONCE))
        return

    def interrupted(slot: Slot) -> None:
        if slot.reply is not None:
            _send_to_shell(channels)

    channels.control.post(request, interrupted)


def _send_to_shell(channels: ChannelSet) -> None:
    if channels.runs("shell") and not channels.peer.one_at_a_time:
        question = channels.session.msg("kernel_info_request")
        with suppress(KClientError, OSError):  # closed or dead: then there is no code any more
            channels.shell.requests.abandon(channels.shell.post(question, turn=Turn.AT_ONCE))


def interrupt_asker(channels: ChannelSet, request: Message) -> None:
    """Interrupt the code that sent an input_request, unless it has ended or runs in a subshell."""
    channels.drain()
    has_ended = channels.outputs is not None and not channels.is_busy_with(request.parent_id or "")
    if not has_ended and request.parent_header.get("subshell_id") is None:
        with suppress(KClientError, OSError):
            interrupt_kernel(channels)


class Interruptible(Protocol):
    """An execution, as its interrupt sees it."""

    msg_id: str

    def is_running(self) -> bool: ...


class Interrupt:
    """The interrupt of `execution`. It is sent when the code of that runs, at once or as soon as it begins.

    An interrupt that comes before the code does is lost. The kernel's execute_input says that the code has come, so the
    interrupt waits for it. It does not wait for long: silent code has none, and some kernels send none. An interrupt
    that may have come too early is sent once more, if the code shows no effect. ipykernel heeds each one that comes
    after execute_input, though a blocking call that begins at that moment ends first. Later than that no kernel gets a
    second one: it would end what the code does on its way out.
    """

    def __init__(self, execution: Interruptible, channels: ChannelSet, transcript: Transcript) -> None:
        self._is_due = False
        self._came_before_input = False
        self._execution = execution
        self._channels = channels
        self._transcript = transcript
        self._timer = Timer(channels.owner, self._send_again)

    def ask(self) -> None:
        """Interrupt the code when it runs."""
        self._is_due = True
        self._channels.drain()
        self.look()

    def look(self) -> None:
        """Send the interrupt if it is due and the kernel runs the code. Called after each status and execute_input."""
        transcript = self._transcript
        if self._is_due and self._runs():
            self._send_in_time()
        elif self._came_before_input and transcript.input_at:
            self._came_before_input = False
            self._timer.set(INTERRUPT_AGAIN_S, None)  # output may come of code that has just begun

    def cancel(self) -> None:
        """The execution has ended."""
        self._timer.cancel()

    def _runs(self) -> bool:
        return self._execution.is_running() and self._channels.is_busy_with(self._execution.msg_id)

    def _send_in_time(self) -> None:
        """Send the interrupt now, or later if the code may not be there yet."""
        transcript, now = self._transcript, perf_counter()
        if not transcript.input_at and now < transcript.times.busy + INTERRUPT_AGAIN_S:
            self._timer.set(transcript.times.busy + INTERRUPT_AGAIN_S - now, None)
            return
        self._is_due = False
        self._came_before_input = not transcript.input_at
        info = self._channels.peer.info
        is_ipykernel = info is not None and info.implementation == "ipython"
        if transcript.input_at and now < transcript.input_at + EARLY_S and not is_ipykernel:
            self._timer.set(INTERRUPT_AGAIN_S, transcript.version)
        self._send()

    def _send_again(self, version: int | None) -> None:
        """The time is over. Send again what was sent, unless output came after it: that may be of its handler."""
        self._channels.drain()
        if self._is_due:
            self.look()
        elif self._runs() and version in (None, self._transcript.version):
            self._send()

    def _send(self) -> None:
        try:
            interrupt_kernel(self._channels)
        except (KClientError, OSError) as exc:  # closed or dead: then the execution ends anyway
            log().debug("cannot interrupt %s: %s", self._execution.msg_id, exc)
