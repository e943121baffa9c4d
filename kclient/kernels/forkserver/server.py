"""ServerProcess: the process of one fork server, and the line to it."""

from __future__ import annotations

import json
import os
import weakref
from array import array
from collections.abc import Mapping, Sequence
from copy import copy
from errno import EMFILE
from select import POLLIN
from typing import Any, Final

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import WARNING, log, log_soon
from kclient.concurrency.owner import Owner
from kclient.concurrency.unpatched import close, popen_class, socket
from kclient.concurrency.waiting import READABLE, Parking, Timer
from kclient.errors import LaunchError
from kclient.kernels.forkserver import server_main
from kclient.kernels.forkserver.exit_watcher import ForkedExitWatcher, has_event
from kclient.kernels.process.exit_watcher import end_child
from kclient.kernels.process.output import cannot_start, hidden_file, reason, tail_of

PATIENCE: Final = 60.0
"""Seconds for a fork server to import its modules, and to fork; one that is silent for longer gives way to another."""

AT_ONCE: Final = 8
"""Starts under way at one server, which forks one after the other; their files would fill the line."""

HOLD: Final = 0.1
"""Seconds that the hub waits for an exit code where it may not turn; a server that is not busy answers in 0.0002."""

STUCK: Final = 10.0
"""Seconds after which a server that does not tell of an exit is ended, lest those who wait for it wait for ever."""

_RIGHTS: Final = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


class Lost(Exception):
    """The server has ended, and did not say why; `exit_code` and the end of its `output` may."""

    def __init__(self, exit_code: int | None, output: str) -> None:
        super().__init__()
        self.exit_code = exit_code
        self.output = output


class _Start:
    """A kernel that was asked for; its leash is the watch's once there is one."""

    def __init__(self, leash: int) -> None:
        self.leash = leash
        self.watch: ForkedExitWatcher | None = None
        self.error: int | None = None

    @property
    def is_answered(self) -> bool:
        return self.watch is not None or self.error is not None

    @property
    def is_given_up(self) -> bool:
        return self.watch is None and self.leash < 0

    def give_up(self) -> None:
        """Let go of the leash, which ends the kernel that nobody wants any more, also one still to come."""
        leash, self.leash = self.leash, -1
        if self.watch is not None:
            self.watch.let_go()
        elif leash >= 0:
            close(leash)


class ServerProcess:
    """Starts the process, which imports `preload` in the background; for one hub. Raises LaunchError.

    It lasts until `retire`, and then until the last of its kernels has ended.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], preload: Sequence[str]) -> None:
        self.is_open = True
        self.was_used = False
        self.kernels: dict[int, ForkedExitWatcher] = {}
        self._owner = Owner()
        self._changed = Parking(self._owner)
        self._starts: dict[int, _Start] = {}
        self._count = 0
        self._dead: list[ForkedExitWatcher] = []
        self._is_slow = self._is_retired = False
        self._alarm = Timer(self._owner, self._end)
        self._patience = Timer(self._owner, self._lose_patience)
        self._failure: LaunchError | None = None
        self._lost = Lost(None, "")
        argv = [*command, server_main.__file__, *preload]
        self._output = hidden_file(argv)
        try:
            self._line, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as exc:
            self._output.close()
            raise cannot_start(argv, f"no line to a fork server: {reason(exc)}") from exc
        try:
            process = popen_class()(
                argv,
                stdin=its.fileno(),
                stdout=self._output,
                stderr=self._output,
                # ipykernel notes the parent when it is imported, and watches none that has the number 1
                env={**env, "JPY_PARENT_PID": "1"},
                start_new_session=True,
            )
        except (OSError, ValueError) as exc:
            self._line.close()
            self._output.close()
            raise cannot_start(argv, f"no fork server: {reason(exc)}") from exc
        finally:
            its.close()
        process.returncode = 0  # so that Popen never waits
        self._pid = process.pid
        self._line.setblocking(False)
        self._watcher: Any = self._owner.hub.loop.io(self._line.fileno(), READABLE, ref=False)
        self._watcher.start(self._take_in)
        _lines.add(self)

    @property
    def is_over(self) -> bool:
        """True if the server has ended, and has told so: that of a failed import is for the next start to raise."""
        if self.is_open:
            self._take_in()
        return not self.is_open and (self._failure is None or self.was_used)

    def start(self, files: Sequence[int]) -> ForkedExitWatcher:
        """Fork a kernel, with the files of `server_main.Job`; raises LaunchError, OSError, and Lost if it ends."""
        self.was_used = True
        self._take_in()
        while self.is_open and len(self._starts) >= AT_ONCE:
            self._changed.wait(Deadline(None))
        if not self.is_open:
            raise self._why_it_ended()
        held, leash = os.pipe()
        start = _Start(leash)
        self._count += 1
        number = self._count
        try:
            self._tell([*files, held], start=number)
            self._starts[number] = start
            if not self._patience.is_set:  # whoever gives up the start before, it ends
                self._patience.set(PATIENCE)
            while self.is_open and not start.is_answered:
                self._changed.wait(Deadline(None))
            if start.error is not None:
                raise OSError(start.error, os.strerror(start.error))
            if start.watch is None:
                raise self._why_it_ended()
            return start.watch
        except BaseException:
            start.give_up()
            raise
        finally:
            close(held)
            if not self.is_open:  # there will be no answer
                self._starts.pop(number, None)  # type: ignore[unreachable]  # it has ended during a wait

    def reap(self, watch: ForkedExitWatcher, *, at_once: bool = False) -> None:
        """The kernel has ended: settle its watch, soon or, if the server answers within `HOLD`, `at_once`."""
        if watch not in self._dead:
            self._dead.append(watch)
            self._ask_to_reap()
        while at_once and not watch.exited.is_set() and not self._is_slow:
            self._is_slow = not has_event(self._line.fileno(), POLLIN, HOLD)
            self._take_in()

    def retire(self) -> None:
        """End with the last kernel, now if there is none."""
        self._is_retired = True
        if not self.kernels and all(start.is_given_up for start in self._starts.values()):
            self._end()

    def let_go(self) -> None:
        """In a forked child: what is held here would keep the server and its kernels alive."""
        if self.is_open:
            self._watcher.stop()
            self._line.close()
        for watch in self.kernels.values():
            watch.let_go()
        for start in self._starts.values():
            start.give_up()

    def _lose_patience(self) -> None:
        """It has said nothing for long, unless that was not heard: this hub may have stood still."""
        self._take_in()
        if self.is_open and self._starts and not self._patience.is_set:
            self._failure = LaunchError(
                f"cannot start the kernel: its fork server has not answered within {PATIENCE:g} s",
                stderr=tail_of(self._output),
            )
            self._end()

    def _tell(self, files: Sequence[int], **what: object) -> None:
        rights = [(*_RIGHTS, array("i", files))] if files else []
        try:
            self._line.sendmsg([json.dumps(what).encode()], rights, socket.MSG_NOSIGNAL)
        except ConnectionError:
            self._take_in()
            self._end()

    def _take_in(self) -> None:
        """Hear all that the server has said."""
        while self.is_open and not self._owner.forked:
            try:
                data, ancillary, *_ = self._line.recvmsg(
                    1 << 16, socket.CMSG_SPACE(array("i").itemsize), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionResetError:  # it has left requests unread; what it said before comes now
                continue
            if not data:
                self._end()
                return
            files = array("i")
            for *kind, numbers in ancillary:
                if tuple(kind) == _RIGHTS:
                    files.frombytes(numbers)
            self._hear(json.loads(data), files)

    def _hear(self, message: dict[str, Any], files: Sequence[int]) -> None:
        self._is_slow = False
        if "start" in message:
            start = self._starts.pop(message["start"])
            start.error = message.get("error", None if files else EMFILE)  # no room here for the pidfd
            if files:
                start.watch = self.kernels[message["pid"]] = ForkedExitWatcher(
                    self, message["pid"], files[0], start.leash
                )
        elif "codes" in message:
            self._alarm.cancel()
            for pid, code in message["codes"]:
                self._settle(self.kernels[pid], code)
            self._ask_to_reap()
        elif "failed" in message:
            self._failure = LaunchError(
                f"cannot start the kernel: its fork server is to preload {message['module']!r}, which cannot be "
                f"imported: {message['failed']}",
                stderr=message["traceback"],
            )
        elif message["threads"]:
            log_soon(
                log(),
                WARNING,
                "what a fork server has preloaded runs threads, which its kernels will not have: %s",
                ", ".join(message["threads"]),
            )
        self._patience.cancel()
        if self._starts:
            self._patience.set(PATIENCE)
        self._changed.wake()
        if self._is_retired:
            self.retire()

    def _ask_to_reap(self) -> None:
        if self.is_open and self._dead and not self._alarm.is_set:
            self._alarm.set(STUCK)
            self._tell([], reap=[watch.pid for watch in self._dead])
        if not self.is_open:
            for watch in list(self._dead):
                self._settle(watch, None)

    def _settle(self, watch: ForkedExitWatcher, code: int | None) -> None:
        self._dead.remove(watch)
        del self.kernels[watch.pid]
        watch.settle(code)

    def _why_it_ended(self) -> Exception:
        return copy(self._failure) if self._failure is not None else self._lost

    def _end(self) -> None:
        """End the process, or learn that it has ended; its kernels go on."""
        if not self.is_open:
            return
        self.is_open = False
        self._alarm.cancel()
        self._patience.cancel()
        self._watcher.stop()
        self._watcher.close()
        self._line.close()
        exit_code = end_child(self._pid)
        self._lost = Lost(exit_code, tail_of(self._output))
        self._output.close()
        self._changed.wake()
        self._ask_to_reap()


_lines: weakref.WeakSet[ServerProcess] = weakref.WeakSet()


def _let_go() -> None:
    for line in list(_lines):
        line.let_go()


os.register_at_fork(after_in_child=_let_go)
