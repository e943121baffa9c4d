"""A program that ends while calls are pending ends at once, prints nothing, and leaves no kernel and no file."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from figures import Figures
from fixtures import WAIT, Script

pytestmark = pytest.mark.kernel

PATCH = "from gevent import monkey\nmonkey.patch_all()\n"

PENDING = """
import gevent, kclient, os, sys, threading, time
kernel = kclient.start_kernel(transport={transport!r}, timeout=60)
# The first cell of a kernel writes a file to find a folder that it may write to. A killed kernel would leave it.
kernel.run('import tempfile; tempfile.gettempdir()', timeout=60)
execution = kernel.submit("print('on', flush=True)\\nimport time; time.sleep(600)")
next(iter(execution))
shell, msg_id = kernel.shell_channel, kernel.shell_channel.send('kernel_info_request')
followed = kernel.submit('1', on_output=lambda message: None, on_input=lambda prompt, password: '')
kernel.iopub_channel.get_msgs()
leave = dict(on_abandon='leave')  # the interrupts of abandoned runs could hit later code
calls = [
    lambda: kernel.run('1', **leave), lambda: kernel.run('1', on_output=id, **leave), execution.result,
    lambda: list(execution), followed.result, lambda: kernel.execute('1'), kernel.kernel_info,
    lambda: shell.get_reply(msg_id),
    kernel.iopub_channel.get_msg, kernel.stdin_channel.get_msg, kernel.control_channel.get_msg, kernel.wait_for_ready,
]
greenlets = [gevent.spawn(call) for call in calls]
gevent.idle()
assert not any(greenlet.ready() for greenlet in greenlets)
def wait_in_thread():
    with kclient.KernelClient(kernel.connection_file) as client:
        client.start_channels()
        queued = client.submit('1')
        gevent.spawn(begun.set)  # runs when this greenlet waits
        queued.result()
begun = threading.Event()
def end():
    print(kernel.process.pid, time.monotonic(), flush=True)
"""
"""Calls of every kind are pending. `end` prints that only the end of the program is left."""

ENDINGS = {
    "the main greenlet ends": ("end()", 0, ""),
    "the main greenlet exits": ("end()\nsys.exit(3)", 3, ""),
    "the main greenlet raises": ("end()\nraise ValueError('mine')", 1, "ValueError: mine\n"),
    "a greenlet exits": ("gevent.spawn(lambda: (end(), sys.exit(4)))\ngevent.sleep(60)", 4, ""),
    "a greenlet exits while the main one calls": ("gevent.spawn(lambda: (end(), sys.exit(5)))\nkernel.run('1')", 5, ""),
    "a daemon thread waits, too": (
        "threading.Thread(target=wait_in_thread, daemon=True).start()\nbegun.wait()\nend()",
        0,
        "",
    ),
}
"""Code that ends the program, the exit code, and the last line that the program prints to stderr."""


def has_ended(pid: int) -> bool:
    """True when that process has ended, which is no child of this one."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    with open(process):
        return bool(select.select([process], [], [], WAIT)[0])


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing tells of the end of another's child here")
@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_program_ends_at_once_with_calls_pending_and_leaves_nothing(
    start_script: Callable[..., Script], runtime_dir: Path, folder: Path, figures: Figures, patch: str, ending: str
) -> None:
    code, exit_code, last_line = ENDINGS[ending]
    transport = "ipc" if patch else "tcp"
    script = start_script(f"{patch}{PENDING.format(transport=transport)}\n{code}\n")
    stdout, stderr = script.process.communicate(timeout=WAIT)
    ended = time.monotonic()
    assert script.process.returncode == exit_code, stderr
    if last_line:
        assert stderr.count("Traceback") == 1
        assert stderr.endswith(last_line)
    else:
        assert stderr == ""
    pid, began = stdout.split()
    assert has_ended(int(pid))
    assert [*runtime_dir.iterdir(), *(folder / "t").iterdir()] == []
    patched = "patched" if patch else "unpatched"
    figures.note(f"{ending}, {patched}: time to the end of the process", ended - float(began), "s", at_most=1)


FORK = """
import signal, warnings
warnings.simplefilter('ignore')
begun = time.monotonic()
child = os.fork()
if child == 0:
    signal.alarm(20)  # ends the process if it hangs
    for call in calls:
        try:
            call()
        except kclient.ForkedProcess:
            continue
        print('it was not refused', flush=True)
    sys.exit(6)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 6
print(time.monotonic() - begun)
gevent.killall(greenlets[:2])
execution.interrupt()
assert execution.result().error.ename == 'KeyboardInterrupt'
assert greenlets[6].get().content['status'] == 'ok'
assert greenlets[7].get().parent_id == msg_id
print(kernel.run('6 * 7').text)
gevent.killall(greenlets)
kernel.shutdown_kernel()
"""


@pytest.mark.parametrize("patch", ["", PATCH], ids=["unpatched", "patched"])
def test_forked_child_with_calls_pending_is_refused_and_ends_at_once_and_the_parent_goes_on(
    run_script: Callable[..., str], figures: Figures, patch: str
) -> None:
    seconds, text = run_script(f"{patch}{PENDING.format(transport='tcp')}\n{FORK}").split()
    assert text == "42"
    figures.note(f"a forked child, {'patched' if patch else 'unpatched'}: to its end", float(seconds), "s", at_most=1)
