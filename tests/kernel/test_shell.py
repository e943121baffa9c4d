import math
import time
from contextlib import suppress
from time import perf_counter

import pytest

import kclient

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

STOLEN = 5
"""Seconds: far more than any call here may take, and far less than the stall after a lost wake-up."""


def sent_by(client):
    """The ids of this client's requests whose statuses the kernel has published since the last flush."""
    last = client.kernel_info(timeout=WAIT).parent_id
    statuses = [message for message in client.iopub_channel.flush() if message.msg_type == "status"]
    own = {message.parent_id for message in statuses if message.parent_header["session"] == client.session.session}
    return own - {last}


# execute


def test_execute_returns_its_reply(client):
    reply = client.execute("6 * 7", timeout=WAIT)
    assert reply.msg_type == "execute_reply"
    assert reply["content"]["status"] == "ok"
    assert reply.received > 0


def test_outputs_of_execute_are_in_the_inbox(client):
    reply = client.execute("print('out'); 6 * 7", timeout=WAIT)
    messages = client.iopub_channel.flush()
    assert {message.parent_id for message in messages} == {reply.parent_id}
    contents = {message.msg_type: message.content for message in messages}
    assert contents["stream"] == {"name": "stdout", "text": "out\n"}
    assert contents["execute_result"]["data"] == {"text/plain": "42"}


def test_error_in_the_code_is_in_the_reply(client):
    content = client.execute("1 / 0", timeout=WAIT).content
    assert (content["status"], content["ename"], content["evalue"]) == (
        "error",
        "ZeroDivisionError",
        "division by zero",
    )
    assert any("1 / 0" in plain(line) for line in content["traceback"])


def test_silent_code_publishes_no_result_and_does_not_count(client):
    before = client.execute("0", timeout=WAIT).content["execution_count"]
    client.iopub_channel.flush()
    assert client.execute("quiet = 1; quiet", silent=True, timeout=WAIT).content["status"] == "ok"
    assert {message.msg_type for message in client.iopub_channel.flush()} == {"status"}
    assert client.execute("quiet", timeout=WAIT).content["execution_count"] == before + 1


def test_code_that_is_not_to_be_stored_is_not_in_the_history(client):
    before = client.execute("stored = 1", timeout=WAIT).content["execution_count"]
    client.execute("not_stored = 2", store_history=False, timeout=WAIT)
    after = client.execute("stored = 3", timeout=WAIT).content["execution_count"]
    history = client.history(start=before, stop=after + 1, timeout=WAIT).content["history"]
    assert after == before + 1
    assert [code for _, _, code in history] == ["stored = 1", "stored = 3"]


def test_user_expressions_are_evaluated_after_the_code(client):
    expressions = {"sum": "a + b", "broken": "a / 0"}
    content = client.execute("a, b = 1, 2", user_expressions=expressions, timeout=WAIT).content
    assert content["user_expressions"]["sum"]["data"]["text/plain"] == "3"
    assert content["user_expressions"]["broken"]["ename"] == "ZeroDivisionError"


@pytest.mark.parametrize("stop_on_error", [True, False])
def test_stop_on_error_aborts_what_is_queued_behind(client, gate, stop_on_error, await_arrival):
    shell = client.shell_channel
    flags = {"silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
    failing = shell.send("execute_request", {"code": f"{gate.code} 1 / 0", "stop_on_error": stop_on_error, **flags})
    behind = shell.send("execute_request", {"code": "1", "stop_on_error": stop_on_error, **flags})
    await_arrival(client)
    gate.open()
    assert shell.get_reply(failing, timeout=WAIT).content["status"] == "error"
    assert shell.get_reply(behind, timeout=WAIT).content["status"] == ("aborted" if stop_on_error else "ok")


# Questions about code


ODD_TEXT = "'𝕏 👩‍🚀 e\u0301'; "
"""The text has fewer code points than units of UTF-16, and more code points than visible characters."""


def test_complete_counts_code_points(client):
    code = f"{ODD_TEXT}impor + 1"
    content = client.complete(code, len(f"{ODD_TEXT}impor"), timeout=WAIT).content
    assert "import" in content["matches"]
    assert code[content["cursor_start"] : content["cursor_end"]] == "impor"


def test_inspect_counts_code_points(client):
    code = f"{ODD_TEXT}id,len"
    for name in ("id", "len"):
        content = client.inspect(code, code.index(name) + 1, timeout=WAIT).content
        assert content["found"]
        assert f"{name}(" in plain(content["data"]["text/plain"])


def test_complete_takes_the_end_of_the_code_for_the_cursor(client):
    content = client.complete("import collection", timeout=WAIT).content
    assert content["matches"] == ["collections"]
    assert (content["cursor_start"], content["cursor_end"]) == (7, 17)


def test_inspect_finds_the_name_at_the_cursor(client):
    code = "print + len"
    for position, name in ((0, "print"), (None, "len")):
        content = client.inspect(code, position, timeout=WAIT).content
        assert content["found"]
        assert f"{name}(" in plain(content["data"]["text/plain"])


def test_inspect_tells_more_at_detail_level_1(client):
    client.execute("def told():\n    '''the docstring'''\n    return 'the source'", timeout=WAIT)
    for ask in (client.inspect, client.object_info):
        brief, full = (
            plain(ask("told", detail_level=level, timeout=WAIT).content["data"]["text/plain"]) for level in (0, 1)
        )
        assert "the docstring" in brief
        assert "the source" not in brief
        assert "return 'the source'" in full


def test_object_info_of_an_unknown_name_finds_nothing(client):
    assert client.object_info("no_such_name", timeout=WAIT).content["found"] is False


def plain(text):
    """`text` without its colours."""
    return "".join(part.partition("m")[2] if number else part for number, part in enumerate(text.split("\x1b[")))


@pytest.mark.parametrize(
    ("code", "status"), [("1 + 1", "complete"), ("for n in range(3):", "incomplete"), ("1 +* 1", "invalid")]
)
def test_is_complete_tells(client, code, status):
    content = client.is_complete(code, timeout=WAIT).content
    assert content["status"] == status
    assert content.get("indent") == ("    " if status == "incomplete" else None)


# History


def test_history_of_a_range_has_inputs_or_outputs_too(client):
    count = client.execute("'in' + 'put'", timeout=WAIT).content["execution_count"]
    for output, entry in ((False, "'in' + 'put'"), (True, ["'in' + 'put'", "'input'"])):
        history = client.history(output=output, session=0, start=count, stop=count + 1, timeout=WAIT).content["history"]
        assert [line[1:] for line in history] == [[count, entry]]


def test_history_is_raw_or_what_ipython_made_of_it(client):
    client.execute("%who_ls", timeout=WAIT)
    found = [client.history(raw, False, "tail", n=1, timeout=WAIT).content["history"][0][2] for raw in (True, False)]
    assert found == ["%who_ls", "get_ipython().run_line_magic('who_ls', '')"]


def test_history_tail_has_the_latest_lines(client):
    for number in range(3):
        client.execute(f"tail = {number}", timeout=WAIT)
    history = client.history(hist_access_type="tail", n=2, timeout=WAIT).content["history"]
    assert [code for _, _, code in history] == ["tail = 1", "tail = 2"]


def test_history_search_finds_a_pattern(client):
    for _ in range(2):
        client.execute("needle = 'hay'", timeout=WAIT)
    client.execute("hay = 'needle'", timeout=WAIT)
    find = {"hist_access_type": "search", "pattern": "need?e = *", "unique": True, "timeout": WAIT}
    assert [code for _, _, code in client.history(**find).content["history"]] == ["needle = 'hay'"]
    everything = client.history(**{**find, "unique": False, "n": 2}).content["history"]
    assert [code for _, _, code in everything] == ["needle = 'hay'"] * 2


# The kernel


def test_request_that_has_no_method_of_its_own_is_sent_by_name(client, kernel):
    reply = client.request("connect_request", timeout=WAIT)
    assert reply.msg_type == "connect_reply"
    ports = {name: port for name, port in reply.content.items() if name.endswith("_port")}
    assert ports.items() <= kernel.get_connection_info().items()
    assert "shell_port" in ports


def test_kernel_info_on_shell_and_control(client):
    for channel in (client, client.shell_channel, client.control_channel):
        content = channel.kernel_info(timeout=WAIT).content
        assert content["language_info"]["name"] == "python"
        assert content["protocol_version"].startswith("5.")


def test_comm_info_lists_comms_by_target(client):
    client.execute("import comm; mine = comm.create_comm(target_name='kclient.test')", timeout=WAIT)
    comm_id = client.execute("", user_expressions={"id": "mine.comm_id"}, timeout=WAIT)
    comm_id = comm_id.content["user_expressions"]["id"]["data"]["text/plain"].strip("'")
    assert client.comm_info("kclient.test", timeout=WAIT).content["comms"] == {comm_id: {"target_name": "kclient.test"}}
    assert client.comm_info("kclient.other", timeout=WAIT).content["comms"] == {}
    assert comm_id in client.comm_info(timeout=WAIT).content["comms"]
    client.execute("mine.close()", timeout=WAIT)
    assert comm_id not in client.comm_info(timeout=WAIT).content["comms"]


def test_comm_messages_go_both_ways(client):
    client.run(
        "def opened(comm, message):\n"
        "    comm.on_msg(lambda message: comm.send({'echo': message['content']['data']}, buffers=message['buffers']))\n"
        "get_ipython().kernel.comm_manager.register_target('kclient.echo', opened)",
        check=True,
    )
    shell = client.shell_channel
    client.iopub_channel.flush()
    shell.send("comm_open", {"comm_id": "c1", "target_name": "kclient.echo", "data": {}})
    shell.send("comm_msg", {"comm_id": "c1", "data": {"n": 1}}, buffers=[b"raw", b""])
    message = client.iopub_channel.get_msg(timeout=WAIT)
    while message.msg_type != "comm_msg":
        message = client.iopub_channel.get_msg(timeout=WAIT)
    assert message.content == {"comm_id": "c1", "data": {"echo": {"n": 1}}}
    assert [bytes(buffer) for buffer in message.buffers] == [b"raw", b""]
    shell.send("comm_close", {"comm_id": "c1", "data": {}})
    assert client.comm_info("kclient.echo", timeout=WAIT).content["comms"] == {}


def test_control_is_answered_while_the_kernel_is_busy(client, gate):
    execution = client.submit(gate.code)
    assert client.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"
    assert not execution.done()
    gate.open()
    assert execution.result().ok


def test_kernel_is_known(kernel, client):
    info = client.kernel
    assert kernel.kernel.language_info == info.language_info
    assert (info.implementation, info.language, info.status) == ("ipython", "python", "ok")
    assert info.protocol_version_info >= (5, 3)
    assert info.supported_features >= {"kernel subshells", "debugger"}
    assert client.kernel_info(timeout=WAIT).content == client.kernel.content


def test_subshell_runs_code_while_the_main_shell_is_busy(client, gate, figures):
    subshell_id = client.create_subshell(timeout=WAIT).content["subshell_id"]
    assert client.list_subshells(timeout=WAIT).content["subshell_id"] == [subshell_id]
    execution = client.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    start = perf_counter()
    result = client.run("print('beside'); 1 + 1", subshell_id=subshell_id)
    figures.note("an answer from a subshell beside a busy main shell", perf_counter() - start, "s", at_most=0.2)
    assert (result.stdout, result.text) == ("beside\n", "2")
    assert not execution.done()
    gate.open()
    assert execution.result().ok
    assert client.delete_subshell(subshell_id, timeout=WAIT).content["status"] == "ok"
    assert client.list_subshells(timeout=WAIT).content["subshell_id"] == []


def test_code_in_a_subshell_that_is_deleted_ends_and_so_does_what_waits_behind_it(client, gate):
    """ipykernel lets the code end. It drops the reply and the queued requests, or refuses to delete, or is quicker."""
    subshell_id = client.create_subshell(timeout=WAIT).content["subshell_id"]
    executions = [client.submit(f"print('on'); {gate.code}", subshell_id=subshell_id)]
    next(iter(executions[0]))
    executions.append(client.submit("1", subshell_id=subshell_id))
    deletion = client.control_channel.send("delete_subshell_request", {"subshell_id": subshell_id})
    gate.open()
    assert client.control_channel.get_reply(deletion, timeout=WAIT).content["status"] == "ok"
    for execution in executions:
        with suppress(kclient.NoReply):
            result = execution.result(WAIT)
            assert result.ok or (result.error.ename == "UnknownSubshellError" and subshell_id in result.error.evalue)
    with pytest.raises(kclient.InvalidArgument, match=subshell_id):
        client.run("1", subshell_id=subshell_id)


@pytest.mark.parametrize("channel", ["shell_channel", "control_channel"])
def test_shutdown_is_answered_and_ends_the_process(kernel_manager, channel):
    reply = getattr(kernel_manager, channel).shutdown(restart=True, timeout=WAIT)
    assert reply.content["restart"] is True
    assert kernel_manager.process.exited.wait(WAIT)
    assert not kernel_manager.is_alive()


# Replies


def test_replies_can_be_taken_in_any_order(client):
    shell = client.shell_channel
    ids = [shell.send("is_complete_request", {"code": code}) for code in ("1", "if x:", "1 +* 1")]
    statuses = [shell.get_reply(msg_id, timeout=WAIT).content["status"] for msg_id in reversed(ids)]
    assert statuses == ["invalid", "incomplete", "complete"]


def test_reply_can_be_taken_once(client):
    for channel in (client.shell_channel, client.control_channel):
        msg_id = channel.send("kernel_info_request")
        assert channel.get_reply(msg_id, timeout=WAIT).parent_id == msg_id
        with pytest.raises(kclient.LocalProtocolError, match="already taken"):
            channel.get_reply(msg_id)


def test_reply_to_a_request_never_sent_is_refused_at_once(client):
    for msg_id in ("no-such-id", client.control_channel.send("kernel_info_request")):
        with pytest.raises(kclient.LocalProtocolError, match="never sent"):
            client.shell_channel.get_reply(msg_id)


def test_reply_that_another_greenlet_awaits_is_refused_at_once(client, gate, background):
    execution = client.submit(gate.code)
    msg_id = client.shell_channel.send("kernel_info_request")
    first = background(client.shell_channel.get_reply, msg_id)
    for taken in (msg_id, execution.msg_id):
        with pytest.raises(kclient.LocalProtocolError, match="another greenlet"):
            client.shell_channel.get_reply(taken)
    gate.open()
    assert first.get().parent_id == msg_id


def test_get_reply_may_be_asked_again_after_a_timeout(client, gate):
    msg_id = client.shell_channel.send("execute_request", {"code": gate.code, "silent": True})
    for timeout in (0, 0.01):
        with pytest.raises(kclient.KernelTimeout) as caught:
            client.shell_channel.get_reply(msg_id, timeout=timeout)
        assert (caught.value.msg_id, caught.value.timeout) == (msg_id, timeout)
    gate.open()
    assert client.shell_channel.get_reply(msg_id, timeout=WAIT).parent_id == msg_id


def test_request_that_times_out_tells_what_it_waited_for(client, gate):
    execution = client.submit(gate.code)
    with pytest.raises(kclient.KernelTimeout) as caught:
        client.complete("impor", timeout=0.01)
    error = caught.value
    assert isinstance(error, TimeoutError)
    assert (error.timeout, error.execution, error.result) == (0.01, None, None)
    assert error.waiting_for == "complete_reply on the shell channel"
    assert "no complete_reply on the shell channel within 0.01 s" in str(error)
    assert error.msg_id.startswith(client.session.session)
    gate.open()
    assert execution.result().ok


def test_reply_that_comes_too_late_is_discarded(client, gate):
    execution = client.submit(gate.code)
    with pytest.raises(kclient.KernelTimeout) as caught:
        client.kernel_info(timeout=0)
    gate.open()
    assert execution.result().ok
    client.kernel_info(timeout=WAIT)
    assert client.shell_channel.get_msgs() == []
    with pytest.raises(kclient.LocalProtocolError):
        client.shell_channel.get_reply(caught.value.msg_id)


def test_script_that_only_polls_gets_its_reply(client):
    msg_id = client.shell_channel.send("kernel_info_request")
    deadline = time.monotonic() + WAIT
    while True:
        try:
            reply = client.shell_channel.get_reply(msg_id, timeout=0)
        except kclient.KernelTimeout:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        else:
            break
    assert reply.parent_id == msg_id


def test_request_without_a_reply_raises_once_its_idle_has_come(client, background):
    """ipykernel ignores an unknown type, but publishes busy and idle for it."""
    msg_id = client.shell_channel.send("no_such_request")
    calls = [
        background(client.shell_channel.request, "no_such_request"),
        background(client.control_channel.request, "no_such_request"),
        background(client.shell_channel.get_reply, msg_id),
    ]
    for call in calls:
        assert isinstance(call.error(), kclient.NoReply)
    assert client.kernel_info(timeout=WAIT).content["status"] == "ok"


def test_message_of_a_newer_protocol_is_sent_as_it_is(client):
    message = client.session.msg("kernel_info_request", {"of the future": 1}, metadata={"m": 2})
    message.header["x_newer"] = "also"
    msg_id = client.shell_channel.send(message)
    assert msg_id == message.msg_id
    assert client.shell_channel.get_reply(msg_id, timeout=WAIT).parent_header["x_newer"] == "also"


def test_metadata_and_buffers_arrive(client):
    code = "parent = get_ipython().kernel.get_parent(); parent['metadata'], [bytes(b) for b in parent['buffers']]"
    client.shell_channel.send("execute_request", {"code": code}, metadata={"m": [1]}, buffers=[b"\0\xff", b""])
    (result,) = [m for m in [client.shell_channel.get_msg(timeout=WAIT)] if m.content["status"] == "ok"]
    outputs = [message for message in client.iopub_channel.flush() if message.msg_type == "execute_result"]
    assert [output.content["data"]["text/plain"] for output in outputs] == [r"({'m': [1]}, [b'\x00\xff', b''])"]
    assert outputs[0].parent_id == result.parent_id


# Arguments


BAD_CALLS = {
    "execute: no string": lambda client: client.execute(b"1"),
    "execute: no code": lambda client: client.execute(None),
    "run: no string": lambda client: client.run(["1"]),
    "submit: no string": lambda client: client.submit(1),
    "user_expressions: a list": lambda client: client.execute("1", user_expressions=["a"]),
    "user_expressions: no strings": lambda client: client.execute("1", user_expressions={"a": 1}),
    "user_expressions: no names": lambda client: client.run("1", user_expressions={1: "a"}),
    "on_abandon": lambda client: client.run("1", on_abandon="explode"),
    "complete: no string": lambda client: client.complete(None),
    "complete: cursor beyond the code": lambda client: client.complete("abc", 4),
    "complete: negative cursor": lambda client: client.complete("abc", -1),
    "complete: half a cursor": lambda client: client.complete("abc", 1.5),
    "inspect: no string": lambda client: client.inspect(3),
    "inspect: detail_level": lambda client: client.inspect("a", detail_level=2),
    "object_info: no string": lambda client: client.object_info(None),
    "object_info: detail_level": lambda client: client.object_info("a", "high"),
    "history: unknown type": lambda client: client.history(hist_access_type="all"),
    "history: unknown argument": lambda client: client.history(lines=3),
    "history: no number": lambda client: client.history(hist_access_type="tail", n="3"),
    "is_complete: no string": lambda client: client.is_complete(None),
    "comm_info: no string": lambda client: client.comm_info(1),
    "debug: no command": lambda client: client.debug(None),
    "debug: empty command": lambda client: client.debug(""),
    "debug: no arguments": lambda client: client.debug("threads", ["all"]),
    "debug: not JSON": lambda client: client.debug("threads", {"all": {1, 2}}),
    "wait_for_debug_event: no string": lambda client: client.wait_for_debug_event(5),
    "delete_subshell: no string": lambda client: client.delete_subshell(None),
    "send: no type": lambda client: client.shell_channel.send(None),
    "send: content is a list": lambda client: client.shell_channel.send("x_request", [1]),
    "send: not JSON": lambda client: client.shell_channel.send("x_request", {"x": {1, 2}}),
    "send: metadata is a list": lambda client: client.shell_channel.send("x_request", {}, metadata=[1]),
    "send: buffers of text": lambda client: client.shell_channel.send("x_request", {}, buffers=["text"]),
    "send: a buffer, not a list": lambda client: client.shell_channel.send("x_request", {}, buffers=3),
    "send: subshell_id": lambda client: client.shell_channel.send("x_request", {}, subshell_id=3),
    "run: subshell_id": lambda client: client.run("1", subshell_id=3),
}


def test_bad_argument_raises_and_nothing_is_sent(client):
    found = []
    for name, call in BAD_CALLS.items():
        try:
            found.append((name, call(client)))
        except ValueError:
            continue
        except Exception as exc:
            found.append((name, exc))
    assert found == []
    assert sent_by(client) == set()


def test_timeout_that_is_no_number_of_seconds_raises_and_nothing_is_sent(client):
    calls = [
        client.kernel_info,
        client.control_channel.kernel_info,
        client.iopub_channel.flush,
        client.iopub_channel.get_msg,
        client.stdin_channel.get_msg,
        client.wait_for_ready,
        lambda timeout: client.run("1", timeout=timeout),
        lambda timeout: client.execute("1", timeout=timeout),
        lambda timeout: client.shell_channel.get_reply("x", timeout=timeout),
    ]
    for call in calls:
        for timeout in ("1", -1, -0.5, math.nan, True, [], object()):
            with pytest.raises(ValueError, match="timeout must be a number of seconds"):
                call(timeout=timeout)
    assert sent_by(client) == set()


def test_timeout_may_be_infinite(client):
    assert client.run("1", timeout=math.inf).text == "1"


def test_many_requests_in_a_row_are_each_answered_soon(client):
    """A lost edge of a ZeroMQ socket shows as a stall of many seconds."""
    slowest = 0.0
    for _ in range(300):
        started = time.monotonic()
        client.kernel_info(timeout=WAIT)
        slowest = max(slowest, time.monotonic() - started)
    assert slowest < STOLEN
