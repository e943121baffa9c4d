"""The life of a manager's kernel: every row of its table, and a lifecycle's reactions to the end of the process."""

from __future__ import annotations

from typing import Any

import pytest

from kclient.concurrency.owner import Owner
from kclient.errors import DeadKernelError, InvalidState
from kclient.manager.lifecycle import Lifecycle
from kclient.manager.phases import TRANSITIONS, Event, Phase, Reaction

COLUMNS = "         LAUNCH   AWAIT    GIVE_UP  ANSWER   END     LEAVE  ENDED  EXIT"
ROWS = """
NONE     AWAITED  NONE     NONE     NONE     ENDING  NONE     NONE   NONE
STARTED  AWAITED  AWAITED  STARTED  READY    ENDING  STARTED  NONE   FAILED+
AWAITED  AWAITED  AWAITED  STARTED  READY    ENDING  AWAITED  NONE   FAILED!
READY    AWAITED  READY    READY    READY    ENDING  READY    NONE   DIED+
ENDING   AWAITED  ENDING   ENDING   ENDING   ENDING  LEFT   NONE   ENDING
LEFT     AWAITED  LEFT     LEFT     LEFT     ENDING  LEFT     NONE   DIED!
FAILED   AWAITED  FAILED   FAILED   FAILED   ENDING  FAILED   NONE   FAILED!
DIED     AWAITED  DIED     DIED     DIED     ENDING  DIED     NONE   DIED!
"""
"""The expected next phase, with ! where calls fail, and + where automatic restarts start another kernel."""

REACTIONS = {"": Reaction.NOTHING, "!": Reaction.REPORT, "+": Reaction.RESTART}


def expected() -> dict[tuple[Phase, Event], tuple[Phase, Reaction]]:
    events = [Event[name] for name in COLUMNS.split()]
    found = {}
    for row in filter(None, ROWS.splitlines()):
        name, *cells = row.split()
        for event, cell in zip(events, cells, strict=True):
            if cell != "-":
                mark = cell[len(cell.rstrip("!+")) :]
                found[Phase[name], event] = Phase[cell.rstrip("!+")], REACTIONS[mark]
    return found


class Kernel:
    """Takes the place of a provisioner and its process."""

    process = object()

    def death(self) -> DeadKernelError:
        return DeadKernelError("it died", exit_code=3)


class World:
    """A lifecycle, and the names of the calls that it makes: on its client, on the restarts, and on its manager."""

    def __init__(self, *, restarts: bool) -> None:
        self.told: list[str] = []
        self.life = Lifecycle(
            Owner(),
            self,  # type: ignore[arg-type]
            Kernel(),  # type: ignore[arg-type]
            Kernel,  # type: ignore[arg-type]
            lambda life: self if restarts else None,  # type: ignore[arg-type, return-value]
            lambda: self.told.append("manager"),
        )

    # The client, its parts and its availability

    @property
    def current(self) -> Any:
        return self

    @property
    def connection(self) -> Any:
        return self

    @property
    def kernel_connection(self) -> Any:
        return self

    @property
    def availability(self) -> Any:
        return self

    def death_of(self, kernel: Any) -> DeadKernelError:
        death: DeadKernelError = kernel.death()
        return death

    def fail(self, failure: Any) -> None:
        self.told.append("fail")

    def begin_restart(self, why: str) -> None:
        self.told.append("wait")

    # The availability, or the restarts

    def died(self, failure: Any) -> None:
        self.told.append("restart" if isinstance(failure, DeadKernelError) else "died")


@pytest.mark.parametrize(("phase", "event"), [(phase, event) for phase in Phase for event in Event])
def test_each_event_leads_from_each_phase_to_one_other_or_cannot_happen(phase: Phase, event: Event) -> None:
    assert TRANSITIONS.get((phase, event)) == expected().get((phase, event))
    world = World(restarts=False)
    world.life.phase = phase
    if (phase, event) not in TRANSITIONS:
        with pytest.raises(KeyError):
            world.life._note(event)
        return
    world.life._note(event)
    assert world.life.phase is TRANSITIONS[phase, event][0]


@pytest.mark.parametrize("phase", list(Phase))
@pytest.mark.parametrize("restarts", [False, True])
def test_end_of_the_process_is_told_as_its_phase_says(phase: Phase, restarts: bool) -> None:
    world = World(restarts=restarts)
    world.life.phase = phase
    world.life.exited()
    after, reaction = expected()[phase, Event.EXIT]
    assert world.life.phase is after
    assert (
        world.told
        == {
            Reaction.NOTHING: [],
            Reaction.REPORT: ["died", "manager"],
            Reaction.RESTART: ["restart", "wait", "died", "manager"] if restarts else ["died", "manager"],
        }[reaction]
    )


def test_end_of_a_kernel_that_was_given_back_is_not_told() -> None:
    world = World(restarts=True)
    world.life.phase = Phase.READY
    world.life.retire(lambda msg_id: InvalidState("given back"))
    world.life.exited()
    assert (world.told, world.life.phase) == (["fail"], Phase.READY)
