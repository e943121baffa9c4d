import json
import os
import signal

import pytest

import kclient
from kclient.kernels.process.local import LocalLauncher

BOTH_LINES = True

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

NAMES = ("shell", "iopub", "stdin", "hb", "control")


@pytest.mark.zmq_only  # the heartbeat
def test_restart_keeps_ports_file_key_and_client(kernel_manager):
    manager = kernel_manager
    info, path, client, pid = (
        manager.get_connection_info(),
        manager.connection_file,
        manager.client,
        manager.process.pid,
    )
    channels = [getattr(manager, f"{name}_channel") for name in NAMES]
    identity = manager.session.identity
    manager.run("before = 1", check=True)
    subshell_id = manager.create_subshell(timeout=WAIT).content["subshell_id"]
    manager.restart_kernel(timeout=WAIT)
    assert manager.process.pid != pid
    assert manager.is_alive()
    assert (manager.get_connection_info(), manager.connection_file) == (info, path)
    assert os.path.exists(path)
    assert manager.client is client
    assert [getattr(manager, f"{name}_channel") for name in NAMES] == channels
    assert all(channel.is_alive() for channel in channels)
    assert manager.session.identity == identity
    assert manager.run("before").error.ename == "NameError"
    with pytest.raises(kclient.InvalidArgument, match="no subshell"):
        manager.run("1", subshell_id=subshell_id)
    for channel in (manager.shell_channel, manager.control_channel):
        assert channel.kernel_info(timeout=WAIT).content["status"] == "ok"
    assert manager.run("input()", on_input=lambda prompt, password: "and stdin").text == "'and stdin'"


def test_no_first_output_is_lost_after_a_restart(kernel_manager):
    for number in range(3):
        kernel_manager.restart_kernel(now=True, timeout=WAIT)
        result = kernel_manager.run(f"print({number})")
        assert (result.stdout, result.complete, result.execution_count) == (f"{number}\n", True, 1)


def test_restart_changes_launch_arguments_and_keeps_the_others(start_kernel, folder, transport):
    where = "import os; os.getcwd(), os.environ.get('KCLIENT_TEST')"
    manager = start_kernel(transport=transport, cwd=folder, env={"KCLIENT_TEST": "one"})
    assert manager.run(where).text == f"({str(folder.resolve())!r}, 'one')"
    manager.restart_kernel(env={"KCLIENT_TEST": "two"}, timeout=WAIT)
    assert manager.run(where).text == f"({str(folder.resolve())!r}, 'two')"
    manager.restart_kernel(cwd="/", timeout=WAIT)
    assert manager.run(where).text == "('/', 'two')"


@pytest.mark.parametrize("ended", [False, True], ids=["restart", "start after a kill"])
def test_connection_file_that_a_killed_kernel_has_emptied_is_written_anew(kernel_manager, ended):
    """ipykernel writes to the file as it starts. It is empty in between."""
    manager = kernel_manager
    os.truncate(manager.connection_file, 0)
    if ended:
        manager.kill_kernel()
        manager.start_kernel(timeout=WAIT)
    else:
        manager.restart_kernel(now=True, timeout=WAIT)
    assert manager.run("6 * 7", timeout=WAIT).text == "42"
    with kclient.connect(manager.connection_file, timeout=WAIT) as client:
        assert client.run("6 * 7", timeout=WAIT).text == "42"


LEAVE = """
import os, time
child = os.fork()
if child == 0:
    os.setsid()
    time.sleep(60)
    os._exit(0)
child
"""
"""A child with all sockets of the kernel, which the end of the kernel's process group does not end."""


@pytest.mark.zmq_only
@pytest.mark.parametrize("ended", [False, True], ids=["restart", "start after a kill"])
def test_child_that_holds_the_sockets_of_the_old_kernel_does_not_hinder_the_next_one(kernel_manager, ended):
    """Over tcp the next kernel gets other ports, over ipc the same, at which the child can no longer be reached."""
    manager = kernel_manager
    before = manager.get_connection_info()
    child = int(manager.run(LEAVE, timeout=WAIT).text)
    try:
        if ended:
            manager.kill_kernel()
            manager.start_kernel(timeout=WAIT / 2)
            manager.wait_for_ready(WAIT / 2)
        else:
            manager.restart_kernel(now=True, timeout=WAIT / 2)
        assert manager.run("6 * 7", timeout=WAIT).text == "42"
        after = manager.get_connection_info()
        assert after["key"] == before["key"]
        assert (after["shell_port"] == before["shell_port"]) is (before["transport"] == "ipc")
        with open(manager.connection_file) as file:
            assert json.load(file)["shell_port"] == after["shell_port"]
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.zmq_only
def test_child_in_the_group_of_the_old_kernel_leaves_the_ports_as_they_are(start_kernel):
    """It holds them until it has died, which takes a moment longer than the end of the kernel."""
    manager = start_kernel()
    before = manager.get_connection_info()
    manager.run(LEAVE.replace("os.setsid()", ""), check=True)
    manager.restart_kernel(now=True, timeout=WAIT)
    assert manager.get_connection_info() == before


def test_restart_asks_first_and_tells_that_another_follows(start_kernel, folder):
    """The kernel runs its exit handlers, and publishes a shutdown_reply with `restart` set."""
    bye = folder / "bye"
    with start_kernel() as manager, kclient.connect(manager.connection_file, watch=False) as other:
        manager.run(f"import atexit; atexit.register(lambda: open({str(bye)!r}, 'w'))", check=True)
        path = manager.connection_file
        manager.shutdown_kernel(restart=True)
        assert bye.exists()
        assert os.path.exists(path)
        told = [message for message in other.iopub_channel.flush() if message.msg_type == "shutdown_reply"]
        assert [message.content["restart"] for message in told] == [True]
        manager.restart_kernel(timeout=WAIT)
        assert manager.run("6 * 7").text == "42"


def test_restart_now_does_not_ask(kernel_manager, folder):
    kernel_manager.run(f"import atexit; atexit.register(lambda: open({str(folder / 'bye')!r}, 'w'))", check=True)
    kernel_manager.restart_kernel(now=True, timeout=WAIT)
    assert not (folder / "bye").exists()
    assert kernel_manager.run("6 * 7").text == "42"


def test_pending_calls_fail_and_are_never_delivered(kernel_manager, background, gate, folder):
    """The new kernel must not run requests that were sent to the old one."""
    ran = folder / "ran"
    mark = f"open({str(ran)!r}, 'w')"
    execution = kernel_manager.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    msg_id = kernel_manager.shell_channel.send("kernel_info_request")
    calls = {
        "result": background(execution.result),
        "iteration": background(list, execution),
        "run": background(kernel_manager.run, mark),
        "execute": background(kernel_manager.execute, mark),
        "get_reply": background(kernel_manager.shell_channel.get_reply, msg_id),
    }
    kernel_manager.shutdown_wait_time = 0.1
    kernel_manager.restart_kernel(timeout=WAIT)
    errors = {name: call.error() for name, call in calls.items()}
    assert {name: type(error) for name, error in errors.items()} == dict.fromkeys(calls, kclient.KernelRestarted)
    assert errors["result"].msg_id == execution.msg_id
    assert errors["get_reply"].msg_id == msg_id
    assert kernel_manager.run("'of the new one'").execution_count == 1
    assert not ran.exists()


def test_get_msg_that_waits_during_a_restart_fails(kernel_manager, background):
    channels = [kernel_manager.shell_channel, kernel_manager.stdin_channel, kernel_manager.control_channel]
    calls = [background(channel.get_msg, timeout=WAIT / 2) for channel in channels]
    kernel_manager.restart_kernel(now=True, timeout=WAIT)
    kernel_manager.kernel_info(timeout=WAIT)
    assert [call.is_waiting for call in calls] == [False] * 3
    assert [type(call.error()) for call in calls] == [kclient.KernelRestarted] * 3


def test_request_nobody_awaits_is_not_delivered_either(kernel_manager, folder, gate):
    ran = folder / "ran"
    kernel_manager.submit(f"print('on'); {gate.code}")
    kernel_manager.shell_channel.send("execute_request", {"code": f"open({str(ran)!r}, 'w')", "silent": True})
    kernel_manager.restart_kernel(now=True, timeout=WAIT)
    assert kernel_manager.run("1").execution_count == 1
    assert not ran.exists()


def test_new_calls_wait_until_the_restarted_kernel_is_ready(kernel_manager, background):
    kernel_manager.run("old = 1", check=True)
    restart = background(kernel_manager.restart_kernel, now=True, timeout=WAIT)
    assert restart.is_waiting
    calls = [
        background(kernel_manager.run, "print('new'); 'old' in globals()", timeout=WAIT),
        background(kernel_manager.execute, "1", timeout=WAIT),
        background(kernel_manager.kernel_info, timeout=WAIT),
    ]
    with pytest.raises(kclient.KernelTimeout):
        kernel_manager.run("1", timeout=0.001)
    result = calls[0].get()
    assert (result.stdout, result.text) == ("new\n", "False")
    assert calls[1].get().content["status"] == "ok"
    assert calls[2].get().content["status"] == "ok"
    restart.get()


def test_dead_kernel_can_be_restarted(kernel_manager):
    with pytest.raises(kclient.DeadKernelError):
        kernel_manager.run("import os; os._exit(1)")
    kernel_manager.restart_kernel(timeout=WAIT)
    assert kernel_manager.run("print('risen')").stdout == "risen\n"
    kernel_manager.kill_kernel()
    kernel_manager.restart_kernel(timeout=WAIT)
    assert kernel_manager.run("print('again')").stdout == "again\n"


def test_restart_from_a_greenlet_while_another_learns_of_the_death(kernel_manager, background):
    """The kernel dies, and the first of two greenlets that learn of it restarts it."""
    waiting = background(kernel_manager.shell_channel.get_msg)
    kernel_manager.signal_kernel(signal.SIGKILL)
    assert isinstance(waiting.error(), kclient.DeadKernelError)
    both = [background(kernel_manager.restart_kernel, timeout=WAIT) for _ in range(2)]
    for call in both:
        call.get()
    assert kernel_manager.run("6 * 7").text == "42"


def test_restart_before_any_start_is_refused(transport):
    manager = kclient.KernelManager(transport=transport)
    with pytest.raises(RuntimeError, match="start_kernel"):
        manager.restart_kernel()
    with pytest.raises(RuntimeError, match="start_kernel"):
        manager.restart_kernel(now=True, cwd="/")


def test_restart_refuses_an_argument_that_start_kernel_does_not_know(kernel):
    pid = kernel.process.pid
    with pytest.raises(ValueError, match="no such argument"):
        kernel.restart_kernel(colour="green")
    assert kernel.process.pid == pid
    assert kernel.run("'unharmed'").ok


def test_restart_without_channels_starts_the_process_only(transport):
    manager = kclient.KernelManager(transport=transport)
    with manager:
        manager.start_kernel()
        first = manager.process
        manager.restart_kernel(timeout=WAIT)
        assert manager.process is not first
        assert not manager.channels_running
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        assert manager.run("6 * 7").text == "42"


@pytest.mark.zmq_only  # the heartbeat
def test_heartbeat_goes_on_after_a_restart(kernel_manager):
    hb = kernel_manager.hb_channel
    kernel_manager.restart_kernel(now=True, timeout=WAIT)
    assert hb.is_paused
    hb.unpause()
    missed = []
    hb.call_handlers = missed.append
    kernel_manager.restart_kernel(now=True, timeout=WAIT)
    assert not hb.is_paused
    assert missed == []


def test_restart_that_fails_tells_why_and_another_can_follow(start_kernel):
    class Failing(LocalLauncher):
        fails = False

        def start(self, argv, **where):
            if self.fails:
                argv = [argv[0], "-c", "import sys; print('no more', file=sys.stderr); sys.exit(4)"]
            return super().start(argv, **where)

    launcher = Failing()
    manager = start_kernel(launcher=launcher)
    launcher.fails = True
    with pytest.raises(kclient.LaunchError, match="no more") as caught:
        manager.restart_kernel(timeout=WAIT)
    assert caught.value.exit_code == 4
    with pytest.raises(kclient.DeadKernelError):
        manager.run("1")
    launcher.fails = False
    manager.restart_kernel(timeout=WAIT)
    assert manager.run("6 * 7").text == "42"
