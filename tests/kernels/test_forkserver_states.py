"""Every row of the tables of a fork server, reached by real processes: the states and the reactions."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from select import POLLIN
from typing import Any

import pytest
from fixtures import Background, in_forked_child
from greenlet import GreenletExit

from kclient.errors import LaunchError
from kclient.kernels.forkserver import server as server_module
from kclient.kernels.forkserver import start as start_module
from kclient.kernels.forkserver.exit_watcher import NO_PIPE, ForkedExitWatcher, has_event
from kclient.kernels.forkserver.launcher import _as_file
from kclient.kernels.forkserver.python_command import read_python_command
from kclient.kernels.forkserver.server import Lost, ServerProcess
from kclient.kernels.forkserver.states import (
    PACE_TABLE,
    SERVER_TABLE,
    START_TABLE,
    Pace,
    PaceEvent,
    ServerEvent,
    ServerReaction,
    ServerState,
    StartEvent,
    StartReaction,
    StartState,
    look_up,
)

WAIT = 20
"""Seconds, for a wait of milliseconds on an idle machine."""

BARE = [sys.executable, "-I", "-S"]

RUN_ON = "import signal; signal.alarm(60); signal.pause()"

Row = tuple[Any, Any]


class Fork:
    """A fork server's process, one start at it, and the rows that were looked up for them in the tables."""

    def __init__(self, background: Callable[..., Background], rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.rows = rows
        self.pipe = ""
        self.start: Any = None
        self.call: Any = None
        self._background = background
        self._servers: list[ServerProcess] = []
        argv = [*BARE, "-c", RUN_ON]
        request = _as_file(read_python_command(argv), argv, dict(os.environ))
        null = os.open(os.devnull, os.O_RDWR)
        self.files = [request, os.open("/", os.O_PATH), null, null]
        """The files of a kernel that runs on."""
        self.bad_files = [request, null, null, null]
        """The same files, but the working directory does not exist, so the server cannot fork."""

    def run(self, *preload: str) -> None:
        """Start the server's process."""
        self.server = ServerProcess(BARE, os.environ, preload)
        self.pid = self.server._child.pid
        self._servers.append(self.server)

    def stop(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kill the server, and take in its end."""
        os.kill(self.pid, signal.SIGKILL)
        self.read()

    def ask(self, files: list[int]) -> None:
        """Stop the server, and let a greenlet, `call`, ask it for a kernel. `start` is in ASKED then."""
        self.stop()
        self.call = self._background(self.server.start, files)
        (self.start,) = self.server._starts.values()
        self.pipe = os.readlink(f"/proc/self/fd/{self.start._pipe}")

    def read(self) -> None:
        """Read the server's next message, or its end, without a turn of the loop, so that no caller goes on."""
        assert has_event(self.server._socket.fileno(), POLLIN, WAIT)
        self.server._read()

    def kernel(self) -> ForkedExitWatcher:
        (watcher,) = self.server.kernels.values()
        return watcher

    def pipe_is_open(self) -> bool:
        """True if this process has a write end of the keep-alive pipe."""
        for number in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                flags = int(Path(f"/proc/self/fdinfo/{number}").read_text().split()[3], 8)
                if os.readlink(f"/proc/self/fd/{number}") == self.pipe and flags & os.O_ACCMODE == os.O_WRONLY:
                    return True
        return False

    def end(self) -> None:
        """End the kernels, then the servers."""
        for number in {*self.files}:
            os.close(number)
        for server in self._servers:
            with suppress(ProcessLookupError):
                os.kill(server._child.pid, signal.SIGCONT)
            for watcher in list(server.kernels.values()):
                watcher.signal_group(signal.SIGKILL)
                assert watcher.exited.wait(WAIT)
            if server.state is not ServerState.RETIRED:
                server.retire()


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[Row]:
    """The rows that the code looks up."""
    found: list[Row] = []

    def note(table: Any, state: Any, event: Any) -> Any:
        found.append((state, event))
        return look_up(table, state, event)

    monkeypatch.setattr(server_module, "look_up", note)
    monkeypatch.setattr(start_module, "look_up", note)
    return found


@pytest.fixture
def fork(background: Callable[..., Background], rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> Iterator[Fork]:
    fork = Fork(background, rows, monkeypatch)
    yield fork
    fork.end()


def name_of(value: Any) -> str:
    return str(value.name)


# A start


@pytest.mark.parametrize(
    ("state", "event"), [(state, event) for state, row in START_TABLE.items() for event in row], ids=name_of
)
def test_row_of_a_start_is_true(fork: Fork, state: StartState, event: StartEvent) -> None:
    expected, reaction = START_TABLE[state][event]
    fork.run()
    fork.read()
    fork.ask(fork.bad_files if StartEvent.ERROR_ANSWER is event or state is StartState.REFUSED else fork.files)
    if event is StartEvent.CALLER_LEAVES and state in (StartState.ASKED, StartState.FORKED, StartState.REFUSED):
        fork.call.greenlet.kill(block=False)  # the loop does that first, and wakes the caller later
    if state is StartState.GIVEN_UP:
        fork.call.greenlet.kill()
    elif state in (StartState.FORKED, StartState.REFUSED):
        fork.go_on()
        fork.read()
    elif state is StartState.LOST:
        fork.kill()
    assert fork.start.state is state
    fork.rows.clear()
    if event in (StartEvent.FORK_ANSWER, StartEvent.ERROR_ANSWER):
        fork.go_on()
        fork.read()
    elif event is StartEvent.SERVER_ENDS:
        fork.kill()
    elif state is StartState.GIVEN_UP:  # no caller waits any more, so only a forked child has the event
        seen = in_forked_child(lambda: repr((fork.rows, fork.start.state)))
        assert seen == repr(([(state, event)], expected))
        return
    else:
        fork.call.greenlet.join()
    assert (state, event) in fork.rows
    assert fork.start.state is expected
    check_reaction(fork, reaction)
    check_caller(fork, expected)


def check_reaction(fork: Fork, reaction: StartReaction) -> None:
    """Assert what became of the keep-alive pipe and of the kernel."""
    if reaction is StartReaction.HAND_PIPE_OVER:
        assert fork.start.watcher is fork.kernel()
        assert fork.start._pipe == NO_PIPE
        assert fork.pipe_is_open()
        assert not fork.kernel().has_ended()
        return
    assert not fork.pipe_is_open()
    assert (fork.start.watcher is None) == (reaction is not StartReaction.CLOSE_WATCHERS_PIPE)
    if reaction in (StartReaction.WATCH_ONLY, StartReaction.CLOSE_WATCHERS_PIPE):
        assert fork.kernel().exited.wait(WAIT)
    assert fork.server.kernels == {}


def check_caller(fork: Fork, state: StartState) -> None:
    """Assert what the caller's `start` has returned or raised."""
    error = fork.call.error()
    if state is StartState.FORKED:
        assert fork.call.get() is fork.kernel()
    elif state is StartState.REFUSED:
        assert isinstance(error, (NotADirectoryError, GreenletExit))
    elif state is StartState.LOST:
        assert isinstance(error, Lost)
        assert error.exit_code == -signal.SIGKILL
    else:
        assert isinstance(error, GreenletExit)


def test_start_is_given_up_in_a_forked_child_and_goes_on_in_its_parent(fork: Fork) -> None:
    fork.run()
    fork.read()
    fork.ask(fork.files)
    assert in_forked_child(lambda: f"{fork.start.state.name}, {fork.pipe_is_open()}") == "GIVEN_UP, False"
    assert fork.start.state is StartState.ASKED
    assert fork.pipe_is_open()
    fork.go_on()
    assert not fork.call.get().has_ended()


def test_start_at_a_server_that_ends_just_before_the_request_is_lost(
    fork: Fork, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork.run()
    fork.read()
    send = fork.server._send

    def kill_and_send(files: list[int], **message: object) -> None:
        os.kill(fork.pid, signal.SIGKILL)
        assert has_event(fork.server._socket.fileno(), POLLIN, WAIT)
        send(files, **message)

    monkeypatch.setattr(fork.server, "_send", kill_and_send)
    with pytest.raises(Lost):
        fork.server.start(fork.files)
    assert fork.rows[-3:] == [
        (ServerState.ENDED, ServerEvent.END),
        (StartState.ASKED, StartEvent.SERVER_ENDS),
        (StartState.LOST, StartEvent.CALLER_LEAVES),
    ]
    check_process(fork)


# The server


@pytest.mark.parametrize(
    ("state", "event"), [(state, event) for state, row in SERVER_TABLE.items() for event in row], ids=name_of
)
def test_row_of_the_server_is_true(fork: Fork, state: ServerState, event: ServerEvent) -> None:
    expected, reaction = SERVER_TABLE[state][event]
    bring_about(fork, state)
    outcome = outcome_of(ACTS[event], fork)
    assert (state, event) in fork.rows
    if reaction is ServerReaction.END_PROCESS or (event is ServerEvent.RETIRE and state is ServerState.UNUSED):
        expected = ServerState.ENDED  # the next events, IDLE and END, do that
    assert fork.server.state is expected
    check_process(fork)
    if reaction is ServerReaction.ASK:
        assert outcome is fork.server.kernels[outcome.pid]
        assert not outcome.has_ended()
    elif reaction is ServerReaction.RAISE:
        assert isinstance(outcome, LaunchError if state is ServerState.FAILED else Lost)
    else:
        assert outcome is None
    if event in (ServerEvent.END, ServerEvent.END_WITH_REASON):
        with pytest.raises(Lost if event is ServerEvent.END else LaunchError):
            fork.server.start(fork.files)


def outcome_of(function: Callable[[Fork], Any], fork: Fork) -> Any:
    try:
        return function(fork)
    except (LaunchError, Lost) as exc:
        return exc


def bring_about(fork: Fork, state: ServerState) -> None:
    """Bring the server into the state by real events."""
    if state is ServerState.FAILED:
        fork.run("nonexistent_")
        while fork.server.is_running:
            fork.read()
    else:
        fork.run()
        fork.read()
    if state in (ServerState.USED, ServerState.RETIRED):
        fork.server.start(fork.files)
    if state is ServerState.RETIRED:
        fork.server.retire()
    elif state is ServerState.ENDED:
        fork.kill()
    assert fork.server.state is state
    fork.rows.clear()


def start_kernel(fork: Fork) -> ForkedExitWatcher:
    return fork.server.start(fork.files)


def retire(fork: Fork) -> None:
    fork.server.retire()


def be_idle(fork: Fork) -> None:
    """The last kernel ends. Without a kernel, the server sends its first message, or is looked at as it is retired."""
    if fork.server.state is ServerState.UNUSED:
        fork.run()
        fork.read()
    elif fork.server.state is ServerState.ENDED:
        fork.server.retire()
    else:
        watcher = fork.kernel()
        watcher.signal_group(signal.SIGKILL)
        assert watcher.exited.wait(WAIT)


def end_without_reason(fork: Fork) -> None:
    if fork.server.is_running:
        fork.kill()
    else:
        fork.server._end()


def end_with_reason(fork: Fork) -> None:
    """A module cannot be imported, or the server is silent for too long."""
    if fork.server.state is ServerState.UNUSED:
        fork.run("nonexistent_")
        while fork.server.is_running:
            fork.read()
    elif fork.server.is_running:
        is_retired = fork.server.state is ServerState.RETIRED
        if is_retired:  # a retired server cannot be asked: take another, which has a start when it is retired
            fork.run()
            fork.read()
        fork.monkeypatch.setattr(server_module, "ANSWER_WAIT_S", 0.05)
        fork.ask(fork.files)
        if is_retired:
            fork.server.retire()
        assert isinstance(fork.call.error(), LaunchError)
    else:
        fork.server._reason = LaunchError("it has said why")
        fork.server._end()


ACTS: dict[ServerEvent, Callable[[Fork], Any]] = {
    ServerEvent.START: start_kernel,
    ServerEvent.RETIRE: retire,
    ServerEvent.IDLE: be_idle,
    ServerEvent.END: end_without_reason,
    ServerEvent.END_WITH_REASON: end_with_reason,
}


def check_process(fork: Fork) -> None:
    """Assert that the process runs in the states that say so. In the others it was reaped, and its files are closed."""
    if fork.server.is_running:
        os.kill(fork.pid, 0)
        return
    with pytest.raises(ChildProcessError):
        os.waitpid(fork.pid, os.WNOHANG)
    assert fork.server._socket.fileno() == -1
    assert fork.server._child._output.closed
    assert fork.server._starts == {}


def test_row_of_the_pace_is_true(fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stopped server blocks the hub once, and again only after it has sent something."""
    monkeypatch.setattr(server_module, "HUB_WAIT_S", 0.01)
    walked: list[Row] = []
    table = {pace: Recorder(pace, row, walked) for pace, row in PACE_TABLE.items()}
    monkeypatch.setattr(server_module, "PACE_TABLE", table)
    fork.run()
    server = fork.server
    fork.read()
    one, other = server.start(fork.files), server.start(fork.files)
    assert server._pace is Pace.PROMPT
    fork.stop()
    for watcher in (one, other):
        watcher.signal_group(signal.SIGKILL)
        assert has_event(watcher._pidfd, POLLIN, WAIT)
        assert watcher.has_ended()
        assert server._pace is Pace.SLOW
        assert not watcher.exited.is_set()
    fork.go_on()
    assert one.exited.wait(WAIT)
    assert other.exited.wait(WAIT)
    assert server._pace is Pace.PROMPT
    assert set(walked) == {(pace, event) for pace, row in PACE_TABLE.items() for event in row}


class Recorder(dict[PaceEvent, Pace]):
    """The rows of one pace. It notes the rows that are looked up."""

    def __init__(self, pace: Pace, row: Any, walked: list[Row]) -> None:
        super().__init__(row)
        self._pace = pace
        self._walked = walked

    def __getitem__(self, event: PaceEvent) -> Pace:
        self._walked.append((self._pace, event))
        return super().__getitem__(event)


# The tables


def pairs_without_a_row(table: Any, states: Any, events: Any) -> set[tuple[str, str]]:
    return {(state.name, event.name) for state in states for event in events if event not in table[state]}


def test_only_what_cannot_happen_has_no_row() -> None:
    """A start that was answered, or whose server has ended, gets no more events. An ended server ends only once."""
    answers = ("FORK_ANSWER", "ERROR_ANSWER", "SERVER_ENDS")
    assert pairs_without_a_row(START_TABLE, StartState, StartEvent) == {
        (state, event) for state in ("FORKED", "REFUSED", "LOST") for event in answers
    }
    assert pairs_without_a_row(SERVER_TABLE, ServerState, ServerEvent) == {
        *(("RETIRED", "START"), ("RETIRED", "RETIRE")),
        *(("FAILED", "IDLE"), ("FAILED", "END"), ("FAILED", "END_WITH_REASON")),
    }
    assert pairs_without_a_row(PACE_TABLE, Pace, PaceEvent) == {("SLOW", "SILENCE")}


def test_pair_without_a_row_is_a_bug() -> None:
    with pytest.raises(RuntimeError, match=r"StartEvent.FORK_ANSWER cannot happen in StartState.FORKED"):
        look_up(START_TABLE, StartState.FORKED, StartEvent.FORK_ANSWER)


def test_every_state_is_reached() -> None:
    for table in (START_TABLE, SERVER_TABLE):
        states = list(table)
        reached = {states[0]} | {row[0] for events in table.values() for row in events.values()}
        assert reached == set(states)
