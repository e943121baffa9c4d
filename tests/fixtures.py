"""Fixtures of the tests against real kernels: gates in their code, calls in the background, programs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import gevent
import leaks
import pytest
from gevent.event import Event

import kclient
from kclient.kernels.process.local import LocalLauncher, LocalProcess

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

WARNINGS = ["-bb", "-W", "error", "-W", "ignore:Jupyter is migrating its paths:DeprecationWarning"]
"""Python's options for warnings, as setup.cfg gives them to pytest; with -bb a comparison of text and bytes fails."""


@pytest.fixture
def client(kernel: kclient.KernelManager) -> Iterator[kclient.KernelClient]:
    """A client of the test's own to the shared kernel: the test may stop its channels, and its session is new."""
    with kclient.connect(kernel.connection_file, watch=False, timeout=WAIT) as client:
        client.iopub_channel.flush()
        yield client


class Gate:
    """A place where the kernel waits. `code` waits there, in the kernel, until `open` is called in the test."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path)
        self._number = os.open(path, os.O_RDWR)
        self.code = f"import os; _ = os.read(os.open({str(path)!r}, os.O_RDWR), 1);"

    def open(self) -> None:
        os.write(self._number, b"!")

    def close(self) -> None:
        """Let code go on that still waits. Later code finds no such file."""
        self._path.unlink()
        self.open()
        os.close(self._number)


@pytest.fixture
def make_gate(folder: Path) -> Iterator[Callable[[], Gate]]:
    gates: list[Gate] = []

    def make() -> Gate:
        gates.append(Gate(folder / f"gate{len(gates)}"))
        return gates[-1]

    yield make
    for gate in gates:
        gate.close()


@pytest.fixture
def gate(make_gate: Callable[[], Gate]) -> Gate:
    return make_gate()


class TellingLauncher(LocalLauncher):
    """A LocalLauncher that sets `started` after each start."""

    def __init__(self) -> None:
        self.started = Event()

    def start(self, argv: Sequence[str], **where: Any) -> LocalProcess:
        process = super().start(argv, **where)
        self.started.set()
        return process


class Background:
    """A call in a greenlet of its own. It has begun when the constructor returns; `ended` is the moment of its end."""

    def __init__(self, call: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        self.ended = 0.0
        self._error: BaseException | None = None
        self.greenlet = gevent.spawn(self._run, call, args, kwargs)
        leaks.turn_loop()

    def get(self) -> Any:
        """The value that the call returned; raises the exception that it raised."""
        value = self.greenlet.get(timeout=WAIT)
        if self._error is not None:
            raise self._error
        return value

    def error(self) -> BaseException | None:
        """The exception that the call raised, or None."""
        self.greenlet.get(timeout=WAIT)
        return self._error

    @property
    def is_waiting(self) -> bool:
        return not self.greenlet.ready()

    def _run(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except BaseException as exc:
            self._error = exc
            return None
        finally:
            self.ended = perf_counter()


@pytest.fixture
def background() -> Iterator[Callable[..., Background]]:
    """Start a call in a greenlet of its own. A call that still runs at the end of the test is killed."""
    started: list[Background] = []

    def start(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Background:
        started.append(Background(call, *args, **kwargs))
        return started[-1]

    yield start
    gevent.killall([call.greenlet for call in started])


class Script:
    """A Python program in a process of its own."""

    def __init__(self, path: Path, arguments: tuple[str, ...]) -> None:
        environment = {**os.environ, "PYTHONPATH": str(Path(kclient.__file__).parents[1])}
        self.process = subprocess.Popen(
            [sys.executable, *WARNINGS, str(path), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def read_line(self) -> str:
        """The next line that the program prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate(timeout=WAIT)
        return line.strip()

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def end(self, may_say: str | None = None) -> str:
        """The output of the program, after its end; fails if it has not ended well.

        `may_say` is the pattern of lines that may be on stderr.
        """
        stdout, stderr = self.process.communicate(timeout=WAIT)
        rest = stderr if may_say is None else re.sub(rf"(?m)^{may_say}\n", "", stderr)
        assert (self.process.returncode, rest) == (0, ""), stdout + stderr
        return stdout.strip()


@pytest.fixture
def start_script(folder: Path) -> Iterator[Callable[..., Script]]:
    """Start a Python program with arguments. It is killed if it still runs at the end of the test."""
    scripts: list[Script] = []

    def start(code: str, *arguments: str) -> Script:
        path = folder / f"script{len(scripts)}.py"
        path.write_text(code)
        scripts.append(Script(path, arguments))
        return scripts[-1]

    yield start
    for script in scripts:
        with script.process:
            script.process.kill()


@pytest.fixture
def run_script(start_script: Callable[..., Script]) -> Callable[..., str]:
    """Run a Python program to its end, which must be good; returns its output."""
    return lambda code, *arguments: start_script(code, *arguments).end()


@pytest.fixture
def install_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Install a kernel whose command is Python code, with the connection file as its argument; returns its name."""
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))

    def install(code: str, name: str = "odd", **spec: Any) -> str:
        directory = folder / "jupyter" / "kernels" / name
        directory.mkdir(parents=True)
        argv = [sys.executable, "-c", code, "{connection_file}"]
        (directory / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": name, **spec}))
        return name

    return install


@pytest.fixture
def await_arrival() -> Callable[[kclient.KernelClient], None]:
    """Wait until a kernel that is busy has taken in all that was sent on the client's shell channel."""

    def await_arrival(client: kclient.KernelClient) -> None:
        control, shell = client.control_channel, client.shell_channel
        subshell_id = control.create_subshell(timeout=WAIT).content["subshell_id"]
        shell.get_reply(shell.send("kernel_info_request", {}, subshell_id=subshell_id), timeout=WAIT)
        control.delete_subshell(subshell_id, timeout=WAIT)

    return await_arrival


def in_forked_child(function: Callable[[], str]) -> str:
    """The value that `function` returns in a forked child."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # since 3.12; the threads are libzmq's
        child = os.fork()
    if child == 0:
        text = "it raised"
        try:
            text = function()
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with open(reading) as pipe:
        return pipe.read()
