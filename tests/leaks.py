"""The leaks of a test: greenlets, file descriptors, processes, threads and files that it left behind."""

from __future__ import annotations

import gc
import os
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from time import monotonic
from types import FrameType

import gevent
import greenlet
from gevent.hub import Hub

SETTLE = 5.0
"""Seconds for what ends without us: libzmq's threads close the descriptors of a closed socket, a killed process dies.
Greenlets get three turns of the loop, and no more."""

PROC = Path("/proc/self").is_dir()
"""Descriptors, processes and threads can be counted only where there is a /proc."""


class Snapshot:
    """The greenlets, threads, descriptors and processes of now. `leaks()` names those that came since."""

    def __init__(self, *, environment: str = "", directories: Iterable[Path] = ()) -> None:
        """A process whose environment holds the text `environment` counts as the test's own."""
        self.environment = environment
        self.directories = list(directories)
        self.greenlets = live_greenlets()
        self.threads = native_threads()
        self.descriptors = descriptors()
        self.processes = processes(environment)

    def leaks(self) -> list[str]:
        """A line for each leak. Runs the hub until there is none, for `SETTLE` seconds at most."""
        gc.collect()
        end_threadpool()
        for _ in range(3):  # a killed greenlet ends in the next turn of the loop, those that it ends in the one after
            turn_loop()
        found = [f"greenlet: {where(left)}" for left in live_greenlets() - self.greenlets]
        return found + settled(
            lambda: [*self.new_processes(), *self.new_threads(), *self.new_descriptors(), *self.new_files()]
        )

    def new_processes(self) -> list[str]:
        now = processes(self.environment)
        return [f"process: {pid} {now[pid]}" for pid in now.keys() - self.processes.keys()]

    def new_threads(self) -> list[str]:
        names = {thread.native_id: thread.name for thread in threading.enumerate()}
        return [f"thread: {names.get(tid, 'native')} ({tid})" for tid in native_threads() - self.threads]

    def new_descriptors(self) -> list[str]:
        """A line for each kind of which there are more descriptors than before. A replaced descriptor is no leak."""
        now = descriptors()
        more = Counter(map(kind, now.values())) - Counter(map(kind, self.descriptors.values()))
        new = dict(now.items() - self.descriptors.items())
        return [
            f"descriptor: {count} x {what}, among {sorted(fd for fd, target in new.items() if kind(target) == what)}"
            for what, count in more.items()
        ]

    def new_files(self) -> list[str]:
        paths = (path for directory in self.directories for path in sorted(directory.rglob("*")))
        return [f"file: {path}" for path in paths if not is_trial_of_tempfile(path)]


def settled(look: Callable[[], list[str]]) -> list[str]:
    """Call `look` until it finds nothing, for `SETTLE` seconds at most; returns what it found last."""
    deadline = monotonic() + SETTLE
    while found := look():
        if monotonic() > deadline:
            break
        turn_loop(0.002)
        gc.collect()
    return found


def end_threadpool() -> None:
    """End the threads in which gevent looks up host names. The hub keeps them for the next time."""
    pool = gevent.get_hub()._threadpool
    if pool is not None:
        pool.kill()


def turn_loop(seconds: float = 1e-6) -> None:
    """Let the hub run. The timer makes the loop turn; sleep(0) does not."""
    gevent.sleep(seconds)


def live_greenlets() -> set[greenlet.greenlet]:
    """Greenlets in every hub that were started, or will be, and have not ended; the hubs are not among them."""
    return {
        found
        for found in gc.get_objects()
        if issubclass(type(found), greenlet.greenlet)
        and not issubclass(type(found), Hub)
        and not found.dead
        and found.parent is not None
        and (bool(found) or (issubclass(type(found), gevent.Greenlet) and found.started))
    }


def where(waiting: greenlet.greenlet, depth: int = 4) -> str:
    """A greenlet, and the innermost lines in which it waits."""
    return f"{waiting!r} in {lines(waiting.gr_frame, depth)}"


def lines(frame: FrameType | None, depth: int) -> str:
    found = []
    while frame is not None and len(found) < depth:
        code = frame.f_code
        found.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
        frame = frame.f_back
    return " < ".join(found) or "no Python code"


def everyone() -> list[str]:
    """The current lines of every greenlet and every other thread."""
    gc.unfreeze()  # to see the greenlets of a shared kernel, too
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    others = {ident: frame for ident, frame in sys._current_frames().items() if ident != threading.get_ident()}
    return [
        *(where(waiting, depth=10) for waiting in live_greenlets()),
        *(f"thread {names.get(ident, ident)} in {lines(frame, 10)}" for ident, frame in others.items()),
    ]


def native_threads() -> set[int]:
    return {int(tid) for tid in os.listdir("/proc/self/task")} if PROC else set()


def descriptors() -> dict[int, str]:
    """The target of each open file descriptor."""
    found = {}
    for fd in os.listdir("/proc/self/fd") if PROC else []:
        try:
            found[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the descriptor that listed the directory
            continue
    return found


def kind(target: str) -> str:
    """The kind of a descriptor: one for ``socket:[123]`` and ``socket:[456]``; each path is a kind of its own."""
    return target.partition(":[")[0] if target.startswith(("socket:", "pipe:")) else target


def processes(environment: str = "") -> dict[int, str]:
    """Children of this process, also dead ones that were not reaped, and processes with `environment` in theirs."""
    found = {}
    for pid in pids() - _there_before:
        try:
            name, _, rest = read(pid, "stat").rpartition(")")
            state, parent = rest.split()[:2]
            if int(parent) == os.getpid() or (environment and environment in read(pid, "environ")):
                command = read(pid, "cmdline").replace("\0", " ").strip()
                found[pid] = f"state {state}, {command or name.partition('(')[2]}"
        except OSError:  # it has ended, or belongs to another user
            continue
    return found


def pids() -> set[int]:
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()} if PROC else set()


def read(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text(encoding="utf-8", errors="replace")


_there_before = pids()
"""This process, and all processes that are older than this run: they belong to no test."""


def is_trial_of_tempfile(path: Path) -> bool:
    """True for the file by which `tempfile` tries a folder. A kernel that is killed early leaves it behind."""
    try:
        return re.fullmatch("[a-z0-9_]{8}", path.name) is not None and path.read_bytes() in (b"", b"blat")
    except OSError:  # a folder, or a file that is gone
        return False
