"""The process of one build of kclient: ``python -m benchmarks.build_process CHECKOUT DESCRIPTOR``.

It takes one turn after the other, as `benchmarks.builds` asks for them over that descriptor, and ends with it.
"""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any


def take_turns(pipe: Connection[Any, Any]) -> None:
    """Answer each name and its arguments with what that turn returns."""
    from benchmarks.turns import TURNS, at_end

    with at_end:
        while True:
            try:
                name, arguments = pipe.recv()
            except (EOFError, ConnectionError):
                return
            found = TURNS[name](*arguments)
            try:
                pipe.send(found)
            except ConnectionError:  # the benchmark has ended
                return


def use_build(checkout: str) -> None:
    """Have `kclient` come from there, while `benchmarks`, which is imported, goes on coming from here."""
    sys.path[0] = checkout
    import kclient

    found = Path(kclient.__file__).resolve().parent.parent
    if found != Path(checkout).resolve():
        raise ImportError(f"kclient came from {found}, not from {checkout}")


def main() -> None:
    signal.signal(signal.SIGINT, let_pass)
    checkout, descriptor = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(descriptor, False)
    use_build(checkout)
    with Connection(descriptor) as pipe:
        take_turns(pipe)


def let_pass(signum: int, frame: FrameType | None) -> None:
    """A Ctrl-C is for the benchmark, which closes the pipe."""


if __name__ == "__main__":
    main()
