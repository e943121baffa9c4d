"""The process of a fork server as a child of this process: how it starts, how its end is seen, how it is ended."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from select import POLLIN
from signal import SIGKILL

from kclient.concurrency.unpatched import close, socket
from kclient.kernels.forkserver import server_main
from kclient.kernels.forkserver.exit_watcher import has_event
from kclient.kernels.process.exit_watcher import end_child, kill_group_of_reaped
from kclient.kernels.process.output import cannot_start, hidden_file, reason, tail_of
from kclient.kernels.process.spawn import spawn


class ServerChild:
    """Starts the process; raises LaunchError. `socket` leads to it. `pidfd` can be read as soon as it has ended.

    The process leads a group. The system kills that group when the keep-alive pipe is closed, here or by the end of
    this process, whatever the fork server does at that moment: it may import, or be stopped. The end of the socket
    would not do. A process that an imported module has forked may have a copy of the other end.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str], preload: Sequence[str]) -> None:
        argv = [*command, server_main.__file__]
        with ExitStack() as undo, ExitStack() as its:
            self._output = hidden_file(argv)
            undo.callback(self._output.close)
            try:
                self.socket, its_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                undo.callback(self.socket.close)
                its.callback(its_socket.close)
                its_pipe, self._pipe = os.pipe()
                undo.callback(close, self._pipe)
                its.callback(close, its_pipe)
                self.pid = self._start([*argv, str(its_pipe), *preload], env, its_socket, its_pipe)
                undo.callback(_end_group, self.pid)
                with suppress(ProcessLookupError):  # it has ended, and another part of the program has reaped it
                    # The program does the same, but Python may take a while until it runs the program.
                    server_main.end_with(its_pipe, self.pid)
                self.pidfd = os.pidfd_open(self.pid)
            except (OSError, ValueError) as exc:
                raise cannot_start([*argv, *preload], f"no fork server: {reason(exc)}") from exc
            undo.pop_all()
        self.socket.setblocking(False)

    def has_ended(self) -> bool:
        """True if the process has ended, seen now, without a turn of the loop."""
        return has_event(self.pidfd, POLLIN)

    def output(self) -> str:
        """The end of what it has printed."""
        return tail_of(self._output)

    def end(self, patience: float = 0.0) -> int | None:
        """Kill the process and its group, if they run, and reap it. The hub stands still for `patience` at most.

        A process that ends by itself has that time: its socket is closed before it has ended. Returns its own exit
        code; None if it was killed here, or if the code is not known.
        """
        self.socket.close()
        ended_by_itself = has_event(self.pidfd, POLLIN, patience)
        close(self.pidfd)
        code = _end_group(self.pid)
        close(self._pipe)
        self._output.close()
        return code if ended_by_itself else None

    def close_in_child(self) -> None:
        """In a forked child: close its copies of what keeps the process alive."""
        self.socket.close()
        close(self.pidfd)
        close(self._pipe)

    def _start(self, argv: Sequence[str], env: Mapping[str, str], its_socket: socket.socket, its_pipe: int) -> int:
        return spawn(
            argv,
            stdin=its_socket.fileno(),
            stdout=self._output,
            stderr=self._output,
            # ipykernel reads the parent's number when it is imported. It watches no parent with the number 1.
            env={**env, "JPY_PARENT_PID": "1"},
            pass_fds=[its_pipe],
        )


def _end_group(pid: int) -> int | None:
    """Kill the group that a child leads, and reap the child. Returns its exit code, None if it is not known."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # another part of the program has reaped it
        kill_group_of_reaped(pid)
        return None
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, SIGKILL)
    return end_child(pid)
