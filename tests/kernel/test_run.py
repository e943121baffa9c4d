import gevent
import nbformat
import pytest

import kclient
from kclient.protocol.kept_outputs import CUT_MARK

BOTH_LINES = True

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""


def notebook_of(*results):
    """A notebook with a cell for each result, checked against nbformat's schema."""
    cells = [
        nbformat.v4.new_code_cell(
            "",
            outputs=[nbformat.from_dict(output) for output in result.notebook_outputs],
            execution_count=result.execution_count,
        )
        for result in results
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbformat.validate(notebook)
    return notebook


# Result


def test_result_has_text_and_streams(client):
    result = client.run("import sys\nprint('hi')\nprint('oh', file=sys.stderr)\n6 * 7", timeout=WAIT)
    assert (result.text, result.stdout, result.stderr) == ("42", "hi\n", "oh\n")
    assert (result.status, result.ok, result.error) == ("ok", True, None)
    assert (result.complete, result.truncated) == (True, False)
    assert result.data == {"text/plain": "42"}
    assert result.reply.msg_type == "execute_reply"
    assert result.execution_count == result.reply.content["execution_count"]
    result.raise_for_error()


def test_result_of_code_without_a_value_has_no_text(client):
    result = client.run("x = 1")
    assert (result.text, result.data, result.outputs, result.stdout, result.stderr) == (None, {}, [], "", "")
    assert result.ok


def test_rich_result_has_its_mime_bundle(client):
    result = client.run("class Rich:\n    _repr_html_ = lambda self: '<b>'\n    __repr__ = lambda self: 'rich'\nRich()")
    assert result.data == {"text/plain": "rich", "text/html": "<b>"}
    assert result.text == "rich"


def test_outputs_are_in_notebook_format(client):
    result = client.run(
        "import sys\n"
        "from IPython.display import HTML, Image, display\n"
        "print('one'); print('two')\n"
        "print('oh', file=sys.stderr, flush=True)\n"
        "display(HTML('<b>'), metadata={'m': 1})\n"
        "display(Image(b'\\x89PNG', format='png'))\n"
        "display({'application/json': {'a': [1]}}, raw=True)\n"
        "6 * 7"
    )
    failed = client.run("print('before'); 1 / 0")
    notebook_of(result, failed)
    kinds = [output["output_type"] for output in result.outputs if output["output_type"] != "stream"]
    assert kinds == ["display_data", "display_data", "display_data", "execute_result"]
    assert [output["output_type"] for output in failed.outputs] == ["stream", "error"]
    displayed = [output for output in result.outputs if output["output_type"] == "display_data"]
    assert displayed[0]["data"]["text/html"] == "<b>"
    assert displayed[0]["metadata"] == {"m": 1}
    assert displayed[2]["data"]["application/json"] == {"a": [1]}
    assert result.outputs[-1]["execution_count"] == result.execution_count


def test_streams_of_one_name_in_a_row_are_one_output(client):
    result = client.run("import sys\nfor n in range(3): print(n, flush=True)\nprint('x', file=sys.stderr, flush=True)")
    assert [(output["name"], output["text"]) for output in result.outputs] == [
        ("stdout", "0\n1\n2\n"),
        ("stderr", "x\n"),
    ]


def test_result_never_changes(client):
    """Neither a later update of its displays nor late output changes it."""
    shown = client.run("from IPython.display import display; handle = display('first', display_id=True)")
    before = [dict(output) for output in shown.outputs]
    client.run("handle.update('second')", check=True)
    client.iopub_channel.flush()
    assert shown.outputs == before
    with pytest.raises(AttributeError):
        shown.outputs = []


# clear_output and update_display_data


@pytest.mark.parametrize(
    ("wait", "after", "expected"),
    [(False, "", ""), (False, "print('new')", "new\n"), (True, "", "old\n"), (True, "print('new')", "new\n")],
)
def test_clear_output_removes_what_was_there(client, wait, after, expected):
    code = f"from IPython.display import clear_output\nprint('old', flush=True)\nclear_output(wait={wait})\n{after}"
    result = client.run(code)
    assert result.stdout.lstrip("\n") == expected
    notebook_of(result)


def test_update_display_data_changes_what_was_displayed(client):
    code = (
        "from IPython.display import display\n"
        "handle = display('first', display_id='it')\n"
        "display('another')\n"
        "display('twin', display_id='it')\n"
        "handle.update('second')"
    )
    result = client.run(code)
    assert [output["data"]["text/plain"] for output in result.outputs] == ["'second'", "'another'", "'second'"]
    notebook_of(result)


def test_update_display_data_reaches_a_display_of_another_execution(client, make_gate):
    """The other execution still runs, in a subshell, since the main shell runs one execution at a time."""
    gate = make_gate()
    subshell_id = client.create_subshell(timeout=WAIT).content["subshell_id"]
    displaying = client.submit(
        "from IPython.display import display\n"
        "handle = display('first', display_id=True)\n"
        f"print('there is a handle', flush=True); {gate.code}"
    )
    assert next(message for message in displaying if message.msg_type == "stream")
    updating = client.run("handle.update('second')", subshell_id=subshell_id, check=True)
    gate.open()
    assert displaying.result().outputs[0]["data"]["text/plain"] == "'second'"
    assert updating.outputs == []
    client.delete_subshell(subshell_id, timeout=WAIT)


def test_later_run_updates_or_repeats_a_display_of_an_earlier_result(client):
    displays = kclient.Displays()
    code = "h, j = [display(text, display_id=True) for text in 'ab']"
    first = client.run(code, displays=displays, check=True)
    display_ids = [output["transient"]["display_id"] for output in first.outputs]
    client.run("h.update('new')", displays=displays, check=True)
    again = client.run("j.display('again')", displays=displays, check=True)
    shown = [displays[display_id]["data"]["text/plain"] for display_id in display_ids]
    assert shown == ["'new'", "'again'"]
    assert [output["data"]["text/plain"] for output in first.with_displays(displays).outputs] == shown
    assert [output["data"]["text/plain"] for output in first.outputs] == ["'a'", "'b'"]
    assert again.outputs[0]["transient"]["display_id"] == display_ids[1]
    notebook_of(first, again)


# Errors are data


def test_error_in_the_code_is_data(client):
    result = client.run("print('before')\n1 / 0")
    assert (result.status, result.ok, result.stdout) == ("error", False, "before\n")
    assert (result.error.ename, result.error.evalue) == ("ZeroDivisionError", "division by zero")
    assert any("ZeroDivisionError" in line for line in result.error.traceback)
    with pytest.raises(kclient.ExecutionError):
        result.raise_for_error()


def test_check_raises_the_error(client):
    for call in (
        lambda: client.run("print('x'); 1 / 0", check=True),
        lambda: client.submit("1 / 0", check=True).result(),
    ):
        with pytest.raises(kclient.ExecutionError, match="ZeroDivisionError: division by zero") as caught:
            call()
        error = caught.value
        assert (error.ename, error.evalue) == ("ZeroDivisionError", "division by zero")
        assert any("ZeroDivisionError" in line for line in error.traceback)
        assert error.result.error.ename == "ZeroDivisionError"
    assert client.run("'fine'", check=True).text == "'fine'"


@pytest.mark.parametrize(
    "code", ["1 +* 1", "raise SystemExit(3)", "raise KeyboardInterrupt", "raise BaseException('b')"]
)
def test_every_kind_of_failure_is_an_error(client, code):
    result = client.run(code)
    assert (result.status, result.ok) == ("error", False)
    assert result.error.ename
    notebook_of(result)


def test_code_queued_behind_an_error_runs(client, gate):
    """An error in one greenlet's code must not abort another greenlet's request."""
    failing = client.submit(f"{gate.code} 1 / 0")
    behind = client.submit("'runs'")
    gate.open()
    assert not failing.result().ok
    assert behind.result().text == "'runs'"


def test_stop_on_error_aborts_what_is_queued_behind(client, gate, await_arrival):
    failing = client.submit(f"{gate.code} 1 / 0", stop_on_error=True)
    behind = [client.submit("'does not run'"), client.submit("'nor this'", check=True)]
    await_arrival(client)
    gate.open()
    assert failing.result().status == "error"
    result = behind[0].result()
    assert (result.status, result.ok, result.error, result.outputs) == ("aborted", False, None, [])
    with pytest.raises(kclient.ExecutionAborted) as caught:
        behind[1].result()
    assert caught.value.result.status == "aborted"
    with pytest.raises(kclient.ExecutionAborted):
        result.raise_for_error()
    assert client.run("'again'").text == "'again'"


# Arguments


def test_silent_code_has_no_result_and_does_not_count(client):
    before = client.run("0").execution_count
    assert client.run("quiet = 1; quiet", silent=True).outputs == []
    assert client.run("quiet").execution_count == before + 1


def test_code_that_is_not_to_be_stored_is_not_counted(client):
    before = client.run("0").execution_count
    assert client.run("1 + 1", store_history=False).text == "2"
    assert client.run("0").execution_count == before + 1


def test_payload_tells_what_a_frontend_is_asked_to_do(client, folder):
    (folder / "some.py").write_text("loaded = 1")
    result = client.run(f"print?\n%load {folder / 'some.py'}", check=True)
    page, load = result.payload
    assert page["source"] == "page"
    assert "print(" in page["data"]["text/plain"].replace("\x1b[0m", "")
    assert load["source"] == "set_next_input"
    assert "loaded = 1" in load["text"]
    (edit,) = client.run(f"%edit {folder / 'some.py'}").payload
    assert (edit["source"], edit["filename"]) == ("edit_magic", str(folder / "some.py"))
    (leave,) = client.run("exit(keep_kernel=True)").payload
    assert (leave["source"], leave["keepkernel"]) == ("ask_exit", True)
    assert client.run("1").payload == []


def test_user_expressions_are_in_the_result(client):
    result = client.run("a = 20", user_expressions={"b": "a + 1", "broken": "nowhere"})
    expressions = result.user_expressions
    assert expressions["b"]["data"]["text/plain"] == "21"
    assert expressions["broken"]["ename"] == "NameError"
    assert result.ok


def test_output_beyond_max_output_bytes_is_dropped_and_the_end_still_comes(client):
    code = "for n in range(10):\n    display('x' * 1000)\nprint('end')"
    result = client.run(code, max_output_bytes=5000)
    assert result.truncated
    assert result.ok
    assert 3 <= len(result.outputs) <= 5
    assert result.stdout == "end\n"
    whole = client.run(code, max_output_bytes=None)
    assert (whole.truncated, len(whole.outputs), whole.stdout) == (False, 11, "end\n")


def test_text_is_cut_at_max_output_bytes_and_marked(client):
    result = client.run("print('x' * 10**6)\nprint('more')", max_output_bytes=100_000)
    assert result.stdout == "x" * 100_000 + CUT_MARK
    assert (result.truncated, result.ok, result.complete) == (True, True, True)
    assert client.run("print('€' * 10)", max_output_bytes=8).stdout == "€€" + CUT_MARK


@pytest.mark.parametrize(
    ("code", "bound", "text"),
    [
        ("print('x' * 10**6)", 100_000, "x" * 100_000 + CUT_MARK),
        ("import sys; n = sys.stdout.write('hi\\n')", 100, "hi\n"),
    ],
)
def test_text_that_is_kept_comes_to_on_output_and_to_who_iterates_as_well(client, code, bound, text):
    shown = []
    result = client.run(code, max_output_bytes=bound, on_output=lambda message: shown.append(message.content["text"]))
    assert (result.stdout, shown, result.truncated) == (text, [text], CUT_MARK in text)
    assert [message.content["text"] for message in client.submit(code, max_output_bytes=bound)] == [text]


# Output widgets


def test_output_in_a_widget_goes_to_the_widget_and_the_result_keeps_that_of_the_cell(client):
    code = """
import ipywidgets
from IPython.display import clear_output
out = ipywidgets.Output()
print("cell")
with out:
    print("x")
    clear_output()
    print("y")
print("after")
with out:
    1 / 0
out.comm.comm_id
"""
    result = client.run(code, check=True)
    assert (result.stdout, result.ok, result.error) == ("cell\nafter\n", True, None)
    ((comm_id, (text, error)),) = result.widget_outputs.items()
    assert result.text == repr(comm_id)
    assert (text["text"], error["ename"]) == ("y\n", "ZeroDivisionError")
    again = client.run("with out:\n    display(1)\nprint('on')")
    assert (again.stdout, [*again.widget_outputs]) == ("on\n", [comm_id])
    taken = [text, *again.widget_outputs[comm_id]]
    with client.comms.attach(comm_id) as comm:
        comm.send({"method": "update", "state": {"outputs": taken}, "buffer_paths": []})
        assert client.run("[output['output_type'] for output in out.outputs]").text == "['stream', 'display_data']"


# Errors

FAILING_REPR = "class A:\n    def __repr__(self):\n        raise ValueError('bad repr')\n"


def test_error_of_a_failing_repr_is_the_one_that_was_published(client):
    """IPython 9.18 replies ename NoneType."""
    result = client.run(FAILING_REPR + "A()")
    assert (result.status, result.error.ename, result.error.evalue) == ("error", "ValueError", "bad repr")


def test_error_that_the_code_survives_makes_the_result_not_ok_but_the_reply_may_decide(client):
    shown = "try:\n    1 / 0\nexcept ZeroDivisionError:\n    get_ipython().showtraceback()\n'on'"
    result = client.run(shown, check="reply")
    assert (result.status, result.ok, result.error.ename, result.text) == ("ok", False, "ZeroDivisionError", "'on'")
    assert client.submit(shown, check="reply").result(timeout=20).text == "'on'"
    with pytest.raises(kclient.ExecutionError, match="ZeroDivisionError"):
        client.run(shown, check=True)
    with pytest.raises(kclient.ExecutionError, match="ZeroDivisionError"):
        client.run("1 / 0", check="reply")
    for nonsense in ("yes", None, 2):
        with pytest.raises(kclient.InvalidArgument, match="check must be"):
            client.run("1", check=nonsense)


# on_output


def test_on_output_gets_each_output_as_it_arrives(client, gate):
    """The outputs come in order, in the caller's greenlet. The code waits at the gate until the first was seen."""
    seen = []

    def see(message):
        assert gevent.getcurrent() is here
        if not seen:
            gate.open()
        seen.append(message)

    here = gevent.getcurrent()
    result = client.run(f"print('one', flush=True); {gate.code} display('two'); 3", on_output=see)
    text = "".join(message.content["text"] for message in seen if message.msg_type == "stream")
    others = [message.msg_type for message in seen if message.msg_type != "stream"]
    assert (text, others) == ("one\n", ["display_data", "execute_result"])
    assert (result.stdout, result.text) == ("one\n", "3")


def test_on_output_sees_what_a_result_does_not_show(client):
    imports = "from IPython.display import clear_output"
    code = f"{imports}\nhandle = display(1, display_id=True)\nhandle.update(2)\nclear_output()"
    seen = []
    result = client.run(code, on_output=lambda message: seen.append(message.msg_type))
    assert result.outputs == []
    assert seen == ["display_data", "update_display_data", "clear_output"]


def test_on_output_may_use_the_client(client):
    def ask(message):
        msg_id = client.control_channel.send("kernel_info_request")
        seen.append(client.control_channel.get_reply(msg_id, timeout=WAIT).msg_type)
        client.iopub_channel.flush()
        seen.append(client.shell_channel.is_complete("1 + 1", timeout=WAIT).content["status"])

    seen = []
    assert client.run("print('x')", on_output=ask).ok
    assert seen[:2] == ["kernel_info_reply", "complete"]


def test_on_output_may_run_more_code(client):
    inner = []
    result = client.run("'outer'", on_output=lambda message: inner.append(client.run("'inner'").text))
    assert (result.text, inner) == ("'outer'", ["'inner'"])


def test_error_of_on_output_interrupts_the_code_and_is_raised_by_run(client, gate):
    def fail(message):
        raise ZeroDivisionError(message.msg_type)

    code = f"print('x', flush=True); {gate.code} print('never')"
    with pytest.raises(ZeroDivisionError, match="stream"):
        client.run(code, on_output=fail)
    assert client.run("print('idle again')").stdout == "idle again\n"  # although the gate is closed


# Timeouts


@pytest.mark.parametrize("on_abandon", ["interrupt", "leave"])
def test_run_that_times_out_tells_what_it_has_so_far(client, make_gate, on_abandon):
    for timeout in (0.1, 1, 10):  # on a slow machine the first output takes longer
        gate = make_gate()
        with pytest.raises(kclient.KernelTimeout) as caught:
            client.run(f"print('so far'); {gate.code}", timeout=timeout, on_abandon=on_abandon)
        error = caught.value
        if on_abandon == "leave":
            assert not error.execution.done()
            gate.open()
        finished = error.execution.result()
        if error.result.stdout:
            break
    assert error.result.stdout.startswith("so far")
    assert (error.timeout, error.waiting_for) == (timeout, "end of the execution")
    assert error.execution.msg_id == error.msg_id
    assert (error.result.reply, error.result.status, error.result.complete) == (None, "unknown", False)
    assert finished.stdout == "so far\n"
    assert finished.ok is (on_abandon == "leave")


def test_run_without_time_sends_its_code_all_the_same(client, gate):
    with pytest.raises(kclient.KernelTimeout) as caught:
        client.run(f"{gate.code} print('sent')", timeout=0, on_abandon="leave")
    gate.open()
    assert caught.value.execution.result().stdout == "sent\n"


# A kernel that sends less than it should


def test_idle_that_was_lost_is_not_waited_for(client, kernel):
    """The kernel publishes no status of one request, as if its PUB socket were full."""
    swallow = (
        "kernel = get_ipython().kernel\n"
        "send = kernel.session.send\n"
        "def send_some(stream, msg_or_type, *args, **kwargs):\n"
        "    parent = kwargs.get('parent') or {}\n"
        "    if msg_or_type == 'status' and args and args[0].get('execution_state') == 'idle':\n"
        "        kernel.session.send = send\n"
        "        return None\n"
        "    return send(stream, msg_or_type, *args, **kwargs)\n"
        "kernel.session.send = send_some\n"
        "print('said')"
    )
    result = client.run(swallow)
    assert (result.complete, result.ok, result.stdout) == (False, True, "said\n")
    assert client.run("'complete'").complete
