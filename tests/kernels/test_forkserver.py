import gc
import json
import os
import re
import resource
import signal
import subprocess
import sys
import weakref
from contextlib import suppress
from itertools import count

import gevent
import gevent.select
import pytest
from fixtures import in_forked_child
from strikes import Strike

import kclient
from benchmarks.descendants import descendants, parent_of
from kclient import ForkServer, InvalidArgument, InvalidState, LaunchError, WrongThread
from kclient.kernels.forkserver import exit_watcher
from kclient.kernels.forkserver import server as server_module
from kclient.kernels.forkserver.python_command import read_python_command
from kclient.kernels.process.local import LocalLauncher

WAIT = 20
"""Seconds, for a wait of milliseconds on an idle machine."""

BARE = [sys.executable, "-I", "-S"]
"""A Python that imports nothing, so that its fork server is up at once."""

RUN_ON = "print('up', flush=True); import signal; signal.alarm(60); signal.pause()"

STATE = """
import json, os, signal, sys, threading
names = dict(globals())
print(json.dumps({
    "names": {name: str(value) for name, value in names.items() if name.startswith("__")},
    "is main": vars(sys.modules["__main__"]) is globals(),
    "argv": sys.argv, "orig_argv": sys.orig_argv, "path": sys.path, "flags": str(sys.flags), "-W": sys.warnoptions,
    "environment": dict(os.environ), "directory": os.getcwd(),
    "handlers": [str(signal.getsignal(signum)) for signum in signal.valid_signals()],
    "mask": [*signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    "leads a session": os.getsid(0) == os.getpgid(0) == os.getpid(),
    "stdin": os.readlink("/proc/self/fd/0"),
    "line by line": [sys.stdout.line_buffering, sys.stderr.line_buffering],
    "threads": threading.active_count(), "main thread": threading.main_thread().native_id == os.getpid(),
}))
"""


@pytest.fixture(scope="module")
def server():
    """A fork server for BARE that many tests share. Some tests kill its process."""
    with ForkServer() as server:
        process = server.start([*BARE, "-c", ""])
        process.exited.wait(WAIT)
        process.close()
        yield server


@pytest.fixture
def own_server():
    """A fork server of the test's own. The test may kill its processes."""
    with ForkServer() as server:
        yield server


@pytest.fixture
def launch(server):
    """Start Python code in a forked process. A process that still runs at the end of the test is ended."""
    started = []

    def start(code, *arguments, launcher=None, python=BARE, **where):
        process = (launcher or server).start([*python, "-c", code, *arguments], **where)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        assert process.exited.wait(WAIT)
        process.close()


@pytest.fixture(params=["forked", "local"])
def either(request, server):
    """Both launchers: they must behave alike."""
    return server if request.param == "forked" else LocalLauncher()


@pytest.fixture
def running(launch, either):
    process = launch(RUN_ON, launcher=either, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"up\n"
    return process


def end_of(process):
    assert process.exited.wait(WAIT)
    return process.exit_code


def text_of(process):
    text = process.stdout.read().decode()
    assert end_of(process) == 0, process.stderr_tail()
    return text


def server_of(process):
    return parent_of(process.pid)


def kill_server_of(process):
    """Kill the fork server of the process, and wait until it is dead. It is not reaped then."""
    pid = server_of(process)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


# As with any other launcher


@pytest.mark.parametrize("how", ["code", "module", "script", "options"])
def test_process_is_what_the_interpreter_would_be(own_server, folder, how):
    (folder / "program.py").write_text(STATE)
    argv = {
        "code": [*BARE, "-c", STATE, "-x", "y"],
        "module": [sys.executable, "-S", "-m", "program", "-x", "y"],
        "script": [sys.executable, "-S", "program.py", "-x", "y"],
        "options": [sys.executable, "-SBX", "faulthandler", "-W", "ignore::UserWarning", "-m", "program"],
    }[how]
    env = {**os.environ, "ONLY_THERE": "1"}
    states = []
    for launcher in (own_server, LocalLauncher()):
        process = launcher.start(argv, env=env, cwd=folder, stdout=subprocess.PIPE)
        states.append(json.loads(text_of(process)))
        process.close()
    one, other = [re.sub("0x[0-9a-f]+", "", json.dumps(state, indent=1, sort_keys=True)) for state in states]
    assert one == other


@pytest.mark.parametrize("code", [0, 7])
def test_exit_code_is_known(launch, either, code):
    assert end_of(launch(f"raise SystemExit({code})", launcher=either)) == code


def test_signal_that_ended_it_is_known(running):
    running.send_signal(signal.SIGTERM)
    assert end_of(running) == -signal.SIGTERM
    assert not running.is_alive()
    running.send_signal(signal.SIGTERM)


def test_interrupt_is_a_keyboard_interrupt(launch, either):
    code = "try:\n print('up', flush=True)\n while True: pass\nexcept KeyboardInterrupt: raise SystemExit(5)"
    process = launch(code, launcher=either, stdout=subprocess.PIPE)
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert end_of(process) == 5


def test_end_is_seen_without_a_turn_of_the_loop(running):
    running.kill()
    with open(os.pidfd_open(running.pid)) as pidfd:
        assert exit_watcher.has_event(pidfd.fileno(), 1, WAIT)  # blocks the hub
    assert not running.is_alive()
    assert running.exit_code == -signal.SIGKILL


def test_children_end_with_it(launch, either):
    code = "import os, signal\nif os.fork():\n print('up', flush=True); raise SystemExit(3)\nsignal.pause()"
    reading, writing = os.pipe()
    process = launch(code, launcher=either, stdout=writing)
    os.close(writing)
    with open(reading) as pipe:
        assert end_of(process) == 3
        assert pipe.read() == "up\n"  # until the pipe ends, which is when the child ends


def test_last_output_is_kept(launch, either):
    process = launch("import sys; print('out'); sys.exit('wrong')", launcher=either)
    assert end_of(process) == 1
    assert sorted(process.stderr_tail().split()) == ["out", "wrong"]
    process.close()
    assert "wrong" in process.stderr_tail()


def test_errors_go_where_the_output_goes(launch, either):
    code = "import os; os.write(1, b'1'); os.write(2, b'2')"
    process = launch(code, launcher=either, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert text_of(process) == "12"


def test_output_goes_into_a_file_of_the_users_own(launch, either, folder):
    with open(folder / "out", "w") as file:
        process = launch("print('hi')", launcher=either, stdout=file, stderr=subprocess.DEVNULL)
    assert end_of(process) == 0
    assert (folder / "out").read_text() == "hi\n"


@pytest.mark.parametrize(
    "where",
    [{"cwd": "/nonexistent"}, {"cwd": "/etc/passwd"}, {"env": {"A": "\0"}}, {"env": {"A": "\ud800"}}, {"stdout": 999}],
    ids=str,
)
def test_command_that_cannot_be_started_is_a_launch_error(server, where):
    messages = []
    for launcher in (server, LocalLauncher()):
        with pytest.raises(LaunchError) as caught:
            launcher.start([*BARE, "-c", ""], **where)
        messages.append((str(caught.value), caught.value.argv))
    assert messages[0] == messages[1]


def test_interpreter_that_does_not_exist_is_a_launch_error(server):
    with pytest.raises(LaunchError, match="No such file or directory: '/nonexistent/python3'"):
        server.start(["/nonexistent/python3", "-m", "ipykernel_launcher"])


def test_process_has_no_other_files_than_its_own(launch):
    code = "import os\nwith os.scandir('/proc/self/fd') as all: print([os.readlink(file)[:5] for file in all])"
    text = text_of(launch(code, stdout=subprocess.PIPE))
    assert text.count("/dev/") == 1
    assert text.count("pipe:") == 2, "its output, and its keep-alive pipe"
    assert "socke" not in text


def test_large_environment_is_no_obstacle(launch):
    code = "import os; print(len(os.environ['BIG']))"
    assert text_of(launch(code, env={**os.environ, "BIG": "x" * 1_000_000}, stdout=subprocess.PIPE)) == "1000000\n"


# State that forks must not share


SECRETS = """
import random, secrets, tempfile, uuid, multiprocessing, numpy, json
print(json.dumps([random.random(), secrets.token_hex(), tempfile.mktemp(), str(uuid.uuid1()), str(uuid.uuid4()),
    numpy.random.random(), numpy.random.default_rng().random(), multiprocessing.current_process().authkey.hex()]))
"""


def test_forks_differ_in_what_processes_differ_in(launch):
    preload = ["random", "secrets", "tempfile", "uuid", "multiprocessing", "numpy.random"]
    with ForkServer(preload) as server:
        processes = [
            launch(SECRETS, launcher=server, python=[sys.executable], stdout=subprocess.PIPE) for _ in range(2)
        ]
        one, other = [json.loads(text_of(process)) for process in processes]
    assert [left for left, right in zip(one, other, strict=True) if left == right] == []


# The choice of a server


def test_processes_of_a_kind_have_one_server(own_server, launch):
    one, other = [launch(RUN_ON, launcher=own_server) for _ in range(2)]
    another = launch(RUN_ON, launcher=own_server, env={"PYTHONHASHSEED": "1"})
    assert server_of(one) == server_of(other) != server_of(another)


def test_modules_are_imported_before_the_fork(launch, folder, monkeypatch):
    (folder / "slowly.py").write_text("import os\npid = os.getpid()\nprint('noise')")
    monkeypatch.chdir(folder)
    with ForkServer(["slowly"]) as server:
        python = [sys.executable, "-S"]
        process = launch("import slowly; print(slowly.pid)", launcher=server, python=python, stdout=subprocess.PIPE)
        pid = int(text_of(process))
    assert pid != process.pid


def test_variables_that_an_imported_module_sets_are_there_unless_the_kernel_has_its_own(launch, folder, monkeypatch):
    (folder / "settings.py").write_text("import os\nos.environ.update(MADE='1', CHANGED='by the module')")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CHANGED", "by us")
    code = "import os; print(os.environ['MADE'], os.environ['CHANGED'])"
    with ForkServer(["settings"]) as server:
        for given, found in [({}, "1 by the module\n"), ({"CHANGED": "for this one"}, "1 for this one\n")]:
            python = [sys.executable, "-S"]
            env = {**os.environ, **given}
            assert text_of(launch(code, launcher=server, python=python, env=env, stdout=subprocess.PIPE)) == found


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import nonexistent_", "ModuleNotFoundError: No module named 'nonexistent_'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
    ],
)
def test_module_that_cannot_be_imported_is_named_with_the_reason(folder, monkeypatch, source, said):
    (folder / "broken.py").write_text(source)
    monkeypatch.chdir(folder)
    with ForkServer(["json", "broken"]) as server:
        for _ in range(2):
            with pytest.raises(LaunchError) as caught:
                server.start([sys.executable, "-S", "-c", ""])
            assert f"'broken', which cannot be imported: {said}" in str(caught.value)
            assert 'broken.py", line 1' in caught.value.stderr
        (folder / "broken.py").write_text("")
        process = server.start([sys.executable, "-S", "-c", ""])
        assert end_of(process) == 0
        process.close()


@pytest.mark.parametrize(
    ("module", "source"),
    [("patching", "from gevent import monkey; monkey.patch_all()"), ("importing", "import patching")],
    ids=["", "by another module"],
)
def test_module_that_monkey_patches_threads_is_named_at_once(folder, monkeypatch, module, source):
    (folder / "patching.py").write_text("from gevent import monkey; monkey.patch_all()")
    (folder / f"{module}.py").write_text(source)
    monkeypatch.chdir(folder)
    with ForkServer(["json", module]) as server:
        for _ in range(2):
            with pytest.raises(LaunchError, match=f"monkey-patched by gevent when it preloaded '{module}'"):
                server.start([sys.executable, "-c", ""])


def test_interpreter_that_monkey_patches_before_the_preload_is_told_of(folder, monkeypatch):
    (folder / "sitecustomize.py").write_text("from gevent import monkey; monkey.patch_all()")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    with (
        ForkServer() as server,
        pytest.raises(LaunchError, match="monkey-patched by gevent before .* a .pth file or sitecustomize"),
    ):
        server.start([sys.executable, "-c", ""])


def test_module_that_patches_something_else_does_no_harm(launch, folder, monkeypatch):
    (folder / "patching.py").write_text("from gevent import monkey; monkey.patch_all(thread=False, select=False)")
    monkeypatch.chdir(folder)
    with ForkServer(["patching"]) as server:
        process = launch("print('up')", launcher=server, python=[sys.executable], stdout=subprocess.PIPE)
        assert text_of(process) == "up\n"


def test_server_that_dies_as_it_imports_is_a_launch_error(folder, monkeypatch):
    (folder / "deadly.py").write_text("import os, sys\nprint('last output', file=sys.stderr)\nos.kill(os.getpid(), 9)")
    monkeypatch.chdir(folder)
    with ForkServer(["deadly"]) as server, pytest.raises(LaunchError, match="last output") as caught:
        server.start([sys.executable, "-S", "-c", ""])
    assert caught.value.exit_code == -signal.SIGKILL


def test_server_that_ends_by_itself_has_its_own_exit_code(folder, monkeypatch):
    """Its socket is closed some time before it has ended."""
    monkeypatch.setattr(server_module, "HUB_WAIT_S", WAIT)
    (folder / "leaving.py").write_text("import os, time\nos.closerange(0, 64)\ntime.sleep(0.2)\nos._exit(3)")
    monkeypatch.chdir(folder)
    with ForkServer(["leaving"]) as server, pytest.raises(LaunchError, match="exit code 3") as caught:
        server.start([sys.executable, "-S", "-c", ""])
    assert caught.value.exit_code == 3


def test_server_that_leaves_and_does_not_end_is_killed_and_said_to_have_no_exit_code(folder, monkeypatch):
    monkeypatch.setattr(server_module, "HUB_WAIT_S", 0.001)
    (folder / "staying.py").write_text("import os, signal\nos.closerange(0, 64)\nsignal.pause()")
    monkeypatch.chdir(folder)
    with ForkServer(["staying"]) as server, pytest.raises(LaunchError) as caught:
        server.start([sys.executable, "-S", "-c", ""])
    assert caught.value.exit_code is None
    assert "SIGKILL" not in str(caught.value)


def test_threads_of_a_preloaded_module_are_warned_of(launch, folder, monkeypatch, caplog):
    code = "import threading\nthreading.Thread(target=threading.Event().wait, name='busy', daemon=True).start()"
    (folder / "threaded.py").write_text(code)
    monkeypatch.chdir(folder)
    with ForkServer(["threaded"]) as server:
        launch("", launcher=server, python=[sys.executable, "-S"])
    gevent.sleep()
    assert "which its kernels will not have: busy" in caplog.text


# The server's end


def test_kernels_go_on_without_their_server_and_the_next_start_has_a_new_one(own_server, launch):
    process = launch(RUN_ON, launcher=own_server, stdout=subprocess.PIPE)
    process.stdout.readline()
    kill_server_of(process)
    other = launch(RUN_ON, launcher=own_server)
    assert process.is_alive()
    process.send_signal(signal.SIGTERM)
    assert process.exited.wait(WAIT)
    assert process.exit_code in (-signal.SIGTERM, None)  # None before Linux 6.15, or if no process reaps orphans
    assert other.is_alive()


def test_server_that_is_killed_while_it_starts_a_kernel_is_replaced(own_server, launch, background):
    process = launch(RUN_ON, launcher=own_server)
    pid = server_of(process)
    os.kill(pid, signal.SIGSTOP)
    start = background(launch, RUN_ON, launcher=own_server)
    os.kill(pid, signal.SIGKILL)
    assert server_of(start.get()) != pid


def test_start_that_is_given_up_leaves_no_process(server, launch, background):
    process = launch(RUN_ON)
    pid = server_of(process)
    os.kill(pid, signal.SIGSTOP)
    start = background(server.start, [*BARE, "-c", RUN_ON])
    start.greenlet.kill()
    os.kill(pid, signal.SIGCONT)
    other = launch(RUN_ON)  # the server answers one request after the other
    assert {process.pid, other.pid} <= {*descendants(pid)}
    gevent.sleep()


def test_stuck_server_keeps_nobody_waiting(own_server, launch, monkeypatch):
    monkeypatch.setattr(server_module, "HUB_WAIT_S", 0)
    monkeypatch.setattr(server_module, "REAP_WAIT_S", 0.01)
    process = launch(RUN_ON, launcher=own_server)
    os.kill(server_of(process), signal.SIGSTOP)
    process.kill()
    assert end_of(process) in (-signal.SIGKILL, None)


@pytest.fixture
def silent(own_server, launch):
    """The pidfd of a fork server's process. The process is stopped and has no kernel."""
    process = launch(RUN_ON, launcher=own_server)
    pid = server_of(process)
    pidfd = os.pidfd_open(pid)
    process.kill()
    end_of(process)
    os.kill(pid, signal.SIGSTOP)
    yield pidfd
    os.close(pidfd)


def test_silent_server_is_replaced_although_no_start_waits_for_it(own_server, silent, background, monkeypatch):
    monkeypatch.setattr(server_module, "ANSWER_WAIT_S", 0.05)
    background(own_server.start, [*BARE, "-c", ""]).greenlet.kill()
    assert gevent.select.select([silent], [], [], WAIT)[0]


def test_silent_server_is_named_as_the_reason(own_server, silent, monkeypatch):
    monkeypatch.setattr(server_module, "ANSWER_WAIT_S", 0.05)
    with pytest.raises(LaunchError, match=r"has not answered within 0\.05 s"):
        own_server.start([*BARE, "-c", ""])


def test_closed_server_waits_for_no_start_that_was_given_up(own_server, silent, background):
    background(own_server.start, [*BARE, "-c", ""]).greenlet.kill()
    own_server.close()
    assert exit_watcher.has_event(silent, 1)


def test_ctrl_c_at_any_line_of_a_callback_does_not_lose_the_end(server):
    """The main greenlet waits outside of kclient. The first lines learn of the end, the last ones of the exit code."""

    def wait():
        process.exited.wait(WAIT)
        gevent.idle()  # a Ctrl-C noted in the hub is raised with the loop's next turn

    for at in count(1):
        process = server.start([*BARE, "-c", RUN_ON])
        process.kill()
        strike = Strike(at)
        error = strike.during(wait)
        assert isinstance(error, KeyboardInterrupt) or not strike.where, f"{error!r} at {strike.where}"
        assert end_of(process) == -signal.SIGKILL, strike.where
        process.close()
        if not strike.where:
            break
    assert at > 50


def test_file_that_is_none_leaves_the_server_as_it_was(own_server):
    for _ in range(server_module.STARTS_AT_ONCE + 1):
        with pytest.raises(LaunchError, match="Bad file descriptor"):
            own_server.start([*BARE, "-c", ""], stdout=999)


@pytest.fixture
def few_descriptors():
    """A function that leaves this process as many free descriptors as it is told."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = []
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 20  # numbers below the highest open one may be free

    def leave(count):
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        with suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(count):
            os.close(taken.pop())

    yield leave
    for number in taken:
        os.close(number)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", range(5))
def test_start_without_descriptors_for_it_fails_at_once_and_the_next_one_works(launch, few_descriptors, left):
    """With 4 the server can be asked for a process, but this process cannot receive its descriptors."""
    pid = server_of(launch(RUN_ON))
    few_descriptors(left)
    with pytest.raises(LaunchError, match="Too many open files"):
        launch("import signal; signal.pause()", stdout=1, stderr=1)
    few_descriptors(10)
    assert server_of(launch(RUN_ON)) == pid


def test_closed_server_ends_with_the_last_of_its_kernels(launch):
    server = ForkServer()
    process = launch(RUN_ON, launcher=server)
    pidfd = os.pidfd_open(server_of(process))
    server.close()
    server.close()
    with pytest.raises(InvalidState, match="closed"):
        server.start([*BARE, "-c", ""])
    assert process.is_alive()
    assert not exit_watcher.has_event(pidfd, 1)
    process.kill()
    assert end_of(process) == -signal.SIGKILL
    assert exit_watcher.has_event(pidfd, 1)
    os.close(pidfd)


def test_dropped_server_ends():
    server = ForkServer()
    gone = weakref.ref(server)
    del server
    gc.collect()
    assert gone() is None  # the leak check fails if a process is left


KILLED = """
import os, signal, subprocess, sys
from kclient import ForkServer
process = ForkServer().start([sys.executable, "-I", "-S", "-c", sys.argv[1]], stdout=subprocess.PIPE)
process.stdout.readline()
print(process.pid, flush=True)
signal.alarm(60)
signal.pause()
"""


@pytest.mark.parametrize("server_too", [False, True], ids=["", "after its server"])
def test_kernels_end_with_a_program_that_is_killed(start_script, server_too):
    script = start_script(KILLED, RUN_ON)
    pidfd = os.pidfd_open(pid := int(script.read_line()))
    if server_too:
        os.kill(parent_of(pid), signal.SIGKILL)
        assert not exit_watcher.has_event(pidfd, 1)
    script.process.kill()
    assert exit_watcher.has_event(pidfd, 1, WAIT)
    os.close(pidfd)


def test_kernel_ends_with_the_program_although_a_forked_child_of_that_lives(start_script):
    script = start_script(
        KILLED.replace("print(process.pid", "child = os.fork(); child and print(process.pid, child"), RUN_ON
    )
    kernel, child = map(int, script.read_line().split())
    pidfd = os.pidfd_open(kernel)
    script.process.kill()
    assert exit_watcher.has_event(pidfd, 1, WAIT)
    os.close(pidfd)
    os.kill(child, signal.SIGKILL)


BUSY = """
import os, signal
from kclient import ForkServer
signal.signal(signal.SIGUSR1, lambda *_: os._exit(1))
server = ForkServer(["busy"])
with open("pid") as fifo:
    print(fifo.read(), flush=True)
signal.alarm(60)
signal.pause()
"""


@pytest.mark.parametrize("is_stopped", [False, True], ids=["", "stopped"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1], ids=lambda end: end.name)
def test_server_that_imports_ends_with_the_program(start_script, folder, monkeypatch, end, is_stopped):
    """So does each process that the module has started."""
    monkeypatch.chdir(folder)
    os.mkfifo("pid")
    (folder / "busy.py").write_text(
        "import os, signal\n"
        "helper = os.fork()\n"
        "if helper:\n    with open('pid', 'w') as fifo: print(os.getpid(), helper, file=fifo)\n"
        "signal.alarm(60); signal.pause()"
    )
    script = start_script(BUSY)
    pids = [int(pid) for pid in script.read_line().split()]
    pidfds = [os.pidfd_open(pid) for pid in pids]
    if is_stopped:
        os.kill(pids[0], signal.SIGSTOP)
    script.process.send_signal(end)
    for pidfd in pidfds:
        assert exit_watcher.has_event(pidfd, 1, WAIT)
        os.close(pidfd)


@pytest.fixture
def with_helper(folder, monkeypatch):
    """A fork server whose module has forked a process, which has copies of all descriptors."""
    (folder / "helped.py").write_text(
        "import os, signal\npid = os.fork()\nif not pid:\n    signal.alarm(60)\n    signal.pause()"
    )
    monkeypatch.chdir(folder)
    with ForkServer(["helped"]) as server:
        yield server


def helper_of(process):
    """A pidfd of the helper."""
    python = [sys.executable, "-S", "-c", "import helped; print(helped.pid)"]
    asking = process.start(python, stdout=subprocess.PIPE)
    pid = int(text_of(asking))
    asking.close()
    return os.pidfd_open(pid)


def test_server_that_is_killed_is_replaced_at_once_although_a_helper_of_a_module_lives(with_helper, launch):
    helper = helper_of(with_helper)
    python = [sys.executable, "-S"]
    process = launch(RUN_ON, launcher=with_helper, python=python)
    kill_server_of(process)
    with gevent.Timeout(WAIT):  # less than a silent server has
        other = launch(RUN_ON, launcher=with_helper, python=python)
    assert server_of(other) != os.getpid()
    assert exit_watcher.has_event(helper, 1, WAIT)
    os.close(helper)
    assert process.is_alive()
    process.kill()
    assert end_of(process) in (-signal.SIGKILL, None)


def test_server_that_is_killed_during_a_start_is_replaced_although_a_helper_lives(with_helper, launch, background):
    python = [sys.executable, "-S"]
    process = launch(RUN_ON, launcher=with_helper, python=python)
    pid = server_of(process)
    os.kill(pid, signal.SIGSTOP)
    start = background(launch, RUN_ON, launcher=with_helper, python=python)
    os.kill(pid, signal.SIGKILL)
    assert server_of(start.get()) != pid


def test_helper_of_a_module_ends_with_the_server(with_helper):
    helper = helper_of(with_helper)
    with_helper.close()
    assert exit_watcher.has_event(helper, 1, WAIT)
    os.close(helper)


# Wrong callers and wrong arguments


def test_server_of_another_thread_or_process_is_refused(server):
    def start():
        with pytest.raises(WrongThread):
            server.start([*BARE, "-c", ""])
        return "refused"

    assert gevent.get_hub().threadpool.apply(start) == "refused"

    def start_in_child():
        try:
            server.start([*BARE, "-c", ""])
        except kclient.ForkedProcess:
            server.close()
            return "refused"

    assert in_forked_child(start_in_child) == "refused"


@pytest.mark.parametrize("preload", ["numpy", [3], ["numpy "], ["os/path"], [""], 5, None])
def test_preload_that_is_no_list_of_modules_is_refused(preload):
    with pytest.raises(InvalidArgument, match="preload must be a list of module names"):
        ForkServer(preload)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["bash"],
        ["python-kernel", "-m", "x"],
        ["python3"],
        ["python3", "-"],
        ["python3", "-m"],
        ["python3", "-i", "x.py"],
        ["python3", "--help"],
        ["python3", "-X"],
    ],
)
def test_command_that_runs_no_python_program_is_refused(server, argv):
    with pytest.raises(InvalidArgument, match="leave out launcher= for this kernel"):
        server.start(argv)


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("-m x -f y", ((), "module", "x", ("-f", "y"))),
        ("-Im x", (("-I",), "module", "x", ())),
        ("-mx -m", ((), "module", "x", ("-m",))),
        ("-X dev -Xutf8 -W error -c pass", (("-X", "dev", "-X", "utf8", "-W", "error"), "code", "pass", ())),
        ("-uBXdev x.py -X", (("-uB", "-X", "dev"), "script", "x.py", ("-X",))),
    ],
)
def test_command_line_of_python_is_read(words, read):
    line = read_python_command(["/usr/bin/python3.11", *words.split()])
    assert (line.options, line.kind, line.target, line.arguments) == read


@pytest.mark.parametrize("patch", ["", "from gevent import monkey; monkey.patch_all()\n"], ids=["", "patched"])
@pytest.mark.parametrize("thread", [False, True], ids=["", "in a thread"])
def test_it_works_in_any_hub(run_script, patch, thread):
    code = patch + (
        "import sys, gevent\nfrom kclient import ForkServer\n"
        "def main():\n"
        "    with ForkServer() as server:\n"
        "        process = server.start([sys.executable, '-I', '-S', '-c', 'raise SystemExit(3)'])\n"
        "        process.exited.wait(20)\n"
        "        print(process.exit_code)\n"
        "        process.close()\n"
    )
    code += "gevent.get_hub().threadpool.apply(main)\n" if thread else "main()\n"
    assert run_script(code) == "3"
