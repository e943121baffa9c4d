"""Output that a kernel publishes after the end of the code: of child processes, and of writes to the descriptor."""

import types

import pytest
from fixtures import WAIT

import kclient
from kclient.client import lingering
from kclient.concurrency.deadline import Deadline


@pytest.fixture
def manager(start_kernel, monkeypatch):
    """ipykernel leaves the file descriptors 1 and 2 alone if it finds this variable."""
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    return start_kernel()


@pytest.fixture
def clock(monkeypatch):
    """`ring()` ends the time for late output."""
    clock = types.SimpleNamespace(set=lambda seconds: None, cancel=lambda: None)

    def timer(owner, method):
        clock.ring = method
        return clock

    monkeypatch.setattr(lingering, "Timer", timer)
    return clock


def test_output_of_a_child_process_that_goes_on_is_in_the_result_and_in_no_other(manager, gate, clock):
    """The kernel gives it the id of the newest code, which is this one until another is run."""
    child = f"{gate.code} os.write(1, b'late')"
    code = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}])"
    execution = manager.submit(code, linger=WAIT)
    deadline = Deadline(WAIT)
    while not execution.times.idle:
        assert manager.iopub_channel.changed.wait(deadline)
    gate.open()
    assert next(iter(execution)).content["text"] == "late"
    assert not execution.done()
    clock.ring()
    assert execution.result().stdout == "late"
    assert manager.run("_ = child.wait()", timeout=WAIT).stdout == ""


@pytest.mark.parametrize("write", ["os.write(1, b'{n} ')", "os.system('echo -n \"{n} \"')"])
def test_output_written_to_the_descriptor_is_in_the_result_of_its_own_code(manager, write):
    manager.run("import os", timeout=WAIT)
    seen = [manager.run("_ = " + write.format(n=n), timeout=WAIT, linger=1).stdout for n in range(3)]
    assert seen == ["0 ", "1 ", "2 "]


def test_late_output_without_linger_is_for_the_inbox(manager, gate):
    child = f"{gate.code} os.write(1, b'late')"
    code = f"import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', {child!r}])"
    result = manager.run(code, timeout=WAIT)
    gate.open()
    message = manager.iopub_channel.get_msg(timeout=WAIT)
    while message.msg_type != "stream" or message.content["text"] != "late":
        message = manager.iopub_channel.get_msg(timeout=WAIT)
    assert isinstance(result.reply, kclient.Message)
    assert message.parent_id == result.reply.parent_id


def test_output_of_a_thread_has_the_id_of_the_newest_request_and_that_of_a_task_its_own(manager, gate, make_gate):
    """So says docs/kernels.md, for ipykernel 7.1 and newer."""
    if manager.run("import ipykernel; ipykernel.version_info[:2] >= (7, 1)", timeout=WAIT).text != "True":
        pytest.skip("an older ipykernel")
    waits = make_gate()
    thread = f"import threading; threading.Thread(target=lambda: exec({gate.code + 'print(1, flush=True)'!r})).start()"
    wait = f"loop.run_in_executor(None, lambda: exec({waits.code!r}))"
    task = f"async def late():\n    await {wait}\n    print(2, flush=True)\ntask = asyncio.ensure_future(late())"
    manager.run(thread, timeout=WAIT, check=True)
    own = manager.run(f"import asyncio\nloop = asyncio.get_running_loop()\n{task}", timeout=WAIT, check=True)
    newest = manager.complete("impo", timeout=WAIT)
    parents = []
    for each in (gate, waits):
        each.open()
        message = manager.iopub_channel.get_msg(timeout=WAIT)
        while message.msg_type != "stream" or message.content["text"].strip() not in ("1", "2"):
            message = manager.iopub_channel.get_msg(timeout=WAIT)
        parents.append(message.parent_id)
    assert parents == [newest.parent_id, own.reply.parent_id]
