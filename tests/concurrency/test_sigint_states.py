"""Every row of the two tables in kclient.concurrency.sigint, reached through hold, release, wait and real signals."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.hub
import pytest
from greenlet import GreenletExit, getcurrent, greenlet

from kclient.concurrency import sigint
from kclient.concurrency.sigint import (
    HANDLER_TABLE,
    NOTE_TABLE,
    Event,
    NoteEvent,
    NoteReaction,
    NoteState,
    Reaction,
    State,
)

IMPOSSIBLE = {(State.AWAITED, Event.WAIT_BEGINS)}
"""The events that can happen in AWAITED: the main greenlet waits, and only its wait has an event."""

IMPOSSIBLE_OF_NOTE = {(NoteState.EMPTY, NoteEvent.MAIN_STOPS), (NoteState.EMPTY, NoteEvent.OTHER_STOPS)}
"""In EMPTY nothing is noted, so the note is for no greenlet."""

HOLDERS = {
    Event.HOLD_AGAIN: ["actor"],
    Event.RELEASE: ["actor", "second"],
    Event.RELEASE_LAST: ["actor"],
    Event.WAIT_ENDS_HELD: ["second"],
    Event.SIGNAL_IN_HOLDER: ["actor"],
}
"""The greenlets that hold Ctrl-C before an event. Before all other events there are none."""


class Actor(greenlet):
    """A greenlet that runs the functions which the test hands it, one after the other."""

    def run(self, function: Callable[[], Any]) -> None:
        while True:
            # Not a plain switch: the switch of the hub takes no argument.
            function = greenlet.switch(self._caller, outcome_of(function))

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        """The value that `function` returns in this greenlet, or the exception that it raises there."""
        self._caller = getcurrent()
        return self.switch(lambda: function(*args))

    def end(self) -> None:
        if self:
            self.throw(GreenletExit)


class Main:
    """The main greenlet, which runs the test, with the interface of an Actor."""

    def do(self, function: Callable[..., Any], *args: Any) -> Any:
        return outcome_of(lambda: function(*args))

    def end(self) -> None:
        pass


def outcome_of(function: Callable[[], Any]) -> Any:
    try:
        return function()
    except BaseException as exc:
        return exc


class Process:
    """The test's greenlets, and the SIGINT handler of this process."""

    def __init__(self) -> None:
        self.hub = gevent.get_hub()
        self.main = Main()
        self.other = Actor()
        self.second = Actor()
        self.actor: Actor | Main = self.other
        self.foreign_calls: list[int] = []

    def end(self) -> None:
        """Let every greenlet release, and restore Python's handler."""
        for actor in (self.main, self.other, self.second):
            if actor.do(sigint.holds):
                actor.do(sigint.release, self.hub)
            actor.end()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def state(self) -> State:
        handler = signal.getsignal(signal.SIGINT)
        if handler is sigint._note:
            return State.HELD
        if isinstance(handler, sigint._MainWait) and not handler.is_over:
            return State.AWAITED
        is_pythons = sigint._system_handler(signal.SIGINT) == sigint._pythons_handler
        return State.PYTHONS if handler is signal.default_int_handler and is_pythons else State.FOREIGN

    def hold(self, names: list[str]) -> None:
        for name in names:
            assert getattr(self, name).do(sigint.hold, self.hub) is True

    def set_handler(self, state: State) -> None:
        """Bring about `state` by signal.signal, as a program can, without a change of the holders."""
        if state is State.PYTHONS:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        elif state is State.HELD:
            signal.signal(signal.SIGINT, sigint._note)
        elif state is State.FOREIGN:
            signal.signal(signal.SIGINT, lambda signum, frame: self.foreign_calls.append(signum))

    def wait(self, step: Callable[[], Any]) -> Any:
        """The outcome of a wait in the main greenlet. `step` runs in the hub during the wait; then the wait ends."""
        waiter: gevent.hub.Waiter[bool] = gevent.hub.Waiter(self.hub)
        failures = []

        def run() -> None:
            outcome = outcome_of(step)
            if isinstance(outcome, BaseException):
                failures.append(outcome)
            self.hub.loop.run_callback(waiter.switch, True)

        self.hub.loop.run_callback(run)
        outcome = outcome_of(lambda: sigint.wait(waiter, self.hub))
        assert not failures, failures
        return outcome

    def wait_elsewhere(self) -> bool:
        """Wait in the greenlet that calls this; the wait is over as soon as it begins."""
        waiter: gevent.hub.Waiter[bool] = gevent.hub.Waiter(self.hub)
        waiter.switch(True)
        return sigint.wait(waiter, self.hub)


@pytest.fixture
def process() -> Iterator[Process]:
    process = Process()
    yield process
    process.end()
    assert (sigint._holders, sigint._noted_for) == (set(), None)


WAITS = {Event.WAIT_BEGINS, Event.WAIT_ENDS, Event.WAIT_ENDS_HELD}

ROWS = [
    (state, event, actor)
    for state, row in HANDLER_TABLE.items()
    for event in row
    for actor in (["other"] if state is State.AWAITED or event in WAITS else ["main", "other"])
]
"""Each row, with the greenlet in which it happens. In AWAITED the main greenlet cannot act."""

ACTS: dict[Event, Callable[[gevent.hub.Hub], Any]] = {
    Event.HOLD: sigint.hold,
    Event.HOLD_AGAIN: sigint.hold,
    Event.RELEASE: sigint.release,
    Event.RELEASE_LAST: sigint.release,
    Event.SIGNAL_IN_HOLDER: lambda hub: signal.raise_signal(signal.SIGINT),
    Event.SIGNAL_ELSEWHERE: lambda hub: signal.raise_signal(signal.SIGINT),
}


def check(process: Process, event: Event, reaction: Reaction, outcome: Any, waited: Any) -> None:
    """Assert that the reaction has happened: the outcome of the act, that of the wait, and the kept note."""
    is_holder = process.actor.do(sigint.holds)
    raised = isinstance(outcome, KeyboardInterrupt)
    assert raised == (reaction is Reaction.RAISE), outcome
    assert isinstance(waited, KeyboardInterrupt) == (reaction is Reaction.END_WAIT), waited
    assert process.foreign_calls == ([signal.SIGINT] if reaction is Reaction.CALL_FOREIGN else [])
    if reaction is Reaction.ADD:
        assert (outcome, is_holder) == (True, True)
    elif reaction is Reaction.REMOVE:
        assert (outcome, is_holder) == (None, False)
    elif event is Event.HOLD:
        assert (outcome, is_holder) == (False, False)
    elif event is Event.HOLD_AGAIN:
        assert (outcome, is_holder) == (False, True)
    else:
        assert is_holder == ("actor" in HOLDERS.get(event, []))
    if reaction is Reaction.NOTE:
        noted = sigint._noted_for
        assert noted is (process.other if process.actor is process.other else getcurrent())
        sigint._noted_for = None
    else:
        assert sigint._noted_for is None


@pytest.mark.parametrize(("state", "event", "actor"), ROWS, ids=lambda value: getattr(value, "name", value))
def test_row_of_the_handler_is_true(process: Process, state: State, event: Event, actor: str) -> None:
    process.actor = process.main if actor == "main" else process.other
    expected, reaction = HANDLER_TABLE[state][event]
    process.hold(HOLDERS.get(event, []))
    seen: dict[str, Any] = {"outcome": None, "waited": None}

    def set_state() -> None:
        process.set_handler(state)
        assert process.state() is state

    def act() -> None:
        seen["outcome"] = process.actor.do(ACTS[event], process.hub)
        seen["state"] = process.state()

    if event is Event.WAIT_BEGINS:
        set_state()
        seen["waited"] = process.wait(lambda: seen.update(state=process.state()))
    elif event in WAITS:
        seen["waited"] = process.wait(set_state)
        seen["state"] = process.state()
    elif state is State.AWAITED:
        seen["waited"] = process.wait(lambda: (set_state(), act()))
    else:
        set_state()
        act()
    assert seen["state"] is expected
    check(process, event, reaction, seen["outcome"], seen["waited"])


@pytest.mark.parametrize("event", [Event.HOLD, Event.WAIT_BEGINS, Event.SIGNAL_ELSEWHERE], ids=lambda event: event.name)
def test_handler_of_gevent_is_a_foreign_one(process: Process, event: Event) -> None:
    came = []
    handler = gevent.signal_handler(signal.SIGINT, came.append, True)
    try:
        assert process.state() is State.FOREIGN
        if event is Event.WAIT_BEGINS:
            assert process.wait(lambda: came.append(process.state())) is True
            assert came == [State.FOREIGN]
        else:
            outcome = process.other.do(ACTS[event], process.hub)
            gevent.sleep(0.001)  # the handler is called in a greenlet of its own
            assert outcome in (False, None)
            assert came == ([True] if event is Event.SIGNAL_ELSEWHERE else [])
        assert process.state() is State.FOREIGN
    finally:
        handler.cancel()


@pytest.mark.parametrize("stop", ["release", "wait"])
@pytest.mark.parametrize(
    ("state", "event"),
    [(state, event) for state, row in NOTE_TABLE.items() for event in row],
    ids=lambda value: value.name,
)
def test_row_of_the_note_is_true(process: Process, state: NoteState, event: NoteEvent, stop: str) -> None:
    expected, reaction = NOTE_TABLE[state][event]
    noted = process.main if event is NoteEvent.MAIN_STOPS else process.other
    actor = process.second if event in (NoteEvent.ANOTHER_STOPS, NoteEvent.SIGNAL) else noted
    for one in {noted, actor}:
        assert one.do(sigint.hold, process.hub)
    if state is NoteState.NOTED:
        assert noted.do(signal.raise_signal, signal.SIGINT) is None
        assert sigint._noted_for is not None
    if event is NoteEvent.SIGNAL:
        outcome = actor.do(signal.raise_signal, signal.SIGINT)
        assert sigint._noted_for is actor
    elif stop == "release":
        outcome = actor.do(sigint.release, process.hub)
    else:
        outcome = actor.do(process.wait_elsewhere)
    assert isinstance(outcome, KeyboardInterrupt) == (reaction is NoteReaction.RAISE), outcome
    assert (sigint._noted_for is None) == (expected is NoteState.EMPTY)
    in_main = outcome_of(lambda: gevent.sleep(0.001))
    assert isinstance(in_main, KeyboardInterrupt) == (reaction is NoteReaction.RAISE_IN_MAIN), in_main
    sigint._noted_for = None


def test_wait_of_another_greenlet_is_a_release_and_then_a_hold(process: Process) -> None:
    waiter: gevent.hub.Waiter[bool] = gevent.hub.Waiter(process.hub)
    states = []

    def look() -> None:
        states.append(process.state())
        waiter.switch(True)

    def call() -> None:
        sigint.hold(process.hub)
        process.hub.loop.run_callback(look)
        sigint.wait(waiter, process.hub)
        states.append(process.state())
        sigint.release(process.hub)

    gevent.spawn(call).join()
    assert states == [State.PYTHONS, State.HELD]


def test_only_what_cannot_happen_has_no_row() -> None:
    rows = {(state, event) for state, row in HANDLER_TABLE.items() for event in row}
    assert {(state, event) for state in State for event in Event} - rows == IMPOSSIBLE
    rows_of_note = {(state, event) for state, row in NOTE_TABLE.items() for event in row}
    assert {(state, event) for state in NoteState for event in NoteEvent} - rows_of_note == IMPOSSIBLE_OF_NOTE
