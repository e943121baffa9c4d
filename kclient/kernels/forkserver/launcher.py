"""ForkServer: start Python kernels by forking a process that has imported what they need. Linux only."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Final, TypeAlias

from kclient.concurrency.half_made import half_made_too
from kclient.concurrency.owner import Owner
from kclient.concurrency.program_end import when_gone
from kclient.concurrency.unpatched import close
from kclient.errors import InvalidArgument, InvalidState, LaunchError
from kclient.kernels.forkserver.exit_watcher import ForkedExitWatcher
from kclient.kernels.forkserver.python_command import PythonCommand, read_python_command
from kclient.kernels.forkserver.server import Lost, ServerProcess
from kclient.kernels.forkserver.states import ServerState
from kclient.kernels.process.local import LocalProcess
from kclient.kernels.process.output import Output, Streams, cannot_start, reason

SERVERS: Final = 4
"""Processes of one ForkServer, each for another interpreter or environment. The one not used for longest gives way."""

_READ_EARLY: Final = ("PYTHON", "LD_", "LC_", "LANG", "HOME", "MALLOC_", "GLIBC_", "OMP_", "OPENBLAS_", "MKL_", "BLIS_")
"""How the names of variables begin that are read once: when an interpreter starts, or a numerical library is imported.

A process that has started is of no use for a kernel with another value of such a variable.
"""

_Key: TypeAlias = "tuple[tuple[str, ...], frozenset[tuple[str, str]]]"


class ForkServer:
    """A launcher that forks Python kernels from a process which has imported ipykernel, and the modules of `preload`.

    Pass it as `launcher=` to start_kernel or KernelPool. A kernel is ready several times sooner, and shares the memory
    of what was imported. The process for this Python starts at once, in the background. Another interpreter, other
    options of it, or other values of the variables that it reads as it starts need another process. A process that was
    killed is replaced at the next start; its kernels go on. What a preloaded module has started ends with that process.

    All kernels of one process have its hash seed, its layout of memory, and the objects that the modules made when they
    were imported, but none of the threads that the modules started. `random`, `numpy.random`, `uuid`, `secrets` and
    `tempfile` differ in each kernel. A module that keeps other secrets renews them by `os.register_at_fork`. A kernel
    has the limits and the umask that this process had when it started the fork server.

    Use it in a `with` statement, or `close` it. Raises InvalidArgument, and InvalidState where there are no pidfds.
    """

    def __init__(self, preload: Sequence[str] = ()) -> None:
        if isinstance(preload, str) or not isinstance(preload, Sequence):
            raise InvalidArgument(f"preload must be a list of module names, not {preload!r}")
        for name in preload:
            if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
                raise InvalidArgument(f"preload must be a list of module names, and {name!r} is not one")
        if not hasattr(os, "pidfd_open"):
            raise InvalidState("a ForkServer needs Linux 5.4 or later; leave out launcher= to start kernels without it")
        self._preload = tuple(preload)
        self._owner = Owner()
        self._is_closed = False
        self._servers: dict[_Key, ServerProcess] = {}
        self._retire = when_gone(self, _retire, self._owner, self._servers)
        with suppress(LaunchError):  # the first start raises it
            self._server_for((sys.executable,), os.environ)

    @half_made_too
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
        """Start `argv`, as LocalLauncher does. The kernel ends with this process, even if that is killed.

        Raises InvalidArgument if `argv` runs no Python program, InvalidState after `close`, and LaunchError if the
        kernel cannot be started or a module of `preload` cannot be imported.
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
                    watcher = self._fork(python, environment, [*files, streams.stdout, streams.stderr])
                    undo.pop_all()
            except LaunchError as exc:
                exc.argv = list(argv)
                raise
            except (OSError, ValueError, TypeError) as exc:
                raise cannot_start(argv, reason(exc)) from exc
            streams.started()
            return LocalProcess(watcher, streams)

    def close(self) -> None:
        """Start nothing more. The kernels go on; each server process ends with the last of its kernels."""
        if self._owner.forked:
            return
        if not self._owner.is_gone:
            self._owner.check()
        self._is_closed = True
        self._retire()

    def _fork(self, python: PythonCommand, environment: Mapping[str, str], files: Sequence[int]) -> ForkedExitWatcher:
        command = (python.interpreter, *python.options)
        with suppress(Lost):
            return self._server_for(command, environment).start(files)
        try:
            return self._server_for(command, environment).start(files)
        except Lost as exc:
            raise LaunchError(
                "cannot start the kernel: its fork server has ended, and so has the one that replaced it",
                exit_code=exc.exit_code,
                stderr=exc.output,
            ) from None

    def _server_for(self, command: tuple[str, ...], environment: Mapping[str, str]) -> ServerProcess:
        if self._is_closed:
            raise InvalidState("the ForkServer is closed; make a new one")
        key = command, frozenset(pair for pair in environment.items() if _is_read_early(pair[0]))
        server = self._servers.pop(key, None)
        if server is None or server.look() is ServerState.ENDED:
            # Those that have not been asked for a kernel, or have ended, are of no use.
            for other in [other for other in self._servers if not self._servers[other].is_used]:
                self._servers.pop(other).retire()
            while len(self._servers) >= SERVERS:
                self._servers.pop(next(iter(self._servers))).retire()
            server = ServerProcess(command, environment, self._preload)
        self._servers[key] = server  # the last in the dict is the latest used
        return server


def _is_read_early(name: str) -> bool:
    return name.startswith(_READ_EARLY) and name != "PYTHONSTARTUP"  # that one is read by the kernel


def _retire(owner: Owner, servers: dict[_Key, ServerProcess]) -> None:
    def retire() -> None:
        while servers:
            server = servers.popitem()[1]
            if owner.is_gone:
                server.abandon()
            else:
                server.retire()

    owner.run_here(retire)


def _as_file(python: PythonCommand, argv: Sequence[str], environment: Mapping[str, str]) -> int:
    """A file in memory with what `server_main.Job` reads. That may be larger than a message."""
    words = [os.fspath(word) for word in argv]
    for text in (*words, *environment, *environment.values()):
        if b"\0" in os.fsencode(text):
            raise ValueError("embedded null byte")
    for name in environment:
        if not name or "=" in name:
            raise ValueError("illegal environment variable name")
    request = {
        "kind": python.kind,
        "target": python.target,
        "arguments": python.arguments,
        "argv": words,
        "env": environment,
    }
    number = os.memfd_create("kclient-request")
    with open(number, "wb", closefd=False) as file:
        file.write(json.dumps(request).encode())
    return number
