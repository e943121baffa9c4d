"""The program of a fork server: it imports what kernels need, then forks one for each request of its client.

`server` runs this file by its path, in the interpreter of the kernels and with their options. So it imports neither
kclient nor what that stands on.

Its standard input is a SOCK_SEQPACKET line to the client, for JSON objects. It says ``ready``, with the `threads` that
the imports have left running, or ``failed``, with the `module` and the `reason`, and ends. Then it answers:

    start   with the files of Job: `pid` and a pidfd, once the kernel leads a session of its own; or an `error`
    reap    with the pids of kernels that have ended: their exit `codes`, after what is left of their groups is killed

It ends with the line; its kernels go on for as long as the client holds their leash.
"""

import sys

IS_PATH_SAFE = getattr(sys.flags, "safe_path", False) or bool(sys.flags.isolated)
"""True if the interpreter was told to find nothing where it happens to be."""

if __name__ == "__main__" and not IS_PATH_SAFE:
    del sys.path[0]  # the folder of this file, whose modules have names that others have, too

# ruff: noqa: E402
import array
import fcntl
import gc
import importlib.machinery
import json
import os
import runpy
import select
import signal
import socket
import threading
import time
import traceback
import types
import warnings
from contextlib import suppress
from typing import Any

BASE = (
    *("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.debugger", "ipykernel.subshell_manager"),
    *("IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger", "IPython.core.oinspect"),
    *("IPython.extensions.storemagic", "debugpy.server", "psutil", "tornado.platform.asyncio", "tornado.queues"),
    *("encodings.idna", "faulthandler", "pdb", "sqlite3"),
    # for the first completion and the first traceback
    *("IPython.core.guarded_eval", "jedi", "pygments.formatters.terminal256", "pygments.lexers.python", "stack_data"),
)
"""What ipykernel imports until it is ready, and soon after, mostly from inside of functions."""

MADE: "dict[str, tuple[str | None, str]]" = {}
"""Variables that the user's modules have set as they were imported: the value before, and that."""

SET_SIGNAL = 10
"""F_SETSIG of fcntl(2): another signal than SIGIO is to tell of an event."""

TOLD = 4000
"""Characters of a traceback that the client is told."""


class Job:
    """A kernel to be: what to run, and the files that came with the request."""

    def __init__(self, files: list[int]) -> None:
        request, self.cwd, self.stdout, self.stderr, self.leash = self.files = files
        with open(request, "rb", closefd=False) as file:
            file.seek(0)
            wanted = json.load(file)
        self.kind, self.target, self.arguments = wanted["kind"], wanted["target"], wanted["arguments"]
        self.argv, self.env = wanted["argv"], wanted["env"]

    def close(self) -> None:
        for file in self.files:
            os.close(file)

    def enter(self) -> None:
        """Make the forked process one that could have been started by itself, with a leash."""
        os.setsid()
        fcntl.fcntl(self.leash, fcntl.F_SETOWN, -os.getpid())
        fcntl.fcntl(self.leash, SET_SIGNAL, signal.SIGKILL)
        # nobody ever writes into it, so what the system tells of, by killing the group, is that nobody holds it
        fcntl.fcntl(self.leash, fcntl.F_SETFL, os.O_ASYNC)
        hung_up = select.poll()
        hung_up.register(self.leash, 0)
        if hung_up.poll(0):  # just before
            os._exit(1)
        os.dup2(self.stdout, 1)
        os.dup2(self.stderr, 2)
        for file in self.files:
            if file != self.leash:
                os.close(file)

    def run(self) -> None:
        """Be what the interpreter is for `argv`."""
        set_environment(self.env)
        renew_secrets()
        vars(threading.main_thread())["_native_id"] = threading.get_native_id()  # before 3.13 nobody does
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
        sys.orig_argv = self.argv
        sys.argv[:] = ["-m" if self.kind == "module" else "-c" if self.kind == "code" else self.target, *self.arguments]
        importlib.invalidate_caches()
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        vars(main).update(__annotations__={}, __builtins__=__builtins__, __loader__=importlib.machinery.BuiltinImporter)
        if self.kind == "module":
            extend_path(os.getcwd())
            runpy._run_module_as_main(self.target)  # type: ignore[attr-defined]
        elif self.kind == "code":
            extend_path("")
            exec(self.target, vars(main))  # noqa: S102 - as the interpreter does
        else:
            self.run_script(vars(main))

    def run_script(self, names: dict[str, Any]) -> None:
        path = os.path.abspath(self.target)
        extend_path(os.path.dirname(os.path.realpath(path)))
        loader = importlib.machinery.SourceFileLoader("__main__", path)
        names.update(__cached__=None, __file__=path, __loader__=loader)
        try:
            source = loader.get_data(path)
        except OSError as exc:
            os.write(2, f"{sys.executable}: can't open file {path!r}: [Errno {exc.errno}] {exc.strerror}\n".encode())
            sys.exit(2)
        exec(compile(source, path, "exec"), names)  # noqa: S102 - as the interpreter does


def extend_path(first: str) -> None:
    """Where Python finds what lies beside the program."""
    if not IS_PATH_SAFE:
        sys.path.insert(0, first)


def set_environment(environment: dict[str, str]) -> None:
    for name, (before, made) in MADE.items():
        if environment.get(name) == before:  # else it was given to this kernel
            environment[name] = made
    for name in os.environ.keys() - environment.keys() - {"LC_CTYPE"}:  # which Python may have set as it started
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    time.tzset()


def renew_secrets() -> None:
    """Let forks differ in what processes differ in; `random` sees to it itself, and so do uuid and secrets."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "tempfile" in sys.modules:
        vars(sys.modules["tempfile"])["tempdir"] = None  # of the environment before
    if "multiprocessing" in sys.modules:
        sys.modules["multiprocessing"].current_process().authkey = os.urandom(32)


def main() -> None:
    line = socket.socket(fileno=os.dup(0))
    replace(0, os.devnull)
    preload, sys.argv[1:] = sys.argv[1:], []
    if load(line, preload):
        job = serve(line)
        if job is not None:
            line.close()
            job.run()


def load(line: socket.socket, preload: list[str]) -> bool:
    """Import the modules; returns False, and says why, if one of the user's cannot be imported."""
    for name in BASE:
        with suppress(Exception):  # not installed, or broken: a kernel that needs it will say so
            importlib.import_module(name)
    place = position_of_cwd()
    sys.path[place:place] = [] if IS_PATH_SAFE else [""]
    # As ipykernel does, which comes too late for a matplotlib that is imported here.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    before = dict(os.environ)
    for name in preload:
        try:
            importlib.import_module(name)
        except BaseException as exc:  # noqa: BLE001 - whatever a module raises, SystemExit, too
            reason = traceback.format_exception_only(type(exc), exc)[-1].strip()
            tell(line, failed=reason[-TOLD:], module=name, traceback=traceback.format_exc()[-TOLD:])
            return False
    MADE.update({name: (before.get(name), value) for name, value in os.environ.items() - before.items()})
    with suppress(ValueError):
        sys.path.remove("")
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()  # each kernel would print it again
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    tell(line, ready=True, threads=others)
    gc.collect()
    gc.freeze()  # a collection in a kernel would write to, and so copy, the memory that all of them share
    return True


def position_of_cwd() -> int:
    """Where IPython puts the working directory into sys.path: behind the standard library."""
    for number, path in enumerate(sys.path):
        if path.endswith(("site-packages", "dist-packages")):
            return number
    return len(sys.path)


def serve(line: socket.socket) -> "Job | None":
    """Answer until the client ends, and return None; in a process that was forked for it, return a job."""
    while True:
        request, files = take(line)
        if request is None:
            return None
        if "reap" in request:
            tell(line, codes=[[pid, reap(pid)] for pid in request["reap"]])
        else:
            job = Job(files)
            if start(line, request["start"], job):
                return job
            job.close()


def start(line: socket.socket, number: int, job: Job) -> bool:
    """Fork, and answer; returns True in the child, which leads a session and is on its leash then."""
    hears, told = os.pipe()
    try:
        os.fchdir(job.cwd)
        pid = fork()
    except OSError as exc:
        pid = None
        tell(line, start=number, error=exc.errno)
    if pid == 0:
        os.close(hears)
        job.enter()
        os.write(told, b"!")
        os.close(told)
        return True
    os.close(told)
    if pid is not None:
        os.read(hears, 1)
        pidfd = os.pidfd_open(pid)
        tell(line, pidfd, start=number, pid=pid)
        os.close(pidfd)
    os.close(hears)
    return False


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12 and later, of threads; the client is told of them
        return os.fork()


def reap(pid: int) -> "int | None":
    """The exit code of a kernel that has ended, None if nobody knows; what is left of its group ends before."""
    try:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None


def take(line: socket.socket) -> "tuple[Any, list[int]]":
    """The next request and its files; None when the client is gone."""
    data, ancillary, _, _ = line.recvmsg(1 << 16, socket.CMSG_SPACE(5 * 4), socket.MSG_CMSG_CLOEXEC)
    files = array.array("i")
    for level, kind, numbers in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(numbers)
    return json.loads(data) if data else None, list(files)


def tell(line: socket.socket, *files: int, **what: object) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    with suppress(BrokenPipeError, ConnectionError):  # the client is gone, as the next request will tell
        line.sendmsg([json.dumps(what).encode()], rights, socket.MSG_NOSIGNAL)


def replace(number: int, path: str) -> None:
    """Let a standard stream be that file."""
    file = os.open(path, os.O_RDWR)
    os.dup2(file, number)
    os.close(file)


if __name__ == "__main__":
    main()
