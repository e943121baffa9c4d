"""An answer that is overdue: every row of its table, and its end."""

from __future__ import annotations

from functools import partial

import pytest

from kclient.channels.shell import ShellChannel
from kclient.client.overdue import TRANSITIONS, AnyOwed, Event, Overdue, Phase, no_reply
from kclient.errors import Failure
from kclient.protocol.session import Session
from kclient.transport.zmq.context import context

COLUMNS = "       NUDGE   WAIT    ASK    PASS      SETTLE"
ROWS = """
OWED      -       -       ASKED  -         -
UNHEARD   NUDGED  -       -      -         -
NUDGED    -       SILENT  ASKED  -         -
SILENT    -       -       ASKED  -         SETTLED
ASKED     -       -       -      GIVEN_UP  SETTLED
GIVEN_UP  -       -       -      -         -
SETTLED   -       -       -      -         -
"""


def expected() -> dict[tuple[Phase, Event], Phase]:
    events = [Event[name] for name in COLUMNS.split()]
    found = {}
    for row in filter(None, ROWS.splitlines()):
        name, *cells = row.split()
        found |= {(Phase[name], event): Phase[cell] for event, cell in zip(events, cells, strict=True) if cell != "-"}
    return found


class Debt:
    """An answer that is owed until it is settled or given up."""

    def __init__(self, phase: Phase) -> None:
        self.is_owed, self.given_up = True, 0
        shell = ShellChannel(context(), Session(), "tcp://127.0.0.1:1")
        self.overdue = Overdue(shell, None, 0.0, lambda: self.is_owed, self.give_up, no_reply, phase=phase)

    def give_up(self, failure: Failure) -> None:
        self.given_up += 1


@pytest.mark.parametrize(("phase", "event"), [(phase, event) for phase in Phase for event in Event])
def test_each_event_leads_from_each_phase_to_one_other_or_cannot_happen(phase: Phase, event: Event) -> None:
    assert TRANSITIONS.get((phase, event)) is expected().get((phase, event))
    overdue = Debt(phase).overdue
    if (phase, event) in TRANSITIONS:
        overdue.note(event)
        assert overdue.phase is TRANSITIONS[phase, event]
    else:
        with pytest.raises(KeyError):
            overdue.note(event)
        assert overdue.phase is phase


@pytest.mark.parametrize("is_owed", [True, False])
def test_answer_that_did_not_come_before_a_later_one_is_given_up(is_owed: bool) -> None:
    debt = Debt(Phase.ASKED)
    debt.is_owed = is_owed
    debt.overdue.conclude()
    assert (debt.given_up, debt.overdue.phase) == ((1, Phase.GIVEN_UP) if is_owed else (0, Phase.SETTLED))


def test_whether_any_of_many_is_owed_is_found_without_a_look_at_all_of_them() -> None:
    """With 8,000 executions under way, each message asked; they took 1.6 times as long."""
    number, looks = 1000, 0
    owed = [True] * number
    debts = [Debt(Phase.OWED).overdue for _ in range(number)]

    def look(index: int) -> bool:
        nonlocal looks
        looks += 1
        return owed[index]

    for index, debt in enumerate(debts):
        debt.is_still_owed = partial(look, index)
    any_owed = AnyOwed(debts)
    for index in range(number):
        assert any_owed()
        owed[index] = False
    assert not any_owed()
    assert looks <= 2 * number
