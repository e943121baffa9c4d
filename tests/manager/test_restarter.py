"""The Restarter, without a kernel."""

from __future__ import annotations

import pytest
from leaks import turn_loop

from kclient.client.availability import Availability
from kclient.client.interface import KernelInterface
from kclient.concurrency.deadline import Deadline
from kclient.errors import DeadKernelError
from kclient.manager import autorestart
from kclient.manager.autorestart import AutoRestart, Restarter


class NoLife:
    @property
    def availability(self) -> Availability:
        raise AssertionError

    def revive(self, deadline: Deadline) -> None:
        raise AssertionError


def test_death_whose_manager_was_dropped_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise one greenlet starts the next, and the loop turns without end."""
    monkeypatch.setattr(autorestart, "READ_ON_S", 0.0)
    asked: list[None] = []

    def manager() -> KernelInterface | None:
        asked.append(None)
        return None

    life = NoLife()
    restarter = Restarter(AutoRestart(), manager, life)
    restarter.died(DeadKernelError("the kernel died"))
    assert restarter.is_at_work
    for _ in range(20):
        turn_loop()
    assert len(asked) == 1
    assert not restarter.is_at_work
