"""The content of each request, as the messaging spec wants it, and the wrong arguments that are refused."""

import copy
import pickle

import jupyter_client.client
import jupyter_client.session
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kclient.errors import InvalidArgument, KClientError
from kclient.protocol import messages
from kclient.protocol.messages import Message, reply_type


class JupyterClient(jupyter_client.client.KernelClient):
    """A jupyter_client whose channels keep the messages that it sends."""

    def __init__(self):
        super().__init__(session=jupyter_client.session.Session(key=b"k"))
        self._shell_channel = self._control_channel = self._stdin_channel = self
        self.sent = []

    def send(self, message):
        self.sent.append(message)

    def content_of(self, request, *args, **kwargs):
        getattr(self, request)(*args, **kwargs)
        return self.sent[-1]["content"]


JUPYTER = JupyterClient()


def refused(function, *args, **kwargs):
    """The message of the error that `function` raises for bad arguments."""
    with pytest.raises(InvalidArgument) as caught:
        function(*args, **kwargs)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, KClientError)
    return str(caught.value)


NO_TEXT = (None, 5, b"bytes", ["list"], {"a": 1}, object())


# Execute


def test_execute_asks_for_what_the_spec_names():
    assert messages.execute("1 + 1") == {
        "code": "1 + 1",
        "silent": False,
        "store_history": True,
        "user_expressions": {},
        "allow_stdin": False,
        "stop_on_error": False,
    }


@given(
    st.text(),
    st.booleans(),
    st.booleans(),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_execute_sends_what_jupyter_client_sends(code, silent, store_history, user_expressions, allow_stdin, stop):
    options = {
        "silent": silent,
        "store_history": store_history,
        "user_expressions": user_expressions,
        "allow_stdin": allow_stdin,
        "stop_on_error": stop,
    }
    assert messages.execute(code, **options) == JUPYTER.content_of("execute", code, **options)


def test_truth_values_are_sent_as_booleans():
    content = messages.execute("", silent=1, store_history=[], allow_stdin="yes", stop_on_error=None)
    assert [content[name] for name in ("silent", "store_history", "allow_stdin", "stop_on_error")] == [
        True,
        False,
        True,
        False,
    ]
    assert messages.shutdown(1) == {"restart": True}


def test_code_that_is_no_text_is_refused_by_every_request():
    for value in NO_TEXT:
        for function in (messages.execute, messages.complete, messages.inspect, messages.is_complete):
            assert "code" in refused(function, value)
        assert type(value).__name__ in refused(messages.execute, value)


def test_user_expressions_that_are_no_texts_by_name_are_refused():
    for value in ([], "a", 5, [("a", "1")], {"a": 1}, {1: "a"}, {"a": None}, {"a": "1", "b": b"2"}):
        assert "user_expressions" in refused(messages.execute, "1", user_expressions=value)


def test_content_does_not_change_with_the_arguments_it_was_made_of():
    expressions = {"a": "1"}
    content = messages.execute("", user_expressions=expressions)
    expressions["b"] = "2"
    assert content["user_expressions"] == {"a": "1"}
    arguments = {"a": 1}
    content = messages.debug("evaluate", arguments)
    arguments["b"] = 2
    assert content["arguments"] == {"a": 1}


# Complete and inspect


def test_cursor_is_at_the_end_of_the_code_unless_told():
    assert messages.complete("abc") == {"code": "abc", "cursor_pos": 3} == JUPYTER.content_of("complete", "abc")
    assert messages.inspect("abc") == {"code": "abc", "cursor_pos": 3, "detail_level": 0}
    assert messages.inspect("abc") == JUPYTER.content_of("inspect", "abc")
    assert messages.complete("") == {"code": "", "cursor_pos": 0}


def test_cursor_counts_code_points():
    code = 'x = "😀é"; x.'
    assert messages.complete(code)["cursor_pos"] == 12
    assert messages.complete("😀", 1)["cursor_pos"] == 1
    assert messages.inspect("👩‍🚀")["cursor_pos"] == 3  # two emojis, joined by a character
    assert messages.complete("e\u0301", 2)["cursor_pos"] == 2
    assert "from 0 to 1 code points" in refused(messages.complete, "😀", 2)


@given(st.text(min_size=1), st.integers(0, 1), st.data())
def test_every_position_in_the_code_is_taken_as_jupyter_client_takes_it(code, detail_level, data):
    position = data.draw(st.integers(0, len(code)))
    assert messages.complete(code, position) == JUPYTER.content_of("complete", code, position)
    assert messages.inspect(code, position, detail_level) == JUPYTER.content_of("inspect", code, position, detail_level)


def test_position_outside_the_code_is_refused():
    for function in (messages.complete, messages.inspect):
        for position in (-1, 4, 10**30, 1.0, "1", True, False, [1]):
            assert "cursor_pos" in refused(function, "abc", position)


def test_detail_level_is_0_or_1():
    assert messages.inspect("a", None, 1)["detail_level"] == 1
    for level in (2, -1, None, "1", True, False, [], 0.5):
        assert "detail_level" in refused(messages.inspect, "a", None, level)


# History


@pytest.mark.parametrize(
    ("asked", "content"),
    [
        ({}, {"hist_access_type": "range", "session": 0, "start": 0}),
        ({"session": -1, "start": 2, "stop": 9}, {"hist_access_type": "range", "session": -1, "start": 2, "stop": 9}),
        ({"hist_access_type": "tail"}, {"hist_access_type": "tail", "n": 10}),
        ({"hist_access_type": "tail", "n": 3}, {"hist_access_type": "tail", "n": 3}),
        ({"hist_access_type": "search"}, {"hist_access_type": "search", "pattern": "*", "unique": False}),
        (
            {"hist_access_type": "search", "pattern": "a*", "n": 2, "unique": True},
            {"hist_access_type": "search", "pattern": "a*", "n": 2, "unique": True},
        ),
    ],
    ids=["range", "range of session", "tail", "tail of n", "search", "search for pattern"],
)
def test_history_asks_for_what_its_type_needs_as_jupyter_client_does(asked, content):
    expected = {"raw": True, "output": False, **content}
    assert messages.history(**asked) == expected
    filled_in = {name: value for name, value in content.items() if name != "hist_access_type"}
    assert JUPYTER.content_of("history", hist_access_type=content["hist_access_type"], **filled_in) == expected


def test_history_may_ask_for_output_and_for_source_as_ipython_saw_it():
    content = messages.history(False, True, "tail", n=1)
    assert content == {"raw": False, "output": True, "hist_access_type": "tail", "n": 1}


def test_history_type_that_does_not_exist_is_refused():
    for value in ("all", "", None, 5, ["range"]):
        message = refused(messages.history, hist_access_type=value)
        assert "range, tail, search" in message


def test_history_argument_that_does_not_exist_is_refused_by_name():
    message = refused(messages.history, hist_access_type="tail", count=3)
    assert "count" in message
    assert "takes n" in message


def test_history_numbers_are_whole_numbers():
    for name in ("session", "start", "stop", "n"):
        for value in (1.5, "1", True, [1]):
            assert name in refused(messages.history, hist_access_type="range", **{name: value})


def test_history_pattern_is_a_text():
    for value in (5, b"a*", ["a*"]):
        assert "pattern" in refused(messages.history, hist_access_type="search", pattern=value)


# Other requests


def test_other_requests_send_what_jupyter_client_sends():
    assert messages.is_complete("for") == {"code": "for"} == JUPYTER.content_of("is_complete", "for")
    assert messages.comm_info() == {} == JUPYTER.content_of("comm_info")
    assert messages.comm_info("t") == {"target_name": "t"} == JUPYTER.content_of("comm_info", "t")
    for restart in (True, False):
        assert messages.shutdown(restart) == {"restart": restart} == JUPYTER.content_of("shutdown", restart)
    assert messages.input_reply("yes\n") == {"value": "yes\n", "status": "ok"}
    assert messages.input_reply("yes\n")["value"] == JUPYTER.content_of("input", "yes\n")["value"]


def test_comm_info_of_the_empty_target_is_not_comm_info_of_all():
    assert messages.comm_info("") == {"target_name": ""}


def test_debug_request_is_one_of_the_debug_adapter_protocol():
    assert messages.debug("evaluate", {"expression": "a"}) == {
        "type": "request",
        "command": "evaluate",
        "arguments": {"expression": "a"},
    }
    assert messages.debug("initialize")["arguments"] == {}
    assert "must name a request" in refused(messages.debug, "")


def test_names_and_answers_that_are_no_text_are_refused():
    for value in NO_TEXT:
        assert "input" in refused(messages.input_reply, value)
        assert "subshell_id" in refused(messages.subshell, value)
        assert "command" in refused(messages.debug, value)
        if value is not None:
            assert "target_name" in refused(messages.comm_info, value)
    assert messages.subshell("s") == {"subshell_id": "s"}


def test_debug_arguments_that_are_no_dict_are_refused():
    for value in ([], "a", 5, [("a", 1)]):
        assert "arguments" in refused(messages.debug, "evaluate", value)


# Replies and messages


def test_reply_has_the_name_of_its_request():
    assert reply_type("execute_request") == "execute_reply"
    assert reply_type("list_subshell_request") == "list_subshell_reply"
    assert reply_type("object_info_request") is None, "a reply of protocol 4 takes the shape of protocol 5"
    for msg_type in ("comm_msg", "request", "execute_reply", "", "input_request_"):
        assert reply_type(msg_type) is None


def test_message_is_read_by_attribute_and_as_a_dict():
    message = Message({"msg_id": "1", "msg_type": "status"}, {"msg_id": "0"}, {"m": 1}, {"status": "ok"}, [b"b"])
    assert message["content"]["status"] == message.content["status"] == "ok"
    assert (message["msg_id"], message["msg_type"]) == (message.msg_id, message.msg_type) == ("1", "status")
    assert message.parent_id == message["parent_header"]["msg_id"] == "0"
    assert dict(message) == {name: getattr(message, name) for name in message.keys()}  # noqa: SIM118  # not a dict
    assert message.get("buffers") == [b"b"]
    assert message.get("nothing") is None
    assert message.get("nothing", 5) == 5
    assert "content" in message
    for name in ("received", "nothing", 5, None):
        assert name not in message
        with pytest.raises(KeyError):
            message[name]


def test_messages_are_equal_only_to_themselves():
    one, other = (Message({"msg_id": "1", "msg_type": "a"}) for _ in range(2))
    assert one == one
    assert one != other
    assert len({one, other}) == 2


def test_message_can_be_copied_and_pickled_whatever_its_buffers_are():
    parts = ({"msg_id": "1", "msg_type": "a"}, {"msg_id": "0"}, {"m": 1}, {"c": [1]})
    message = Message(*parts, [b"x", memoryview(b"view")], 2.0, 7)
    for again in (pickle.loads(pickle.dumps(message)), copy.copy(message), copy.deepcopy(message)):
        assert (again.header, again.parent_header, again.metadata, again.content) == parts
        assert (again.buffers, again.received, again.nbytes) == ([b"x", b"view"], 2.0, 7)


def test_new_messages_share_no_dicts():
    one, other = (Message({"msg_id": "1", "msg_type": "a"}) for _ in range(2))
    one.content["a"] = one.metadata["a"] = one.parent_header["a"] = 1
    one.buffers.append(b"")
    assert (other.content, other.metadata, other.parent_header, other.buffers) == ({}, {}, {}, [])
