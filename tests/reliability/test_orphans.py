"""Programs that are killed (SIGKILL) while their kernels run, under the guard that `orphan_guard=True` asks for."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import Any

import leaks
import pytest
from endings import ending, needs_pidfd
from figures import Figures
from fixtures import WAIT, Script

import kclient
from kclient.kernels.process import orphan_guard, orphan_guard_main
from kclient.kernels.process.local import LocalLauncher

pytestmark = needs_pidfd

PATCH = "from gevent import monkey\nmonkey.patch_all()\n"

STUBBORN = """
import signal, subprocess
for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, signal.SIG_IGN)
print(subprocess.Popen(["sleep", "600"]).pid, flush=True)
signal.alarm(120)
signal.pause()
"""
"""A kernel that does not watch its parent, ignores polite signals and has a child."""

START = """
import os, signal, subprocess, sys, gevent, kclient
from kclient.kernels.process.local import LocalLauncher

held = []

def start(**options):
    manager = kclient.KernelManager("stubborn", **{"orphan_guard": True, **options})
    held.append(manager)
    manager.start_kernel(stdout=subprocess.PIPE)
    manager.child = int(manager.process.stdout.readline())
    return manager

def show(*managers):
    print(*[pid for manager in managers for pid in (manager.process.pid, manager.child)], flush=True)
"""

WAIT_FOR_THE_KILL = "\ngevent.sleep(600)"


@pytest.fixture
def stubborn(install_kernel: Callable[..., str]) -> str:
    return install_kernel(STUBBORN, "stubborn")


@pytest.fixture
def start_program(stubborn: str, start_script: Callable[..., Script]) -> Callable[..., tuple[Script, list[int]]]:
    """Start a program that prints the pids of its stubborn kernels, and waits to be killed."""

    def start(code: str, prelude: str = "") -> tuple[Script, list[int]]:
        script = start_script(f"{prelude}{START}{code}{WAIT_FOR_THE_KILL}")
        return script, [int(pid) for pid in script.read_line().split()]

    return start


def kill(script: Script) -> None:
    script.process.send_signal(signal.SIGKILL)
    script.process.wait(WAIT)


def guards_of(pid: int) -> list[int]:
    """The guard processes among the children of a process."""
    found = []
    for child in leaks.pids():
        try:
            parent = int(leaks.read(child, "stat").rpartition(")")[2].split()[1])
            if parent == pid and orphan_guard_main.__file__ in command_of(child):
                found.append(child)
        except OSError:  # it has ended
            continue
    return found


def command_of(pid: int) -> str:
    """The command of a process. A zombie has none; a new process has none for a moment after the exec."""
    while not (command := leaks.read(pid, "cmdline")) and leaks.read(pid, "stat").rpartition(")")[2].split()[0] != "Z":
        leaks.turn_loop()
    return command


# The program is killed


@pytest.mark.kernel
@pytest.mark.parametrize(("transport", "prelude"), [("tcp", ""), ("ipc", PATCH)], ids=["tcp", "ipc patched"])
def test_kernel_its_children_its_files_and_the_guard_go_with_a_program_that_is_killed(
    install_kernel: Callable[..., str],
    start_script: Callable[..., Script],
    folder: Path,
    runtime_dir: Path,
    figures: Figures,
    transport: str,
    prelude: str,
) -> None:
    launcher = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    install_kernel("", "deaf", argv=["env", "-u", "JPY_PARENT_PID", *launcher])
    script = start_script(
        f"{prelude}import kclient, gevent\n"
        f"kernel = kclient.start_kernel('deaf', transport={transport!r}, orphan_guard=True, timeout=60)\n"
        'child = kernel.run(\'import subprocess; subprocess.Popen(["sleep", "600"]).pid\', timeout=60).text\n'
        f"print(kernel.process.pid, child, flush=True)\n{WAIT_FOR_THE_KILL}"
    )
    pids = [int(pid) for pid in script.read_line().split()]
    (own,) = guards_of(script.process.pid)
    assert list(runtime_dir.iterdir())
    with ending([*pids, own]):
        begun = monotonic()
        kill(script)
    figures.note("kernel gone after its program was killed", monotonic() - begun, "s", at_most=5)
    assert list(runtime_dir.iterdir()) == []
    assert not any(path.name.startswith("kclient-") for path in (folder / "t").iterdir())


@pytest.mark.kernel
def test_temporary_files_of_the_kernels_of_a_pool_go_with_a_program_that_is_killed(
    start_script: Callable[..., Script], folder: Path
) -> None:
    script = start_script(
        "import kclient, gevent\n"
        "with kclient.KernelPool(size=1, orphan_guard=True) as pool, pool.kernel(timeout=60) as kernel:\n"
        "    code = 'import os, tempfile; path = tempfile.mkdtemp(); os.mkdir(path + \"/a\"); print(path)'\n"
        "    print(kernel.process.pid, kernel.run(code, timeout=60).stdout, flush=True)\n"
        f"    {WAIT_FOR_THE_KILL.strip()}"
    )
    pid, path = script.read_line().split()
    assert os.path.isdir(path)
    (own,) = guards_of(script.process.pid)
    with ending([int(pid), own]):
        kill(script)
    assert not any(name.name.startswith("kclient-tmp-") for name in (folder / "t").iterdir())


PROGRAMS = {
    "several kernels": "show(start(), start(transport='ipc'))",
    "some in threads": (
        "managers = [start()]\n"
        "managers += gevent.get_hub().threadpool.map(lambda _: start(), range(3))\n"
        "show(*managers)"
    ),
    "one in a greenlet": "gevent.spawn(lambda: show(start())).join()",
    "one in a daemon thread": (
        "import threading\n"
        "def run():\n    show(start())\n    gevent.sleep(600)\n"
        "threading.Thread(target=run, daemon=True).start()"
    ),
    "one that was restarted": (
        "manager = start()\n"
        "manager.restart_kernel(now=True)\n"
        "manager.child = int(manager.process.stdout.readline())\n"
        "show(manager)"
    ),
}


@pytest.mark.parametrize(
    ("program", "prelude"),
    [*((name, "") for name in PROGRAMS), ("several kernels", PATCH), ("some in threads", PATCH)],
    ids=[*PROGRAMS, "several kernels, patched", "some in threads, patched"],
)
def test_every_guarded_kernel_goes(
    start_program: Callable[..., tuple[Script, list[int]]], runtime_dir: Path, program: str, prelude: str
) -> None:
    script, pids = start_program(PROGRAMS[program], prelude)
    guards = guards_of(script.process.pid)
    assert len(guards) == 1
    with ending([*pids, *guards]):
        kill(script)
    assert list(runtime_dir.iterdir()) == []


def test_kernel_goes_although_a_forked_child_of_the_program_lives_on(
    start_program: Callable[..., tuple[Script, list[int]]], runtime_dir: Path
) -> None:
    code = (
        "manager = start()\n"
        "fork = os.fork()\n"
        "if not fork:\n    signal.alarm(60)\n    signal.pause()\n"
        "print(fork, manager.process.pid, manager.child, flush=True)"
    )
    script, (fork, *pids) = start_program(code)
    try:
        with ending([*pids, *guards_of(script.process.pid)]):
            kill(script)
        assert list(runtime_dir.iterdir()) == []
        os.kill(fork, 0)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_forked_child_has_a_guard_of_its_own(
    start_program: Callable[..., tuple[Script, list[int]]], runtime_dir: Path
) -> None:
    code = (
        "parents = start()\n"
        "fork = os.fork()\n"
        "if not fork:\n"
        "    signal.alarm(60)\n"
        "    gevent.reinit()\n"
        "    childs = start()\n"
        "    print(os.getpid(), parents.process.pid, parents.child, childs.process.pid, childs.child, flush=True)"
    )
    script, (fork, *pids) = start_program(code)
    parents, childs = pids[:2], pids[2:]
    with ending([*childs, *guards_of(fork)]):
        with ending([*parents, *guards_of(script.process.pid)]):
            kill(script)
        assert len(list(runtime_dir.iterdir())) == 1
        os.kill(fork, signal.SIGKILL)
    assert list(runtime_dir.iterdir()) == []


def test_kernel_goes_if_the_program_is_killed_before_it_could_tell_its_number(
    stubborn: str, start_script: Callable[..., Script], runtime_dir: Path
) -> None:
    script = start_script(
        f"{START}\n"
        "class Killed(LocalLauncher):\n"
        "    def start(self, argv, **where):\n"
        "        process = super().start(argv, **where)\n"
        "        print(process.pid, process.stdout.readline().decode(), flush=True)\n"
        "        gevent.sleep(600)\n"
        "start(launcher=Killed())"
    )
    pids = [int(pid) for pid in script.read_line().split()]
    with ending([*pids, *guards_of(script.process.pid)]):
        kill(script)
    assert list(runtime_dir.iterdir()) == []


def test_kernel_that_asked_for_no_guard_is_left_alone(start_program: Callable[..., tuple[Script, list[int]]]) -> None:
    script, pids = start_program("guarded, free = start(), start(orphan_guard=False)\nshow(guarded, free)\n")
    guarded, free = pids[:2], pids[2:]
    try:
        with ending([*guarded, *guards_of(script.process.pid)]):
            kill(script)
        for pid in free:
            os.kill(pid, 0)
    finally:
        with ending(free):
            os.killpg(free[0], signal.SIGKILL)
        for left in (Path(os.environ["JUPYTER_RUNTIME_DIR"])).iterdir():
            left.unlink()


def test_file_that_another_program_wrote_stays(
    start_program: Callable[..., tuple[Script, list[int]]], folder: Path
) -> None:
    path = folder / "theirs.json"
    code = (
        f"path = {str(path)!r}\n"
        "writer = kclient.KernelManager(connection_file=path)\nwriter.write_connection_file()\n"
        "manager = kclient.KernelManager('stubborn', orphan_guard=True)\n"
        "manager.load_connection_file(path)\n"
        "manager.start_kernel(stdout=subprocess.PIPE)\n"
        "manager.child = int(manager.process.stdout.readline())\nshow(manager)"
    )
    script, pids = start_program(code)
    with ending([*pids, *guards_of(script.process.pid)]):
        kill(script)
    assert path.exists()


# The guard


def open_files(pid: int) -> dict[int, str]:
    """The targets of the descriptors of that process, without those that it closes meanwhile."""
    held = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            held[int(fd)] = os.readlink(f"/proc/{pid}/fd/{fd}")
    return held


def test_guard_is_out_of_reach_of_what_ends_the_program(
    start_program: Callable[..., tuple[Script, list[int]]], runtime_dir: Path
) -> None:
    script, pids = start_program("manager = start()\nshow(manager)")
    (own,) = guards_of(script.process.pid)
    assert os.getsid(own) == os.getpgid(own) == own
    assert os.readlink(f"/proc/{own}/cwd") == "/"
    held = open_files(own)
    assert held.pop(0).startswith("socket:")
    assert held == {1: os.devnull, 2: os.devnull}
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        os.kill(own, signum)
    with ending([*pids, own]):
        kill(script)
    assert list(runtime_dir.iterdir()) == []


def test_no_kernel_inherits_the_line_to_the_guard(start_program: Callable[..., tuple[Script, list[int]]]) -> None:
    script, pids = start_program("show(start(), start())")
    held = [target for pid in pids for target in open_files(pid).values()]
    assert held
    assert not any(target.startswith("socket:") for target in held)
    with ending([*pids, *guards_of(script.process.pid)]):
        kill(script)


@pytest.mark.parametrize("stopped", [False, True])
def test_guard_that_was_killed_is_replaced_by_one_that_knows_all(
    start_program: Callable[..., tuple[Script, list[int]]], runtime_dir: Path, stopped: bool
) -> None:
    """Writing to a dead guard could raise SIGPIPE, and some programs have its default action, which ends them."""
    code = (
        "from kclient.kernels.process import orphan_guard\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "first = start()\n"
        f"os.kill(orphan_guard._guard._pid, {int(signal.SIGSTOP if stopped else signal.SIGKILL)})\n"
        "how = os.waitid(os.P_PID, orphan_guard._guard._pid, os.WEXITED | os.WSTOPPED | os.WNOWAIT).si_code\n"
        "if how == os.CLD_STOPPED:\n"
        "    for _ in range(5000):\n"
        "        orphan_guard._guard.tell('x', orphan_guard._record('expect', 'x', '/' * 100))\n"
        "    orphan_guard._guard.forget('x')\n"
        "show(first, start())"
    )
    script, pids = start_program(code)
    guards = guards_of(script.process.pid)
    assert len(guards) == 1
    with ending([*pids, *guards]):
        kill(script)
    assert list(runtime_dir.iterdir()) == []


def test_one_guard_serves_all_kernels_and_ends_with_the_last(stubborn: str) -> None:
    managers = [kclient.KernelManager(stubborn, orphan_guard=True) for _ in range(3)]
    seen = []
    for manager in managers:
        manager.start_kernel()
        seen.append(guards_of(os.getpid()))
    for manager in managers:
        manager.shutdown_kernel(now=True)
        seen.append(guards_of(os.getpid()))
    assert len(seen[0]) == 1
    assert seen == [seen[0]] * 5 + [[]]


def test_dropped_manager_takes_the_guard_along(stubborn: str) -> None:
    manager = kclient.KernelManager(stubborn, orphan_guard=True)
    manager.start_kernel()
    assert guards_of(os.getpid())
    del manager
    leaks.gc.collect()
    assert guards_of(os.getpid()) == []


def test_no_guard_is_started_for_a_kernel_that_cannot_be(install_kernel: Callable[..., str]) -> None:
    name = install_kernel("", argv=["/no/such/program"])
    with pytest.raises(kclient.LaunchError, match="No such file"):
        kclient.start_kernel(name, orphan_guard=True)
    assert guards_of(os.getpid()) == []


@pytest.mark.parametrize("lack", ["program", "descriptor", "process"])
def test_kernel_that_cannot_be_guarded_is_not_started(
    stubborn: str, monkeypatch: pytest.MonkeyPatch, runtime_dir: Path, lack: str
) -> None:
    class Unused:
        def start(self, argv: Any, **where: Any) -> Any:
            raise AssertionError("it was started")

    def fail(*args: Any, **kwargs: Any) -> Any:
        number = errno.EMFILE if lack == "descriptor" else errno.EAGAIN
        raise OSError(number, os.strerror(number))

    if lack == "program":
        monkeypatch.setattr(sys, "executable", "")
    elif lack == "descriptor":
        monkeypatch.setattr(orphan_guard.socket, "socketpair", fail)
    else:
        monkeypatch.setattr(orphan_guard, "popen_class", lambda: fail)
    with pytest.raises(kclient.LaunchError, match="orphan_guard=True"):
        kclient.start_kernel(stubborn, orphan_guard=True, launcher=Unused())
    assert list(runtime_dir.iterdir()) == []


def test_kernel_of_a_launcher_whose_processes_are_elsewhere_is_refused(stubborn: str, runtime_dir: Path) -> None:
    started = []

    class Elsewhere:
        """A user's own kind of process. Its `pid` is the number that a remote machine gave it."""

        def __init__(self, process: Any) -> None:
            self._process = process

        def __getattr__(self, name: str) -> Any:
            return getattr(self._process, name)

    class Remote:
        def start(self, argv: Any, **where: Any) -> Any:
            started.append(LocalLauncher().start(argv, **where))
            return Elsewhere(started[-1])

    with pytest.raises(ValueError, match="LocalProcess"):
        kclient.start_kernel(stubborn, orphan_guard=True, launcher=Remote())
    assert started[0].exited.wait(WAIT)
    assert guards_of(os.getpid()) == []
    assert list(runtime_dir.iterdir()) == []


# The guard's program alone, given records and no client


@pytest.fixture
def after() -> Iterator[Callable[..., None]]:
    """Run a guard to its end on these records."""

    def run(*records: Iterable[str]) -> None:
        told = b"".join(orphan_guard._record(*record) for record in records)
        subprocess.run([sys.executable, "-I", "-S", orphan_guard_main.__file__], input=told, timeout=WAIT, check=True)

    return run


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """A process that leads a process group."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


def start_of(process: subprocess.Popen[bytes]) -> str:
    return orphan_guard_main.start_of(process.pid).decode()


def test_guard_kills_what_it_was_told_to(after: Callable[..., None], bystander: subprocess.Popen[bytes]) -> None:
    after(("expect", "a"), ("group", "a", str(bystander.pid), start_of(bystander)))
    assert bystander.wait(WAIT) == -signal.SIGKILL


def test_process_that_got_the_number_of_a_dead_kernel_is_left_alone(
    after: Callable[..., None], bystander: subprocess.Popen[bytes]
) -> None:
    after(("expect", "a"), ("group", "a", str(bystander.pid), "1"))
    assert bystander.poll() is None


def test_kernel_that_was_forgotten_is_left_alone(
    after: Callable[..., None], bystander: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.touch()
    after(("expect", "a", f"f{path}"), ("group", "a", str(bystander.pid), start_of(bystander)), ("forget", "a"))
    assert bystander.poll() is None
    assert path.exists()


def test_group_that_got_the_number_of_a_kernel_that_has_ended_is_left_alone_and_the_files_go(
    after: Callable[..., None], bystander: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The leader of that group may have left it, so that its start time does not tell it from the kernel's."""
    path = tmp_path / "file"
    path.touch()
    after(("expect", "a", f"f{path}"), ("group", "a", str(bystander.pid), start_of(bystander)), ("ended", "a"))
    assert bystander.poll() is None
    assert not path.exists()


def test_guard_is_told_when_a_kernel_ends_by_itself(stubborn: str) -> None:
    with kclient.KernelManager(stubborn, orphan_guard=True) as manager:
        manager.start_kernel()
        assert manager.process is not None
        ended = manager.process.exited
        manager.process.kill()
        assert ended.wait(WAIT)
        leaks.turn_loop()
        assert [record for record in orphan_guard._guard._records.values() if b"ended" in record]


def test_guard_kills_children_whose_leader_has_ended(after: Callable[..., None]) -> None:
    code = "import subprocess; print(subprocess.Popen(['sleep', '600']).pid, flush=True); input()"
    leader = subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdin is not None
    assert leader.stdout is not None
    child, start = int(leader.stdout.readline()), start_of(leader)
    with leader, ending([child]):
        leader.stdin.write(b"\n")
        leader.stdin.close()
        leader.wait(WAIT)
        after(("expect", "a"), ("group", "a", str(leader.pid), start))


def test_guard_removes_folders_files_and_sockets_but_no_file_in_the_place_of_a_socket(
    after: Callable[..., None], tmp_path: Path
) -> None:
    (tmp_path / "folder").mkdir()
    for name in ("folder/one", "folder/two", "file", "odd\nname é", "not a socket", "stays"):
        (tmp_path / name).touch()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
    files = ["dfolder", "ffile", "fodd\nname é", "snot a socket", "ssocket", "fgone", "dgone"]
    after(("expect", "a", *(f"{file[0]}{tmp_path / file[1:]}" for file in files)), ("group", "a", str(2**22), "1"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["not a socket", "stays"]
