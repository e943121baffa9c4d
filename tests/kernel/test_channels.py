import gc
import logging
import os
import threading
import weakref

import gevent
import gevent.event
import leaks
import pytest
from fixtures import in_forked_child

import kclient
from kclient.transport.zmq.context import context

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

CLASSES = {
    "shell": kclient.ShellChannel,
    "iopub": kclient.IOPubChannel,
    "stdin": kclient.StdInChannel,
    "hb": kclient.HBChannel,
    "control": kclient.ControlChannel,
}

NAMES = sorted(CLASSES)


@pytest.fixture
def make_channel(kernel):
    """A channel made by hand, as in 2013, without a client."""
    made = []

    def make(name):
        info = kclient.ConnectionInfo.from_dict(kernel.get_connection_info())
        session = kclient.Session(info.key, server_key=info.curve_publickey)
        made.append(CLASSES[name](context(), session, info.address(name)))
        return made[-1]

    yield make
    for channel in made:
        channel.stop()


@pytest.fixture
def attach(kernel):
    """Make a manager, of a subclass perhaps, with its channels up, for the shared kernel, which it did not start."""
    made = []

    def make(manager_class, **channels):
        manager = manager_class()
        made.append(manager)
        manager.load_connection_file(kernel.connection_file)
        manager.start_channels(**channels)
        return manager

    yield make
    for manager in made:
        manager.stop_channels()


# One channel


@pytest.mark.parametrize("name", NAMES)
def test_channel_is_alive_from_start_to_stop(make_channel, name):
    channel = make_channel(name)
    assert not channel.is_alive()
    channel.start()
    channel.start()
    assert channel.is_alive()
    channel.stop()
    channel.stop()
    assert not channel.is_alive()


@pytest.mark.parametrize("name", NAMES)
def test_stopped_channel_cannot_start_again(make_channel, name):
    channel = make_channel(name)
    channel.start()
    channel.stop()
    with pytest.raises(RuntimeError, match="make a new one"):
        channel.start()
    assert not channel.is_alive()


@pytest.mark.parametrize("name", NAMES)
def test_address_is_the_one_in_the_connection_file(make_channel, kernel, transport, name):
    info = kernel.get_connection_info()
    between = ":" if transport == "tcp" else "-"
    assert make_channel(name).address == f"{transport}://{info['ip']}{between}{info[f'{name}_port']}"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("address", [("127.0.0.1", 0), "tcp://127.0.0.1:0"])
def test_port_0_is_refused(name, address):
    with pytest.raises(kclient.InvalidPortNumber) as caught:
        CLASSES[name](context(), kclient.Session(), address)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize("name", ["shell", "control"])
def test_request_channel_works_by_itself(make_channel, name):
    channel = make_channel(name)
    channel.start()
    reply = channel.kernel_info(timeout=WAIT)
    assert reply.content["language_info"]["name"] == "python"
    assert reply.parent_header["session"] == channel.session.session


def test_iopub_channel_works_by_itself(make_channel, kernel):
    channel = make_channel("iopub")
    channel.start()
    while not channel.msg_ready():  # only the kernel knows when a subscription has arrived
        kernel.run("None", silent=True)
    execution = kernel.submit("print('to all')")
    messages = []
    while len(messages) < 4:
        message = channel.get_msg(timeout=WAIT)
        if message.parent_id == execution.msg_id:
            messages.append(message)
    assert [message.msg_type for message in messages] == ["status", "execute_input", "stream", "status"]
    execution.result(timeout=WAIT)


def test_stdin_channel_works_beside_a_shell_channel_of_its_session(kernel, make_channel, background):
    shell, stdin = make_channel("shell"), make_channel("stdin")
    stdin.session = shell.session
    shell.start()
    stdin.start()
    assert stdin.wait_for_peer(WAIT)
    reply = background(shell.execute, "answer = input('name? ')", allow_stdin=True)
    assert stdin.get_msg(timeout=WAIT).content["prompt"] == "name? "
    stdin.input("kclient")
    assert reply.get().content["status"] == "ok"
    assert kernel.run("answer").text == "'kclient'"


def test_hb_channel_works_by_itself(make_channel):
    channel = make_channel("hb")
    channel.start()
    assert not channel.is_beating()
    channel.unpause()
    while channel.is_beating() is None:
        gevent.sleep(0.001)
    assert channel.is_beating() is True


@pytest.mark.parametrize("name", NAMES)
def test_call_on_a_channel_that_is_not_running_raises_at_once(make_channel, name):
    calls = {
        "shell": lambda channel: channel.kernel_info(),
        "control": lambda channel: channel.kernel_info(),
        "iopub": lambda channel: channel.flush(),
        "stdin": lambda channel: channel.get_msg(),
        "hb": lambda channel: channel.unpause(),
    }
    channel = make_channel(name)
    with pytest.raises(RuntimeError, match="not running"):
        calls[name](channel)
    channel.start()
    channel.stop()
    with pytest.raises(kclient.ChannelClosed) as caught:
        calls[name](channel)
    assert caught.value.channel == name


# call_handlers


class Recorder:
    """A mixin for channels: it keeps the messages that `call_handlers` gets. `call_handlers` fails in the hub."""

    def __init__(self, *args):
        super().__init__(*args)
        self.seen = []
        self.at_once = self.most_at_once = 0
        self.finished = gevent.event.Event()
        self.until = lambda message: False

    def call_handlers(self, message):
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        gevent.sleep(0)  # raises if it is called in the hub
        self.seen.append(message)
        self.at_once -= 1
        if self.until(message):
            self.finished.set()

    def types(self):
        return [message.msg_type for message in self.seen]


class RecordingManager(kclient.KernelManager):
    """A manager that replaces every channel."""

    shell_channel_class = type("Shell", (Recorder, kclient.ShellChannel), {})
    control_channel_class = type("Control", (Recorder, kclient.ControlChannel), {})
    iopub_channel_class = type("IOPub", (Recorder, kclient.IOPubChannel), {})
    stdin_channel_class = type("StdIn", (Recorder, kclient.StdInChannel), {})
    hb_channel_class = type("HB", (Recorder, kclient.HBChannel), {})


def is_idle_of(msg_id):
    return lambda message: message.parent_id == msg_id and message.content.get("execution_state") == "idle"


def test_channel_classes_of_a_manager_can_be_replaced(attach):
    manager = attach(RecordingManager)
    for name in NAMES:
        assert type(getattr(manager, f"{name}_channel")) is getattr(RecordingManager, f"{name}_channel_class")


def test_call_handlers_sees_every_message_once_in_order(attach):
    manager = attach(RecordingManager)
    manager.wait_for_ready(WAIT)
    execution = manager.submit("for n in range(50):\n    print(n, flush=True)")
    iopub = manager.iopub_channel
    iopub.until = is_idle_of(execution.msg_id)
    assert execution.result().ok
    assert iopub.finished.wait(WAIT)
    seen = [message for message in iopub.seen if message.parent_id == execution.msg_id]
    assert [message.msg_type for message in seen[:2]] == ["status", "execute_input"]
    assert "".join(message.content["text"] for message in seen[2:-1]) == "".join(f"{n}\n" for n in range(50))
    assert len({message.msg_id for message in seen}) == len(seen)
    assert iopub.most_at_once == 1


def test_call_handlers_sees_awaited_replies_and_input_requests(attach):
    manager = attach(RecordingManager)
    manager.wait_for_ready(WAIT)
    shell, stdin, control = manager.shell_channel, manager.stdin_channel, manager.control_channel
    shell.until = lambda message: message.msg_type == "execute_reply"
    stdin.until = lambda message: message.msg_type == "input_request"
    control.until = lambda message: message.msg_type == "kernel_info_reply"
    assert manager.run("input('?')", on_input=lambda prompt, password: "here").text == "'here'"
    control.kernel_info(timeout=WAIT)
    for channel in (shell, stdin, control):
        assert channel.finished.wait(WAIT)
    assert shell.types().count("execute_reply") == 1
    assert stdin.types() == ["input_request"]
    assert control.types() == ["kernel_info_reply"]


def test_error_of_call_handlers_is_logged_and_breaks_nothing(attach, caplog):
    class Broken(kclient.ShellChannel):
        def call_handlers(self, message):
            raise ZeroDivisionError(message.msg_type)

    manager = attach(type("Manager", (kclient.KernelManager,), {"shell_channel_class": Broken}))
    with caplog.at_level(logging.ERROR, "kclient"):
        for _ in range(2):
            assert manager.complete("impor", timeout=WAIT).content["matches"] == ["import"]
        leaks.turn_loop()
    assert caplog.text.count("ZeroDivisionError: complete_reply") == 2


def test_call_handlers_may_use_its_channel(attach):
    class Asking(kclient.ShellChannel):
        answers = gevent.event.AsyncResult()

        def call_handlers(self, message):
            if message.msg_type == "execute_reply":
                self.answers.set(self.is_complete("if x:", timeout=WAIT).content["status"])

    manager = attach(type("Manager", (kclient.KernelManager,), {"shell_channel_class": Asking}))
    manager.execute("None", timeout=WAIT)
    assert Asking.answers.get(timeout=WAIT) == "incomplete"


def test_call_handlers_may_stop_its_channel(attach):
    class Leaving(kclient.ShellChannel):
        stopped = gevent.event.Event()

        def call_handlers(self, message):
            self.stop()
            self.stopped.set()

    manager = attach(type("Manager", (kclient.KernelManager,), {"shell_channel_class": Leaving}))
    manager.kernel_info(timeout=WAIT)
    assert Leaving.stopped.wait(WAIT)
    assert not manager.shell_channel.is_alive()


def test_call_handlers_can_be_set_on_one_channel(client):
    seen = gevent.event.AsyncResult()
    client.control_channel.call_handlers = seen.set
    reply = client.control_channel.kernel_info(timeout=WAIT)
    assert seen.get(timeout=WAIT) is reply


# All channels of a manager


@pytest.mark.parametrize("left_out", [None, *NAMES])
def test_any_channel_can_be_left_out(attach, left_out):
    manager = attach(kclient.KernelManager, **{name: name != left_out for name in NAMES})
    for name in NAMES:
        assert getattr(manager, f"{name}_channel").is_alive() is (name != left_out)
    assert manager.channels_running


def test_start_channels_adds_to_those_that_run(attach):
    manager = attach(kclient.KernelManager, shell=True, iopub=False, stdin=False, hb=False, control=False)
    shell = manager.shell_channel
    manager.kernel_info(timeout=WAIT)
    manager.start_channels()
    assert manager.shell_channel is shell
    manager.wait_for_ready(WAIT)
    assert manager.run("print('all')").stdout == "all\n"


def test_stop_channels_stops_all_and_start_channels_makes_new_ones(attach):
    manager = attach(kclient.KernelManager)
    old = [getattr(manager, f"{name}_channel") for name in NAMES]
    manager.stop_channels()
    manager.stop_channels()
    assert not manager.channels_running
    assert not any(channel.is_alive() for channel in old)
    manager.start_channels()
    assert manager.channels_running
    new = [getattr(manager, f"{name}_channel") for name in NAMES]
    assert not {*old} & {*new}
    manager.wait_for_ready(WAIT)
    assert manager.run("print('again')").stdout == "again\n"


def test_no_channel_runs_before_start_channels(kernel):
    manager = kclient.KernelManager()
    assert not manager.channels_running
    with pytest.raises(kclient.InvalidPortNumber):
        manager.start_channels()
    manager.load_connection_file(kernel.connection_file)
    assert not manager.channels_running
    with pytest.raises(RuntimeError, match="start_channels"):
        manager.run("1")
    assert not manager.channels_running


@pytest.mark.parametrize("missing", ["shell", "iopub"])
def test_run_and_submit_need_shell_and_iopub(attach, missing):
    manager = attach(kclient.KernelManager, **{missing: False})
    for call in (manager.run, manager.submit):
        with pytest.raises(RuntimeError, match="start_channels"):
            call("1")


def test_execute_needs_no_iopub_channel(attach):
    manager = attach(kclient.KernelManager, iopub=False, stdin=False, hb=False, control=False)
    manager.wait_for_ready(WAIT)
    assert manager.execute("1 + 1", user_expressions={"two": "1 + 1"}, timeout=WAIT).content["status"] == "ok"


def test_stop_channels_wakes_every_waiting_call(client, background, gate):
    execution = client.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    waiting = {
        "shell": [
            background(client.kernel_info),
            background(client.shell_channel.get_msg),
            background(client.shell_channel.get_reply, client.shell_channel.send("kernel_info_request")),
            background(execution.result),
            background(list, execution),
            background(client.run, "2"),
        ],
        "iopub": [],
        "stdin": [background(client.stdin_channel.get_msg)],
        "control": [background(client.control_channel.get_msg)],
    }
    client.iopub_channel.get_msgs()
    waiting["iopub"].append(background(client.iopub_channel.get_msg))
    assert all(call.is_waiting for calls in waiting.values() for call in calls)
    client.stop_channels()
    errors = [call.error() for calls in waiting.values() for call in calls]
    assert {type(error) for error in errors} == {kclient.ChannelClosed}
    assert {call.error().channel for name in ("iopub", "stdin", "control") for call in waiting[name]} == {
        "iopub",
        "stdin",
        "control",
    }


# Calls from another thread or process


def calls_of(client, execution):
    """Calls of each kind that blocks, sends, or looks, by name; those that close are left out."""
    shell, iopub, stdin, hb = client.shell_channel, client.iopub_channel, client.stdin_channel, client.hb_channel
    return {
        "kernel_info": client.kernel_info,
        "start_channels": client.start_channels,
        "is_alive": client.is_alive,
        "wait_for_ready": client.wait_for_ready,
        "run": lambda: client.run("1"),
        "submit": lambda: client.submit("1"),
        "send": lambda: shell.send("kernel_info_request"),
        "get_reply": lambda: shell.get_reply("x"),
        "start": shell.start,
        "shell.get_msg": shell.get_msg,
        "shell.get_msgs": shell.get_msgs,
        "shell.msg_ready": shell.msg_ready,
        "iopub.flush": iopub.flush,
        "iopub.get_msg": iopub.get_msg,
        "iopub.get_msgs": iopub.get_msgs,
        "iopub.msg_ready": iopub.msg_ready,
        "stdin.get_msg": stdin.get_msg,
        "stdin.input": lambda: stdin.input("x"),
        "hb.unpause": hb.unpause,
        "hb.pause": hb.pause,
        "hb.is_beating": hb.is_beating,
        "execution.result": execution.result,
        "execution.done": execution.done,
        "execution.interrupt": execution.interrupt,
        "iter(execution)": lambda: next(iter(execution)),
    }


def closers_of(client):
    return {
        "stop_channels": client.stop_channels,
        "close": client.close,
        "shell.stop": client.shell_channel.stop,
        "hb.stop": client.hb_channel.stop,
    }


def not_refused(calls, error):
    """Names of the calls that did not raise `error`, with their outcomes."""
    found = []
    for name, call in calls.items():
        try:
            outcome = call()
        except error:
            continue
        except BaseException as exc:
            outcome = exc
        found.append(f"{name}: {outcome!r}")
    return found


def test_call_from_another_thread_raises_at_once(client):
    execution = client.submit("1")
    calls = calls_of(client, execution) | closers_of(client)
    found = []
    thread = threading.Thread(target=lambda: found.append(not_refused(calls, kclient.WrongThread)))
    thread.start()
    thread.join(WAIT)
    assert found == [[]]
    assert execution.result().text == "1"


def test_call_from_another_thread_leaves_nothing_behind(kernel):
    """The call makes no channel of that thread either, in a client whose channels do not run yet."""
    client = kclient.KernelClient(kernel.get_connection_info())
    calls = {"kernel_info": client.kernel_info, "run": lambda: client.run("1"), "start": client.start_channels}
    found = []
    thread = threading.Thread(target=lambda: found.append(not_refused(calls, kclient.WrongThread)))
    thread.start()
    thread.join(WAIT)
    assert found == [[]]
    client.start_channels()
    client.wait_for_ready(WAIT)
    assert client.run("6 * 7", timeout=WAIT).text == "42"
    client.stop_channels()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_call_in_a_forked_child_raises_at_once(client):
    execution = client.submit("'before the fork'")
    calls = calls_of(client, execution)
    assert in_forked_child(lambda: " ".join(not_refused(calls, kclient.ForkedProcess))) == ""
    assert execution.result().text == "'before the fork'"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks here")
def test_closing_in_a_forked_child_does_nothing(kernel):
    client = kclient.connect(kernel.connection_file, timeout=WAIT)

    def close_all():
        nonlocal client
        for close in closers_of(client).values():
            close()
        with client:
            pass
        running = client.channels_running
        del client, close
        gc.collect()
        return f"{running}"

    assert in_forked_child(close_all) == "True"
    assert client.run("print('after the fork')").stdout == "after the fork\n"
    client.close()


# Dropped, never closed


def test_dropped_client_is_collected_and_leaves_nothing(kernel):
    client = kclient.connect(kernel.connection_file, timeout=WAIT)
    execution = client.submit("print('x')")
    assert execution.result().stdout == "x\n"
    gone = [weakref.ref(client), weakref.ref(client.shell_channel), weakref.ref(client.iopub_channel)]
    del client, execution
    gc.collect()
    assert [reference() for reference in gone] == [None, None, None]


def test_client_dropped_in_a_foreign_thread_is_cleaned_up_in_its_own_hub(kernel):
    clients = [kclient.connect(kernel.connection_file, timeout=WAIT)]
    gone = weakref.ref(clients[0])

    def drop():
        clients.clear()
        gc.collect()

    thread = threading.Thread(target=drop)
    thread.start()
    thread.join(WAIT)
    assert gone() is None


def test_dropped_channel_is_collected(make_channel, kernel):
    info = kclient.ConnectionInfo.from_dict(kernel.get_connection_info())
    for name in NAMES:
        channel = CLASSES[name](context(), kclient.Session(info.key), info.address(name))
        channel.start()
        gone = weakref.ref(channel)
        del channel
        gc.collect()
        assert gone() is None, name


# Trouble around a call


@pytest.fixture
def busy(client, gate):
    """An execution that keeps the kernel busy until the gate is open."""
    execution = client.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    return execution


def calls_that_wait(client, busy):
    """Calls for a busy kernel. An abandoned run would interrupt itself later, and perhaps hit other code."""
    msg_id = client.shell_channel.send("kernel_info_request")
    return [
        lambda: client.run("1", on_abandon="leave"),
        busy.result,
        lambda: list(busy),
        client.kernel_info,
        lambda: client.shell_channel.get_reply(msg_id),
        client.control_channel.get_msg,
        client.stdin_channel.get_msg,
    ]


def test_gevent_timeout_around_a_call_leaves_the_client_usable(client, gate, busy):
    for call in calls_that_wait(client, busy):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            call()
    gate.open()
    assert busy.result().ok
    assert client.run("print('fine')").stdout == "fine\n"


def test_killed_greenlet_leaves_the_client_usable(client, gate, busy, background):
    waiting = [background(call) for call in calls_that_wait(client, busy)]
    for call in waiting:
        assert call.is_waiting
        call.greenlet.kill()
        assert isinstance(call.error(), gevent.GreenletExit)
    gate.open()
    assert busy.result().ok
    assert client.run("print('fine')").stdout == "fine\n"


def test_nothing_may_block_in_the_hub(client):
    outcome = gevent.event.AsyncResult()

    def call():
        try:
            outcome.set(client.control_channel.get_msg())
        except Exception as exc:
            outcome.set(exc)

    gevent.get_hub().loop.run_callback(call)
    assert isinstance(outcome.get(timeout=WAIT), RuntimeError)
    assert client.kernel_info(timeout=WAIT).content["status"] == "ok"
