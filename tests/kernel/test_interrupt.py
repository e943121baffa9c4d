import os
import signal
import time

import gevent
import gevent.event
import pytest

import kclient
from kclient.client.interrupts import INTERRUPT_AGAIN_S
from kclient.kernels import provisioner
from kclient.protocol import messages

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

# No code here sleeps long at once: a signal that comes just before a sleep is not noticed until that ends.

FOR_EVER = "import time\nprint('on', flush=True)\nwhile True:\n    time.sleep(0.01)"

INTERRUPTIBLE = """
import time
interrupted = False
try:
    print('on', flush=True)
    {wait}
except KeyboardInterrupt:
    interrupted = True
    raise
"""

CTRL_C = """
import sys, kclient

path, code = sys.argv[1:]
client = kclient.connect(path, watch=False)

def see(message):
    if message.msg_type == "stream" and message.content["text"].startswith("on"):
        print("on", flush=True)

def wait_for_ever(prompt, password):
    print("on", flush=True)
    return client.control_channel.get_msg()

try:
    {call}
except KeyboardInterrupt:
    pass
else:
    print("no KeyboardInterrupt")
result = client.run("print('idle again'); interrupted", timeout=30)
print(result.stdout.strip(), result.text)
client.close()
"""
"""A script that is interrupted while it runs code. It prints when the code runs."""


@pytest.fixture
def by_message(kernel):
    """The shared kernel, interrupted by message instead of by signal."""
    kernel.kernel_spec.interrupt_mode = "message"
    yield kernel
    kernel.kernel_spec.interrupt_mode = "signal"


def was_interrupted(execution):
    """True if an interrupt ended the execution. ipykernel sends no reply if it comes before the code runs."""
    try:
        return execution.result().error.ename == "KeyboardInterrupt"
    except kclient.NoReply:
        return True


# interrupt_kernel


def test_interrupt_kernel_by_signal(kernel):
    execution = kernel.submit(FOR_EVER)
    next(iter(execution))
    kernel.interrupt_kernel()
    result = execution.result()
    assert (result.status, result.error.ename) == ("error", "KeyboardInterrupt")
    assert kernel.is_alive()
    assert kernel.run("'idle again'").text == "'idle again'"


def test_interrupt_kernel_by_message(by_message, monkeypatch):
    monkeypatch.delattr(type(by_message.process), "send_signal")
    execution = by_message.submit(FOR_EVER)
    next(iter(execution))
    by_message.interrupt_kernel()
    assert execution.result().error.ename == "KeyboardInterrupt"
    assert by_message.run("'idle again'").text == "'idle again'"


def test_client_of_a_foreign_kernel_interrupts_by_message(client):
    execution = client.submit(FOR_EVER)
    next(iter(execution))
    client.interrupt_kernel()
    assert execution.result().error.ename == "KeyboardInterrupt"


def test_interrupt_request_is_answered(client):
    execution = client.submit(FOR_EVER)
    next(iter(execution))
    assert client.interrupt(timeout=WAIT).content["status"] == "ok"
    assert execution.result().error.ename == "KeyboardInterrupt"


def test_idle_kernel_survives_an_interrupt(kernel):
    for _ in range(3):
        kernel.interrupt_kernel()
    assert kernel.run("'still there'").text == "'still there'"


# Execution.interrupt


@pytest.mark.parametrize("mode", ["signal", "message"])
def test_interrupt_right_after_submit_is_not_lost(kernel, client, mode):
    """ipykernel ignores a SIGINT that comes before the code runs."""
    runner = kernel if mode == "signal" else client
    for _ in range(5):
        execution = runner.submit(FOR_EVER)
        execution.interrupt()
        assert was_interrupted(execution)


def test_interrupt_of_a_queued_execution_hits_no_other(kernel, gate):
    running = kernel.submit(f"print('on'); {gate.code} 'untouched'")
    queued = kernel.submit(FOR_EVER)
    next(iter(running))
    queued.interrupt()
    gate.open()
    assert running.result().text == "'untouched'"
    assert was_interrupted(queued)


def test_interrupt_of_a_finished_execution_hits_no_other(kernel, gate):
    finished = kernel.submit("1")
    finished.result()
    running = kernel.submit(f"print('on'); {gate.code} 'untouched'")
    next(iter(running))
    finished.interrupt()
    gate.open()
    assert running.result().text == "'untouched'"


def test_interrupt_of_a_running_execution_leaves_those_behind_it_alone(kernel):
    running = kernel.submit(FOR_EVER)
    behind = [kernel.submit(f"{n}") for n in range(5)]
    next(iter(running))
    running.interrupt()
    assert running.result().error.ename == "KeyboardInterrupt"
    assert [execution.result().text for execution in behind] == [f"{n}" for n in range(5)]


CLEANS_UP = """
import time
try:
    began = True
    print('on', flush=True)
    while True: time.sleep(0.01)
finally:
    time.sleep({seconds})
    saved = True
"""
"""Code whose end takes longer than an interrupt waits for an effect. An interrupt may come before it has begun."""


@pytest.mark.parametrize("how", ["run", "Execution.interrupt"])
@pytest.mark.parametrize("mode", ["signal", "message"])
def test_code_on_its_way_out_gets_no_second_interrupt(kernel, client, mode, how):
    runner = kernel if mode == "signal" else client
    runner.run("began = saved = False")
    code = CLEANS_UP.format(seconds=INTERRUPT_AGAIN_S + 0.5)
    if how == "run":
        with pytest.raises(kclient.KernelTimeout, match="an interrupt is sent to its code") as caught:
            runner.run(code, timeout=0.3)
        execution = caught.value.execution
    else:
        execution = runner.submit(code)
        next(iter(execution))
        execution.interrupt()
    assert was_interrupted(execution)
    assert runner.run("saved is began").text == "True"


def test_code_that_ignores_its_interrupt_gets_another_when_that_is_asked_for(kernel):
    ignoring = (
        "try:\n    print({}, flush=True)\n    while True: time.sleep(0.01)\nexcept KeyboardInterrupt:\n    pass\n"
    )
    execution = kernel.submit(f"import time\n{ignoring.format(1)}{ignoring.format(2)}'twice'")
    for _ in filter(lambda message: message.msg_type == "stream", execution):
        execution.interrupt()
    assert execution.result().text == "'twice'"


@pytest.mark.parametrize("mode", ["signal", "message"])
def test_code_that_awaits_is_interrupted_at_once(kernel, client, mode):
    """ipykernel notices the interrupt only when a message comes to shell."""
    runner = kernel if mode == "signal" else client
    execution = runner.submit("import asyncio\nprint('on', flush=True)\nawait asyncio.sleep(600)")
    next(iter(execution))
    execution.interrupt()
    assert execution.result(timeout=WAIT).error.ename == "CancelledError"
    execution = runner.submit("print('on', flush=True)\nawait asyncio.sleep(600)")
    next(iter(execution))
    runner.interrupt_kernel()
    assert execution.result(timeout=WAIT).error.ename == "CancelledError"


def test_second_signal_is_not_sent_when_the_effect_of_the_first_was_not_seen_yet(kernel):
    """The hub stands still until the second signal is due. The sockets hold the news that the code has ended."""
    running = kernel.submit(FOR_EVER)
    behind = kernel.submit("import time\nfor _ in range(100): time.sleep(0.01)\n'untouched'")
    next(iter(running))
    running.interrupt()
    time.sleep(INTERRUPT_AGAIN_S + 0.1)  # time itself: the program computes, and gives the hub no turn
    assert was_interrupted(running)
    assert behind.result().text == "'untouched'"


# Abandoned runs


def test_run_that_times_out_is_interrupted(kernel):
    with pytest.raises(kclient.KernelTimeout) as caught:
        kernel.run(FOR_EVER, timeout=0.05)
    assert was_interrupted(caught.value.execution)
    assert kernel.run("'idle again'").text == "'idle again'"


def test_run_of_an_attached_manager_that_times_out_is_interrupted(kernel):
    manager = kclient.KernelManager()
    manager.load_connection_file(kernel.connection_file)
    manager.start_channels()
    manager.wait_for_ready(WAIT)
    with pytest.raises(kclient.KernelTimeout) as caught:
        manager.run(FOR_EVER, timeout=0.05)
    assert was_interrupted(caught.value.execution)
    manager.stop_channels()


@pytest.mark.parametrize("how", ["gevent.kill", "gevent.Timeout"])
def test_run_whose_greenlet_is_ended_is_interrupted(client, background, how):
    printed = gevent.event.Event()

    def run():
        with gevent.Timeout(None) as timeout:
            timeouts.append(timeout)
            client.run(FOR_EVER, on_output=lambda message: printed.set())

    timeouts = []
    call = background(run)
    assert printed.wait(WAIT)
    if how == "gevent.kill":
        call.greenlet.kill()
    else:
        call.greenlet.kill(timeouts[0])
    assert isinstance(call.error(), (gevent.GreenletExit, gevent.Timeout))
    assert client.run("print('idle again')").stdout == "idle again\n"


def test_run_with_on_abandon_leave_goes_on(client, background, gate):
    printed = gevent.event.Event()
    code = f"done = False; print('on', flush=True); {gate.code} done = True"
    call = background(client.run, code, on_abandon="leave", on_output=lambda message: printed.set())
    assert printed.wait(WAIT)
    call.greenlet.kill()
    gate.open()
    assert client.run("done").text == "True"


def test_on_output_that_is_ended_by_a_timeout_of_the_callers_obeys_on_abandon(client, gate):
    never = gevent.event.Event()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        client.run(
            f"done = False; print('on', flush=True); {gate.code} done = True",
            on_abandon="leave",
            on_output=lambda message: never.wait(),
        )
    gate.open()
    assert client.run("done").text == "True"


def test_result_and_requests_that_are_given_up_interrupt_nothing(client, gate, background):
    execution = client.submit(f"print('on'); {gate.code} 'untouched'")
    next(iter(execution))
    waiting = [background(execution.result), background(client.execute, "1"), background(list, execution)]
    for call in waiting:
        call.greenlet.kill()
    with pytest.raises(kclient.KernelTimeout):
        execution.result(timeout=0.01)
    gate.open()
    assert execution.result().text == "'untouched'"


def test_abandoned_run_is_interrupted_once(client):
    """A second SIGINT would hit later code."""
    count = (
        "import signal\n"
        "hits = []\n"
        "print('on', flush=True)\n"
        "old = signal.signal(signal.SIGINT, lambda *args: hits.append(1))\n"
        "print('armed', flush=True)\n"
        "while not hits: time.sleep(0.001)\n"
        "time.sleep(0.1)\n"
        "signal.signal(signal.SIGINT, old)"
    )

    def fail(message):
        if "armed" in message.content["text"]:
            raise ZeroDivisionError

    client.run("import time")
    with pytest.raises(ZeroDivisionError):
        client.run(count, on_output=fail)
    assert client.run("len(hits)").text == "1"


# Subshells, which no interrupt reaches


@pytest.fixture
def subshell(client):
    if "kernel subshells" not in client.info.supported_features:
        pytest.skip("this ipykernel has no subshells")
    subshell_id = client.create_subshell().content["subshell_id"]
    yield subshell_id
    client.delete_subshell(subshell_id)


def fail(*args):
    raise ZeroDivisionError


@pytest.mark.parametrize("how", ["timeout", "interrupt", "on_input", "on_input of the client", "kill"])
def test_code_on_the_main_shell_is_spared_the_interrupt_of_a_subshells_code(
    client, subshell, make_gate, background, how
):
    main_gate, gate = make_gate(), make_gate()
    innocent = client.submit(f"print('on'); {main_gate.code} untouched = True")
    next(iter(innocent))
    code = f"print('on', flush=True); {gate.code} ended = True"
    if how == "timeout":
        with pytest.raises(kclient.KernelTimeout, match="it goes on: an interrupt does not reach a subshell") as caught:
            client.run(code, subshell_id=subshell, timeout=0.3)
        execution = caught.value.execution
    elif how == "kill":
        printed = gevent.event.Event()
        call = background(client.run, code, subshell_id=subshell, on_output=lambda message: printed.set())
        assert printed.wait(WAIT)
        call.greenlet.kill()
        execution = client.submit("1", subshell_id=subshell)
    elif how == "on_input":
        with pytest.raises(ZeroDivisionError):
            client.run(code + "; input()", subshell_id=subshell, on_input=fail, on_output=lambda message: gate.open())
        client.stdin_channel.input("")
        execution = client.submit("1", subshell_id=subshell)
    elif how == "on_input of the client":
        failed = gevent.event.Event()
        client.on_input = lambda prompt, password: (failed.set(), fail())
        request = messages.execute(code + "; input()", allow_stdin=True)
        client.shell_channel.send("execute_request", request, subshell_id=subshell)
        gate.open()
        assert failed.wait(WAIT)
        client.on_input = None
        client.stdin_channel.input("")
        execution = client.submit("1", subshell_id=subshell)
    else:
        execution = client.submit(code, subshell_id=subshell)
        next(iter(execution))
        with pytest.raises(kclient.UnsupportedFeature, match="goes on"):
            execution.interrupt()
    main_gate.open()
    assert innocent.result(timeout=WAIT).status == "ok"
    gate.open()
    assert execution.result(timeout=WAIT).status == "ok"
    assert client.run("ended, untouched").text == "(True, True)"


def test_ctrl_c_spares_the_main_shell_while_a_call_waits_for_a_subshell(
    kernel, client, subshell, start_script, make_gate
):
    main_gate, gate = make_gate(), make_gate()
    script = start_script(
        "import sys, kclient\n"
        "path, subshell_id, code = sys.argv[1:]\n"
        "client = kclient.connect(path, watch=False)\n"
        "try:\n"
        "    client.run(code, subshell_id=subshell_id, on_output=lambda message: print('on', flush=True))\n"
        "except KeyboardInterrupt:\n"
        "    print('raised')\n"
        "client.close()\n",
        kernel.connection_file,
        subshell,
        f"print('on', flush=True); {gate.code}",
    )
    assert script.read_line() == "on"
    innocent = client.submit(f"print('on'); {main_gate.code} untouched = True")
    next(iter(innocent))
    script.interrupt()
    assert script.end() == "raised"
    main_gate.open()
    gate.open()
    assert innocent.result(timeout=WAIT).status == "ok"


# Ctrl-C


@pytest.mark.parametrize(
    ("call", "wait"),
    [
        ("client.run(code, on_output=see)", "while True: time.sleep(0.01)"),
        ("client.submit(code, on_output=see).result()", "while True: time.sleep(0.01)"),
        ("client.run(code, on_input=wait_for_ever)", "input()"),
    ],
    ids=["run", "result", "input"],
)
def test_ctrl_c_interrupts_the_kernel_and_is_raised_when_it_is_idle(kernel, start_script, call, wait):
    script = start_script(CTRL_C.format(call=call), kernel.connection_file, INTERRUPTIBLE.format(wait=wait))
    while script.read_line() != "on":
        assert script.process.poll() is None
    script.interrupt()
    assert script.end() == "idle again True"


def test_second_ctrl_c_is_raised_at_once(kernel, start_script, gate):
    """The code ignores this interrupt and every later one."""
    code = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); display('on'); {gate.code}"
    script = start_script(
        "import sys, kclient\n"
        "client = kclient.connect(sys.argv[1], watch=False)\n"
        "real = client.control_channel.post\n"
        "def post(*args):\n"
        "    print('interrupting', flush=True)\n"
        "    return real(*args)\n"
        "client.control_channel.post = post\n"
        "def see(message):\n"
        "    print('on', flush=True)\n"  # in a greenlet that runs when the main greenlet waits in result
        "execution = client.submit(sys.argv[2], on_output=see)\n"
        "try:\n    execution.result()\n"
        "except KeyboardInterrupt:\n    print('raised', execution.done(), flush=True)\n"
        "client.close()\n",
        kernel.connection_file,
        code,
    )
    assert script.read_line() == "on"
    script.interrupt()
    assert script.read_line() == "interrupting"
    script.interrupt()
    assert script.end().splitlines()[-1] == "raised False"
    gate.open()


def test_handler_of_the_users_own_is_left_alone(kernel, start_script, gate):
    script = start_script(
        "import gevent, os, signal, sys, kclient\n"
        "client = kclient.connect(sys.argv[1], watch=False)\n"
        "signal.signal(signal.SIGINT, lambda *args: os.write(1, b'mine\\n'))\n"  # `print` cannot be entered twice
        "execution = client.submit(sys.argv[2])\n"
        "next(iter(execution))\n"
        "gevent.spawn(print, 'on', flush=True)\n"  # runs when the main greenlet waits
        "print(execution.result().text)\n"
        "client.close()\n",
        kernel.connection_file,
        f"print('on', flush=True); {gate.code} 'untouched'",
    )
    assert script.read_line() == "on"
    script.interrupt()
    assert script.read_line() == "mine"
    gate.open()
    assert script.end() == "'untouched'"


@pytest.mark.parametrize(
    "call",
    [
        "client.kernel_info()",
        "client.shell_channel.get_reply(client.shell_channel.send('kernel_info_request'))",
        "client.iopub_channel.get_msg()",
    ],
)
def test_ctrl_c_in_any_other_call_is_raised_there_and_ends_no_channel(kernel, start_script, gate, call):
    execution = kernel.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    script = start_script(
        "import gevent, sys, kclient\n"
        "client = kclient.KernelClient(sys.argv[1])\n"
        "client.start_channels()\n"
        "client.iopub_channel.get_msgs()\n"
        "gevent.spawn(print, 'on', flush=True)\n"  # runs when the main greenlet waits
        f"try:\n    {call}\n"
        "except KeyboardInterrupt:\n"
        "    print('raised', flush=True)\n"
        "reply = client.execute('', user_expressions={'x': '6 * 7'}, timeout=30)\n"
        "print(reply.content['user_expressions']['x']['data']['text/plain'])\n"
        "client.close()\n",
        kernel.connection_file,
    )
    assert script.read_line() == "on"
    script.interrupt()
    assert script.read_line() == "raised"
    gate.open()
    assert script.end() == "42"


def test_ctrl_c_elsewhere_leaves_the_channels_working(kernel, start_script):
    """Many signals come while the hub takes in messages and the main greenlet sleeps."""
    script = start_script(
        "import gevent, os, signal, sys, time, kclient\n"
        "client = kclient.connect(sys.argv[1], watch=False)\n"
        "def ask():\n"
        "    while True: client.kernel_info()\n"
        "asking = gevent.spawn(ask)\n"
        "struck = 0\n"
        "while struck < 200:\n"
        "    try:\n"
        "        gevent.spawn_later(0.001, os.kill, os.getpid(), signal.SIGINT)\n"
        "        gevent.sleep(10)\n"
        "    except KeyboardInterrupt:\n"
        "        struck += 1\n"
        "    if asking.ready(): asking = gevent.spawn(ask)\n"
        "asking.kill()\n"
        "print([client.run(str(n), timeout=30).text for n in range(3)])\n"
        "channels = (client.shell_channel, client.iopub_channel)\n"
        "print(all(channel._line._stream._readable.active for channel in channels))\n"
        "client.close()\n",
        kernel.connection_file,
    )
    assert script.process.communicate(timeout=WAIT)[0] == "['0', '1', '2']\nTrue\n"


# A command that runs the kernel as its child


WRAPPER = """
import subprocess, sys
sys.exit(subprocess.call([sys.executable, "-m", "ipykernel_launcher", "-f", sys.argv[1]]))
"""


@pytest.fixture
def wrapped(install_kernel, start_kernel, transport):
    return start_kernel(install_kernel(WRAPPER), transport=transport)


def test_interrupt_reaches_the_kernel_and_its_children_and_not_the_wrapper(wrapped):
    code = "import subprocess\nprint('on', flush=True)\nsubprocess.run(['sleep', '60'])"
    execution = wrapped.submit(code)
    for message in execution:
        if message.msg_type == "stream":
            execution.interrupt()
    assert execution.result(WAIT).error.ename == "KeyboardInterrupt"
    assert wrapped.run("6 * 7", timeout=WAIT).text == "42"


def test_death_of_a_wrapper_by_an_interrupt_says_what_to_do(wrapped, monkeypatch):
    """Where there is no /proc, the wrapper gets the signal, too."""
    monkeypatch.setattr(provisioner, "interrupt_behind_wrapper", lambda group, info: False)
    execution = wrapped.submit(FOR_EVER)
    assert next(iter(execution))
    wrapped.interrupt_kernel()
    assert wrapped.process.exited.wait(WAIT)
    with pytest.raises(kclient.DeadKernelError, match='the interrupt ended it; .* interrupt_mode to "message"'):
        wrapped.run("1", timeout=WAIT)


def test_death_by_a_signal_of_another_program_gives_no_advice(start_kernel):
    manager = start_kernel()
    os.kill(manager.process.pid, signal.SIGKILL)
    with pytest.raises(kclient.DeadKernelError) as caught:
        manager.run("1", timeout=WAIT)
    assert "interrupt" not in caught.value.headline
