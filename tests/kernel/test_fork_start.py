"""Kernels that a ForkServer has started behave as those of a LocalLauncher."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import kclient
from kclient import ForkServer

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def server():
    """A fork server whose process is up."""
    with ForkServer() as server:
        process = server.start([sys.executable, "-c", ""])
        process.exited.wait(WAIT)
        process.close()
        yield server


@pytest.fixture(params=["forked", "local"])
def launcher(request, server):
    return server if request.param == "forked" else None


@pytest.fixture
def kernel(launcher):
    with kclient.start_kernel(launcher=launcher) as kernel:
        yield kernel


def values(result):
    """The values that the code printed, one in a line."""
    return result.stdout.splitlines()


def test_kernel_lives_as_any_other(kernel):
    """An interrupt, a restart, a death and a shutdown."""
    assert kernel.process.stderr_tail() == ""
    assert values(kernel.run("import os; print(os.getppid() > 1, os.environ['JPY_PARENT_PID'])", timeout=WAIT)) == [
        f"True {os.getpid()}"
    ]
    execution = kernel.submit("import time; print('up')\nfor _ in range(6000): time.sleep(0.01)")
    next(iter(execution))
    kernel.interrupt_kernel()
    assert execution.result(WAIT).error.ename == "KeyboardInterrupt"
    kernel.run("mine = 1", timeout=WAIT)
    pid = kernel.process.pid
    kernel.restart_kernel(timeout=WAIT)
    assert kernel.process.pid != pid
    assert kernel.run("mine", timeout=WAIT).error.ename == "NameError"
    with pytest.raises(kclient.DeadKernelError, match="last output") as caught:
        kernel.run("os = __import__('os'); os.write(2, b'last output'); os.kill(os.getpid(), 9)", timeout=WAIT)
    assert caught.value.exit_code == -signal.SIGKILL
    kernel.restart_kernel(timeout=WAIT)
    process = kernel.process
    kernel.shutdown_kernel()
    assert process.exit_code == 0


def test_debugger_stops_in_a_forked_kernel(server):
    with kclient.start_kernel(launcher=server) as kernel:

        def ask(command, **arguments):
            content = kernel.debug(command, arguments, timeout=WAIT).content
            assert content["success"], content
            return content.get("body")

        ask("initialize", clientID="kclient", adapterID="", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
        ask("attach")
        path = ask("dumpCell", code="twice = 42\ntwice")["sourcePath"]
        ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": 2}])
        ask("configurationDone")
        execution = kernel.submit("twice = 42\ntwice")
        thread = kernel.wait_for_debug_event("stopped", timeout=WAIT).content["body"]["threadId"]
        ask("continue", threadId=thread)
        assert execution.result(WAIT).text == "42"
        ask("disconnect")
        kernel.kill_kernel()
    shutil.rmtree(Path(path).parent)


def test_kernel_is_started_as_asked(launcher, folder, monkeypatch):
    """Directory, environment, files for its output, configuration, transport and encryption."""
    monkeypatch.setenv("IPYTHONDIR", str(folder / "i"))
    profile = folder / "i" / "profile_default"
    profile.mkdir(parents=True)
    (profile / "ipython_config.py").write_text("get_config().InteractiveShell.banner1 = 'configured'")
    (folder / "startup.py").write_text("started = 'up'")
    with kclient.start_kernel(
        launcher=launcher,
        cwd=folder,
        env={"MINE": "1", "PYTHONSTARTUP": str(folder / "startup.py")},
        stdout=subprocess.PIPE,
        transport="ipc",
        encryption="required",
        orphan_guard=True,
    ) as kernel:
        code = "import os; print(os.getcwd(), os.environ['MINE'], started, get_ipython().banner1)"
        assert values(kernel.run(code, timeout=WAIT)) == [f"{folder} 1 up configured"]
        kernel.run("os.write(1, b'to the pipe\\n')", timeout=WAIT)
        pipe = kernel.process.stdout
    assert pipe.closed


def test_kernel_outlives_its_server():
    with ForkServer() as server, kclient.start_kernel(launcher=server) as kernel:
        parent = int(kernel.run("import os; print(os.getppid())", timeout=WAIT).stdout)
        os.kill(parent, signal.SIGKILL)
        os.waitid(os.P_PID, parent, os.WEXITED | os.WNOWAIT)
        # ipykernel looks for its parent once a second, if at all
        assert kernel.run("import time; time.sleep(1.2); os.getppid()", timeout=WAIT).text != str(parent)
        kernel.interrupt_kernel()
        assert kernel.run("1", timeout=WAIT).text == "1"


def test_server_that_is_stuck_keeps_no_start_beyond_its_timeout():
    with ForkServer() as server, kclient.start_kernel(launcher=server) as kernel:
        pid = int(kernel.run("import os; os.getppid()", timeout=WAIT).text)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(kclient.KernelTimeout, match=r"no process from the launcher within 0\.1 s"):
                kclient.start_kernel(launcher=server, timeout=0.1)
        finally:
            os.kill(pid, signal.SIGCONT)


def test_program_with_options_of_its_own_can_be_run(install_kernel):
    code = "import sys; from ipykernel.kernelapp import launch_new_instance; launch_new_instance()"
    name = install_kernel(code, argv=[sys.executable, "-B", "-c", code, "-f", "{connection_file}"])
    with ForkServer() as server, kclient.start_kernel(name, launcher=server) as kernel:
        assert kernel.run("sys = __import__('sys'); sys.flags.dont_write_bytecode", timeout=WAIT).text == "1"


def test_kernel_that_ends_at_once_shows_its_error(server, install_kernel):
    with pytest.raises(kclient.LaunchError, match="no such luck") as caught:
        kclient.start_kernel(install_kernel("raise SystemExit('no such luck')"), launcher=server)
    assert caught.value.exit_code == 1


def test_kernel_that_is_no_python_is_refused(server, install_kernel):
    name = install_kernel("", argv=["bash", "-c", "{connection_file}"])
    with pytest.raises(kclient.InvalidArgument, match="leave out launcher="):
        kclient.start_kernel(name, launcher=server)


COMPARE = """
import subprocess, warnings
from statistics import median
from time import perf_counter
warnings.simplefilter("ignore")
from jupyter_client.manager import start_new_kernel
import kclient

ratios = []
with kclient.ForkServer() as server:
    for _ in range(16):
        began = perf_counter()
        kernel = kclient.start_kernel(launcher=server)
        ours = perf_counter() - began
        kernel.shutdown_kernel(now=True)
        began = perf_counter()
        manager, client = start_new_kernel(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        ratios.append(ours / (perf_counter() - began))
        client.stop_channels()
        manager.shutdown_kernel(now=True)
print(median(ratios[1:]))
"""


def test_start_takes_a_fifth_of_the_time_that_jupyter_client_takes(run_script, figures):
    if not figures.is_long:
        pytest.skip("compares times, so only with --long")
    figures.note("start by fork, of jupyter_client's", float(run_script(COMPARE)), "", at_most=0.20)
