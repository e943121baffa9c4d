"""How an execution ends whose call is given up: its code is interrupted, or goes on. The error says which."""

from __future__ import annotations

from typing import Final, Protocol

from kclient.channels.turns import Turn
from kclient.client.channel_set import ChannelSet
from kclient.client.interrupts import Interrupt, Interruptible
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Parking
from kclient.errors import KClientError, KernelTimeout, UnfinishedExecution, UnsupportedFeature
from kclient.protocol.messages import Message
from kclient.protocol.result import Result
from kclient.protocol.routing import Slot
from kclient.protocol.transcript import Transcript

RESTART_GRACE_S: Final = 2.0
"""Seconds that interrupted code has to end before `on_abandon="restart"` restarts the kernel."""

CODE_SHOWN: Final = 60
"""Characters of the code of an execution that an error message shows."""


def shown(code: str, given_up: GivingUp | None) -> str:
    """The beginning of `code`, and whether its call was given up, for an error message."""
    line = " ".join(code[: 10 * CODE_SHOWN].split())
    text = repr(line if len(line) <= CODE_SHOWN else line[:CODE_SHOWN] + "...")
    return text + given_up.note if given_up is not None else text


class GivenUp(Interruptible, UnfinishedExecution, Protocol):
    """An execution, as `GivingUp` sees it."""

    subshell_id: str | None

    def on_settled(self, slot: Slot) -> None:
        """The reply has come, or there will be none."""


class GivingUp:
    """Interrupts the code of one execution, and says what becomes of it.

    A subshell's code goes on: an interrupt reaches the main shell alone, and would end the code that runs there.
    """

    def __init__(self, execution: GivenUp, channels: ChannelSet, transcript: Transcript) -> None:
        self._execution = execution
        self._channels = channels
        self._transcript = transcript
        self._interrupt = Interrupt(execution, channels, transcript)
        self._was_asked = False
        self._has_tried = False
        self.note = ""
        """What an error message of another call says of this execution."""

    @property
    def _is_held(self) -> bool:
        """True while the request is not sent, because others are to be answered first."""
        return self._channels.runs("shell") and self._channels.shell.turns.holds(self._execution.msg_id)

    @property
    def can_interrupt(self) -> bool:
        """False for code in a subshell."""
        return self._execution.subshell_id is None

    def interrupt(self) -> None:
        """Interrupt the code, at once or as soon as it begins. Raises UnsupportedFeature if it runs in a subshell.

        A request that was not sent yet is withdrawn.
        """
        if self._is_held:
            self._withdraw()
            return
        if not self.can_interrupt:
            raise UnsupportedFeature(
                f"code in a subshell cannot be interrupted: an interrupt reaches the main shell alone; the code in "
                f"{self._execution.subshell_id!r} goes on",
                feature="interrupt of a subshell",
            )
        self._was_asked = True
        self._interrupt.ask()

    def interrupt_and_wait(self, changed: Parking, grace: Deadline) -> None:
        """After a Ctrl-C: interrupt the code, and wait for its end, but not for long. Does nothing in a subshell."""
        if not self.can_interrupt and not self._is_held:
            return
        self.interrupt()
        while self._execution.is_running() and not grace.is_over:
            changed.wait(grace)

    def give_up(self) -> None:
        """No call waits for the execution any more: interrupt its code, if that can be done and was not done before."""
        if not self._execution.is_running():
            return
        self.note = ", whose call was given up"
        if (self.can_interrupt or self._is_held) and not self._was_asked:  # a second interrupt would hit the next code
            self.interrupt()

    def _withdraw(self) -> None:
        """Take back a request that was not sent yet: it ends as one that the kernel has skipped."""
        self._was_asked = True
        slot = self._channels.shell.withdraw(self._execution.msg_id)
        reply = {"status": "aborted", "evalue": "its call was given up before it was sent"}
        slot.reply = self._channels.session.msg("execute_reply", reply)
        self._transcript.idle = True
        self._execution.on_settled(slot)

    def try_again(self, request: Message) -> bool:
        """Have code that the kernel has skipped sent once more; False if that cannot be done, or is not wanted.

        Such a kernel is sent one request at a time from now on. A program that used stop_on_error wants it as it is.
        """
        channels = self._channels
        if self._has_tried or self._was_asked or self.note or not channels.runs("shell"):
            return False
        if channels.shell.turns.stops_on_error:
            return False
        self._has_tried = True
        channels.peer.note_skip()
        message = channels.session.msg("execute_request", request.content)
        message.header = {**message.header, **request.header, "date": message.header["date"]}
        reply = self._transcript.begin_anew()
        channels.shell.turns.skipped(request.msg_id)
        try:
            with channels.owner.call():
                channels.shell.post(message, self._execution.on_settled, Turn.WHEN_FREE)
        except KClientError as exc:  # closed or dead
            log().debug("%s was skipped, and cannot be sent again: %s", request.msg_id, exc)
            self._transcript.reply, self._transcript.idle = reply, True
            return False
        channels.next_turn()
        return True

    def look(self) -> None:
        """A message of the kernel has come."""
        self._interrupt.look()
        if self._transcript.idle:  # code that is interrupted before it begins may get no reply
            self._channels.next_turn()

    def cancel(self) -> None:
        """The execution has ended."""
        self._interrupt.cancel()

    def timed_out(self, deadline: Deadline, on_abandon: str) -> KernelTimeout:
        """The error of a call that waited for the end."""
        return KernelTimeout(
            "end of the execution",
            deadline.timeout,
            msg_id=self._execution.msg_id,
            execution=self._execution,
            result=Result.of(self._transcript),
            hint=self._fate(on_abandon),
        )

    def _fate(self, on_abandon: str) -> str:
        if self._transcript.reply is not None:
            return "its code has ended, but iopub has not brought the end of its outputs; ask for its result again"
        has_begun = self._transcript.times.busy or self._transcript.input_at
        at_work = "" if has_begun else self._channels.at_work(self._execution.subshell_id)
        before = "" if has_begun else f"it had not begun{at_work and ': '}{at_work}; "
        if on_abandon == "leave":
            return f"{before}it goes on; ask for its result again, or interrupt it"
        if self._is_held:
            return f"{before}it was not sent yet, and will not run"
        if not self.can_interrupt:
            fate = f"{before}it goes on: an interrupt does not reach a subshell"
        elif not has_begun:
            return f"{before}it is interrupted when it begins"
        else:
            fate = "an interrupt is sent to its code; .execution.result() waits for its end"
        return fate if on_abandon != "restart" else f"{fate}; the kernel is restarted if it goes on"
