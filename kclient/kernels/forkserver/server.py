"""ServerProcess: the process of one fork server, and the socket to it. `states` has the tables that it follows."""

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
from kclient.concurrency.unpatched import close, socket
from kclient.concurrency.waiting import READABLE, Parking, Timer, until_done
from kclient.errors import LaunchError
from kclient.kernels.forkserver.child import ServerChild
from kclient.kernels.forkserver.exit_watcher import ForkedExitWatcher, has_event
from kclient.kernels.forkserver.start import Start
from kclient.kernels.forkserver.states import (
    PACE_TABLE,
    RUNNING,
    SERVER_TABLE,
    Pace,
    PaceEvent,
    ServerEvent,
    ServerReaction,
    ServerState,
    StartState,
    look_up,
)

ANSWER_WAIT_S: Final = 60.0
"""Seconds for a server to import its modules, and to fork. A server that is silent for longer gives way to another."""

STARTS_AT_ONCE: Final = 8
"""Starts that one server is asked for at a time. It forks one after the other; files of more would fill the socket."""

HUB_WAIT_S: Final = 0.1
"""Seconds that the hub stands still for an exit code where the loop may not turn. An idle server answers in 0.0002."""

REAP_WAIT_S: Final = 10.0
"""Seconds for a server to answer with exit codes. One that takes longer is ended: others wait for the codes."""

_MESSAGE_BYTES: Final = 1 << 16

_RIGHTS: Final = (socket.SOL_SOCKET, socket.SCM_RIGHTS)


class Lost(Exception):
    """The server has ended and did not say why. Its `exit_code` and the end of its `output` may tell."""

    def __init__(self, exit_code: int | None, output: str) -> None:
        super().__init__()
        self.exit_code = exit_code
        self.output = output


class ServerProcess:
    """Starts the process, which imports `preload` in the background; for one hub. Raises LaunchError.

    The process lasts until `retire`, and then until the last of its kernels has ended. `state` follows SERVER_TABLE.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], preload: Sequence[str]) -> None:
        self.state = ServerState.UNUSED
        self.kernels: dict[int, ForkedExitWatcher] = {}
        self._pace = Pace.PROMPT
        self._owner = Owner()
        self._changed = Parking(self._owner)
        self._starts: dict[int, Start] = {}
        """Those that the process has not answered, by the number that it was told."""
        self._count = 0
        self._unreaped: list[ForkedExitWatcher] = []
        self._reap_timer = Timer(self._owner, self._end)
        self._answer_timer = Timer(self._owner, self._on_silence)
        self._reason: LaunchError | None = None
        self._lost = Lost(None, "")
        self._child = ServerChild(command, env, preload)
        self._socket = self._child.socket
        self._watchers: list[Any] = []
        for descriptor, react in ((self._socket.fileno(), self._read), (self._child.pidfd, self._on_exit)):
            self._watchers.append(self._owner.hub.loop.io(descriptor, READABLE, ref=False))
            self._watchers[-1].start(until_done(self._owner, react))
        _servers.add(self)

    @property
    def is_running(self) -> bool:
        """True unless the process is known to have ended."""
        return self.state in RUNNING

    @property
    def is_used(self) -> bool:
        """True if it runs and callers have asked it for kernels."""
        return self.state is ServerState.USED

    def look(self) -> ServerState:
        """The state, after all that the process has said."""
        self._read()
        if self.is_running and self._child.has_ended():
            self._on_exit()
        return self.state

    def start(self, files: Sequence[int]) -> ForkedExitWatcher:
        """Fork a kernel, with the files of `server_main.Job`.

        Raises OSError if that fails, and LaunchError with a known reason, or Lost, if the server's process ends.
        """
        self.look()
        self.state, reaction = look_up(SERVER_TABLE, self.state, ServerEvent.START)
        if reaction is ServerReaction.RAISE:
            raise self._why_it_ended()
        while self.is_running and len(self._starts) >= STARTS_AT_ONCE:
            self._changed.wait(Deadline(None))
        if not self.is_running:
            raise self._why_it_ended()
        read_end, write_end = os.pipe()
        start = Start(write_end)
        try:
            self._ask(start, [*files, read_end])
            while start.state is StartState.ASKED:
                self._changed.wait(Deadline(None))
            if start.watcher is not None:
                return start.watcher
            if start.state is StartState.REFUSED:
                raise OSError(start.errno, os.strerror(start.errno))
            raise self._why_it_ended()
        except BaseException:
            start.give_up()
            raise
        finally:
            close(read_end)

    def reap(self, watcher: ForkedExitWatcher, *, at_once: bool = False) -> None:
        """The kernel has ended: ask for its exit code, then settle its watcher.

        If `at_once`, the hub stands still until then, unless the server takes longer than `HUB_WAIT_S`.
        """
        if watcher not in self._unreaped:
            self._unreaped.append(watcher)
            self.look()
            self._ask_to_reap()
        while at_once and not watcher.exited.is_set() and self._pace is Pace.PROMPT:
            if not has_event(self._socket.fileno(), POLLIN, HUB_WAIT_S):
                self._pace = PACE_TABLE[self._pace][PaceEvent.SILENCE]
            self._read()

    def retire(self) -> None:
        """End with the last kernel, now if there is none."""
        self.state, _ = look_up(SERVER_TABLE, self.state, ServerEvent.RETIRE)
        self._check_idle()

    def abandon(self) -> None:
        """The thread of the server has ended: end the process. Its kernels go on."""
        if self.is_running and not self._owner.forked:
            self.state = ServerState.ENDED
            self._child.end()

    def close_in_child(self) -> None:
        """In a forked child: close its copies of what keeps the server and the kernels alive."""
        if self.is_running:
            for watching in self._watchers:
                watching.stop()
            self._child.close_in_child()
        for watcher in self.kernels.values():
            watcher.close_pipe()
        for start in self._starts.values():
            start.give_up()

    def _check_idle(self) -> None:
        if not self.kernels and all(start.state is StartState.GIVEN_UP for start in self._starts.values()):
            self.state, reaction = look_up(SERVER_TABLE, self.state, ServerEvent.IDLE)
            if reaction is ServerReaction.END_PROCESS:
                self._end()

    def _on_silence(self) -> None:
        """End a process that is silent for too long. First read: the hub may have stood still, and read nothing."""
        self._read()
        if self.is_running and self._starts and not self._answer_timer.is_set:
            self._reason = LaunchError(
                f"cannot start the kernel: its fork server has not answered within {ANSWER_WAIT_S:g} s",
                stderr=self._child.output(),
            )
            self._end()

    def _ask(self, start: Start, files: Sequence[int]) -> None:
        self._count += 1
        self._send(files, start=self._count)
        if not self.is_running:  # the send has found that out
            start.lose()
            return
        self._starts[self._count] = start
        if not self._answer_timer.is_set:  # it stays set even if the caller leaves: the server must answer all the same
            self._answer_timer.set(ANSWER_WAIT_S)

    def _send(self, files: Sequence[int], **message: object) -> None:
        rights = [(*_RIGHTS, array("i", files))] if files else []
        try:
            self._socket.sendmsg([json.dumps(message).encode()], rights, socket.MSG_NOSIGNAL)
        except ConnectionError:
            self._read()
            self._end()

    def _read(self) -> None:
        """Read and handle all messages that have come. No Ctrl-C comes between a message and what is done about it."""
        if not self._owner.forked:
            with self._owner.call():
                self._read_held()

    def _read_held(self) -> None:
        while self.is_running:
            try:
                data, ancillary, *_ = self._socket.recvmsg(
                    _MESSAGE_BYTES, socket.CMSG_SPACE(array("i").itemsize), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except ConnectionResetError:  # the process left requests unread; what it sent before its end comes now
                continue
            if not data:
                self._end(HUB_WAIT_S)
                return
            files = array("i")
            for *kind, numbers in ancillary:
                if tuple(kind) == _RIGHTS:
                    files.frombytes(numbers)
            self._on_message(json.loads(data), files)

    def _on_exit(self) -> None:
        """The process has ended. Its end of the socket may still be open, in a process that a module has forked."""
        self._read()  # what it sent before its end
        if self.is_running and not self._owner.forked:
            self._end()

    def _on_message(self, message: dict[str, Any], files: Sequence[int]) -> None:
        self._pace = PACE_TABLE[self._pace][PaceEvent.MESSAGE]
        if "start" in message:
            self._on_answer(self._starts.pop(message["start"]), message, files)
        elif "codes" in message:
            self._reap_timer.cancel()
            for pid, code in message["codes"]:
                self._settle(self.kernels[pid], code)
            self._ask_to_reap()
        elif "failed" in message:
            self._reason = LaunchError(
                f"cannot start the kernel: its fork server {message['failed']}", stderr=message.get("traceback", "")
            )
        elif message["threads"]:
            log_soon(
                log(),
                WARNING,
                "modules that a fork server has preloaded run threads, which its kernels will not have: %s",
                ", ".join(message["threads"]),
            )
        self._answer_timer.cancel()
        if self._starts:
            self._answer_timer.set(ANSWER_WAIT_S)
        self._changed.wake()
        self._check_idle()

    def _on_answer(self, start: Start, message: dict[str, Any], files: Sequence[int]) -> None:
        if not files:
            start.refused(message.get("error", EMFILE))  # EMFILE: this process has no descriptor left for the pidfd
            return
        pid = message["pid"]

        def watch(pipe: int) -> ForkedExitWatcher:
            watcher = self.kernels[pid] = ForkedExitWatcher(self, pid, files[0], pipe)
            return watcher

        start.answered(watch)

    def _ask_to_reap(self) -> None:
        if self.is_running and self._unreaped and not self._reap_timer.is_set:
            self._reap_timer.set(REAP_WAIT_S)
            self._send([], reap=[watcher.pid for watcher in self._unreaped])
        if not self.is_running:
            for watcher in list(self._unreaped):
                self._settle(watcher, None)

    def _settle(self, watcher: ForkedExitWatcher, code: int | None) -> None:
        self._unreaped.remove(watcher)
        del self.kernels[watcher.pid]
        watcher.settle(code)

    def _why_it_ended(self) -> Exception:
        return copy(self._reason) if self._reason is not None else self._lost

    def _end(self, patience: float = 0.0) -> None:
        """The process has ended, or must: kill it, if it has not within `patience` seconds, and reap it.

        Tell the starts. The kernels go on.
        """
        event = ServerEvent.END if self._reason is None else ServerEvent.END_WITH_REASON
        self.state, reaction = look_up(SERVER_TABLE, self.state, event)
        if reaction is not ServerReaction.CLEAN_UP:
            return
        self._reap_timer.cancel()
        self._answer_timer.cancel()
        for watching in self._watchers:
            watching.stop()
            watching.close()
        output = self._child.output()
        self._lost = Lost(self._child.end(patience), output)
        starts, self._starts = self._starts, {}
        for start in starts.values():
            start.lose()
        self._changed.wake()
        self._ask_to_reap()


_servers: weakref.WeakSet[ServerProcess] = weakref.WeakSet()


def _close_in_child() -> None:
    for server in list(_servers):
        server.close_in_child()


os.register_at_fork(after_in_child=_close_in_child)
