import gc
import os
import signal
import subprocess
import sys
import time
import weakref

import gevent
import pytest

import kclient
from kclient.kernels import provisioner
from kclient.kernels.connection.ports import is_local
from kclient.kernels.process.local import LocalLauncher

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
from ipykernel.ipkernel import IPythonKernel
class Kernel(IPythonKernel):
    async def shutdown_request(self, stream, ident, parent):
        self.session.send(stream, "shutdown_reply", {"status": "ok", "restart": False}, parent, ident=ident)
from ipykernel.kernelapp import IPKernelApp
IPKernelApp.launch_instance(argv=["-f", sys.argv[1]], kernel_class=Kernel)
"""
"""A kernel that answers a shutdown_request and goes on, and ignores SIGTERM."""


class RecordingLauncher:
    """A launcher of the user's own. It keeps the arguments of each start, and the value of `look` at that time."""

    def __init__(self, look=lambda argv: None):
        self.started = []
        self.look = look

    def start(self, argv, *, env=None, cwd=None, stdout=None, stderr=None):
        self.started.append({"argv": argv, "env": env, "cwd": cwd, "seen": self.look(argv)})
        return LocalLauncher().start(argv, env=env, cwd=cwd, stdout=stdout, stderr=stderr)


# start_kernel


def test_manager_by_hand_starts_a_kernel(transport):
    manager = kclient.KernelManager(transport=transport)
    assert not manager.has_kernel
    assert not manager.is_alive()
    manager.start_kernel()
    assert manager.has_kernel
    assert manager.is_alive()
    manager.start_channels()
    manager.wait_for_ready(WAIT)
    assert manager.run("print('by hand')").stdout == "by hand\n"
    manager.stop_channels()
    assert manager.is_alive()
    manager.shutdown_kernel()
    assert not manager.has_kernel
    assert not manager.is_alive()


def test_context_manager_cleans_up_after_an_error(runtime_dir, transport):
    manager = kclient.start_kernel(transport=transport, timeout=WAIT)
    process = manager.process
    with pytest.raises(ZeroDivisionError), manager:
        raise ZeroDivisionError
    assert process.exited.is_set()
    assert not manager.channels_running
    assert list(runtime_dir.iterdir()) == []


def test_kernel_can_be_started_again_after_a_shutdown(transport):
    manager = kclient.KernelManager(transport=transport)
    for number in range(2):
        manager.start_kernel()
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        assert manager.run(f"print({number})").stdout == f"{number}\n"
        manager.shutdown_kernel()


def test_starting_twice_is_refused(kernel):
    pid = kernel.process.pid
    with pytest.raises(RuntimeError, match="started already"):
        kernel.start_kernel()
    assert kernel.process.pid == pid
    assert kernel.run("'still the first'").ok


def test_arguments_are_passed_down(start_kernel, folder, transport):
    printed = folder / "printed"
    with open(printed, "wb") as output:
        manager = start_kernel(
            transport=transport,
            cwd=folder,
            env={"KCLIENT_TEST": "yes"},
            extra_arguments=["--IPKernelApp.exec_lines=given = 42"],
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        result = manager.run("import os; os.write(1, b'to the file'); (os.getcwd(), os.environ['KCLIENT_TEST'], given)")
    assert result.text == f"({str(folder.resolve())!r}, 'yes', 42)"
    assert b"to the file" in printed.read_bytes()


def test_environment_of_this_process_is_passed_down(start_kernel, monkeypatch):
    monkeypatch.setenv("KCLIENT_TEST", "inherited")
    result = start_kernel().run("import os; os.environ['KCLIENT_TEST'], os.environ['JPY_PARENT_PID']")
    assert result.text == f"('inherited', '{os.getpid()}')"


def test_kernel_leads_a_session_of_its_own(kernel):
    assert os.getsid(kernel.process.pid) == kernel.process.pid


def test_custom_launcher_starts_the_kernel(start_kernel, transport):
    launcher = RecordingLauncher()
    manager = start_kernel(transport=transport, launcher=launcher, extra_arguments=["--quiet"], env={"A": "b"})
    (started,) = launcher.started
    assert started["argv"][-1] == "--quiet"
    assert manager.connection_file in started["argv"]
    assert started["env"]["A"] == "b"
    assert manager.run("6 * 7").text == "42"
    assert manager.is_alive()


def test_every_channel_of_the_manager_is_the_clients(kernel):
    for name in ("shell", "iopub", "stdin", "hb", "control"):
        channel = getattr(kernel, f"{name}_channel")
        assert channel is getattr(kernel.client, f"{name}_channel")
        assert channel.is_alive()
    assert kernel.session is kernel.client.session


def test_key_shows_in_no_repr(kernel):
    key = kernel.get_connection_info()["key"]
    info = kclient.ConnectionInfo.from_dict(kernel.get_connection_info())
    things = [kernel, kernel.client, kernel.session, info, kernel.shell_channel, kernel.process, kernel.kernel_spec]
    assert len(key) >= 32
    assert not any(key in repr(thing) for thing in things)


# Addresses


def test_only_an_address_of_this_machine_can_be_started_on(runtime_dir):
    with pytest.raises(RuntimeError) as caught:
        kclient.start_kernel(ip="192.0.2.77")
    assert "192.0.2.77" in str(caught.value)
    assert "127.0.0.1" in str(caught.value)
    assert "0.0.0.0" in str(caught.value)
    assert list(runtime_dir.iterdir()) == []


def test_star_means_every_address_of_this_machine(start_kernel):
    manager = start_kernel(ip="*")
    assert manager.get_connection_info()["ip"] == "0.0.0.0"
    assert manager.shell_channel.address.startswith("tcp://127.0.0.1:")
    assert manager.run("6 * 7").text == "42"


def test_ports_are_chosen_at_start_and_differ(kernel, transport):
    info = kernel.get_connection_info()
    ports = [info[f"{name}_port"] for name in ("shell", "iopub", "stdin", "hb", "control")]
    assert len({*ports}) == 5
    assert 0 not in ports
    fresh = kclient.KernelManager(transport=transport)
    assert {fresh.get_connection_info()[f"{name}_port"] for name in ("shell", "iopub", "stdin", "hb", "control")} == {0}
    with pytest.raises(kclient.InvalidPortNumber):
        fresh.start_channels()


@pytest.mark.parametrize("transport", ["udp", "", None])
def test_unknown_transport_is_refused(transport):
    with pytest.raises(ValueError, match="transport must be 'tcp' or 'ipc'"):
        kclient.KernelManager(transport=transport)


# Kernels that do not come up


def test_kernel_that_does_not_exist_is_an_error_that_tells_which_do(runtime_dir):
    with pytest.raises(kclient.NoSuchKernel) as caught:
        kclient.start_kernel("no-such-kernel")
    error = caught.value
    assert isinstance(error, KeyError)
    assert error.name == "no-such-kernel"
    assert "python3" in error.available
    assert error.searched
    assert "no-such-kernel" in str(error)
    assert "python3" in str(error)
    assert list(runtime_dir.iterdir()) == []


def test_kernel_that_ends_at_once_is_an_error_with_all_there_is_to_know(install_kernel, transport, runtime_dir):
    install_kernel("import sys; print('so it is', file=sys.stderr); sys.exit(3)")
    with pytest.raises(kclient.LaunchError) as caught:
        kclient.start_kernel("odd", transport=transport, timeout=WAIT)
    error = caught.value
    assert error.exit_code == 3
    assert error.stderr.strip() == "so it is"
    assert error.argv[:2] == [sys.executable, "-c"]
    assert error.argv[-1].endswith(".json")
    assert all(part in str(error) for part in ("odd", "exit code 3", "so it is", error.argv[-1]))
    assert list(runtime_dir.iterdir()) == []


def test_exit_of_a_kernel_that_never_answered_is_known_at_once(install_kernel, folder):
    """The end is known within 100 ms. The kernel writes down when it ended, and a busy machine may add some time."""
    install_kernel(f"import sys, time; print(time.monotonic(), file=open({str(folder / 'ended')!r}, 'w'), flush=True)")
    delays = []
    for _ in range(5):
        with pytest.raises(kclient.LaunchError):
            kclient.start_kernel("odd", timeout=WAIT)
        delays.append(time.monotonic() - float((folder / "ended").read_text()))
        if delays[-1] < 0.1:
            break
    assert min(delays) < 0.1


def test_kernel_killed_while_it_starts_is_an_error_with_the_signal(install_kernel):
    install_kernel("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(kclient.LaunchError, match="killed by SIGSEGV") as caught:
        kclient.start_kernel("odd", timeout=WAIT)
    assert caught.value.exit_code == -signal.SIGSEGV


def test_kernel_that_never_answers_times_out_with_what_it_printed(install_kernel, runtime_dir):
    install_kernel("import sys, signal; print('hm', file=sys.stderr, flush=True); signal.pause()")
    for timeout in (0.2, 2, 20):  # more if this machine needs it to start the kernel
        with pytest.raises(kclient.KernelTimeout) as caught:
            kclient.start_kernel("odd", timeout=timeout)
        if "hm" in str(caught.value):
            break
    assert "hm" in str(caught.value)
    assert sys.executable in str(caught.value)
    assert list(runtime_dir.iterdir()) == []


def test_kernel_that_binds_no_ipc_address_is_told_of_with_what_to_do(install_kernel):
    install_kernel("import sys; sys.exit(1)", "ends")
    install_kernel("import signal; signal.pause()", "waits")
    with pytest.raises(kclient.LaunchError, match="never listened at ipc:///.*-1; .* pass transport='tcp'"):
        kclient.start_kernel("ends", transport="ipc", timeout=WAIT)
    with pytest.raises(kclient.KernelTimeout, match="never listened at ipc:///.*-1; .* pass transport='tcp'"):
        kclient.start_kernel("waits", transport="ipc", timeout=0.1)


@pytest.mark.skipif(not is_local("::1"), reason="this machine has no IPv6")
def test_kernel_that_cannot_listen_on_ipv6_is_told_of(start_kernel):
    """ipykernel lacks it. A kernel that has it may be started so."""
    with pytest.raises(kclient.LaunchError, match="its ip '::1' is an IPv6 address, .* pass '127.0.0.1'"):
        start_kernel(ip="::1")


def test_command_that_cannot_be_executed_is_an_error(install_kernel, folder, runtime_dir):
    name = install_kernel("")
    manager = kclient.KernelManager(name)
    manager.kernel_spec.argv[0] = str(folder / "no-such-program")
    with pytest.raises(kclient.LaunchError, match="no-such-program") as caught:
        manager.start_kernel()
    assert caught.value.argv[0].endswith("no-such-program")
    assert not manager.has_kernel
    assert list(runtime_dir.iterdir()) == []


def test_kernel_that_prints_megabytes_while_it_starts_comes_up(install_kernel, start_kernel):
    """A pipe that kclient does not read would block the kernel."""
    install_kernel(
        "import sys\n"
        "for stream in (sys.stdout, sys.stderr):\n"
        "    print('x' * 4_000_000, file=stream, flush=True)\n"
        "from ipykernel.kernelapp import launch_new_instance\n"
        "launch_new_instance(argv=['-f', sys.argv[1]])"
    )
    manager = start_kernel("odd")
    assert manager.run("6 * 7").text == "42"


def test_error_shows_the_end_of_megabytes(install_kernel):
    install_kernel("import sys; sys.stderr.write('x' * 4_000_000 + ' the end'); sys.exit(1)")
    with pytest.raises(kclient.LaunchError) as caught:
        kclient.start_kernel("odd", timeout=WAIT)
    assert caught.value.stderr.endswith("the end")
    assert str(caught.value).endswith("the end")
    assert len(str(caught.value)) < 10_000


# Death


def everything_that_waits(manager, background, gate):
    """A call of each kind, all waiting for a kernel that is busy at the gate."""
    execution = manager.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    msg_id = manager.shell_channel.send("kernel_info_request")
    manager.iopub_channel.get_msgs()
    calls = {
        "result": background(execution.result),
        "iteration": background(list, execution),
        "run": background(manager.run, "1"),
        "request": background(manager.kernel_info),
        "get_reply": background(manager.shell_channel.get_reply, msg_id),
        "shell": background(manager.shell_channel.get_msg),
        "iopub": background(manager.iopub_channel.get_msg),
        "stdin": background(manager.stdin_channel.get_msg),
        "control": background(manager.control_channel.get_msg),
    }
    assert all(call.is_waiting for call in calls.values())
    return calls


def test_death_by_a_signal_wakes_everyone_who_waits(kernel_manager, background, gate):
    calls = everything_that_waits(kernel_manager, background, gate)
    os.kill(kernel_manager.process.pid, signal.SIGKILL)
    for name, call in calls.items():
        error = call.error()
        assert type(error) is kclient.DeadKernelError, name
        assert error.exit_code == -signal.SIGKILL
        assert "killed by SIGKILL" in str(error)
    assert calls["result"].error().result.stdout == "on\n"
    assert not kernel_manager.is_alive()
    assert kernel_manager.has_kernel
    for call in (kernel_manager.kernel_info, lambda: kernel_manager.run("1"), kernel_manager.shell_channel.get_msg):
        with pytest.raises(kclient.DeadKernelError):
            call()


def test_death_of_the_kernel_by_its_own_hand_tells_exit_code_and_last_words(kernel_manager):
    code = "import os, sys\nprint('out')\nsys.stdout.flush()\nos.write(2, b'my last output')\nos._exit(7)"
    with pytest.raises(kclient.DeadKernelError) as caught:
        kernel_manager.run(code)
    error = caught.value
    assert error.exit_code == 7
    assert error.stderr.endswith("my last output")
    assert "exit code 7" in str(error)
    assert "my last output" in str(error)
    assert error.result.reply is None
    assert not error.result.complete


def test_script_that_only_polls_sees_the_death(kernel_manager):
    execution = kernel_manager.submit("import os; os._exit(7)")
    deadline = time.monotonic() + WAIT
    while not execution.done():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    with pytest.raises(kclient.DeadKernelError):
        execution.result(timeout=0)
    assert not kernel_manager.is_alive()


def test_dead_kernel_can_be_shut_down_and_started_again(kernel_manager):
    kernel_manager.signal_kernel(signal.SIGKILL)
    with pytest.raises(kclient.DeadKernelError):
        kernel_manager.kernel_info()
    kernel_manager.shutdown_kernel()
    assert not kernel_manager.has_kernel
    kernel_manager.start_kernel()
    kernel_manager.start_channels()
    kernel_manager.wait_for_ready(WAIT)
    assert kernel_manager.run("6 * 7").text == "42"


# signal_kernel, kill_kernel, shutdown_kernel


def test_signal_kernel_sends_any_signal(kernel):
    execution = kernel.submit(
        "import signal\ngot = []\nold = signal.signal(signal.SIGUSR1, lambda number, frame: got.append(number))\n"
        "print('on', flush=True)\nwhile not got: signal.pause()\nsignal.signal(signal.SIGUSR1, old)\ngot"
    )
    next(iter(execution))
    kernel.signal_kernel(signal.SIGUSR1)
    assert execution.result().text == f"[{int(signal.SIGUSR1)}]"


@pytest.mark.parametrize("call", ["interrupt_kernel", "kill_kernel", "restart_kernel"])
def test_call_that_needs_a_kernel_raises_before_any_start(call):
    with pytest.raises(RuntimeError, match="start_kernel"):
        getattr(kclient.KernelManager(), call)()


def test_signal_kernel_raises_before_any_start_and_for_what_is_no_signal(kernel):
    with pytest.raises(RuntimeError, match="start_kernel"):
        kclient.KernelManager().signal_kernel(signal.SIGTERM)
    with pytest.raises(ValueError, match="not a signal"):
        kernel.signal_kernel(12345)


def test_kill_kernel_ends_it_and_its_children(kernel_manager):
    child = kernel_manager.run("import subprocess; child = subprocess.Popen(['sleep', '600']); child.pid").text
    process = kernel_manager.process
    kernel_manager.kill_kernel()
    assert process.exit_code == -signal.SIGKILL
    assert not kernel_manager.is_alive()
    assert not is_running(int(child))


def is_running(pid):
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_shutdown_asks_first(kernel_manager, folder):
    """The kernel runs its exit handlers, which shows that it was not killed."""
    kernel_manager.run(f"import atexit; atexit.register(lambda: open({str(folder / 'bye')!r}, 'w'))", check=True)
    kernel_manager.hb_channel.unpause()
    hb, process = kernel_manager.hb_channel, kernel_manager.process
    kernel_manager.shutdown_kernel()
    assert (folder / "bye").exists()
    assert process.exit_code == 0
    assert hb.is_paused
    assert not kernel_manager.channels_running


def test_shutdown_now_does_not_ask(kernel_manager, folder, background, gate):
    kernel_manager.run(f"import atexit; atexit.register(lambda: open({str(folder / 'bye')!r}, 'w'))", check=True)
    process = kernel_manager.process
    running = background(kernel_manager.run, gate.code)
    kernel_manager.shutdown_kernel(now=True)
    assert not (folder / "bye").exists()
    assert process.exit_code == -signal.SIGKILL
    assert isinstance(running.error(), (kclient.DeadKernelError, kclient.ChannelClosed))


def test_shutdown_wakes_every_waiting_call(kernel_manager, background, gate):
    calls = everything_that_waits(kernel_manager, background, gate)
    kernel_manager.shutdown_wait_time = 0.1
    kernel_manager.shutdown_kernel()
    assert calls.pop("iopub").get().msg_type == "status"  # the status of the shutdown_request
    for name, call in calls.items():
        assert isinstance(call.error(), (kclient.DeadKernelError, kclient.ChannelClosed)), name


@pytest.mark.parametrize("channels", [True, False])
def test_kernel_that_ignores_shutdown_and_sigterm_is_killed(install_kernel, start_kernel, monkeypatch, channels):
    monkeypatch.setattr(provisioner, "TERM_WAIT_S", 0.2)
    install_kernel(STUBBORN)
    manager = start_kernel("odd")
    manager.shutdown_wait_time = 0.2
    process = manager.process
    if channels:
        assert manager.shutdown(timeout=WAIT).content["status"] == "ok"
    else:
        manager.stop_channels()
    assert process.is_alive()
    manager.shutdown_kernel()
    assert process.exit_code == -signal.SIGKILL


def test_shutdown_is_idempotent(kernel_manager):
    for _ in range(3):
        kernel_manager.shutdown_kernel()
    kernel_manager.shutdown_kernel(now=True)
    assert not kernel_manager.has_kernel


def test_shutdown_does_not_poll_but_waits_for_the_exit(start_kernel):
    """Other greenlets run during the shutdown."""
    ticks = 0

    def tick():
        nonlocal ticks
        while True:
            gevent.sleep(0.001)
            ticks += 1

    manager = start_kernel()
    ticker = gevent.spawn(tick)
    manager.shutdown_kernel()
    ticker.kill()
    assert ticks > 0


# A manager that is dropped or whose program ends


def test_dropped_manager_is_collected_and_its_kernel_ended(transport):
    manager = kclient.start_kernel(transport=transport, timeout=WAIT)
    manager.run("1")
    process, gone = manager.process, weakref.ref(manager)
    del manager
    gc.collect()
    assert gone() is None
    assert process.exited.wait(WAIT)


def test_calls_from_another_thread_raise_at_once(kernel):
    calls = {
        "start_kernel": kernel.start_kernel,
        "shutdown_kernel": kernel.shutdown_kernel,
        "restart_kernel": kernel.restart_kernel,
        "interrupt_kernel": kernel.interrupt_kernel,
        "signal_kernel": lambda: kernel.signal_kernel(signal.SIGUSR1),
        "kill_kernel": kernel.kill_kernel,
        "is_alive": kernel.is_alive,
        "start_channels": kernel.start_channels,
        "stop_channels": kernel.stop_channels,
        "run": lambda: kernel.run("1"),
    }
    found = []
    pool = gevent.get_hub().threadpool
    for name, call in calls.items():
        try:
            pool.apply(call)
        except kclient.WrongThread:
            continue
        except Exception as exc:
            found.append((name, exc))
        else:
            found.append((name, None))
    assert found == []
    assert kernel.run("'unharmed'").ok


def test_kernel_that_had_ended_before_it_was_waited_for_never_came_up(install_kernel):
    with kclient.KernelManager(install_kernel("raise SystemExit(5)")) as manager:
        manager.start_kernel()
        manager.start_channels()
        with pytest.raises(kclient.DeadKernelError):
            manager.kernel_info(timeout=WAIT)
        with pytest.raises(kclient.LaunchError) as caught:
            manager.wait_for_ready(WAIT)
    assert caught.value.exit_code == 5
