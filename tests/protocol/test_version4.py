"""Protocol 4: its messages are turned into those of protocol 5 as they arrive, and back as they are sent."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kclient.protocol import messages
from kclient.protocol.messages import Message
from kclient.protocol.session import Session
from kclient.protocol.version4 import Version4, name_at

OLD_TYPES = ["pyin", "pyout", "pyerr", "stream", "display_data", "status", "object_info_reply", "object_reply"]
OLD_TYPES += ["complete_reply", "execute_reply", "history_reply", "input_request", "comm_msg", "kernel_info_reply"]

NAMES = ["data", "text", "matches", "matched_text", "found", "docstring", "payload", "user_variables", "source"]
NAMES += ["user_expressions", "status", "application/json", "cursor_start"]

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.just("[" * 100_000)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
def session():
    return Session(b"")


@pytest.fixture
def adapter():
    return Version4()


@pytest.fixture
def sent(session, adapter):
    """A function: the type and the content that are sent for a request."""

    def sent(msg_type, content):
        message = session.msg(msg_type, content)
        out = adapter.outgoing(message)
        assert (message.msg_type, message.content) == (msg_type, content)
        assert out.msg_id == message.msg_id
        return out.msg_type, out.content

    return sent


@pytest.fixture
def received(session, adapter):
    """A function: the type and the content that a received message gets."""

    def received(msg_type, content, parent=None):
        message = session.msg(msg_type, content, parent=parent)
        adapter.incoming(message)
        return message.msg_type, message.content

    return received


@pytest.mark.parametrize(
    ("code", "cursor_pos", "line", "in_line"),
    [
        ("impor", 5, "impor", 5),
        ("a = 1\nimpor\nb", 11, "impor", 5),
        ("a\n", 2, "", 0),
        ("a\nb", 1, "a", 1),
        ("'\U0001f600'.up", 6, "'\U0001f600'.up", 6),
    ],
)
def test_completion_is_asked_for_the_line_of_the_cursor(sent, code, cursor_pos, line, in_line):
    msg_type, content = sent("complete_request", messages.complete(code, cursor_pos))
    assert msg_type == "complete_request"
    assert content == {"text": "", "line": line, "block": code, "cursor_pos": in_line}


def test_matched_text_becomes_the_range_before_the_cursor(session, adapter, received):
    request = session.msg("complete_request", messages.complete("x = 1\nx.rea", 11))
    adapter.outgoing(request)
    old = {"matches": ["x.real"], "matched_text": "x.rea", "status": "ok"}
    new = {"matches": ["x.real"], "cursor_start": 6, "cursor_end": 11, "metadata": {}, "status": "ok"}
    assert received("complete_reply", old, parent=request) == ("complete_reply", new)


@pytest.mark.parametrize(
    ("code", "cursor_pos", "name"),
    [
        ("print", 5, "print"),
        ("print", 0, "print"),
        ("a.b.c", 5, "a.b.c"),
        ("a.b.c", 3, "a.b"),
        ("a.b.c", 1, "a"),
        ("print(", 6, "print"),
        ("f(g(1), ", 8, "f"),
        ("f(g(1, ", 7, "g"),
        ("x = 1\nlen(x)", 11, "x"),
        ("größe", 5, "größe"),
        ("1e5", 3, ""),
        ("1 + ", 4, ""),
        ("", 0, ""),
    ],
)
def test_inspection_asks_for_the_name_at_the_cursor(sent, code, cursor_pos, name):
    assert name_at(code, cursor_pos) == name
    assert sent("inspect_request", messages.inspect(code, cursor_pos, 1)) == (
        "object_info_request",
        {"oname": name, "detail_level": 1},
    )


def test_fields_of_an_object_become_one_text(received):
    fields = {"found": True, "type_name": "int", "docstring": "A number.\nIt counts.", "source": None, "length": 3}
    text = "Type: int\nDocstring:\nA number.\nIt counts."
    content = {"status": "ok", "found": True, "data": {"text/plain": text}, "metadata": {}}
    assert received("object_info_reply", fields) == ("inspect_reply", content)
    nothing = {"status": "ok", "found": False, "data": {}, "metadata": {}}
    assert received("object_info_reply", {"found": False}) == ("inspect_reply", nothing)


def test_aborted_inspection_stays_aborted(received):
    """IPython made the type of the reply of the first word of the request's type."""
    assert received("object_reply", {"status": "aborted"}) == ("inspect_reply", {"status": "aborted"})


def test_execute_request_names_user_variables_too(sent):
    content = messages.execute("1", user_expressions={"x": "1"})
    assert sent("execute_request", content) == ("execute_request", {**content, "user_variables": []})


def test_history_request_has_all_of_its_keys(sent):
    assert sent("history_request", messages.history())[1]["stop"] is None
    assert "stop" not in sent("history_request", messages.history(hist_access_type="tail"))[1]


@pytest.mark.parametrize("msg_type", ["kernel_info_request", "shutdown_request", "comm_msg", "input_reply"])
def test_message_that_is_the_same_in_both_goes_out_as_it_is(session, adapter, msg_type):
    message = session.msg(msg_type, {"data": {}})
    assert adapter.outgoing(message) is message


@pytest.mark.parametrize(
    ("old_type", "old", "new_type", "new"),
    [
        ("pyin", {"code": "1"}, "execute_input", {"code": "1"}),
        ("pyout", {"data": {"text/plain": "1"}}, "execute_result", {"data": {"text/plain": "1"}}),
        ("pyerr", {"ename": "E"}, "error", {"ename": "E"}),
        ("stream", {"name": "stdout", "data": "hi"}, "stream", {"name": "stdout", "text": "hi"}),
        (
            "display_data",
            {"source": "x", "data": {"application/json": '{"a": 1}'}},
            "display_data",
            {"data": {"application/json": {"a": 1}}},
        ),
        (
            "display_data",
            {"data": {"application/json": "no JSON"}},
            "display_data",
            {"data": {"application/json": "no JSON"}},
        ),
        (
            "pyout",
            {"data": {"application/json": "[" * 100_000}},
            "execute_result",
            {"data": {"application/json": "[" * 100_000}},
        ),
        ("input_request", {"prompt": "?"}, "input_request", {"prompt": "?", "password": False}),
        (
            "execute_reply",
            {"status": "ok", "user_variables": {"a": "1"}, "user_expressions": {"b": "2"}},
            "execute_reply",
            {"status": "ok", "user_expressions": {"a": "1", "b": "2"}, "payload": []},
        ),
        (
            "execute_reply",
            {"status": "ok", "payload": [{"source": "page", "text": "help"}]},
            "execute_reply",
            {
                "status": "ok",
                "user_expressions": {},
                "payload": [{"source": "page", "data": {"text/plain": "help"}}],
            },
        ),
        ("comm_msg", {"comm_id": "1", "data": {}}, "comm_msg", {"comm_id": "1", "data": {}}),
        ("news_of_tomorrow", {"data": 1}, "news_of_tomorrow", {"data": 1}),
    ],
)
def test_old_message_takes_its_new_shape(received, old_type, old, new_type, new):
    assert received(old_type, old) == (new_type, new)


@pytest.mark.parametrize(
    ("msg_type", "content"),
    [
        ("stream", {"name": "stdout", "text": "hi", "data": 1}),
        ("execute_result", {"data": {"application/json": {"a": 1}}, "metadata": {}}),
        ("complete_reply", {"matches": [], "cursor_start": 1, "cursor_end": 2, "metadata": {}, "status": "ok"}),
        ("inspect_reply", {"status": "ok", "found": True, "data": {"text/plain": "x"}, "metadata": {}}),
    ],
)
def test_new_shape_from_a_kernel_that_calls_itself_old_stays(received, msg_type, content):
    assert received(msg_type, dict(content)) == (msg_type, content)


@given(st.sampled_from(OLD_TYPES), st.dictionaries(st.sampled_from(NAMES), values, max_size=4))
def test_any_content_is_taken(msg_type, content):
    adapter = Version4()
    adapter.outgoing(Message({"msg_id": "1", "msg_type": "complete_request"}, content={"code": "a", "cursor_pos": 1}))
    message = Message({"msg_id": "2", "msg_type": msg_type}, {"msg_id": "1"}, content=content)
    adapter.incoming(message)
    assert isinstance(message.content, dict)


@given(
    st.sampled_from(["complete_request", "inspect_request", "execute_request", "history_request"]),
    st.dictionaries(st.sampled_from(["code", "cursor_pos", "hist_access_type"]), scalars),
)
def test_any_request_goes_out(msg_type, content):
    out = Version4().outgoing(Message({"msg_id": "1", "msg_type": msg_type}, content=content))
    assert isinstance(out.content, dict)
