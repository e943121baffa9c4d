"""The states of a start at a fork server, and of the server, as tables. Without I/O: `server` does what they say.

A table gives for each state and event the next state and the reaction. A pair without a row cannot happen.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, TypeVar

_State = TypeVar("_State", bound=Enum)
_Event = TypeVar("_Event", bound=Enum)
_Reaction = TypeVar("_Reaction", bound=Enum)


def look_up(
    table: Mapping[_State, Mapping[_Event, tuple[_State, _Reaction]]], state: _State, event: _Event
) -> tuple[_State, _Reaction]:
    """The next state and the reaction. Raises RuntimeError if the table has no such row: that is a bug of kclient."""
    row = table[state].get(event)
    if row is None:
        raise RuntimeError(f"a bug in kclient: {event} cannot happen in {state}")
    return row


class StartState(Enum):
    """A kernel that a caller asks a server for.

    The kernel has the read end of the start's keep-alive pipe. It is killed when the write end is closed, also if it is
    forked later than that.
    """

    ASKED = "the server has not answered yet"
    FORKED = "the kernel was forked; its exit watcher has the pipe"
    REFUSED = "the server could not fork it, or this process could not take it over"
    GIVEN_UP = "the caller has left"
    LOST = "the server has ended without an answer"


class StartEvent(Enum):
    FORK_ANSWER = "the server answers with the kernel's pid and pidfd"
    ERROR_ANSWER = "the server answers with an error, or this process has no descriptor left for the pidfd"
    SERVER_ENDS = "the server's process has ended"
    CALLER_LEAVES = "an exception ends the caller's wait; or this is a forked child of the caller's process"


class StartReaction(Enum):
    NOTHING = "nothing"
    HAND_PIPE_OVER = "make an exit watcher, which gets the pipe"
    WATCH_ONLY = "make an exit watcher without a pipe: the kernel is about to end, and must be reaped"
    CLOSE_PIPE = "close the pipe"
    CLOSE_WATCHERS_PIPE = "let the exit watcher close the pipe"


START_TABLE: Final[Mapping[StartState, Mapping[StartEvent, tuple[StartState, StartReaction]]]] = {
    StartState.ASKED: {
        StartEvent.FORK_ANSWER: (StartState.FORKED, StartReaction.HAND_PIPE_OVER),
        StartEvent.ERROR_ANSWER: (StartState.REFUSED, StartReaction.CLOSE_PIPE),
        StartEvent.SERVER_ENDS: (StartState.LOST, StartReaction.CLOSE_PIPE),
        StartEvent.CALLER_LEAVES: (StartState.GIVEN_UP, StartReaction.CLOSE_PIPE),
    },
    # The answer is there, and the caller has not run since: only the caller can still change anything.
    StartState.FORKED: {
        StartEvent.CALLER_LEAVES: (StartState.GIVEN_UP, StartReaction.CLOSE_WATCHERS_PIPE),
    },
    StartState.REFUSED: {
        StartEvent.CALLER_LEAVES: (StartState.REFUSED, StartReaction.NOTHING),
    },
    StartState.LOST: {
        StartEvent.CALLER_LEAVES: (StartState.LOST, StartReaction.NOTHING),
    },
    StartState.GIVEN_UP: {
        StartEvent.FORK_ANSWER: (StartState.GIVEN_UP, StartReaction.WATCH_ONLY),
        StartEvent.ERROR_ANSWER: (StartState.GIVEN_UP, StartReaction.NOTHING),
        StartEvent.SERVER_ENDS: (StartState.GIVEN_UP, StartReaction.NOTHING),
        StartEvent.CALLER_LEAVES: (StartState.GIVEN_UP, StartReaction.NOTHING),  # in a forked child
    },
}


class ServerState(Enum):
    """The process of a fork server. It runs in the first three states."""

    UNUSED = "no caller has asked it for a kernel yet"
    USED = "callers ask it for kernels"
    RETIRED = "no caller asks it any more; it ends with its last kernel"
    FAILED = "it has ended, unused, and has said why; the next start raises that"
    ENDED = "it has ended, and gives way to another"


RUNNING: Final = frozenset({ServerState.UNUSED, ServerState.USED, ServerState.RETIRED})


class ServerEvent(Enum):
    START = "a caller asks for a kernel"
    RETIRE = "the launcher needs the server no more"
    IDLE = "it has no kernel, and no start whose caller still waits"
    END = "the process has ended, or is to be ended, and no reason is known"
    END_WITH_REASON = (
        "the same, and the reason is known: a module that cannot be imported, or a silence that is too long"
    )


class ServerReaction(Enum):
    NOTHING = "nothing"
    ASK = "ask the process to fork"
    RAISE = "raise the reason or, if none is known, Lost"
    END_PROCESS = "end the process: the event END follows"
    CLEAN_UP = "kill and reap the process, close its files, tell the starts"


SERVER_TABLE: Final[Mapping[ServerState, Mapping[ServerEvent, tuple[ServerState, ServerReaction]]]] = {
    ServerState.UNUSED: {
        ServerEvent.START: (ServerState.USED, ServerReaction.ASK),
        ServerEvent.RETIRE: (ServerState.RETIRED, ServerReaction.NOTHING),
        ServerEvent.IDLE: (ServerState.UNUSED, ServerReaction.NOTHING),
        ServerEvent.END: (ServerState.ENDED, ServerReaction.CLEAN_UP),
        ServerEvent.END_WITH_REASON: (ServerState.FAILED, ServerReaction.CLEAN_UP),
    },
    ServerState.USED: {
        ServerEvent.START: (ServerState.USED, ServerReaction.ASK),
        ServerEvent.RETIRE: (ServerState.RETIRED, ServerReaction.NOTHING),
        ServerEvent.IDLE: (ServerState.USED, ServerReaction.NOTHING),
        ServerEvent.END: (ServerState.ENDED, ServerReaction.CLEAN_UP),
        ServerEvent.END_WITH_REASON: (ServerState.ENDED, ServerReaction.CLEAN_UP),
    },
    ServerState.RETIRED: {
        ServerEvent.IDLE: (ServerState.RETIRED, ServerReaction.END_PROCESS),
        ServerEvent.END: (ServerState.ENDED, ServerReaction.CLEAN_UP),
        ServerEvent.END_WITH_REASON: (ServerState.ENDED, ServerReaction.CLEAN_UP),
    },
    ServerState.FAILED: {
        ServerEvent.START: (ServerState.ENDED, ServerReaction.RAISE),
        ServerEvent.RETIRE: (ServerState.ENDED, ServerReaction.NOTHING),
    },
    ServerState.ENDED: {
        ServerEvent.START: (ServerState.ENDED, ServerReaction.RAISE),
        ServerEvent.RETIRE: (ServerState.ENDED, ServerReaction.NOTHING),
        # A request found that the process had ended, and more than one function has seen it.
        ServerEvent.IDLE: (ServerState.ENDED, ServerReaction.NOTHING),
        ServerEvent.END: (ServerState.ENDED, ServerReaction.NOTHING),
        ServerEvent.END_WITH_REASON: (ServerState.ENDED, ServerReaction.NOTHING),
    },
}


class Pace(Enum):
    """Whether the hub may stand still until the server answers."""

    PROMPT = "it may, for a short time: an idle server answers at once"
    SLOW = "it may not: the server has let the hub wait in vain"


class PaceEvent(Enum):
    MESSAGE = "a message has come from the server"
    SILENCE = "none came while the hub stood still"


PACE_TABLE: Final[Mapping[Pace, Mapping[PaceEvent, Pace]]] = {
    Pace.PROMPT: {PaceEvent.MESSAGE: Pace.PROMPT, PaceEvent.SILENCE: Pace.SLOW},
    Pace.SLOW: {PaceEvent.MESSAGE: Pace.PROMPT},  # no SILENCE: the hub does not wait
}
