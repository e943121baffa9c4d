"""CatchUp: wait until iopub has brought all that one shell of the kernel published before, however far iopub lags."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from time import perf_counter
from typing import Final

from kclient.channels.shell import RequestChannel
from kclient.channels.turns import Turn
from kclient.client.channel_set import ChannelSet
from kclient.client.readiness import ASK_AT_MOST, SILENCE_S, Probe, Readiness
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Parking
from kclient.errors import NoReply
from kclient.protocol.messages import Message
from kclient.protocol.routing import Outputs, Slot

ASK_AGAIN_S: Final = 1.0
"""Seconds from the reply to a question until another is asked, if its idle status has not come; doubled each time."""

MUTE_S: Final = 30.0
"""Seconds without a message on iopub after which a kernel counts as one that publishes no idle status for a question,
if it has never published one. It is asked `ASK_AT_MOST` times at least."""

DEAF_S: Final = 30.0
"""Seconds that an idle kernel has to answer a question on its shell. If it does not, it is asked on control."""

MAX_QUESTIONS: Final = 100
"""At most so many questions are waited for at once: the latest."""

Verdict = Enum("Verdict", "CAUGHT_UP DEAF NOT_NEEDED")


class Question(Probe):
    """A question of a CatchUp. `changed` is woken when its reply has come, or when none will."""

    def __init__(self, outputs: Outputs | None, msg_id: str, changed: Parking) -> None:
        super().__init__(outputs, msg_id)
        self.slot: Slot | None = None
        self.settled_at: float | None = None
        self._changed = changed

    @property
    def has_reply(self) -> bool:
        return self.slot is not None and self.slot.reply is not None

    def on_settled(self, slot: Slot) -> None:
        """The reply has come, or there will be none."""
        self.slot, self.settled_at = slot, perf_counter()
        if slot.reply is not None:
            self.answered(slot.reply)
        self._changed.wake()


class CatchUp:
    """Asks questions on one shell until iopub has brought the idle status of one of them.

    The kernel answers a shell in order, and iopub keeps the order. So all that the shell published before that idle
    status has come, or is lost. The status of a question may be lost, too: then another question is asked, each time
    after twice as long, or when iopub is quiet after it has brought something. None is asked while one awaits its
    reply, so a busy kernel gets one. With `needs_reply` it waits for a reply as well: the shell keeps the order, too.

    | the kernel                                                 | the wait ends                                       |
    |------------------------------------------------------------|-----------------------------------------------------|
    | publishes idle statuses for questions                      | when one has come, and not before                   |
    | has never published one, nor anything else for `MUTE_S`    | then; from then on when iopub is quiet              |
    | is idle, and answers on control, but not on this shell     | after `DEAF_S`, with Verdict.DEAF                   |
    | is dead, restarted or closed; or `is_needed()` is false    | at once: the calls that wait have ended             |
    """

    def __init__(
        self,
        channels: ChannelSet,
        readiness: Readiness,
        channel: RequestChannel,
        is_needed: Callable[[], bool],
        *,
        subshell_id: str | None = None,
        needs_reply: bool = False,
    ) -> None:
        self._channels = channels
        self._readiness = readiness
        self._channel = channel
        self._is_needed = is_needed
        self._subshell_id = subshell_id
        self._needs_reply = needs_reply
        self._iopub = channels.iopub
        self._outputs = channels.iopub.outputs
        self._questions: list[Question] = []
        self._asked = 0
        self._asked_at = self._heard_at = perf_counter()
        self._pause = ASK_AGAIN_S
        self._deaf_after = DEAF_S
        self._deaf_at = self._asked_at + DEAF_S

    def wait(self) -> Verdict:
        """Wait until iopub has caught up. The caller's `is_needed` ends it before."""
        try:
            while self._is_needed() and self._iopub.is_alive():
                if not self._questions:
                    self._ask()
                if self._has_caught_up():
                    return Verdict.CAUGHT_UP
                left = self._due() - perf_counter()
                if left > 0:
                    self._park(Deadline(left))
                    continue
                self._iopub.drain()  # if the loop stood still, the messages wait on the socket
                if self._has_caught_up() or not self._is_needed():
                    continue
                if self._is_deaf():
                    return Verdict.DEAF
                if self._is_mute():
                    return Verdict.CAUGHT_UP
                if not self._is_busy():
                    self._ask()
            return Verdict.NOT_NEEDED
        finally:
            for question in self._questions:
                self._drop(question)

    @property
    def _latest(self) -> Question:
        return self._questions[-1]

    def _has_caught_up(self) -> bool:
        return any(question.is_idle for question in self._questions) and (not self._needs_reply or self._has_reply())

    def _due(self) -> float:
        """The moment at which something is to be done if iopub has brought nothing more by then."""
        settled_at = self._latest.settled_at
        if settled_at is None:
            reply_is_lost = self._latest.is_idle and not self._is_busy()
            return min(self._asked_at + self._pause, self._deaf_at) if reply_is_lost else self._deaf_at
        if self._channels.pending.tells_idle is False:
            return max(settled_at, self._heard_at) + SILENCE_S
        if self._heard_at > settled_at:
            return min(settled_at + self._pause, max(self._heard_at + SILENCE_S, settled_at + ASK_AGAIN_S))
        return settled_at + self._pause

    def _park(self, deadline: Deadline) -> None:
        was_settled = self._latest.settled_at is not None
        if self._iopub.changed.wait(deadline) and was_settled == (self._latest.settled_at is not None):
            self._heard_at = perf_counter()

    def _ask(self) -> None:
        channels, channel = self._channels, self._channel
        message: Message = channels.session.msg(*self._readiness.question_on(channel))
        if self._subshell_id is not None:
            message.header["subshell_id"] = self._subshell_id
        question = Question(self._outputs, message.msg_id, self._iopub.changed)
        self._questions.append(question)
        if self._asked:
            self._pause *= 2
        self._asked += 1
        self._asked_at = perf_counter()
        if self._has_reply():
            self._deaf_at = self._asked_at + self._deaf_after
        with channels.owner.call():
            question.slot = channel.post(message, question.on_settled, Turn.AT_ONCE)
        if len(self._questions) > MAX_QUESTIONS:
            self._drop(self._questions.pop(0))

    def _drop(self, question: Question) -> None:
        question.forget()
        if question.slot is not None and not question.slot.is_settled:
            self._channel.requests.abandon(question.slot)

    def _is_mute(self) -> bool:
        """True if the kernel has replied, and is known to publish no idle status for a question."""
        pending, first = self._channels.pending, self._questions[0]
        silent_since = max(self._heard_at, first.settled_at or self._asked_at)
        if pending.tells_idle is None and self._asked >= ASK_AT_MOST and silent_since + MUTE_S <= perf_counter():
            log().warning("the kernel publishes no idle status for kernel_info: late outputs may be taken for lost")
            pending.tells_idle = False
        return pending.tells_idle is False and self._has_reply()

    def _is_deaf(self) -> bool:
        """True if the kernel answers on control, is idle, and has still not answered on this shell.

        The idle status on control shows that iopub does not lag: a shell that is busy would be known to be.
        """
        channels, now = self._channels, perf_counter()
        if now < self._deaf_at:
            return False
        self._deaf_after *= 2
        self._deaf_at = now + self._deaf_after
        if self._channel.name == "control" or not channels.runs("control"):
            return False
        control = CatchUp(channels, self._readiness, channels.control, self._is_silent, needs_reply=True)
        return control.wait() is Verdict.CAUGHT_UP and self._is_silent()

    def _is_silent(self) -> bool:
        return self._is_needed() and not self._is_busy() and not self._has_reply()

    def _is_busy(self) -> bool:
        """True if the latest question waits behind code."""
        return self._latest.settled_at is None and self._subshell_id in self._channels.executing()

    def _has_reply(self) -> bool:
        return any(question.has_reply for question in self._questions)


def deaf(msg_id: str | None) -> NoReply:
    return NoReply(
        f"no reply has come: the kernel has been idle and answered nothing on its shell for {DEAF_S:g} s, although it "
        "has answered a kernel_info_request on control; restart it",
        msg_id=msg_id,
    )
