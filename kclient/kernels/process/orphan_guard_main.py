"""The program of the guard process: it waits for the end of its client, then ends the kernels that this left behind.

`orphan_guard` runs this file by its path, in an isolated Python. So it imports next to nothing: `signal` would cost it
half as much memory again, for enums.

It reads records from its standard input, the other end of which only the client holds. A record is fields that each end
with a NUL, and ends with an empty field:

    expect TOKEN FILE...    a kernel starts, with TOKEN in its environment; the files are a letter, then a path:
                            f a file, s a socket, d a folder with the files in it
    group TOKEN PID START   that kernel leads this process group, and has this start time in /proc (missing: no /proc)
    ended TOKEN             the kernel has ended, and its group with it: another process may get its number
    forget TOKEN            its files are removed as well

It holds nothing secret: the files are removed, never read.
"""

import os
import time
from _signal import SIG_IGN, SIGHUP, SIGINT, SIGKILL, SIGTERM, signal  # type: ignore[import-not-found]

MARK = "KCLIENT_ORPHAN_GUARD"
"""The environment variable that holds the token."""

SEARCH = 1.0
"""Seconds to look for a kernel whose number the client had no time to tell: it may be between its fork and its exec."""

PAUSE = 0.02
"""Seconds between two looks."""

DYING = 1.0
"""Seconds for the operating system to end a process after SIGKILL, before its files are removed."""


class Kernel:
    """What the guard knows of one kernel."""

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
    """Keep book until the client has ended; returns the kernels that it left behind, by token."""
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
    """True unless another process has the number `pid` meanwhile, so that the group must be gone.

    No process gets the number of a group that still has a member: with no process there, the group is the old one.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return not start or start == start_of(pid)


def start_of(pid: int) -> bytes:
    """The start time of a process, which tells it from any other that has its number before or after; see proc(5)."""
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
    except OSError:  # nobody is left of it, or they run as another user
        pass
    return pidfd


def search(tokens: set[bytes]) -> list[int]:
    """Kill the groups whose leader has one of the tokens in its environment; returns their pidfds."""
    pidfds = []
    deadline = time.monotonic() + SEARCH
    while tokens and time.monotonic() < deadline:
        for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
            token = token_of(name) if name.isdecimal() else b""
            if token in tokens:
                tokens.discard(token)
                pidfds.append(kill(int(name)))
        if tokens:
            time.sleep(PAUSE)
    return pidfds


def token_of(pid: str) -> bytes:
    """The token in the environment of a process that leads a group, or nothing."""
    mark = b"\0" + os.fsencode(MARK) + b"="
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = b"\0" + file.read()
        if mark in environment and os.getpgid(int(pid)) == int(pid):
            return environment.partition(mark)[2].partition(b"\0")[0]
    except OSError:  # it has ended, or is another user's
        pass
    return b""


def wait(pidfds: list[int]) -> None:
    """Wait until these processes have ended, so that none makes a file after its removal."""
    from select import POLLIN, poll

    deadline = time.monotonic() + DYING
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
        elif kind == b"f" or os.lstat(path).st_mode & 0o170000 == 0o140000:
            os.unlink(path)
    except OSError:  # gone already
        pass


if __name__ == "__main__":
    main()
    os._exit(0)
