"""Everything at once, at random: every call ends in its own answer or a documented error, and nothing is left over."""

from __future__ import annotations

import gc
import json
import logging

import gevent
import leaks
import pytest
from chaos import Chaos
from figures import Figures

from kclient.client.execution import Execution
from kclient.concurrency.waiting import Parking
from kclient.protocol.routing import Slot


@pytest.fixture
def errors_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a greenlet that nobody looks after, or a callback of the loop, has raised."""
    errors: list[str] = []
    hub = gevent.get_hub()
    monkeypatch.setattr(hub, "print_exception", lambda context, kind, value, tb: errors.append(f"{context}: {value!r}"))
    return errors


@pytest.mark.kernel
@pytest.mark.timeout(3600)
def test_chaos(
    pytestconfig: pytest.Config, figures: Figures, errors_of_the_hub: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "kclient")
    seed = pytestconfig.getoption("--chaos-seed")
    seconds = pytestconfig.getoption("--chaos-seconds") or figures.size(20, 600)
    before = waited_for()  # what a test that failed has left: its traceback holds it
    chaos = Chaos(seed)
    chaos.run_for(seconds)
    print(f"seed {seed}:", json.dumps(chaos.summary, indent=1))  # shown if it fails
    for what, counted in chaos.summary.items():
        figures.note(what, counted.total(), "")
    complaints = [*chaos.complaints, *errors_of_the_hub, *caplog.messages]
    del chaos
    assert not complaints, f"seed {seed}:\n" + "\n".join(complaints)
    left = leaks.settled(lambda: [f"left over: {thing!r}" for key, thing in waited_for().items() if key not in before])
    assert not left, f"seed {seed}:\n" + "\n".join(left)


def waited_for() -> dict[int, object]:
    """Executions, slots and waiters that are there, by their number; of the chaos there are none once it is over."""
    return {id(thing): thing for thing in gc.get_objects() if isinstance(thing, (Execution, Slot)) or waits(thing)}


def waits(thing: object) -> bool:
    return type(thing) is Parking and len(thing) > 0
