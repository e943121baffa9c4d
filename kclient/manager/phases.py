"""The life of a manager's kernel as a table: phases, events, and what each pair leads to.

| phase   | the kernel                                                                        |
|---------|-----------------------------------------------------------------------------------|
| NONE    | was not started, or nothing is left of it                                         |
| STARTED | has a process, has not answered yet, and no call waits for that                   |
| AWAITED | has a process, or is about to; a call waits until it answers                      |
| READY   | has answered                                                                      |
| ENDING  | is being ended by this program                                                    |
| LEFT    | was asked to end by a call that gave up half-way; it may end at any time          |
| FAILED  | ended before it answered                                                          |
| DIED    | ended by itself after it had answered, or after LEFT                              |

| event   | it happens when                                                                   |
|---------|-----------------------------------------------------------------------------------|
| LAUNCH  | a process is about to be started; the call that starts it waits                   |
| AWAIT   | a call begins to wait until the kernel answers                                    |
| GIVE_UP | the last such call has ended without an answer                                    |
| ANSWER  | the kernel has answered                                                           |
| END     | a call begins to end the process                                                  |
| LEAVE   | the call that ends the process gave up half-way                                   |
| ENDED   | a call has ended the process, or the kernel is gone from this manager             |
| EXIT    | the process has ended, for any reason                                             |
"""

from __future__ import annotations

from enum import Enum
from typing import Final

Phase = Enum("Phase", "NONE STARTED AWAITED READY ENDING LEFT FAILED DIED")
Event = Enum("Event", "LAUNCH AWAIT GIVE_UP ANSWER END LEAVE ENDED EXIT")


class Reaction(Enum):
    """What the lifecycle must do about an event."""

    NOTHING = "nothing"
    REPORT = "fail the calls that wait"
    RESTART = "fail the calls that wait and, with automatic restarts, start another kernel"


_STAY: Final = {phase: phase for phase in Phase}

_NEXT: Final[dict[Event, dict[Phase, Phase]]] = {
    Event.LAUNCH: dict.fromkeys(Phase, Phase.AWAITED),
    Event.AWAIT: {**_STAY, Phase.STARTED: Phase.AWAITED},
    Event.GIVE_UP: {**_STAY, Phase.AWAITED: Phase.STARTED},
    Event.ANSWER: {**_STAY, Phase.STARTED: Phase.READY, Phase.AWAITED: Phase.READY},
    Event.END: dict.fromkeys(Phase, Phase.ENDING),
    Event.LEAVE: {**_STAY, Phase.ENDING: Phase.LEFT},
    Event.ENDED: dict.fromkeys(Phase, Phase.NONE),
    Event.EXIT: {
        Phase.NONE: Phase.NONE,
        Phase.STARTED: Phase.FAILED,
        Phase.AWAITED: Phase.FAILED,
        Phase.READY: Phase.DIED,
        Phase.ENDING: Phase.ENDING,
        Phase.LEFT: Phase.DIED,
        Phase.FAILED: Phase.FAILED,
        Phase.DIED: Phase.DIED,
    },
}

_REACTIONS: Final = {
    Phase.STARTED: Reaction.RESTART,
    Phase.AWAITED: Reaction.REPORT,  # the call that waits raises a LaunchError
    Phase.READY: Reaction.RESTART,
    Phase.LEFT: Reaction.REPORT,
    Phase.FAILED: Reaction.REPORT,
    Phase.DIED: Reaction.REPORT,
}
"""The reaction to an EXIT in each phase. In the other phases it was expected."""

TRANSITIONS: Final[dict[tuple[Phase, Event], tuple[Phase, Reaction]]] = {
    (phase, event): (after, _REACTIONS.get(phase, Reaction.NOTHING) if event is Event.EXIT else Reaction.NOTHING)
    for event, row in _NEXT.items()
    for phase, after in row.items()
}
"""From phase and event to the next phase and the reaction. A pair that is not there cannot happen: KeyError."""

HAD_ANSWERED: Final = frozenset([Phase.READY, Phase.DIED])
"""Phases of a kernel that has answered: its death is no failed start."""
