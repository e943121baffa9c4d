"""Each example runs to its end, and prints the output that its text promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

PROMISES = {
    "script.py": ["mean: 3.875", "StatisticsError", "took too long: 0.5 s", "still there: 8"],
    "gevent_server.py": ["request 4: 8", "request 99: the kernel is gone, exit code 7", "request 100: 200"],
    "comms.py": [
        "mean: 3.0",
        "progress: 3 of 3",
        "progress: the kernel closed the comm",
        "closed: the kernel has no comm",
    ],
    "latency.py": [
        *("sent to busy", "sent to first output", "sent to reply", "sent to idle"),
        *("kernel_info: call to reply", "kernel_info: reply to caller"),
    ],
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(PROMISES)


@pytest.mark.kernel
@pytest.mark.parametrize("name", PROMISES)
def test_example_runs(name: str, folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], cwd=folder, capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for promise in PROMISES[name]:
        assert promise in done.stdout
