"""The program of a fork server: it imports what kernels need, then forks a kernel for each request of its client.

`server` runs this file by its path, in the interpreter of the kernels and with their options. So it imports neither
kclient nor the packages that kclient needs.

Its standard input is a SOCK_SEQPACKET socket to the client, for JSON objects. Its first argument is the number of the
read end of a pipe, the others are the modules to import. The system kills the fork server, and the processes that the
modules have started, when the client closes that pipe or ends. After the imports it sends one of two:

    ready    with the names of the `threads` that the imports have started and that still run
    failed   with the reason and the `traceback`; then it ends

Then it answers two kinds of requests:

    start    comes with the files of Job. The answer is `pid` and a pidfd, once the kernel leads a session of its own;
             or an `error` number
    reap     has the pids of kernels that have ended. The answer is their exit `codes`. What is left of their process
             groups is killed before

It ends when the client closes the socket. Its kernels go on as long as the client keeps their keep-alive pipes open.
"""

import sys

IS_PATH_SAFE = getattr(sys.flags, "safe_path", False) or bool(sys.flags.isolated)
"""True if the interpreter was told to search neither the working directory nor the program's."""

if __name__ == "__main__" and not IS_PATH_SAFE:
    del sys.path[0]  # the folder of this file: its modules may have the names of other modules

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
from os import close  # as it is before a module patches it: that of gevent closes when its loop turns
from typing import Any

IPYKERNEL_IMPORTS = (
    *("ipykernel.kernelapp", "ipykernel.ipkernel", "ipykernel.debugger", "ipykernel.subshell_manager"),
    *("IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger", "IPython.core.oinspect"),
    *("IPython.extensions.storemagic", "debugpy.server", "psutil", "tornado.platform.asyncio", "tornado.queues"),
    *("encodings.idna", "faulthandler", "pdb", "sqlite3"),
    # for the first completion and the first traceback
    *("IPython.core.guarded_eval", "jedi", "pygments.formatters.terminal256", "pygments.lexers.python", "stack_data"),
)
"""Modules that ipykernel imports before it is ready, or soon after; most of them inside functions."""

SET_BY_IMPORTS: "dict[str, tuple[str | None, str]]" = {}
"""Environment variables that the user's modules set when they were imported: the value before, and the new one."""

SET_SIGNAL = 10
"""F_SETSIG of fcntl(2): the signal that the system sends for an event, in place of SIGIO."""

PATCHED = "cannot fork kernels of Python, which would never answer, because it was monkey-patched"

MAX_CHARACTERS = 4000
"""Of a traceback, or a reason, that is sent to the client: the last ones."""


class Job:
    """A kernel that is to be forked: what it runs, and the files that came with the request."""

    def __init__(self, files: list[int]) -> None:
        request, self.cwd, self.stdout, self.stderr, self.keep_alive_pipe = self.files = files
        with open(request, "rb", closefd=False) as file:
            file.seek(0)
            wanted = json.load(file)
        self.kind, self.target, self.arguments = wanted["kind"], wanted["target"], wanted["arguments"]
        self.argv, self.env = wanted["argv"], wanted["env"]

    def close(self) -> None:
        for file in self.files:
            close(file)

    def enter(self) -> None:
        """Turn the forked process into a session of its own, which is killed when the keep-alive pipe is closed."""
        os.setsid()
        end_with(self.keep_alive_pipe, os.getpid())
        if is_closed(self.keep_alive_pipe):  # it was closed before the line above
            os._exit(1)
        os.dup2(self.stdout, 1)
        os.dup2(self.stderr, 2)
        for file in self.files:
            if file != self.keep_alive_pipe:
                close(file)

    def run(self) -> None:
        """Do what the interpreter does for `argv`."""
        set_environment(self.env)
        renew_secrets()
        vars(threading.main_thread())["_native_id"] = threading.get_native_id()  # Python does it itself from 3.13 on
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
            exec(self.target, vars(main))  # noqa: S102 - the interpreter does the same
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
        exec(compile(source, path, "exec"), names)  # noqa: S102 - the interpreter does the same


def end_with(keep_alive_pipe: int, group: int) -> None:
    """Let the system kill that process group when the pipe is closed. `keep_alive_pipe` is its read end."""
    fcntl.fcntl(keep_alive_pipe, fcntl.F_SETOWN, -group)
    fcntl.fcntl(keep_alive_pipe, SET_SIGNAL, signal.SIGKILL)
    # Nothing is ever written into the pipe. So its only event is that its last write end was closed.
    fcntl.fcntl(keep_alive_pipe, fcntl.F_SETFL, os.O_ASYNC)


def is_closed(keep_alive_pipe: int) -> bool:
    """True if no process has the pipe's write end any more."""
    hung_up = select.poll()
    hung_up.register(keep_alive_pipe, 0)
    return bool(hung_up.poll(0))


def extend_path(first: str) -> None:
    """Put the program's folder first in sys.path, as the interpreter does."""
    if not IS_PATH_SAFE:
        sys.path.insert(0, first)


def set_environment(environment: dict[str, str]) -> None:
    """Let the environment be that of the kernel, with what the imports have set and the kernel was not given."""
    for name, (before, made) in SET_BY_IMPORTS.items():
        if environment.get(name) == before:  # otherwise this kernel was given a value of its own
            environment[name] = made
    for name in os.environ.keys() - environment.keys() - {"LC_CTYPE"}:  # Python may set LC_CTYPE as it starts
        del os.environ[name]
    for name, value in environment.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    time.tzset()


def renew_secrets() -> None:
    """Make random numbers and temporary files differ in each fork. `random`, `uuid` and `secrets` do it themselves."""
    if "numpy.random" in sys.modules:
        sys.modules["numpy.random"].seed()
    if "tempfile" in sys.modules:
        # It was made of the environment of the server. tempfile finds it anew, if it must, by a trial file, which stays
        # if the kernel is killed at that moment.
        folder = os.environ.get("TMPDIR", "")
        is_usable = os.path.isabs(folder) and os.path.isdir(folder) and os.access(folder, os.W_OK | os.X_OK)
        vars(sys.modules["tempfile"])["tempdir"] = folder if is_usable else None
    if "multiprocessing" in sys.modules:
        sys.modules["multiprocessing"].current_process().authkey = os.urandom(32)


def main() -> None:
    keep_alive_pipe, preload = int(sys.argv[1]), sys.argv[2:]
    del sys.argv[1:]
    end_with(keep_alive_pipe, os.getpid())
    if is_closed(keep_alive_pipe):
        return
    os.set_inheritable(keep_alive_pipe, False)
    client = socket.socket(fileno=os.dup(0))
    replace(0, os.devnull)
    if load(client, preload):
        job = serve(client)
        if job is not None:
            client.close()
            close(keep_alive_pipe)
            job.run()


def load(client: socket.socket, preload: list[str]) -> bool:
    """Import the modules. Returns False if kernels cannot run with one of the user's, and tells the client why."""
    for name in IPYKERNEL_IMPORTS:
        with suppress(Exception):  # not installed, or broken: a kernel that needs it raises the error
            importlib.import_module(name)
    place = position_of_cwd()
    sys.path[place:place] = [] if IS_PATH_SAFE else [""]
    # ipykernel sets it, too, but too late for a matplotlib that is imported here.
    os.environ.setdefault("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    before = dict(os.environ)
    if library := patcher():
        send(client, failed=f"{PATCHED} by {library} before it imported any module: by a .pth file or sitecustomize")
        return False
    for name in preload:
        try:
            importlib.import_module(name)
        except BaseException as exc:  # noqa: BLE001 - a module may raise anything, SystemExit, too
            reason = traceback.format_exception_only(type(exc), exc)[-1].strip()
            reason = f"is to preload {name!r}, which cannot be imported: {reason[-MAX_CHARACTERS:]}"
            send(client, failed=reason, traceback=traceback.format_exc()[-MAX_CHARACTERS:])
            return False
        if library := patcher():
            remedy = "leave that out of preload, and import it in the kernel"
            send(client, failed=f"{PATCHED} by {library} when it preloaded {name!r}; {remedy}")
            return False
    SET_BY_IMPORTS.update({name: (before.get(name), value) for name, value in os.environ.items() - before.items()})
    with suppress(ValueError):
        sys.path.remove("")
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.flush()  # otherwise each kernel would print what is left
    others = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    send(client, ready=True, threads=others)
    gc.collect()
    gc.freeze()  # a collection in a kernel would write to shared memory, and so copy it
    return True


def patcher() -> str:
    """The library that has monkey-patched so much of this process that ipykernel would wait for ever; empty if none."""
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    if gevent is not None:
        # ipykernel works with each of the other patches, and with all of them together
        patched = gevent.is_module_patched
        if patched("threading") or (patched("os") and patched("select")):
            return "gevent"
    if eventlet is not None and eventlet.is_monkey_patched("thread"):
        return "eventlet"
    return ""


def position_of_cwd() -> int:
    """The place in sys.path where IPython puts the working directory: behind the standard library."""
    for number, path in enumerate(sys.path):
        if path.endswith(("site-packages", "dist-packages")):
            return number
    return len(sys.path)


def serve(client: socket.socket) -> "Job | None":
    """Answer requests until the client ends; returns None then. In a process that was forked, returns its job."""
    while True:
        request, files = receive(client)
        if request is None:
            return None
        if "reap" in request:
            send(client, codes=[[pid, reap(pid)] for pid in request["reap"]])
        else:
            job = Job(files)
            if start(client, request["start"], job):
                return job
            job.close()


def start(client: socket.socket, number: int, job: Job) -> bool:
    """Fork, and answer. Returns True in the child, which leads a session then and ends with its keep-alive pipe."""
    read_end, write_end = os.pipe()
    try:
        os.fchdir(job.cwd)
        pid = fork()
    except OSError as exc:
        pid = None
        send(client, start=number, error=exc.errno)
    if pid == 0:
        close(read_end)
        job.enter()
        os.write(write_end, b"!")
        close(write_end)
        return True
    close(write_end)
    if pid is not None:
        os.read(read_end, 1)  # until the child has entered its session, or has ended
        pidfd = os.pidfd_open(pid)
        send(client, pidfd, start=number, pid=pid)
        close(pidfd)
    close(read_end)
    return False


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12 and later warn of threads; the client is told of them
        return os.fork()


def reap(pid: int) -> "int | None":
    """The exit code of a kernel that has ended, None if it is unknown. First kills what is left of its group."""
    try:
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return None


def receive(client: socket.socket) -> "tuple[Any, list[int]]":
    """The next request and its files. The request is None when the client has closed the socket."""
    data, ancillary, _, _ = client.recvmsg(1 << 16, socket.CMSG_SPACE(5 * 4), socket.MSG_CMSG_CLOEXEC)
    files = array.array("i")
    for level, kind, numbers in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(numbers)
    return json.loads(data) if data else None, list(files)


def send(client: socket.socket, *files: int, **message: object) -> None:
    """Send a message, with copies of the files."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", files))] if files else []
    with suppress(BrokenPipeError, ConnectionError):  # the client has closed the socket: `receive` finds that out
        client.sendmsg([json.dumps(message).encode()], rights, socket.MSG_NOSIGNAL)


def replace(number: int, path: str) -> None:
    """Make a standard stream that file."""
    file = os.open(path, os.O_RDWR)
    os.dup2(file, number)
    close(file)


if __name__ == "__main__":
    main()
