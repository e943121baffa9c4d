"""A kernel that this program did not start: missed heartbeats and refused connections tell that it is dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from kclient.client import kernel_death
from kclient.client.kernel_death import KernelDeath

SILENCE_S = 5.0


class World:
    """Takes the place of the channels, their transport, the heartbeat and the availability."""

    address = "tcp://127.0.0.1:1"

    def __init__(self, *refusals: bool | None) -> None:
        self.refusals = list(refusals)
        self.holders: list[list[int]] = []
        self.deaths: list[str] = []
        self.transport = self.hb = self
        self.when_asked: Callable[[], object] = lambda: None
        self.death = KernelDeath(self, self)  # type: ignore[arg-type]

    def is_refused(self) -> bool | None:
        self.when_asked()
        return self.refusals.pop(0)

    def left_to(self) -> list[int]:
        return self.holders.pop(0) if self.holders else []

    def unpause(self) -> None: ...

    def runs(self, channel: str) -> bool:
        return True

    def since_last_beat(self) -> float:
        return SILENCE_S

    def died(self, failure: Any) -> None:
        self.deaths.append(str(failure(None)))

    def miss(self) -> None:
        self.death.heart_missed()
        look = self.death._prober
        if look is not None:
            look.join()


@pytest.fixture(autouse=True)
def no_restart_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_death, "RESTART_S", 0)


def test_kernel_whose_addresses_refuse_twice_is_dead() -> None:
    world = World(True, True)
    world.death.watch(None)
    world.miss()
    assert world.deaths == ["the kernel died: tcp://127.0.0.1:1 refuses connections"]


def test_kernel_whose_address_is_held_twice_by_its_forks_is_dead() -> None:
    world = World(False, False)
    world.holders = [[7, 8], [8]]
    world.death.watch(None)
    world.miss()
    assert world.deaths == [
        "the kernel died; processes that it had started hold tcp://127.0.0.1:1 and do not serve it: end them (8)"
    ]


def test_kernel_whose_address_is_no_longer_held_by_its_forks_is_alive() -> None:
    world = World(False, False)
    world.holders = [[7], []]
    world.death.watch(None)
    world.miss()
    assert world.deaths == []


def test_kernel_that_listens_again_is_alive() -> None:
    world = World(True, False)
    world.death.watch(None)
    world.miss()
    assert (world.deaths, world.refusals) == ([], [])


@pytest.mark.parametrize("refused", [False, None])
@pytest.mark.parametrize(("dead_after", "is_dead"), [(None, False), (SILENCE_S, True), (SILENCE_S + 1, False)])
def test_silence_decides_where_no_refusal_can_come(
    refused: bool | None, dead_after: float | None, is_dead: bool
) -> None:
    world = World(refused)
    world.death.watch(dead_after)
    world.miss()
    assert world.deaths == (["the kernel has been silent for 5.0 s"] if is_dead else [])


def test_missed_heartbeat_says_nothing_without_a_watch() -> None:
    world = World(True, True)
    world.miss()
    assert world.deaths == []


def test_watch_that_is_stopped_while_it_looks_reports_no_death() -> None:
    """`stop` may be called in the turn of the loop in which the look ends, too late to kill its greenlet."""
    world = World(True, True)
    world.death.watch(None)
    world.when_asked = world.death.stop
    world.miss()
    assert world.deaths == []


def test_stopped_watch_that_begins_again_notices_a_death() -> None:
    world = World(True, True)
    world.death.watch(None)
    world.death.heart_missed()
    world.death.stop()
    world.death.watch_again()
    world.miss()
    assert world.deaths == ["the kernel died: tcp://127.0.0.1:1 refuses connections"]


def test_look_of_a_watch_that_was_stopped_says_nothing_to_the_next_watch() -> None:
    world = World(True, True)

    def begin_anew() -> None:
        world.death.stop()
        world.death.watch(None)

    world.death.watch(None)
    world.when_asked = begin_anew
    world.miss()
    assert world.deaths == []
