import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import weakref
from contextlib import ExitStack
from importlib.util import find_spec
from itertools import count

import gevent
import pytest
from strikes import Strike

from kclient import ForkServer
from kclient.errors import InvalidArgument, LaunchError
from kclient.kernels.process import exit_watcher
from kclient.kernels.process import local as process_module
from kclient.kernels.process.local import LocalLauncher

WAIT = 20
"""Seconds, for a wait of milliseconds on an idle machine."""

RUN_ON = "print('up', flush=True); import signal; signal.alarm(60); signal.pause()"


@pytest.fixture(params=["pidfd", "pidfd_open is missing", "pidfd_open is refused", "pidfds cannot be waited for"])
def watched_by(request, monkeypatch):
    """Every way to learn of an exit."""

    def refuse(*args):
        raise PermissionError(1, "Operation not permitted")

    if request.param == "pidfd_open is missing":
        monkeypatch.delattr(os, "pidfd_open", raising=False)
    elif request.param == "pidfd_open is refused":
        monkeypatch.setattr(os, "pidfd_open", refuse)
    elif request.param == "pidfds cannot be waited for":
        monkeypatch.setattr(os, "waitid", refuse)
    elif not hasattr(os, "pidfd_open"):
        pytest.skip("no pidfd_open here")
    return request.param


@pytest.fixture
def launch():
    """Start Python code as a kernel process. A process that still runs at the end of the test is ended."""
    started = []

    def start(code, *arguments, launcher=None, **where):
        argv = [sys.executable, "-I", "-S", "-c", code, *arguments]
        process = (launcher or LocalLauncher()).start(argv, **where)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        assert process.exited.wait(WAIT)
        process.close()


@pytest.fixture
def running(launch):
    """A process that has said on its pipe that it is up. It runs until it is told to end."""
    process = launch(RUN_ON, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    return process


def end_of(process):
    assert process.exited.wait(WAIT)
    return process.exit_code


def wait_without_reaping(pid):
    """Block this thread with its hub until the process is dead."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def is_reaped(pid):
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


# The end


@pytest.mark.parametrize("code", [0, 7, 255])
def test_exit_sets_the_event_and_the_code(watched_by, launch, code):
    process = launch(f"raise SystemExit({code})")
    assert end_of(process) == code
    assert not process.is_alive()
    assert is_reaped(process.pid)


def test_running_process_is_alive_and_has_no_code(watched_by, running):
    assert running.is_alive()
    assert not running.exited.is_set()
    assert running.exit_code is None


def test_kill_gives_the_negative_signal(watched_by, running):
    running.kill()
    assert end_of(running) == -signal.SIGKILL


def test_core_dump_gives_the_negative_signal(watched_by, launch):
    assert end_of(launch("import os; os.abort()")) == -signal.SIGABRT


def test_exit_wakes_every_waiter_while_other_greenlets_run(watched_by, running):
    waiters = [gevent.spawn(running.exited.wait, WAIT) for _ in range(5)]
    gevent.spawn(running.kill)
    gevent.joinall(waiters, timeout=WAIT)
    assert [waiter.value for waiter in waiters] == [True] * 5


def test_stopped_process_has_not_ended(watched_by, running):
    running.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, running.pid, os.WSTOPPED) if "cannot" not in watched_by else None
    assert running.is_alive()
    running.send_signal(signal.SIGCONT)
    assert running.is_alive()


def test_end_is_seen_without_a_turn_of_the_loop(launch):
    process = launch("raise SystemExit(3)")
    wait_without_reaping(process.pid)
    assert not process.is_alive()
    assert process.exit_code == 3
    assert process.exited.is_set()


def test_end_is_seen_without_a_turn_of_the_loop_where_a_thread_waits(launch, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    done = threading.Event()
    real = exit_watcher.waitpid
    monkeypatch.setattr(exit_watcher, "waitpid", lambda *args: (real(*args), done.set())[0])
    process = launch("raise SystemExit(3)")
    assert done.wait(WAIT)
    deadline = threading.Event()
    while process.is_alive():  # the thread has not yet stored the exit code
        assert not deadline.wait(0.001)
    assert process.exit_code == 3


def test_many_processes_end_each_with_its_own_code(watched_by, launch):
    processes = [launch(f"raise SystemExit({number})") for number in range(20)]
    assert [end_of(process) for process in processes] == list(range(20))


def test_dropped_process_is_still_reaped(watched_by, launch):
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = LocalLauncher().start([sys.executable, "-I", "-S", "-c", RUN_ON], **quiet)
    pid, exited, reference = process.pid, process.exited, weakref.ref(process)
    del process
    gc.collect()
    assert reference() is None
    os.killpg(pid, signal.SIGKILL)
    assert exited.wait(WAIT)
    assert is_reaped(pid)


def test_exit_is_noticed_when_someone_else_reaps_the_child(watched_by, running):
    if watched_by == "pidfd":
        os.kill(running.pid, signal.SIGKILL)
        os.waitpid(running.pid, 0)
        assert end_of(running) in (-signal.SIGKILL, None)
    else:  # the thread waits in waitpid itself
        os.kill(running.pid, signal.SIGKILL)
        assert end_of(running) == -signal.SIGKILL
    assert not running.is_alive()


def test_exit_code_that_cannot_be_known_is_none(running, monkeypatch):
    monkeypatch.setattr(exit_watcher, "_PIDFD_GET_INFO", 0)
    os.kill(running.pid, signal.SIGKILL)
    os.waitpid(running.pid, 0)
    assert end_of(running) is None
    assert not running.is_alive()


def test_process_that_cannot_be_watched_is_not_left_running(monkeypatch):
    pids = []

    def fail(pid):
        pids.append(pid)
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(process_module, "ExitWatcher", fail)
    with pytest.raises(RuntimeError):
        LocalLauncher().start(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert is_reaped(pids[0])


# Signals


def test_signal_reaches_the_process(watched_by, running):
    running.send_signal(signal.SIGTERM)
    assert end_of(running) == -signal.SIGTERM


def test_interrupt_is_a_keyboard_interrupt(launch):
    code = f"try:\n {RUN_ON}\nexcept KeyboardInterrupt:\n raise SystemExit(5)"
    process = launch(code, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert end_of(process) == 5


def test_kill_takes_the_children_of_the_process_along(launch):
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-I', '-S', '-c', {RUN_ON!r}]).wait()"
    process = launch(code, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    process.kill()
    assert process.stdout.read() == b""  # the end of the pipe: no process has it open any more
    assert end_of(process) == -signal.SIGKILL


def test_process_leads_a_session_of_its_own(running):
    assert os.getsid(running.pid) == os.getpgid(running.pid) == running.pid


def test_signal_after_the_end_goes_nowhere(watched_by, launch, monkeypatch):
    process = launch("")
    end_of(process)
    sent = []
    monkeypatch.setattr(os, "killpg", lambda *args: sent.append(args))
    process.kill()
    process.send_signal(signal.SIGINT)
    assert sent == []


def test_signal_to_a_process_that_is_dead_but_not_yet_reaped_goes_nowhere(launch, monkeypatch):
    process = launch("")
    wait_without_reaping(process.pid)
    sent = []
    monkeypatch.setattr(os, "killpg", lambda *args: sent.append(args))
    process.send_signal(signal.SIGINT)
    assert sent == [(process.pid, signal.SIGKILL)]  # for the rest of its group


@pytest.mark.parametrize("signum", [0, -9, 1000, "SIGINT", None])
def test_number_that_is_no_signal_is_refused(running, signum):
    with pytest.raises(InvalidArgument):
        running.send_signal(signum)
    assert running.is_alive()


SIGNALS = """
import json, os, signal
handlers = {name: signal.getsignal(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGPIPE", "SIGHUP")}
mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
with open("/proc/self/status") as status:
    ignored = [line for line in status if line.startswith("SigIgn")]
files = sorted(map(int, os.listdir("/proc/self/fd")))[:-1]
print(json.dumps([str(handlers), [*mask], ignored, files, sorted(os.environ), os.getcwd()]))
"""


@pytest.fixture
def deaf():
    """This program blocks SIGINT and SIGTERM."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT, signal.SIGTERM])
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def what_is_inherited(launcher, **where):
    process = launcher.start([sys.executable, "-I", "-S", "-c", SIGNALS], stdout=subprocess.PIPE, **where)
    text = process.stdout.read()
    assert end_of(process) == 0, process.stderr_tail()
    process.close()
    return json.loads(text)


@pytest.mark.parametrize("forked", [False, True], ids=["", "forked"])
@pytest.mark.parametrize("env", [None, {"A": "b"}], ids=["", "env"])
def test_process_of_a_program_that_blocks_signals_gets_them(deaf, tmp_path, env, forked):
    with ExitStack() as stack:
        launcher = stack.enter_context(ForkServer()) if forked else LocalLauncher()
        other = stack.enter_context(ForkServer()) if forked else launcher
        blocked = what_is_inherited(launcher, env=env, cwd=tmp_path)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT, signal.SIGTERM])
        ordinary = what_is_inherited(other, env=env, cwd=tmp_path)
        assert blocked == ordinary
        assert blocked[1] == []
        assert "default_int_handler" in blocked[0]


def test_process_of_a_program_that_ignores_sigint_gets_it():
    """As a shell has started it with ``&``."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        inherited = what_is_inherited(LocalLauncher())
    finally:
        signal.signal(signal.SIGINT, before)
    assert inherited == what_is_inherited(LocalLauncher())


def test_signal_that_waits_while_a_process_starts_goes_on_waiting(deaf, launch):
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)  # other threads of a test runner do not block it
    process = launch("")
    assert signal.sigpending() == {signal.SIGTERM}
    assert signal.sigtimedwait([signal.SIGTERM], WAIT)
    assert end_of(process) == 0


def test_program_that_is_missing_is_named_though_signals_are_blocked(deaf, tmp_path):
    for argv, reason in ((["/gone"], "No such file or directory: '/gone'"), ([str(tmp_path)], "Permission denied")):
        with pytest.raises(LaunchError, match=reason):
            LocalLauncher().start(argv)


# The process group

STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {RUN_ON}"

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-I", "-S", "-c", sys.argv[1]], start_new_session="leaves" in sys.argv)
if "exits" in sys.argv:
    open(sys.argv[-1]).read()
    raise SystemExit(3)
child.wait()
"""


@pytest.fixture
def parent(launch):
    """A process and its child, which ignores SIGTERM and is up. The child holds the pipe open."""
    process = launch(PARENT, STUBBORN, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    return process


def has_no_child_left(process):
    """Wait for the end of the process; True if no process has its pipe open then."""
    assert process.exited.wait(WAIT)
    readable, _, _ = select.select([process.stdout], [], [], WAIT)
    return bool(readable) and process.stdout.read() == b""


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_child_that_ignores_sigterm_ends_with_the_process(watched_by, parent, signum):
    os.kill(parent.pid, signum)
    assert has_no_child_left(parent)
    assert parent.exit_code == -signum


def test_child_ends_with_a_process_that_exits(watched_by, launch, tmp_path):
    os.mkfifo(tmp_path / "gate")
    process = launch(PARENT, STUBBORN, "exits", str(tmp_path / "gate"), stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    (tmp_path / "gate").write_text("")
    assert has_no_child_left(process)
    assert process.exit_code == 3


def test_child_ends_with_a_process_that_is_reaped_elsewhere(watched_by, parent):
    os.kill(parent.pid, signal.SIGKILL)
    if watched_by == "pidfd":
        os.waitpid(parent.pid, 0)
    assert has_no_child_left(parent)


def test_child_has_ended_once_the_process_is_known_to_be_dead(parent):
    """A script that only polls, and never lets the hub turn."""
    os.kill(parent.pid, signal.SIGKILL)
    wait_without_reaping(parent.pid)
    assert not parent.is_alive()
    assert select.select([parent.stdout], [], [], WAIT)[0]


def test_child_in_a_session_of_its_own_outlives_the_process(launch):
    code = (
        "import os, signal; signal.alarm(60); signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]);"
        "print(os.getpid(), flush=True); signal.sigwait([signal.SIGUSR1]); print('alive', flush=True)"
    )
    process = launch(PARENT, code, "leaves", stdout=subprocess.PIPE)
    child = int(process.stdout.readline())
    process.kill()
    assert process.exited.wait(WAIT)
    os.kill(child, signal.SIGUSR1)
    assert process.stdout.read() == b"alive\n"


SUBREAPER = """
import ctypes, os, subprocess, sys
from kclient import ForkServer
from kclient.kernels.process.local import LocalLauncher

assert ctypes.CDLL(None).prctl(36, 1, 0, 0, 0) == 0  # PR_SET_CHILD_SUBREAPER: it gets orphans, as PID 1 does
if "thread" in sys.argv:
    del os.pidfd_open
ours = subprocess.Popen(["sh", "-c", "exit 3"])
launcher = ForkServer() if "forked" in sys.argv else LocalLauncher()
process = launcher.start([sys.executable, "-I", "-S", "-c", sys.argv[2]], stdout=subprocess.PIPE)
group, stdout = process.pid, process.stdout
assert stdout.readline() == b"up\\n", process.stderr_tail()
process.kill()
assert process.exited.wait(30)
assert stdout.read() == b""  # the end of the pipe: all have ended
try:
    while True:
        os.waitid(os.P_PGID, group, os.WEXITED | os.WNOWAIT)  # returns at once if a dead one is left
except ChildProcessError:
    print("reaped")
process.close()
print(ours.wait())
"""


FAMILY = "import os; os.write(1, b'up\\n'); os.system('sleep 60 & sh -c \"sleep 60 & wait\" & wait')"


@pytest.mark.parametrize("how", ["pidfd", "thread", "forked"])
def test_program_that_gets_orphans_reaps_those_of_the_kernel_and_no_other_child(run_script, how):
    assert run_script(SUBREAPER, how, FAMILY).split() == ["reaped", "3"]


def test_group_is_left_alone_once_another_process_has_its_number(launch, monkeypatch):
    process = launch("")
    wait_without_reaping(process.pid)
    os.waitpid(process.pid, 0)
    sent = []
    monkeypatch.setattr(os, "killpg", lambda *args: sent.append(args))
    monkeypatch.setattr(os, "kill", lambda *args: None)
    assert not process.is_alive()
    assert sent == []


# Output


def test_output_is_kept_for_the_error_message(launch):
    process = launch("import sys; print('out', flush=True); print('err', file=sys.stderr); sys.exit(1)")
    end_of(process)
    assert process.stderr_tail() == "out\nerr\n"
    process.close()
    process.close()
    assert process.stderr_tail() == "out\nerr\n"


def test_tail_is_the_end_of_a_long_output(launch):
    process = launch("print('é' * 1_000_000 + 'end', flush=True)")
    end_of(process)
    tail = process.stderr_tail()
    assert tail.endswith("ééend\n")
    assert len(tail.encode()) <= 16 * 1024 + 2


def test_output_that_is_no_text_is_read_all_the_same(launch):
    process = launch(r"import os; os.write(2, b'\xff\xfe\x00ok\xc3')")
    end_of(process)
    assert "ok" in process.stderr_tail()


def test_reading_the_tail_does_not_disturb_a_process_that_still_writes(launch):
    code = "import os; os.write(2, b'one'); os.kill(os.getpid(), 19); os.write(2, b'two')"
    process = launch(code)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    assert process.stderr_tail() == "one"
    process.send_signal(signal.SIGCONT)
    end_of(process)
    assert process.stderr_tail() == "onetwo"


def test_output_file_has_no_name(launch, running):
    assert os.listdir(tempfile.gettempdir()) == []


def test_pipes_can_be_read_and_are_closed(launch):
    process = launch(
        "import sys; print('out'); print('err', file=sys.stderr)", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert (process.stdout.read(), process.stderr.read()) == (b"out\n", b"err\n")
    end_of(process)
    process.close()
    assert process.stdout.closed
    assert process.stderr.closed
    assert process.stderr_tail() == ""


def test_one_stream_can_be_redirected_and_the_other_is_kept(launch, tmp_path):
    with open(tmp_path / "out", "wb") as file:
        process = launch("import sys; print('out'); print('err', file=sys.stderr)", stdout=file)
    end_of(process)
    assert (tmp_path / "out").read_bytes() == b"out\n"
    assert process.stderr_tail() == "err\n"


def test_stderr_can_join_stdout(launch):
    process = launch("import sys; print('err', file=sys.stderr)", stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout.read() == b"err\n"


def test_output_can_be_thrown_away(launch):
    process = launch("print('out')", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert end_of(process) == 0
    assert process.stderr_tail() == ""


def test_process_reads_nothing_from_our_stdin(launch):
    process = launch("import sys; sys.exit(len(sys.stdin.read()))")
    assert end_of(process) == 0


def test_close_leaves_the_process_and_its_watch_alone(running):
    running.close()
    assert running.is_alive()
    running.kill()
    assert end_of(running) == -signal.SIGKILL


# Starting


def test_environment_and_directory_are_passed(launch, tmp_path):
    process = launch(
        "import os; print(os.getcwd(), os.environ['A'], 'HOME' in os.environ)",
        env={"A": "b"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.read().decode().split() == [os.path.realpath(tmp_path), "b", "False"]


def test_environment_is_ours_if_none_is_given(launch, monkeypatch):
    monkeypatch.setenv("KCLIENT_TEST", "inherited")
    process = launch("import os; print(os.environ['KCLIENT_TEST'])", stdout=subprocess.PIPE)
    assert process.stdout.read() == b"inherited\n"


@pytest.mark.parametrize(
    ("argv", "where", "reason"),
    [
        (["/no/such/program", "x"], {}, "No such file or directory: '/no/such/program'"),
        (["no-such-program-on-the-path"], {}, "No such file or directory"),
        (["/dev/null"], {}, "Permission denied: '/dev/null'"),
        (["/"], {}, "Permission denied"),
        ([sys.executable], {"cwd": "/no/such/directory"}, "No such file or directory: '/no/such/directory'"),
        ([sys.executable], {"cwd": "/dev/null"}, "Not a directory: '/dev/null'"),
        ([sys.executable], {"env": {"A": 1}}, "int"),
        ([sys.executable], {"env": {"A=B": "c"}}, "illegal environment variable name"),
        ([sys.executable], {"env": {"A": "b\0"}}, "null byte"),
        ([sys.executable, "a\0b"], {}, "null byte"),
        ([sys.executable, 1], {}, "int"),
        ([], {}, "[]"),
        ([sys.executable, "x" * 3_000_000], {}, "Argument list too long"),
    ],
)
def test_command_that_cannot_be_started_is_an_error_that_names_it_and_the_reason(argv, where, reason):
    with pytest.raises(LaunchError) as caught:
        LocalLauncher().start(argv, **where)
    assert caught.value.argv == argv
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 2000
    assert not argv or repr(argv[0]) in str(caught.value)


def test_file_that_is_no_program_is_an_error(tmp_path):
    (tmp_path / "kernel").write_bytes(b"\x00\x01")
    (tmp_path / "kernel").chmod(0o700)
    with pytest.raises(LaunchError, match="Exec format error"):
        LocalLauncher().start([str(tmp_path / "kernel")])


def test_no_place_for_the_output_is_an_error_that_tells_the_way_out(launch, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(LaunchError, match="TMPDIR"):
        launch("")
    process = launch("", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert end_of(process) == 0


class EnvLauncher:
    """A user's own launcher: it only changes the command line."""

    def start(self, argv, **where):
        return LocalLauncher().start(["env", "ADDED=1", *argv], **where)


def test_launcher_of_a_user_wraps_the_local_one(launch):
    process = launch("import os; raise SystemExit(int(os.environ['ADDED']))", launcher=EnvLauncher())
    assert end_of(process) == 1


# Threads and forks


def run_in_thread(function):
    """Call `function` in a thread of its own, which has a hub of its own."""
    results = []

    def run():
        try:
            results.append(function())
        finally:
            gevent.get_hub().destroy(destroy_loop=True)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(WAIT)
    return results


def test_process_runs_in_the_hub_of_any_thread(watched_by):
    def run():
        process = LocalLauncher().start([sys.executable, "-I", "-S", "-c", RUN_ON], stdout=subprocess.PIPE)
        process.stdout.readline()
        gevent.spawn(process.kill)
        code = end_of(process)
        process.close()
        return code

    assert run_in_thread(run) == [-signal.SIGKILL]


def test_another_thread_can_look_and_kill_but_leaves_the_reaping_to_the_owner(watched_by, running):
    def run():
        alive = running.is_alive()
        running.kill()
        if watched_by == "pidfd":
            wait_without_reaping(running.pid)
            return alive, running.is_alive()
        return alive, False

    assert run_in_thread(run) == [(True, False)]
    assert end_of(running) == -signal.SIGKILL


def in_forked_child(function):
    """The exit code of a forked child that calls `function`, 0 if it returns True."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_forked_child_neither_signals_nor_reaps_nor_closes(watched_by, running):
    def use():
        running.kill()
        running.send_signal(signal.SIGTERM)
        alive = running.is_alive()
        running.close()
        return alive and not running.stdout.closed

    assert in_forked_child(use) == 0
    assert running.is_alive()
    running.kill()
    assert end_of(running) == -signal.SIGKILL


FORK_SCRIPT = """
import os, signal, sys, time, gevent, gevent.os, gevent.select
from kclient.kernels.process.local import LocalLauncher
process = LocalLauncher().start([sys.executable, "-I", "-S", "-c", "import signal; signal.alarm(60); signal.pause()"])
read, write = os.pipe()
pid = gevent.os.fork_gevent()
if pid == 0:
    os.close(write)
    os.read(read, 1)    # until the parent has reaped the process
    before = time.process_time()
    spurious = process.exited.wait(0.3)
    os._exit(1 if spurious else 2 if time.process_time() - before > 0.15 else 0)
process.kill()
process.exited.wait(20)
os.close(write)
process.close()
print(process.exit_code, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_exit_neither_reaches_nor_keeps_busy_a_forked_child_that_runs_gevent():
    assert run_script(FORK_SCRIPT) == "-9 0"


# Beside gevent's own subprocesses, whose SIGCHLD handler reaps every child


def run_script(script, *arguments, **env):
    command = [sys.executable, "-W", "ignore", "-W", "error::ResourceWarning", "-c", script, *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=50, env={**os.environ, **env}, check=False, close_fds=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


CODES = """
import gevent, os, subprocess, sys, threading
from kclient.kernels.process import exit_watcher
from kclient.kernels.process.local import LocalLauncher
if "old-linux" in sys.argv:
    exit_watcher._PIDFD_GET_INFO = 0
if "no-pidfd" in sys.argv:
    del os.pidfd_open

def start(code):
    return LocalLauncher().start([sys.executable, "-I", "-S", "-c", code])

def codes():
    first = start("raise SystemExit(3)")
    others()
    second = start("import os; os.kill(os.getpid(), 9)")
    third = start("raise SystemExit(4)")
    gevent.joinall([gevent.spawn(process.exited.wait, 20) for process in (first, second, third)])
    for process in (first, second, third):
        process.close()
    return first.exit_code, second.exit_code, third.exit_code

def in_thread(function):
    got = []
    def run():
        got.append(function())
        gevent.get_hub().destroy(destroy_loop=True)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return got[0]
"""

PATCHED = "from gevent import monkey; monkey.patch_all()" + CODES

GEVENT_RUN = """
import gevent.subprocess
def others():
    assert gevent.subprocess.run([sys.executable, "-c", "raise SystemExit(5)"]).returncode == 5
"""

needs_cffi = pytest.mark.skipif(find_spec("_cffi_backend") is None, reason="gevent has this loop through cffi")
LOOPS = ["libev-cext", pytest.param("libev-cffi", marks=needs_cffi), pytest.param("libuv", marks=needs_cffi)]


@pytest.mark.parametrize("platform", ["", "old-linux", "no-pidfd"])
@pytest.mark.parametrize("loop", LOOPS)
def test_codes_are_right_after_monkey_patching(platform, loop):
    script = PATCHED + GEVENT_RUN + "print(codes(), codes())"
    assert run_script(script, platform, GEVENT_LOOP=loop) == "(3, -9, 4) (3, -9, 4)"


@pytest.mark.parametrize("platform", ["", "old-linux", "no-pidfd"])
@pytest.mark.parametrize("loop", LOOPS)
def test_codes_are_right_once_gevent_subprocess_was_used(platform, loop):
    script = CODES + GEVENT_RUN + "others(); print(codes(), codes())"
    assert run_script(script, platform, GEVENT_LOOP=loop) == "(3, -9, 4) (3, -9, 4)"


def test_codes_are_right_when_gevent_subprocess_is_used_while_the_process_runs():
    done = run_script(CODES + GEVENT_RUN + "print(exit_watcher.code_kept_by_linux, codes())")
    assert done.endswith(("(3, -9, 4)", "(None, -9, 4)"))  # None: before Linux 6.15


@pytest.mark.parametrize("platform", ["", "no-pidfd"])
def test_codes_are_right_in_a_thread_after_monkey_patching(platform):
    script = PATCHED + "def others(): pass\npool = gevent.get_hub().threadpool\nprint(pool.apply(codes)); pool.kill()"
    assert run_script(script, platform) == "(3, -9, 4)"


def test_standard_subprocess_keeps_its_exit_codes_beside_ours():
    others = "def others(): assert subprocess.run([sys.executable, '-c', 'raise SystemExit(5)']).returncode == 5\n"
    assert run_script(CODES + others + "print(codes(), in_thread(codes))") == "(3, -9, 4) (3, -9, 4)"


GROUP = """
import os, select, signal, sys
from kclient.kernels.process import local as process_module
stubborn = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True); signal.alarm(60); signal.pause()"
code = "import subprocess, sys; subprocess.run([sys.executable, '-I', '-S', '-c', sys.argv[1]])"

def group():
    argv = [sys.executable, "-I", "-S", "-c", code, stubborn]
    process = LocalLauncher().start(argv, stdout=process_module.subprocess.PIPE)
    process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.exited.wait(20)
    end = process.stdout.read()
    process.close()
    return process.exit_code, end
"""


@pytest.mark.parametrize("platform", ["", "no-pidfd"])
@pytest.mark.parametrize("loop", LOOPS)
def test_child_ends_with_the_process_after_monkey_patching(platform, loop):
    script = PATCHED + GEVENT_RUN + GROUP + "print(group()); others(); print(group())"
    assert run_script(script, platform, GEVENT_LOOP=loop).splitlines() == ["(-9, b'')"] * 2


def test_child_ends_with_the_process_in_a_thread_after_monkey_patching():
    script = PATCHED + GROUP + "pool = gevent.get_hub().threadpool\nprint(pool.apply(group)); pool.kill()"
    assert run_script(script) == "(-9, b'')"


RUNS_ON = """
import subprocess, sys
from kclient.kernels.process.local import LocalLauncher
if "no-pidfd" in sys.argv:
    import os
    del os.pidfd_open
quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
print(LocalLauncher().start(["sleep", "60"], **quiet).pid)
"""


@pytest.mark.parametrize("prelude", ["", "from gevent import monkey; monkey.patch_all()\n"])
@pytest.mark.parametrize("platform", ["", "no-pidfd"])
def test_program_ends_although_its_process_runs_on(prelude, platform):
    pid = int(run_script(prelude + RUNS_ON, platform))
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGKILL)
        assert select.select([pidfd], [], [], WAIT)[0]
    finally:
        os.close(pidfd)


# Ctrl-C


@pytest.mark.parametrize("seen_by", ["the hub", "is_alive"])
def test_ctrl_c_at_any_line_of_a_callback_does_not_lose_the_end(watched_by, seen_by):
    """The main greenlet waits outside of kclient, so a Ctrl-C may be raised at any line that runs in the hub."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}

    def wait():
        if seen_by == "is_alive":
            process.is_alive()
        process.exited.wait(WAIT)
        gevent.idle()  # a Ctrl-C noted in the hub is raised with the loop's next turn

    for at in count(1):
        process = LocalLauncher().start(["sleep", "60"], **quiet)
        told = []
        process.exited.rawlink(told.append)
        os.killpg(process.pid, signal.SIGKILL)
        if watched_by == "pidfd":
            wait_without_reaping(process.pid)
        strike = Strike(at)
        error = strike.during(wait)
        assert isinstance(error, KeyboardInterrupt) or not strike.where, f"{error!r} at {strike.where}"
        assert process.exited.wait(WAIT), strike.where
        gevent.idle()
        assert (process.exit_code, is_reaped(process.pid), len(told)) == (-signal.SIGKILL, True, 1), strike.where
        process.close()
        if not strike.where:
            break
    assert at > 10
