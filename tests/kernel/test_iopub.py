import time

import gevent
import pytest

import kclient

BOTH_LINES = True

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

LATE = """
import threading
def print_late():
    {wait}
    print('late', flush=True)
thread = threading.Thread(target=print_late)
thread.start()
"""
"""Output that comes after the execution, under its id."""


def text_of(messages):
    return "".join(message.content["text"] for message in messages if message.msg_type == "stream")


# flush


def test_flush_returns_all_that_came_and_removes_it(client):
    reply = client.execute("print('one'); 1", timeout=WAIT)
    messages = client.iopub_channel.flush()
    types = [message.msg_type for message in messages]
    assert (types[:2], sorted(types[2:-1]), types[-1]) == (
        ["status", "execute_input"],
        ["execute_result", "stream"],
        "status",
    )
    assert {message.parent_id for message in messages} == {reply.parent_id}
    assert messages[-1].content["execution_state"] == "idle"
    assert client.iopub_channel.flush() == []


def test_flush_waits_for_the_idle_of_every_request_that_was_answered(client):
    """The idle status comes after the reply, on another socket."""
    for number in range(20):
        client.execute(f"print({number})", timeout=WAIT)
        messages = client.iopub_channel.flush(timeout=WAIT)
        assert text_of(messages) == f"{number}\n"
        assert messages[-1].content == {"execution_state": "idle"}


def test_flush_does_not_wait_for_a_request_that_still_runs(client, gate, background):
    reply = background(client.execute, f"print('on', flush=True); {gate.code}")
    message = client.iopub_channel.get_msg(timeout=WAIT)
    while message.msg_type != "stream":
        message = client.iopub_channel.get_msg(timeout=WAIT)
    started = time.monotonic()
    assert "status" not in {message.msg_type for message in client.iopub_channel.flush(timeout=WAIT)}
    assert time.monotonic() - started < WAIT / 2
    gate.open()
    assert reply.get().content["status"] == "ok"


def test_flush_does_not_wait_for_what_was_published_before_the_client_was_subscribed(kernel):
    for _ in range(10):
        with kclient.connect(kernel.connection_file, watch=False, timeout=WAIT) as client:
            started = time.monotonic()
            client.iopub_channel.flush(timeout=WAIT)
            assert time.monotonic() - started < WAIT / 2


def test_flush_leaves_the_messages_of_an_execution_to_it(client):
    execution = client.submit("print('mine')")
    assert execution.result().stdout == "mine\n"
    client.execute("print('unclaimed')", timeout=WAIT)
    assert text_of(client.iopub_channel.flush()) == "unclaimed\n"
    assert text_of(execution) == "mine\n"


def test_flush_with_no_time_takes_what_is_there(client):
    assert client.iopub_channel.flush(timeout=0) == []
    reply = client.execute("print('all')", timeout=WAIT)
    messages = []
    while not messages or messages[-1].content.get("execution_state") != "idle":
        messages += client.iopub_channel.flush(timeout=0)
        gevent.sleep(0)
    assert text_of(messages) == "all\n"
    assert {message.parent_id for message in messages} == {reply.parent_id}


def test_flush_from_a_callback_only_drains(client):
    """In a callback flush could wait for ever for messages behind the one that the callback is about."""
    client.execute("print('before')", timeout=WAIT)
    flushed = []
    result = client.run(
        "print('x')", on_output=lambda message: flushed.append(client.iopub_channel.flush(timeout=WAIT))
    )
    assert result.stdout == "x\n"
    assert text_of(flushed[0]) == "before\n"


def test_flush_brings_the_output_of_other_clients(client, kernel):
    assert kernel.run("print('by another')").ok
    messages = client.iopub_channel.flush()
    while not messages or messages[-1].content.get("execution_state") != "idle":
        messages += [client.iopub_channel.get_msg(timeout=WAIT)]
    assert text_of(messages) == "by another\n"
    assert {message.parent_header["session"] for message in messages} == {kernel.session.session}


# Ready


@pytest.mark.parametrize("watch", [True, False])
def test_no_first_output_is_lost_after_connect(kernel, watch):
    for number in range(20):
        with kclient.connect(kernel.connection_file, watch=watch, timeout=WAIT) as client:
            result = client.run(f"print({number})", timeout=WAIT)
            assert (result.stdout, result.complete) == (f"{number}\n", True)


def test_no_first_output_of_execute_is_lost_after_connect(kernel):
    for number in range(10):
        with kclient.connect(kernel.connection_file, watch=False, timeout=WAIT) as client:
            client.execute(f"print({number})", timeout=WAIT)
            assert f"{number}\n" in text_of(client.iopub_channel.flush())


def test_no_first_output_is_lost_after_start(start_kernel, transport):
    for number in range(3):
        with start_kernel(transport=transport) as manager:
            assert manager.run(f"print({number})", timeout=WAIT).stdout == f"{number}\n"


def test_ready_client_has_nothing_of_its_own_probes_in_its_inboxes(kernel):
    for _ in range(5):
        with kclient.connect(kernel.connection_file, watch=False, timeout=WAIT) as client:
            own = [m for m in client.iopub_channel.flush() if m.parent_header["session"] == client.session.session]
            assert own == []
            assert client.shell_channel.get_msgs() == []


def test_connect_to_a_busy_kernel_waits_until_it_answers(kernel, gate, background):
    execution = kernel.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    with pytest.raises(kclient.KernelTimeout) as caught:
        kclient.connect(kernel.connection_file, timeout=0.05)
    assert caught.value.timeout == 0.05
    client = background(kclient.connect, kernel.connection_file)
    assert client.is_waiting
    gate.open()
    assert client.get().run("print('at last')").stdout == "at last\n"
    client.get().close()


# Outputs of several clients and executions


def test_output_after_idle_goes_to_the_inbox(client, gate):
    result = client.run(LATE.format(wait=gate.code))
    assert result.stdout == ""
    client.iopub_channel.flush()
    gate.open()
    message = client.iopub_channel.get_msg(timeout=WAIT)
    while message.msg_type != "stream":
        message = client.iopub_channel.get_msg(timeout=WAIT)
    assert message.content["text"].startswith("late")
    assert message.parent_id == result.reply.parent_id
    assert result.stdout == ""


def test_clients_of_one_kernel_get_their_own_outputs(kernel):
    with kclient.connect(kernel.connection_file, timeout=WAIT) as one, kclient.connect(kernel.connection_file) as two:
        executions = [client.submit(f"print({number})") for number in range(10) for client in (one, two)]
        expected = [f"{number}\n" for number in range(10) for _ in range(2)]
        assert [execution.result(WAIT).stdout for execution in executions] == expected


def test_burst_of_output_arrives_whole_and_in_order(client):
    result = client.run("for n in range(20_000):\n    print(n)")
    assert result.stdout == "".join(f"{n}\n" for n in range(20_000))
    assert (result.complete, result.truncated) == (True, False)


def test_large_output_arrives_whole(client):
    result = client.run("print('x' * 20_000_000)")
    assert len(result.stdout) == 20_000_001
    assert result.complete


def test_buffers_of_an_output_arrive(client):
    client.execute(
        "get_ipython().kernel.session.send(get_ipython().kernel.iopub_socket, 'display_data', {'data': {}},"
        " parent=get_ipython().kernel.get_parent(), buffers=[b'raw', b'more'])",
        timeout=WAIT,
    )
    (message,) = [m for m in client.iopub_channel.flush() if m.msg_type == "display_data"]
    assert [bytes(buffer) for buffer in message.buffers] == [b"raw", b"more"]
