"""Two builds of kclient in one run: that of today, and that of another checkout, ``--against CHECKOUT``.

One process cannot import both. Each build has a process of its own, that of today too, so that both are treated alike.
The benchmark asks one build and then the other to take its turn: to connect to a kernel that both use, to make some
calls, and to send back how long each took. What goes over the pipe is outside of the time that is measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

import kclient
from benchmarks.kernels import ROOT

BEFORE = " (before)"
"""What the name of a client ends in when it is that of the other build."""

TURNS_OF_A_PROCESS = 20
"""Then a fresh one takes over: where its memory happens to lie makes one process faster than its twin, by 1 % or so."""


class Build:
    """The processes of one build, one after the other."""

    def __init__(self, checkout: Path) -> None:
        self._checkout = checkout
        self._turns = 0
        self._start()

    def turn(self, name: str, *arguments: object) -> Any:
        """What that function of `benchmarks.turns` returns there; raises RuntimeError if the process has failed."""
        if self._turns == TURNS_OF_A_PROCESS:
            self.close()
            self._start()
        self._turns += 1
        try:
            self._pipe.send((name, arguments))
            return self._pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as exc:
            raise RuntimeError(f"the build in {self._checkout} failed at {name!r}; its error stands above") from exc

    def close(self) -> None:
        """End the process, once it has done what it was asked for."""
        self._pipe.close()
        self._process.wait()

    def _start(self) -> None:
        self._turns = 0
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "benchmarks.build_process", str(self._checkout), str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])


class Builds:
    """Both builds, each by what the names of its clients end in; none without another checkout."""

    def __init__(self, found: dict[str, Build]) -> None:
        self._found = found

    def __bool__(self) -> bool:
        return bool(self._found)

    def turns(self, client: str, name: str, *arguments: object) -> dict[str, Callable[..., Any]]:
        """That turn by either build, under the name of the client."""
        return {client + end: partial(build.turn, name, *arguments) for end, build in self._found.items()}


@contextmanager
def builds(against: Path | None) -> Iterator[Builds]:
    """Start the process of each build, if there is something to be measured against."""
    with ExitStack() as stack:
        yield Builds(
            {end: stack.enter_context(closing(Build(path))) for end, path in checkouts(against).items()}
            if against is not None
            else {}
        )


def checkouts(against: Path | None) -> dict[str, Path]:
    """Where each build is."""
    now = {"": Path(kclient.__file__).resolve().parent.parent}
    return now if against is None else {**now, BEFORE: against}


def add_against(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against",
        type=checkout,
        metavar="CHECKOUT",
        help="a folder with another kclient/, which is measured in the same run, round by round",
    )


def checkout(text: str) -> Path:
    path = Path(text).resolve()
    if not (path / "kclient" / "__init__.py").is_file():
        raise argparse.ArgumentTypeError(f"there is no kclient/ in {text!r}")
    return path
