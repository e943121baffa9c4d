"""ForkServer: start Python kernels by forking a process that has imported what they need. Linux only."""

from __future__ import annotations

import json
import os
import sys
import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Final, TypeAlias

from kclient.concurrency.owner import Owner
from kclient.concurrency.unpatched import close
from kclient.errors import InvalidArgument, InvalidState, LaunchError
from kclient.kernels.forkserver.exit_watcher import ForkedExitWatcher
from kclient.kernels.forkserver.python_command import PythonCommand, read_python_command
from kclient.kernels.forkserver.server import Lost, ServerProcess
from kclient.kernels.process.local import LocalProcess
from kclient.kernels.process.output import Output, Streams, cannot_start, reason

SERVERS: Final = 4
"""Processes of one ForkServer, for as many kinds of kernels; the one that was not used for longest gives way."""

_EARLY: Final = ("PYTHON", "LD_", "LC_", "LANG", "HOME", "MALLOC_", "GLIBC_", "OMP_", "OPENBLAS_", "MKL_", "BLIS_")
"""Variables, or how they begin, that work only when an interpreter starts, or a library of arithmetic is imported."""

_Key: TypeAlias = "tuple[tuple[str, ...], frozenset[tuple[str, str]]]"


class ForkServer:
    """A launcher that forks Python kernels from a process which has imported ipykernel, and the modules of `preload`.

    Pass it as `launcher=` to start_kernel or KernelPool. A kernel is up several times sooner, and shares the memory of
    what was imported. The process starts in the background, at once, for this Python; there is one more for each other
    interpreter, its options, and variables that it reads as it starts. One that was killed is replaced at the next
    start; the kernels go on.

    Forks of one process have the same hash seed and layout of memory, and what the modules made as they were imported,
    but no thread that those started. `random`, `numpy.random`, `uuid`, `secrets` and `tempfile` differ; a module with
    other secrets renews them by `os.register_at_fork`. Limits and umask are those of this process at the start.

    Use it in a `with` statement, or `close` it. Raises InvalidArgument, and InvalidState where there are no pidfds.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        if isinstance(preload, str) or not isinstance(preload, Sequence):
            raise InvalidArgument(f"preload must be a list of module names, not {preload!r}")
        for name in preload:
            if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
                raise InvalidArgument(f"preload must be a list of module names, and {name!r} is none")
        if not hasattr(os, "pidfd_open"):
            raise InvalidState("a ForkServer needs Linux 5.4 or later; leave out launcher= to do without")
        self._preload = tuple(preload)
        self._owner = Owner()
        self._is_closed = False
        self._lines: dict[_Key, ServerProcess] = {}
        self._finalizer = weakref.finalize(self, _retire, self._owner, self._lines)
        with suppress(LaunchError):  # the first start will say so
            self._line_for((sys.executable,), os.environ)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"preload={list(self._preload)}"
        return f"<{type(self).__name__} {state}>"

    def __enter__(self) -> ForkServer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def start(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdout: Output = None,
        stderr: Output = None,
    ) -> LocalProcess:
        """Start `argv`, as LocalLauncher does.

        Raises InvalidArgument if it runs no Python program, InvalidState after `close`, and LaunchError, for one of a
        module that is to be preloaded and cannot be imported, too. It ends with this process, even if that is killed.
        """
        with self._owner.call(), ExitStack() as here:
            python = read_python_command(argv)
            environment = dict(os.environ if env is None else env)
            try:
                with ExitStack() as undo:
                    streams = Streams(argv, stdout, stderr)
                    undo.callback(streams.close)
                    files = [_as_file(python, argv, environment)]
                    here.callback(close, files[0])
                    files.append(os.open("." if cwd is None else cwd, os.O_PATH | os.O_DIRECTORY))
                    here.callback(close, files[1])
                    watch = self._fork(python, environment, [*files, streams.stdout, streams.stderr])
                    undo.pop_all()
            except LaunchError as exc:
                exc.argv = list(argv)
                raise
            except (OSError, ValueError, TypeError) as exc:
                raise cannot_start(argv, reason(exc)) from exc
            streams.started()
            return LocalProcess(watch, streams)

    def close(self) -> None:
        """Start nothing more; the kernels go on, and the server processes until the last of theirs has ended."""
        if self._owner.forked:
            return
        self._owner.check()
        self._is_closed = True
        self._finalizer()

    def _fork(self, python: PythonCommand, environment: Mapping[str, str], files: Sequence[int]) -> ForkedExitWatcher:
        command = (python.interpreter, *python.options)
        with suppress(Lost):
            return self._line_for(command, environment).start(files)
        try:
            return self._line_for(command, environment).start(files)
        except Lost as exc:
            raise LaunchError(
                "cannot start the kernel: its fork server has ended, and so has another in its place",
                exit_code=exc.exit_code,
                stderr=exc.output,
            ) from None

    def _line_for(self, command: tuple[str, ...], environment: Mapping[str, str]) -> ServerProcess:
        if self._is_closed:
            raise InvalidState("the ForkServer is closed; make a new one")
        key = command, frozenset(pair for pair in environment.items() if _is_early(pair[0]))
        line = self._lines.pop(key, None)
        if line is None or line.is_over:
            for other in [other for other in self._lines if not self._lines[other].was_used]:
                self._lines.pop(other).retire()
            while len(self._lines) >= SERVERS:
                self._lines.pop(next(iter(self._lines))).retire()
            line = ServerProcess(command, environment, self._preload)
        self._lines[key] = line  # as the latest
        return line


def _is_early(name: str) -> bool:
    return name.startswith(_EARLY) and name != "PYTHONSTARTUP"  # which the kernel reads


def _retire(owner: Owner, lines: dict[_Key, ServerProcess]) -> None:
    def retire() -> None:
        while lines:
            lines.popitem()[1].retire()

    owner.run_here(retire)


def _as_file(python: PythonCommand, argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """What `server_main.Job` reads, in memory: it may be larger than a message."""
    words = [os.fspath(word) for word in argv]
    for text in (*words, *environment, *environment.values()):
        if b"\0" in os.fsencode(text):
            raise ValueError("embedded null byte")
    for name in environment:
        if not name or "=" in name:
            raise ValueError("illegal environment variable name")
    wanted = {
        "kind": python.kind,
        "target": python.target,
        "arguments": python.arguments,
        "argv": words,
        "env": environment,
    }
    number = os.memfd_create("kclient-request")
    with open(number, "wb", closefd=False) as file:
        file.write(json.dumps(wanted).encode())
    return number
