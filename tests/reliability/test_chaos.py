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
    """The errors that the hub prints: those of greenlets without an owner and of callbacks of the loop."""
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
    before = waited_for()  # the objects that the traceback of a failed test holds
    chaos = Chaos(seed)
    chaos.run_for(seconds)
    print(f"seed {seed}:", json.dumps(chaos.summary, indent=1))  # pytest shows it if the test fails
    for what, counted in chaos.summary.items():
        figures.note(what, counted.total(), "")
    complaints = [*chaos.complaints, *errors_of_the_hub, *caplog.messages]
    del chaos
    assert not complaints, f"seed {seed}:\n" + "\n".join(complaints)
    left = leaks.settled(lambda: [f"left over: {thing!r}" for key, thing in waited_for().items() if key not in before])
    assert not left, f"seed {seed}:\n" + "\n".join(left)


def waited_for() -> dict[int, object]:
    """All executions, slots and waiters, by their number. After the chaos none of its own may be left."""
    return {id(thing): thing for thing in gc.get_objects() if isinstance(thing, (Execution, Slot)) or waits(thing)}


def waits(thing: object) -> bool:
    return type(thing) is Parking and len(thing) > 0
