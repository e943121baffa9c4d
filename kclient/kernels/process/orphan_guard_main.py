"""The program of the guard process: it waits until its client has ended, then kills the kernels that are still there.

The client is the process that uses kclient. Its `orphan_guard` runs this file by its path, in an isolated Python. This
file imports very little to save memory: `signal` would add half as much again, for its enums.

The guard reads records from its standard input. Only the client holds the other end, so the end of the input is the
end of the client. Each field of a record ends with a NUL, and an empty field ends the record:

    expect TOKEN FILE...    a kernel is about to start, with TOKEN in its environment. A FILE is a letter and a path:
                            f for a file, s for a socket, d for a folder with the files in it, t for a folder with all
                            that is in it
    group TOKEN PID START   the kernel leads the process group PID; START is its start time in /proc (missing: no /proc)
    ended TOKEN             the kernel and its group have ended: another process may get its pid
    forget TOKEN            its files are removed, too: nothing is left to do

The guard learns no secret: it removes the files and never reads them.
"""

import os
import time
from _signal import SIG_IGN, SIGHUP, SIGINT, SIGKILL, SIGTERM, signal  # type: ignore[import-not-found]

MARK = "KCLIENT_ORPHAN_GUARD"
"""The environment variable that holds the token."""

SEARCH_S = 1.0
"""Seconds to search for a kernel if the client ended before it sent the pid. The kernel may just be about to exec."""

SEARCH_PAUSE_S = 0.02
"""Seconds between two looks through /proc."""

END_WAIT_S = 1.0
"""Seconds to wait for the end of the processes after SIGKILL, before the files are removed."""


class Kernel:
    """The records of one kernel."""

    def __init__(self, files: list[bytes]) -> None:
        self.files = files
        self.pid = 0
        self.start = b""
        self.has_ended = False


def main() -> None:
    for signum in (SIGHUP, SIGINT, SIGTERM):
        signal(signum, SIG_IGN)
    kernels = listen()
    living = {token: kernel for token, kernel in kernels.items() if not kernel.has_ended}
    pids = [kernel.pid for kernel in living.values() if kernel.pid and is_group_of(kernel.pid, kernel.start)]
    pidfds = [kill(pid) for pid in pids]
    pidfds += search({token for token, kernel in living.items() if not kernel.pid})
    wait(pidfds)
    for kernel in kernels.values():
        for file in kernel.files:
            remove(file)


def listen() -> dict[bytes, Kernel]:
    """Read records until the client has ended. Returns the kernels that it has not told to forget, by token."""
    kernels: dict[bytes, Kernel] = {}
    rest = b""
    while data := os.read(0, 65536):
        *records, rest = (rest + data).split(b"\0\0")
        for record in records:
            verb, token, *fields = record.split(b"\0")
            if verb == b"expect":
                kernels[token] = Kernel(fields)
            elif verb == b"forget":
                kernels.pop(token, None)
            elif token in kernels and verb == b"ended":
                kernels[token].has_ended = True
            elif token in kernels:
                kernels[token].pid = int(fields[0])
                kernels[token].start = b"".join(fields[1:])
    return kernels


def is_group_of(pid: int, start: bytes) -> bool:
    """True if the group `pid` is that of the kernel; False if another process has got this pid since.

    The system gives no new process a pid that is still the number of a group. So if no process has this pid, a group
    of that number is the old one.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return not start or start == start_of(pid)


def start_of(pid: int) -> bytes:
    """The start time of a process, see proc(5). Two processes that had the same pid one after another differ in it."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[19]
    except OSError:
        return b"none"


def kill(pid: int) -> int:
    """SIGKILL a process group; returns a pidfd of its leader, or -1."""
    try:
        pidfd = os.pidfd_open(pid)
    except (AttributeError, OSError):
        pidfd = -1
    try:  # noqa: SIM105 - contextlib is one more import
        os.killpg(pid, SIGKILL)
    except OSError:  # the group has ended, or it runs as another user
        pass
    return pidfd


def search(tokens: set[bytes]) -> list[int]:
    """Kill the groups whose leader has one of the tokens in its environment. Returns the leaders' pidfds."""
    pidfds = []
    deadline = time.monotonic() + SEARCH_S
    while tokens and time.monotonic() < deadline:
        for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
            token = token_of(name) if name.isdecimal() else b""
            if token in tokens:
                tokens.discard(token)
                pidfds.append(kill(int(name)))
        if tokens:
            time.sleep(SEARCH_PAUSE_S)
    return pidfds


def token_of(pid: str) -> bytes:
    """The token in the environment of a process that leads a group; empty if it has none or leads no group."""
    mark = b"\0" + os.fsencode(MARK) + b"="
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = b"\0" + file.read()
        if mark in environment and os.getpgid(int(pid)) == int(pid):
            return environment.partition(mark)[2].partition(b"\0")[0]
    except OSError:  # the process has ended, or it runs as another user
        pass
    return b""


def wait(pidfds: list[int]) -> None:
    """Wait until these processes have ended. One that still runs could write a file again after its removal."""
    from select import POLLIN, poll

    deadline = time.monotonic() + END_WAIT_S
    for pidfd in pidfds:
        if pidfd >= 0:
            process = poll()
            process.register(pidfd, POLLIN)
            process.poll(max(0.0, deadline - time.monotonic()) * 1000)


def remove(file: bytes) -> None:
    kind, path = file[:1], file[1:]
    try:
        if kind == b"d":
            for name in os.listdir(path):
                remove(b"f" + os.path.join(path, name))
            os.rmdir(path)
        elif kind == b"t":
            remove_tree(path)
        elif kind == b"f" or os.lstat(path).st_mode & 0o170000 == 0o140000:
            os.unlink(path)
    except OSError:  # already removed
        pass


def remove_tree(path: bytes) -> None:
    """Remove a folder with all that is in it, and follow no links. See `private_tmp`, which has more imports."""
    folders, emptied = [path], []
    while folders:
        folder = folders.pop()
        emptied.append(folder)
        try:
            os.chmod(folder, 0o700)
            names = os.listdir(folder)
        except OSError:
            names = []
        for name in names:
            inner = os.path.join(folder, name)
            if os.path.isdir(inner) and not os.path.islink(inner):
                folders.append(inner)
            else:
                remove(b"f" + inner)
    for folder in reversed(emptied):
        try:  # noqa: SIM105 - contextlib is one more import
            os.rmdir(folder)
        except OSError:
            pass


if __name__ == "__main__":
    main()
    os._exit(0)
