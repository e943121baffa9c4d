"""Two builds of kclient in one run: that of today, and that of another checkout, ``--against CHECKOUT``.

One process cannot import both. Each build has a process of its own, that of today too, so that both are treated alike.
The benchmark asks one build and then the other to take its turn: to connect to a kernel that both use, to make some
calls, and to send back how long each took. What goes over the pipe is outside of the time that is measured.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from multiprocessing import Pipe
from pathlib import Path
from statistics import median
from typing import Any

import kclient
from benchmarks.kernels import ROOT
from kclient.bench.recorder import Recorder

BEFORE = " (before)"
"""What the name of a client ends in when it is that of the other build."""

TURNS_OF_A_PROCESS = 20
"""Then a fresh one takes over: a process may be 3 % faster than its twin, by where its memory happens to lie."""

TURN_S = 30
"""More than a turn takes on a busy machine."""


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
        except (EOFError, ConnectionError) as exc:
            raise RuntimeError(f"the build in {self._checkout} failed at {name!r}; its error stands above") from exc

    def close(self) -> None:
        """End the process, once it has done what it was asked for; a turn that lasts too long is broken off."""
        self._pipe.close()
        try:
            self._process.wait(TURN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _start(self) -> None:
        self._turns = 0
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "benchmarks.build_process", str(self._checkout), str(theirs.fileno())]
        with theirs:
            self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()])


class Pair:
    """The turns of both builds in one operation: one right after the other, each the first in every other round."""

    def __init__(self, builds: dict[str, Build], name: str, arguments: Sequence[object]) -> None:
        self._builds = builds
        self._name = name
        self._arguments = arguments
        self._is_reversed = False
        self._found: dict[str, Any] = {}

    def turn(self, end: str, *more: object) -> Any:
        """What that build's turn returns; the first that is asked for in a round has both builds take theirs."""
        if end not in self._found:
            order = [*self._builds.items()][:: -1 if self._is_reversed else 1]
            self._is_reversed = not self._is_reversed
            self._found = {each: build.turn(self._name, *self._arguments, *more) for each, build in order}
        return self._found.pop(end)


class Builds:
    """Both builds, each by what the names of its clients end in; none without another checkout."""

    def __init__(self, found: dict[str, Build]) -> None:
        self._found = found

    def __bool__(self) -> bool:
        return bool(self._found)

    def turns(self, client: str, name: str, *arguments: object) -> dict[str, Callable[..., Any]]:
        """That turn by either build, under the name of the client."""
        pair = Pair(self._found, name, arguments)
        return {client + end: partial(pair.turn, end) for end in self._found}


@contextmanager
def builds(against: Path | None) -> Iterator[Builds]:
    """Start the process of each build, if there is something to be measured against.

    The kernels must outlast it: a turn that is under way ends only with an answer from its kernel.
    """
    with ExitStack() as stack:
        yield Builds(
            {end: stack.enter_context(closing(Build(path))) for end, path in checkouts(against).items()}
            if against is not None
            else {}
        )


def ratios_to_before(times: Mapping[str, float], rounds: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Today's time to that of the other build, for each client that has one: above 1 is slower.

    `ratio_to_before` is that of the whole run. `ratio_by_round` is the median of the rounds' own ratios: what disturbs
    the machine for some rounds disturbs both builds in them, and leaves it as it is.
    """
    return {
        client: {
            "ratio_to_before": times[client] / times[client + BEFORE],
            "ratio_by_round": median(
                now / before for now, before in zip(rounds[client], rounds[client + BEFORE], strict=True)
            ),
        }
        for client in times
        if client + BEFORE in times
    }


def ratios_of_recorders(recorders: Mapping[str, Recorder]) -> dict[str, dict[str, float]]:
    """The same of calls that were recorded round by round."""
    return ratios_to_before(
        {name: recorder.figures().p50_us for name, recorder in recorders.items()},
        {name: recorder.round_medians for name, recorder in recorders.items()},
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
