"""The `kclient` command at a terminal: Ctrl-C, input, hanging up; and signals from elsewhere."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Done, Running, Terminal, is_gone

import kclient

CTRL_C, CTRL_D = "\x03", "\x04"

SLEEP = """
import os, sys, time
try:
    1 / 0
except ZeroDivisionError:
    get_ipython().InteractiveTB.structured_traceback(*sys.exc_info())
print('pid', os.getpid())
while True: time.sleep(0.01)
"""
"""IPython's first traceback takes long, and kclient interrupts a kernel again that shows nothing for 0.5 s."""

STUBBORN = """
import os, time
print('pid', os.getpid())
while True:
    try:
        while True: time.sleep(0.01)
    except KeyboardInterrupt:
        print('no', flush=True)
"""

pytestmark = pytest.mark.kernel


def check_nothing_left(pid: str, runtime_dir: Path) -> None:
    """Assert that the kernel has ended before the command did, and that its connection file is gone."""
    assert is_gone(pid)
    assert list(runtime_dir.iterdir()) == []


# Ctrl-C


def test_ctrl_c_interrupts_the_code_and_exits_130(runtime_dir: Path) -> None:
    with Terminal("run", "-c", SLEEP) as terminal:
        pid = terminal.rest_of_line("pid ")
        terminal.type(CTRL_C)
        done = terminal.end()
    assert done.code == 130
    assert "KeyboardInterrupt" in done.out
    assert "\x1b[" in done.out, "no colours on a terminal"
    check_nothing_left(pid, runtime_dir)


def test_code_that_catches_the_interrupt_goes_on() -> None:
    code = (
        "import time\ntry:\n print('ready')\n while True: time.sleep(0.01)\n"
        "except KeyboardInterrupt: print('caught')\n6 * 7"
    )
    with Running("run", "-c", code) as running:
        assert running.line() == "ready"
        running.signal(signal.SIGINT)
        assert running.end() == Done(0, "caught\n42\n", "")


def test_second_ctrl_c_ends_a_kernel_that_ignores_the_first(runtime_dir: Path) -> None:
    with Terminal("run", "-c", STUBBORN) as terminal:
        pid = terminal.rest_of_line("pid ")
        terminal.type(CTRL_C)
        terminal.wait_for("no")
        terminal.type(CTRL_C)
        done = terminal.end()
    assert done.code == 130
    assert done.out.endswith("\nkclient: ended by SIGINT\n")
    check_nothing_left(pid, runtime_dir)


def test_ctrl_c_while_the_kernel_starts_ends_it(tmp_path: Path, runtime_dir: Path) -> None:
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    directory = tmp_path / "specs" / "kernels" / "slow"
    directory.mkdir(parents=True)
    spec = {"argv": ["sh", "-c", f"echo $$ > {fifo}; exec sleep 1000"], "display_name": "slow", "language": "none"}
    (directory / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    with Running("run", "--kernel", "slow", "-c", "1", JUPYTER_PATH=str(tmp_path / "specs")) as running:
        pid = fifo.read_text()
        running.signal(signal.SIGINT)
        assert running.end() == Done(130, "", "kclient: ended by SIGINT\n")
    check_nothing_left(pid, runtime_dir)


def test_ctrl_c_in_an_existing_kernel_leaves_it_idle_and_a_second_one_leaves_it(
    start_kernel: Callable[..., kclient.KernelManager],
) -> None:
    kernel = start_kernel()
    with Running("run", "--existing", str(kernel.connection_file), "-c", SLEEP) as running:
        running.line()
        running.signal(signal.SIGINT)
        done = running.end()
    assert done.code == 130
    assert "KeyboardInterrupt" in done.err
    assert kernel.run("6 * 7", timeout=30).text == "42"
    with Running("run", "--existing", str(kernel.connection_file), "-c", STUBBORN) as running:
        running.line()
        running.signal(signal.SIGINT)
        assert running.line() == "no"
        running.signal(signal.SIGINT)
        assert running.end().code == 130
    assert kernel.is_alive()
    kernel.kill_kernel()  # this kernel would ignore a shutdown


# Other signals


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_the_kernel(signum: signal.Signals, runtime_dir: Path) -> None:
    with Running("run", "-c", STUBBORN) as running:
        pid = running.line().removeprefix("pid ")
        running.signal(signum)
        assert running.end() == Done(128 + signum, "", f"kclient: ended by {signum.name}\n")
    check_nothing_left(pid, runtime_dir)


def test_reader_that_stands_still_holds_up_no_signal(runtime_dir: Path) -> None:
    with Running("run", "-c", "import os\nprint('pid', os.getpid())\nwhile True: print('y' * 1000)") as running:
        pid = running.line().removeprefix("pid ")
        running.wait_for_full_pipe()
        running.signal(signal.SIGTERM)
        assert running.process.wait(30) == 143
    check_nothing_left(pid, runtime_dir)


def test_hanging_up_ends_the_kernel(runtime_dir: Path) -> None:
    with Terminal("run", "-c", STUBBORN) as terminal:
        pid = terminal.rest_of_line("pid ")
        terminal.hang_up()
        assert terminal.process.wait(30) == 128 + signal.SIGHUP
    check_nothing_left(pid, runtime_dir)


# Input


def test_code_may_ask_at_the_terminal() -> None:
    code = """
import getpass
print('Who are you?')
name = input('name: ')
secret = getpass.getpass('secret: ')
print(f'{name=} {secret=}')
for question in 'end: ', 'interrupt: ':
    try:
        input(question)
    except (EOFError, KeyboardInterrupt) as exc:
        print('got', type(exc).__name__)
print('again', input())
"""
    with Terminal("run", "-c", code) as terminal:
        terminal.wait_for("Who are you?\r\nname: ")
        assert terminal.echoes()
        terminal.type("Zoë\n")
        terminal.wait_for("secret: ")
        assert not terminal.echoes()
        terminal.type("sesame\n")
        terminal.wait_for("name='Zoë' secret='sesame'")
        assert terminal.echoes()
        terminal.wait_for("end: ")
        terminal.type(CTRL_D)
        terminal.wait_for("got EOFError")
        terminal.wait_for("interrupt: ")
        terminal.type(f"half{CTRL_C}")
        terminal.wait_for("got KeyboardInterrupt")
        terminal.type("whole\n")
        terminal.wait_for("again whole")
        done = terminal.end()
    assert done.code == 0
    assert done.out.count("sesame") == 1, "the password was echoed"


def test_terminal_gets_its_echo_back_whatever_ends_a_question() -> None:
    with Terminal("run", "-c", "import getpass; getpass.getpass('secret: ')") as terminal:
        terminal.wait_for("secret: ")
        assert not terminal.echoes()
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.process.wait(30) == 143
        assert terminal.echoes()
