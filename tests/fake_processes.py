"""FakeKernels in this hub that pass for processes, and a launcher whose kernels come up within milliseconds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import gevent
from gevent.event import Event

from kclient import LaunchError
from kclient.testing import FakeKernel

_pids = count(1_000_000)


class FakeProcess:
    """A FakeKernel. `die` ends it. If `tells` is False, `is_alive` shows the end, but `exited` is not set."""

    def __init__(self, registration_file: str, script: Mapping[str, Any]) -> None:
        self.pid = next(_pids)
        self.exited = Event()
        self.exit_code: int | None = None
        self.tells = True
        self.kernel = FakeKernel(script, registration_file=registration_file)
        self._run = gevent.spawn(self._serve)

    def is_alive(self) -> bool:
        return self.exit_code is None

    def send_signal(self, signum: int) -> None:
        if signum in (9, 15):
            self.die(-signum)

    def kill(self) -> None:
        self.die(-9)

    def die(self, exit_code: int) -> None:
        if self.is_alive():
            self.exit_code = exit_code
            if self.tells:
                self.exited.set()
            self._run.kill(block=False)
            gevent.spawn(self.kernel.close)

    def stderr_tail(self) -> str:
        return "the last output"

    def close(self) -> None:
        pass

    def _serve(self) -> None:
        self.kernel.open()
        self.kernel.serve()
        self.die(0)


class FakeLauncher:
    """`before(number)` is called before each start, in the greenlet of the start: it may wait, or raise."""

    def __init__(self, script: Mapping[str, Any] | None = None) -> None:
        self.script = dict(script or {})
        self.processes: list[FakeProcess] = []
        self.before: Callable[[int], object] = lambda number: None
        self._numbers = count()

    def start(self, argv: Sequence[str], **where: Any) -> FakeProcess:
        self.before(next(self._numbers))
        self.processes.append(FakeProcess(argv[-1], self.script))
        return self.processes[-1]

    @property
    def alive(self) -> list[FakeProcess]:
        return [process for process in self.processes if process.is_alive()]


def broken(number: int) -> None:
    """A `before` that makes every start fail."""
    raise LaunchError("it is broken")


def install_fake(folder: Path, name: str = "fake") -> str:
    """A kernel spec for a FakeLauncher, in a folder of JUPYTER_PATH; returns its name."""
    directory = folder / "kernels" / name
    directory.mkdir(parents=True)
    spec = {"argv": ["fake", "{connection_file}"], "display_name": name, "kernel_protocol_version": "5.6"}
    (directory / "kernel.json").write_text(json.dumps(spec))
    return name
