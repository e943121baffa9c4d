"""Start: one kernel that a caller asks a fork server for, and the pipe that keeps it alive."""

from __future__ import annotations

from collections.abc import Callable

from kclient.concurrency.unpatched import close
from kclient.kernels.forkserver.exit_watcher import NO_PIPE, ForkedExitWatcher
from kclient.kernels.forkserver.states import START_TABLE, StartEvent, StartReaction, StartState, look_up


class Start:
    """A kernel that a caller asks the server for, by START_TABLE. `keep_alive_pipe` is the pipe's write end."""

    def __init__(self, keep_alive_pipe: int) -> None:
        self.state = StartState.ASKED
        self.watcher: ForkedExitWatcher | None = None
        self.errno = 0
        self._pipe = keep_alive_pipe

    def answered(self, watch: Callable[[int], ForkedExitWatcher]) -> None:
        """The kernel was forked. `watch` makes its exit watcher, which closes the pipe that is passed to it."""
        reaction = self._handle(StartEvent.FORK_ANSWER)
        pipe, self._pipe = self._pipe, NO_PIPE
        watcher = watch(pipe)
        if reaction is StartReaction.HAND_PIPE_OVER:
            self.watcher = watcher

    def refused(self, errno: int) -> None:
        """There is no kernel, for that reason."""
        self.errno = errno
        self._handle(StartEvent.ERROR_ANSWER)

    def lose(self) -> None:
        """The server has ended."""
        self._handle(StartEvent.SERVER_ENDS)

    def give_up(self) -> None:
        """The caller leaves, or this is a forked child. That ends the kernel, also one that is forked later."""
        self._handle(StartEvent.CALLER_LEAVES)

    def _handle(self, event: StartEvent) -> StartReaction:
        self.state, reaction = look_up(START_TABLE, self.state, event)
        if reaction is StartReaction.CLOSE_PIPE:
            pipe, self._pipe = self._pipe, NO_PIPE
            close(pipe)
        elif reaction is StartReaction.CLOSE_WATCHERS_PIPE and self.watcher is not None:
            self.watcher.close_pipe()
        return reaction
