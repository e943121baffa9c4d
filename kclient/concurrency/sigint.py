"""Ctrl-C: raised in the main greenlet where that waits, and never in the middle of a message or a call.

Python's own handler raises KeyboardInterrupt wherever the main thread is: between two frames, between a request and the
note of who awaits its reply, or in the hub, which prints it. So a greenlet *holds* Ctrl-C while it runs a call or uses
a socket. A handler of ours then notes the Ctrl-C, and it is raised at the call's next wait or at the call's end. While
the main greenlet waits, another handler of ours ends that wait.

`HANDLER_TABLE` says which handler SIGINT has, and what each event does. `NOTE_TABLE` says what becomes of a Ctrl-C that
was noted. No variable keeps the first state: it is the handler itself, and the program may change that at any time.
The handlers ask the tables. `hold`, `release` and `wait` run several times a call and do not: a comment at each branch
names its row, and tests/concurrency/test_sigint_states.py walks every row through them.
"""

from __future__ import annotations

# The functions of `signal` wrap these at 14 times the price: 6.8 us a wait instead of 0.5.
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIGINT,
    SIGURG,
    default_int_handler,
    getsignal,
    set_wakeup_fd,
)
from _signal import signal as set_handler
from collections.abc import Callable
from enum import Enum
from types import FrameType
from typing import Final

from gevent import getcurrent
from gevent.hub import Hub, Waiter

from kclient.concurrency.wakeup_pipe import NO_FD, new_wakeup_fd, wakeup_fd


class State(Enum):
    """The handler that SIGINT has."""

    PYTHONS = "Python's own, default_int_handler"
    HELD = "`_note`: a greenlet holds Ctrl-C"
    AWAITED = "a `_MainWait`: the main greenlet waits in `wait`"
    FOREIGN = "one of the program, SIG_IGN, or the one of gevent.signal_handler, which Python does not know of"


class Event(Enum):
    """What happens in the main thread. A wait of another greenlet than the main one is a release, then a hold."""

    HOLD = "`hold` by a greenlet that does not hold Ctrl-C"
    HOLD_AGAIN = "`hold` by one that does"
    RELEASE = "`release` by one of several holders"
    RELEASE_LAST = "`release` by the only holder"
    WAIT_BEGINS = "`wait` begins in the main greenlet"
    WAIT_ENDS = "that wait ends, and there is no holder"
    WAIT_ENDS_HELD = "that wait ends, and there is a holder"
    SIGNAL_IN_HOLDER = "a SIGINT while a holder runs"
    SIGNAL_ELSEWHERE = "a SIGINT while the hub or a greenlet that is no holder runs"


class Reaction(Enum):
    """What is done besides the change of the handler."""

    NOTHING = "nothing; `hold` returns False"
    ADD = "the greenlet is a holder from now on; `hold` returns True"
    REMOVE = "the greenlet is no holder any more"
    NOTE = "the Ctrl-C is noted for the greenlet that runs: an event of NOTE_TABLE"
    RAISE = "KeyboardInterrupt is raised in what runs"
    END_WAIT = "the wait of the main greenlet ends with KeyboardInterrupt"
    CALL_FOREIGN = "Python or gevent calls the foreign handler"


HANDLER_TABLE: Final[dict[State, dict[Event, tuple[State, Reaction]]]] = {
    State.PYTHONS: {
        Event.HOLD: (State.HELD, Reaction.ADD),
        Event.HOLD_AGAIN: (State.PYTHONS, Reaction.NOTHING),
        Event.RELEASE: (State.PYTHONS, Reaction.REMOVE),
        Event.RELEASE_LAST: (State.PYTHONS, Reaction.REMOVE),
        Event.WAIT_BEGINS: (State.AWAITED, Reaction.NOTHING),
        # The program has put Python's handler back during the wait. So it has in the same rows of HELD and FOREIGN.
        Event.WAIT_ENDS: (State.PYTHONS, Reaction.NOTHING),
        Event.WAIT_ENDS_HELD: (State.PYTHONS, Reaction.NOTHING),
        Event.SIGNAL_IN_HOLDER: (State.PYTHONS, Reaction.RAISE),
        Event.SIGNAL_ELSEWHERE: (State.PYTHONS, Reaction.RAISE),
    },
    State.HELD: {
        Event.HOLD: (State.HELD, Reaction.ADD),
        Event.HOLD_AGAIN: (State.HELD, Reaction.NOTHING),
        Event.RELEASE: (State.HELD, Reaction.REMOVE),
        Event.RELEASE_LAST: (State.PYTHONS, Reaction.REMOVE),
        Event.WAIT_BEGINS: (State.AWAITED, Reaction.NOTHING),
        Event.WAIT_ENDS: (State.HELD, Reaction.NOTHING),
        Event.WAIT_ENDS_HELD: (State.HELD, Reaction.NOTHING),
        Event.SIGNAL_IN_HOLDER: (State.HELD, Reaction.NOTE),
        # The holder waits, and not inside a kclient wait: a user's launcher does, for example.
        Event.SIGNAL_ELSEWHERE: (State.HELD, Reaction.RAISE),
    },
    State.AWAITED: {  # no WAIT_BEGINS: the main greenlet waits already
        Event.HOLD: (State.AWAITED, Reaction.NOTHING),
        Event.HOLD_AGAIN: (State.AWAITED, Reaction.NOTHING),
        Event.RELEASE: (State.AWAITED, Reaction.REMOVE),
        Event.RELEASE_LAST: (State.AWAITED, Reaction.REMOVE),
        Event.WAIT_ENDS: (State.PYTHONS, Reaction.NOTHING),
        Event.WAIT_ENDS_HELD: (State.HELD, Reaction.NOTHING),
        Event.SIGNAL_IN_HOLDER: (State.AWAITED, Reaction.END_WAIT),
        Event.SIGNAL_ELSEWHERE: (State.AWAITED, Reaction.END_WAIT),
    },
    State.FOREIGN: {
        Event.HOLD: (State.FOREIGN, Reaction.NOTHING),
        Event.HOLD_AGAIN: (State.FOREIGN, Reaction.NOTHING),
        Event.RELEASE: (State.FOREIGN, Reaction.REMOVE),
        Event.RELEASE_LAST: (State.FOREIGN, Reaction.REMOVE),
        Event.WAIT_BEGINS: (State.FOREIGN, Reaction.NOTHING),
        Event.WAIT_ENDS: (State.FOREIGN, Reaction.NOTHING),
        Event.WAIT_ENDS_HELD: (State.FOREIGN, Reaction.NOTHING),
        Event.SIGNAL_IN_HOLDER: (State.FOREIGN, Reaction.CALL_FOREIGN),
        Event.SIGNAL_ELSEWHERE: (State.FOREIGN, Reaction.CALL_FOREIGN),
    },
}


class NoteState(Enum):
    """Whether a Ctrl-C is noted."""

    EMPTY = "none is"
    NOTED = "one is, for the greenlet in `_noted_for`"


class NoteEvent(Enum):
    """What happens to the note. A greenlet *stops* when it calls `release` or `wait`."""

    SIGNAL = "the reaction NOTE of HANDLER_TABLE"
    MAIN_STOPS = "the Ctrl-C is noted for the main greenlet, and that stops"
    OTHER_STOPS = "it is noted for another greenlet, and that stops"
    ANOTHER_STOPS = "a greenlet stops for which it is not noted"


class NoteReaction(Enum):
    NOTHING = "nothing"
    RAISE = "KeyboardInterrupt is raised in the greenlet that stops"
    RAISE_IN_MAIN = "KeyboardInterrupt is raised in the main greenlet at the loop's next turn"


NOTE_TABLE: Final[dict[NoteState, dict[NoteEvent, tuple[NoteState, NoteReaction]]]] = {
    NoteState.EMPTY: {
        NoteEvent.SIGNAL: (NoteState.NOTED, NoteReaction.NOTHING),
        NoteEvent.ANOTHER_STOPS: (NoteState.EMPTY, NoteReaction.NOTHING),
    },
    NoteState.NOTED: {
        NoteEvent.SIGNAL: (NoteState.NOTED, NoteReaction.NOTHING),  # from now on for the greenlet that runs
        NoteEvent.MAIN_STOPS: (NoteState.EMPTY, NoteReaction.RAISE),
        NoteEvent.OTHER_STOPS: (NoteState.EMPTY, NoteReaction.RAISE_IN_MAIN),
        NoteEvent.ANOTHER_STOPS: (NoteState.NOTED, NoteReaction.NOTHING),
    },
}

_holders: set[object] = set()
"""The greenlets that hold Ctrl-C. Each holds it for itself: another one's release or wait does not end that."""

_noted_for: object = None
"""The greenlet that ran, as a holder, when a Ctrl-C came. It is None in the state EMPTY."""


def hold(hub: Hub) -> bool:
    """Put off Ctrl-C until this greenlet waits, or calls `release`. Returns True if the caller must call that.

    It need not if the greenlet holds Ctrl-C already, if the handler is a foreign one, or if it is in another thread.
    """
    me = getcurrent()
    if me in _holders or not hub.loop.default:
        return False  # HOLD_AGAIN
    handler = getsignal(SIGINT)
    if handler is default_int_handler and _system_handler(SIGINT) == _pythons_handler:
        set_handler(SIGINT, _note)  # PYTHONS, HOLD
    elif handler is not _note:
        return False  # AWAITED or FOREIGN, HOLD
    _holders.add(me)  # after all that may raise: a holder without its `release` holds Ctrl-C for ever
    return True


def release(hub: Hub) -> None:
    """End `hold`. Raises a Ctrl-C that was noted meanwhile, here or, if this is not the main greenlet, in that one."""
    _holders.discard(getcurrent())
    if not _holders and getsignal(SIGINT) is _note:
        set_handler(SIGINT, default_int_handler)  # HELD, RELEASE_LAST
    if _noted_for is not None:
        _stop(hub)


def holds() -> bool:
    """True if this greenlet holds Ctrl-C."""
    return getcurrent() in _holders


def _note(signum: int, frame: FrameType | None) -> None:
    """The handler in the state HELD: note the Ctrl-C. Raise at once if the holder is not inside a kclient wait."""
    global _noted_for
    me = getcurrent()
    event = Event.SIGNAL_IN_HOLDER if me in _holders else Event.SIGNAL_ELSEWHERE
    if HANDLER_TABLE[State.HELD][event][1] is Reaction.RAISE:
        default_int_handler(signum, frame)
    _noted_for = me


def _stop(hub: Hub) -> None:
    """This greenlet stops while a Ctrl-C is noted: do what NOTE_TABLE says."""
    global _noted_for
    me = getcurrent()
    if _noted_for is not me:
        event = NoteEvent.ANOTHER_STOPS
    else:
        event = NoteEvent.MAIN_STOPS if me.parent is None else NoteEvent.OTHER_STOPS
    state, reaction = NOTE_TABLE[NoteState.NOTED][event]
    if state is NoteState.EMPTY:
        _noted_for = None
    if reaction is NoteReaction.RAISE:
        raise KeyboardInterrupt
    if reaction is NoteReaction.RAISE_IN_MAIN:
        hub.loop.run_callback(hub.handle_system_error, KeyboardInterrupt, KeyboardInterrupt())


class _MainWait:
    """The handler in the state AWAITED: it ends one wait of the main greenlet."""

    came = False
    """True if it was called: the wait then ends with KeyboardInterrupt."""

    is_over = False
    """True after the wait. A program that found the handler during the wait may put it back later."""

    def __init__(self, waiter: Waiter[bool], hub: Hub) -> None:
        self._waiter = waiter
        self._hub = hub

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.is_over:
            default_int_handler(signum, frame)
        self.came = True
        self._hub.loop.run_callback(self._waiter.switch, False)


def wait(waiter: Waiter[bool], hub: Hub) -> bool:
    """`waiter.get()`. In the main greenlet of the main thread a Ctrl-C ends it with KeyboardInterrupt.

    A handler of the program, of any signal, runs as soon as the signal comes.
    """
    if not hub.loop.default:
        return bool(waiter.get())
    if getcurrent().parent is not None:
        return _wait_elsewhere(waiter, hub)
    handler = getsignal(SIGINT)
    is_ours = handler is _note or (handler is default_int_handler and _system_handler(SIGINT) == _pythons_handler)
    ours = _MainWait(waiter, hub)
    if is_ours:
        set_handler(SIGINT, ours)  # PYTHONS or HELD, WAIT_BEGINS
    try:
        old_fd = set_wakeup_fd(wakeup_fd(hub), warn_on_full_buffer=False)
    except (OSError, ValueError):  # other code has closed the pipe, and perhaps opened a file with the same number
        old_fd = set_wakeup_fd(new_wakeup_fd(hub), warn_on_full_buffer=False)
    if old_fd != NO_FD:
        try:
            set_wakeup_fd(old_fd)
        except (OSError, ValueError):  # the program has closed its own
            old_fd = NO_FD
    try:
        if _noted_for is not None:
            _stop(hub)
        woken = bool(waiter.get())
    finally:
        if old_fd == NO_FD:
            set_wakeup_fd(NO_FD)
        if is_ours and getsignal(SIGINT) is ours:
            set_handler(SIGINT, _note if _holders else default_int_handler)  # AWAITED, WAIT_ENDS_HELD or WAIT_ENDS
        ours.is_over = True
    if ours.came:
        raise KeyboardInterrupt
    return woken


def _wait_elsewhere(waiter: Waiter[bool], hub: Hub) -> bool:
    """The wait of another greenlet: a Ctrl-C does not end it, and goes to the main greenlet at once."""
    if not holds():
        return bool(waiter.get())
    release(hub)
    try:
        return bool(waiter.get())
    finally:
        hold(hub)


def _learn_system_handler(signum: int) -> int | None:
    """Find the C function that returns the system's handler of a signal, and the one that Python installs for all."""
    global _system_handler, _pythons_handler
    import ctypes  # takes 5 ms, once

    getsig = ctypes.pythonapi.PyOS_getsig
    getsig.restype, getsig.argtypes = ctypes.c_void_p, [ctypes.c_int]
    old = set_handler(SIGURG, _note)
    _pythons_handler = getsig(SIGURG)
    set_handler(SIGURG, SIG_DFL if old is None else old)
    _system_handler = getsig
    found: int | None = getsig(signum)
    return found


_system_handler: Callable[[int], int | None] = _learn_system_handler
"""The address of the handler that the system has. gevent.signal_handler changes it, and Python does not notice."""

_pythons_handler: int | None = None
"""The address of Python's C function, which calls the handlers that Python knows."""
