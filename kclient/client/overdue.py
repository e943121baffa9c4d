"""A reply, or an idle status, that the kernel owes and that is overdue: phases, events, and what each pair leads to.

| phase    | the answer                                                                                    |
|----------|-----------------------------------------------------------------------------------------------|
| OWED     | half of it has come, the reply without the idle status or the other way round                  |
| UNHEARD  | nothing of it has come, although the kernel is idle                                            |
| NUDGED   | is UNHEARD still; the kernel was asked over another connection, since it may sleep             |
| SILENT   | is UNHEARD still, after the nudge; the request is no code, so the kernel may take its time     |
| ASKED    | is still owed; kernel_info was asked on the same shell                                         |
| GIVEN_UP | will not come: the kernel has answered the later question                                      |
| SETTLED  | has come after all, or its call has ended                                                      |

| event  | it happens when                                              |
|--------|--------------------------------------------------------------|
| NUDGE  | the kernel is asked over another connection                   |
| WAIT   | it has answered that; the answer gets more time               |
| ASK    | it is asked on the same shell                                 |
| PASS   | it has answered that question, and still owes the answer      |
| SETTLE | the answer is not owed any more                               |
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Final

import attrs

from kclient.channels.iopub import IOPubChannel
from kclient.channels.shell import RequestChannel
from kclient.errors import Failure, NoReply
from kclient.protocol.messages import Message
from kclient.protocol.sink import OwnQuestion

Phase = Enum("Phase", "OWED UNHEARD NUDGED SILENT ASKED GIVEN_UP SETTLED")
Event = Enum("Event", "NUDGE WAIT ASK PASS SETTLE")

TRANSITIONS: Final[dict[tuple[Phase, Event], Phase]] = {
    (Phase.OWED, Event.ASK): Phase.ASKED,
    (Phase.UNHEARD, Event.NUDGE): Phase.NUDGED,
    (Phase.NUDGED, Event.WAIT): Phase.SILENT,
    (Phase.NUDGED, Event.ASK): Phase.ASKED,  # every kernel tells that it begins with code
    (Phase.SILENT, Event.ASK): Phase.ASKED,
    (Phase.ASKED, Event.PASS): Phase.GIVEN_UP,
    (Phase.SILENT, Event.SETTLE): Phase.SETTLED,
    (Phase.ASKED, Event.SETTLE): Phase.SETTLED,
}
"""Phase and event to the next phase. A pair that is not there cannot happen: KeyError."""


def no_reply(msg_id: str | None) -> NoReply:
    return NoReply("the kernel finished the request and sent no reply to it", msg_id=msg_id)


def unheard(msg_id: str | None) -> NoReply:
    return NoReply("the kernel is idle and has not answered: the request, or its reply, was lost", msg_id=msg_id)


def lost(msg_id: str | None) -> NoReply:
    return NoReply("the connection to the kernel was cut, and the reply is lost", msg_id=msg_id)


@attrs.define(eq=False)
class Overdue:
    """An answer that is owed since `since`. `give_up(failure)` ends the wait for it, if it will not come.

    A call that waits for a reply (`is_reply`) then raises the error that `failure` makes.
    """

    channel: RequestChannel
    subshell_id: str | None
    since: float
    is_still_owed: Callable[[], bool]
    give_up: Callable[[Failure], None]
    failure: Failure = no_reply
    msg_id: str = ""
    is_reply: bool = False
    is_code: bool = True
    phase: Phase = Phase.OWED

    @property
    def shell(self) -> tuple[str, str | None]:
        """The shell that owes the answer: a channel, or a subshell of it."""
        return self.channel.name, self.subshell_id

    def note(self, event: Event) -> None:
        """Go on to the next phase."""
        self.phase = TRANSITIONS[self.phase, event]

    def conclude(self) -> None:
        """The kernel has answered the later question: give up the answer if it is still owed."""
        if self.is_still_owed():
            self.note(Event.PASS)
            self.give_up(self.failure)
        else:
            self.note(Event.SETTLE)


class AnyOwed:
    """Is any of these answers still owed? It is asked with each message: it looks at no answer again that has come."""

    def __init__(self, all_overdue: Iterable[Overdue]) -> None:
        self._left = deque(all_overdue)

    def __call__(self) -> bool:
        while self._left and not self._left[0].is_still_owed():  # what has come stays that way
            self._left.popleft()
        return bool(self._left)


class Unnoticed(OwnQuestion):
    """A message that gets no reply, until the kernel is busy with it. Then earlier ones are noticed, too."""

    def __init__(self, iopub: IOPubChannel, msg_id: str, since: float) -> None:
        self.since = since
        self._iopub = iopub
        self._executions = iopub.outputs.executions
        self._msg_id = msg_id
        self._executions[msg_id] = self

    def is_unnoticed(self) -> bool:
        """True until the kernel publishes something about it."""
        return self._msg_id in self._executions

    def feed(self, message: Message) -> None:
        """The kernel has noticed it. Its messages go where they would have gone without this object."""
        self.forget()
        self._iopub.leave(message)

    def fail(self, failure: Failure) -> None:
        self.forget()

    def give_up(self, failure: Failure) -> None:
        self.forget()

    def forget(self) -> None:
        """Watch for it no longer."""
        self._executions.pop(self._msg_id, None)
