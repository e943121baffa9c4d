"""The watch over a kernel that this program did not start: it calls the kernel dead, or is stopped before."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
import leaks
import pytest

from kclient.client import kernel_death
from kclient.client.kernel_death import KernelDeath


class Parts:
    """Takes the place of the channels, the heartbeat, the transport and the availability of a client."""

    address = "tcp://127.0.0.1:1"

    def __init__(self, on_second_look: Callable[[], object]) -> None:
        self.hb = self.transport = self
        self.looks = 0
        self.deaths: list[Any] = []
        self._on_second_look = on_second_look

    def unpause(self) -> None:
        pass

    def since_last_beat(self) -> float:
        return 1.0

    def is_refused(self) -> bool:
        self.looks += 1
        if self.looks == 2:
            self._on_second_look()
        return True

    def died(self, failure: Any) -> None:
        self.deaths.append(failure)


@pytest.mark.parametrize("is_stopped", [False, True])
def test_watch_that_is_stopped_while_it_looks_reports_no_death(
    monkeypatch: pytest.MonkeyPatch, is_stopped: bool
) -> None:
    """`stop` may come in the turn of the loop in which the look ends, too late to end its greenlet."""
    monkeypatch.setattr(kernel_death, "RESTART_S", 0)
    parts = Parts(lambda: death.stop() if is_stopped else None)
    death = KernelDeath(parts, parts)  # type: ignore[arg-type]
    death.watch(None)
    before = leaks.live_greenlets()
    death.heart_missed()
    gevent.joinall(list(leaks.live_greenlets() - before))
    assert parts.looks == 2
    assert len(parts.deaths) == (not is_stopped)
