"""Shutdowns and restarts that are given up, go wrong, or follow one another in an odd order."""

import os
import signal
import time

import pytest
from fixtures import TellingLauncher

import kclient

BOTH_LINES = True

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""


def check_it_runs(manager):
    """Assert that the kernel works over all channels, and can be shut down."""
    assert manager.run("print('hi'); input()", on_input=lambda prompt, password: "x", timeout=WAIT).stdout == "hi\n"
    assert manager.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"
    manager.shutdown_kernel()
    assert not manager.has_kernel


# Given up


@pytest.mark.parametrize("call", ["shutdown_kernel", "restart_kernel"])
def test_kernel_that_ends_after_its_shutdown_was_given_up_is_known_to_have(kernel_manager, background, call):
    pending = background(kernel_manager.run, "import time; time.sleep(600)")
    abandoned = background(getattr(kernel_manager, call))  # it has asked, and waits for the exit
    abandoned.greenlet.kill()
    kernel_manager.signal_kernel(signal.SIGKILL)
    assert isinstance(pending.error(), kclient.DeadKernelError)
    with pytest.raises(kclient.DeadKernelError):
        kernel_manager.run("1")


def test_ctrl_c_during_a_shutdown_is_raised_there_and_nothing_hangs(run_script, runtime_dir):
    """The signal comes from another greenlet while the main greenlet waits for the exit."""
    out = run_script(
        "import gevent, os, signal, kclient\n"
        "kernel = kclient.start_kernel(timeout=60)\n"
        "kernel.run('import atexit, time; atexit.register(time.sleep, 600)', check=True)\n"
        "gevent.spawn(os.kill, os.getpid(), signal.SIGINT)\n"
        "try:\n    kernel.shutdown_kernel()\n"
        "except KeyboardInterrupt:\n    print('interrupted', kernel.is_alive())\n"
        "kernel.kill_kernel()\n"
        "try:\n    kernel.run('1')\n"
        "except kclient.DeadKernelError:\n    print('dead')\n"
        "kernel.shutdown_kernel()\n"
    )
    assert out.split("\n") == ["interrupted True", "dead"]
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize(("end", "options"), [("shutdown_kernel", {"now": True}), ("kill_kernel", {})])
def test_kill_ends_a_restart_that_waits_for_ever(start_kernel, transport, background, end, options):
    launcher = TellingLauncher()
    kernel_manager = start_kernel(transport=transport, launcher=launcher)
    pid = kernel_manager.process.pid
    launcher.started.clear()
    restart = background(kernel_manager.restart_kernel, timeout=None)
    assert launcher.started.wait(WAIT)
    assert kernel_manager.process.pid != pid
    kernel_manager.signal_kernel(signal.SIGSTOP)
    background(getattr(kernel_manager, end), **options).get()
    assert isinstance(restart.error(), kclient.LaunchError)
    assert not kernel_manager.has_kernel


def test_timeout_of_a_restart_is_its_one_budget(install_kernel, start_kernel):
    stubborn = (
        "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "from ipykernel.kernelapp import IPKernelApp\n"
        "app = IPKernelApp.instance(connection_file=sys.argv[1]); app.initialize([])\n"
        "app.kernel.do_shutdown = lambda restart: __import__('time').sleep(600)\n"
        "app.start()\n"
    )
    manager = start_kernel(install_kernel(stubborn), timeout=WAIT)
    begun = time.monotonic()
    with pytest.raises(kclient.KClientError):
        manager.restart_kernel(timeout=0.2)
    assert time.monotonic() - begun < 4, "it waited as long as a shutdown may, 5 s and 2 s"
    manager.shutdown_kernel(now=True)


def test_restart_beside_another_waits_for_its_turn_no_longer_than_it_may(kernel_manager, background):
    first = background(kernel_manager.restart_kernel)
    with pytest.raises(kclient.KernelTimeout, match="another greenlet"):
        kernel_manager.restart_kernel(timeout=0.01)
    first.get()
    check_it_runs(kernel_manager)


# In an odd order


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("end", ["kill_kernel", "shutdown_kernel"])
def test_kernel_can_be_started_again_however_it_was_ended(kernel_manager, end, stop):
    path = kernel_manager.connection_file
    if end == "kill_kernel":
        kernel_manager.kill_kernel()
    else:
        kernel_manager.shutdown_kernel(restart=True)
    assert os.path.exists(path)
    if stop:
        kernel_manager.stop_channels()
    kernel_manager.start_kernel()
    kernel_manager.start_channels()
    kernel_manager.wait_for_ready(WAIT)
    assert kernel_manager.connection_file == path
    check_it_runs(kernel_manager)


def test_restart_after_a_shutdown_starts_anew(kernel_manager):
    kernel_manager.shutdown_kernel()
    kernel_manager.restart_kernel(timeout=WAIT)
    kernel_manager.start_channels()
    kernel_manager.wait_for_ready(WAIT)
    check_it_runs(kernel_manager)


def test_start_that_fails_leaves_nothing_in_the_way_of_the_next(transport, folder, start_kernel):
    manager = kclient.KernelManager(transport=transport)
    manager.on_input = lambda prompt, password: "mine"
    manager.write_connection_file()
    manager.start_channels()
    with pytest.raises(kclient.LaunchError):
        manager.start_kernel(cwd=folder / "missing")
    assert not manager.channels_running
    with manager:
        manager.start_kernel()
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        assert manager.run("input()", timeout=WAIT).text == "'mine'"


def test_manager_can_be_restarted_from_inside_on_input(kernel_manager):
    def restart(prompt, password):
        kernel_manager.restart_kernel(now=True, timeout=WAIT)
        return "too late"

    with pytest.raises(kclient.KernelRestarted):
        kernel_manager.run("input()", on_input=restart, timeout=WAIT)
    check_it_runs(kernel_manager)


# A death, asked about long after


def test_result_tells_how_the_kernel_died_after_a_restart_and_after_a_shutdown(kernel_manager):
    execution = kernel_manager.submit("import os; os.write(2, b'last output'); os._exit(7)")
    msg_id = kernel_manager.shell_channel.send("kernel_info_request")
    for end in (lambda: kernel_manager.restart_kernel(timeout=WAIT), kernel_manager.shutdown_kernel):
        with pytest.raises(kclient.DeadKernelError) as caught:
            execution.result(timeout=WAIT)
        assert caught.value.exit_code == 7
        assert caught.value.stderr.endswith("last output")
        if kernel_manager.channels_running and msg_id:
            with pytest.raises(kclient.DeadKernelError):
                kernel_manager.shell_channel.get_reply(msg_id, timeout=WAIT)
            msg_id = ""
        end()


@pytest.mark.parametrize(
    "poll",
    [
        lambda manager, execution: execution.result(timeout=0),
        lambda manager, execution: manager.shell_channel.get_msg(block=False),
        lambda manager, execution: manager.iopub_channel.get_msg(timeout=0),
        lambda manager, execution: manager.stdin_channel.get_msg(timeout=0),
        lambda manager, execution: manager.run("1", timeout=0),
        lambda manager, execution: manager.kernel_info(timeout=0),
    ],
    ids=["result", "get_msg of shell", "get_msg of iopub", "get_msg of stdin", "run", "kernel_info"],
)
def test_death_is_seen_by_a_script_that_only_polls(start_kernel, poll):
    manager = start_kernel(timeout=WAIT)
    execution = manager.submit("import time; time.sleep(600)")
    manager.iopub_channel.get_msgs()
    manager.signal_kernel(signal.SIGKILL)
    until = time.monotonic() + WAIT

    def poll_on():
        while time.monotonic() < until:
            try:
                poll(manager, execution)
            except kclient.KernelTimeout:
                time.sleep(0.001)

    with pytest.raises(kclient.DeadKernelError):
        poll_on()


# Wrong arguments


@pytest.mark.parametrize(
    "arguments",
    [
        {"env": 5},
        {"env": "x"},
        {"env": {"a": 5}},
        {"extra_arguments": 5},
        {"extra_arguments": "--debug"},
        {"extra_arguments": None},
        {"cwd": 5},
        {"stdout": "x"},
        {"stderr": 1.5},
        {"connection_file": 5},
        {"launcher": 5},
        {"ip": 5},
        {"transport": "ipc", "ip": "a\0b"},
        {"transport": "ipc", "ip": "\ud800"},
    ],
    ids=str,
)
def test_argument_that_is_wrong_is_refused_and_nothing_is_started(arguments, runtime_dir):
    with pytest.raises(kclient.KClientError):
        kclient.start_kernel(**arguments)
    assert list(runtime_dir.iterdir()) == []


def test_restart_with_a_wrong_argument_leaves_the_kernel_as_it_is(kernel):
    pid = kernel.process.pid
    with pytest.raises(kclient.LocalProtocolError):
        kernel.restart_kernel(env=5)
    assert (kernel.process.pid, kernel.run("6 * 7").text) == (pid, "42")


def test_file_that_is_no_connection_file_is_not_replaced(folder):
    path = folder / "thesis.json"
    path.write_text("years of work")
    manager = kclient.KernelManager(connection_file=path)
    with pytest.raises(kclient.ConnectionFileError, match=r"thesis\.json"):
        manager.start_kernel()
    manager.shutdown_kernel()
    assert path.read_text() == "years of work"
    path.unlink()


def test_empty_file_is_replaced_by_the_connection_file(folder):
    path = folder / "kernel.json"
    path.touch()
    manager = kclient.KernelManager(connection_file=path)
    manager.write_connection_file()
    assert path.stat().st_size > 0
    manager.cleanup_connection_file()


def test_loading_a_connection_file_removes_what_was_written_before(kernel, runtime_dir, folder, transport):
    manager = kclient.KernelManager(transport=transport)
    manager.write_connection_file()
    manager.load_connection_file(kernel.connection_file)
    assert list(runtime_dir.iterdir()) == []
    assert list((folder / "t").iterdir()) == []
