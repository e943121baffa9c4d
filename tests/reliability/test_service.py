"""The service of `examples/server` under load from outside, while its kernels are killed."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
from figures import Figures
from fixtures import Gate
from serving import Run, serving

from benchmarks.descendants import kernels_of
from benchmarks.load import CLEAR, KINDS, put_load

SIZE = 4

PATIENCE = 150
"""Seconds after which a request counts as hung, on any machine: each may wait for its kernel for 60 of them."""

KILLED_AS_IT_STARTED = r"a kernel did not start: .*\(killed by SIGKILL\)"
"""The load kills kernels at random. The service says so of one that was not ready yet."""


@pytest.mark.kernel
@pytest.mark.timeout(900)
def test_every_request_ends_in_its_result_or_in_a_clear_error(
    figures: Figures, make_gate: Callable[[], Gate], pytestconfig: pytest.Config
) -> None:
    requests = figures.size(40, 1500)
    with serving("--fork", "--size", str(SIZE), "--queue-timeout", "60") as service:
        pid = service.script.process.pid
        found = put_load(
            *(service.url, pid, "--requests", requests, "--concurrent", figures.size(20, 200)),
            *("--kinds", ",".join(KINDS), "--fresh", "--kill", figures.size(2, 3)),
            *("--seed", pytestconfig.getoption("--chaos-seed"), "--patience", PATIENCE),
        )
        print({name: value for name, value in found.items() if not name.endswith("_ns")})  # for a failure
        assert found["complaints"] == []
        assert set(found["outcomes"]) <= {"ok", "left", *CLEAR}
        assert sum(found["outcomes"].values()) == requests
        assert found["outcomes"]["ok"] > 0
        assert found["killed"] > 0
        for what in ("killed", "seconds"):
            figures.note(what, found[what], "")
        for outcome, count in found["outcomes"].items():
            figures.note(outcome, count, "requests")

        # As many kernels as before: none lost, none too many.
        gates = [make_gate() for _ in range(SIZE)]
        with ExitStack() as stack:
            for gate in gates:
                stack.enter_context(Run(service, gate.code))
            stats = service.stats()
            assert [stats[name] for name in ("busy", "idle", "starting", "waiting")] == [SIZE, 0, 0, 0]
            assert len(kernels_of(pid)) == SIZE
        assert stats["checkouts"] == sum(found["outcomes"].values()) - found["outcomes"].get("refused", 0) + SIZE
        service.end(may_say=KILLED_AS_IT_STARTED)
