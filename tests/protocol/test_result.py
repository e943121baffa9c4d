"""Result: the outcome of an execution as a value."""

import copy
import pickle
from contextlib import nullcontext

import attrs
import pytest

from kclient import ErrorInfo, ExecutionAborted, ExecutionError, IncompleteOutput, Result
from kclient.protocol.kept_outputs import CUT_MARK
from kclient.protocol.messages import Message
from kclient.protocol.transcript import Transcript


def reply(**content):
    return Message({"msg_id": "1", "msg_type": "execute_reply"}, {"msg_id": "0"}, {}, content)


def stream(text, name="stdout"):
    return {"output_type": "stream", "name": name, "text": text}


def value(text, **data):
    bundle = {"text/plain": text, **data}
    return {"output_type": "execute_result", "data": bundle, "metadata": {}, "execution_count": 1}


def failure(ename="ValueError", evalue="bad", traceback=("line",)):
    return {"output_type": "error", "ename": ename, "evalue": evalue, "traceback": list(traceback)}


DISPLAY = {"output_type": "display_data", "data": {"text/plain": "shown"}, "metadata": {}}


def result(*outputs, status="ok", **content):
    return Result(reply(status=status, **content), list(outputs))


def test_result_of_code_that_did_nothing():
    done = result(execution_count=1)
    assert (done.ok, done.status, done.error) == (True, "ok", None)
    assert (done.stdout, done.stderr, done.text, done.data) == ("", "", None, {})
    assert (done.complete, done.truncated) == (True, False)
    done.raise_for_error()


def test_text_and_data_are_those_of_the_execute_result():
    done = result(stream("x"), DISPLAY, value("42", **{"text/html": "<b>42</b>"}), stream("y"))
    assert done.text == "42"
    assert done.data == {"text/plain": "42", "text/html": "<b>42</b>"}
    assert result(DISPLAY).text is None


def test_last_of_several_results_counts():
    assert result(value("1"), value("2"), DISPLAY).text == "2"


def test_result_without_text_has_none():
    output = value("x")
    output["data"] = {"image/png": "aGk="}
    assert result(output).text is None
    assert result(output).data == {"image/png": "aGk="}


def test_streams_are_joined_by_name_in_order():
    done = result(stream("a"), stream("b", "stderr"), DISPLAY, stream("c"), stream("d", "stderr"), stream("e", "other"))
    assert (done.stdout, done.stderr) == ("ac", "bd")


def test_payload_and_user_expressions_are_those_of_the_reply():
    page = {"source": "page", "data": {"text/plain": "help"}, "start": 0}
    exit_asked = {"source": "ask_exit", "keepkernel": False}
    done = result(payload=[page, exit_asked], user_expressions={"a": {"status": "ok"}})
    assert (done.payload, done.user_expressions) == ([page, exit_asked], {"a": {"status": "ok"}})


@pytest.mark.parametrize("nonsense", [None, 5, "page", True, [], {}, ["page", None, 3]])
def test_payload_and_user_expressions_that_are_none_are_empty(nonsense):
    done = result(payload=nonsense, user_expressions=nonsense)
    assert (done.payload, done.user_expressions) == ([], {})
    for without in (result(), Result(None, []), result(status="aborted")):
        assert (without.payload, without.user_expressions) == ([], {})


# Errors


def test_error_is_told_by_the_reply():
    done = result(failure(), status="error", ename="KeyError", evalue="'a'", traceback=["one", "two"])
    assert (done.ok, done.status) == (False, "error")
    assert done.error == ErrorInfo("KeyError", "'a'", ["one", "two"])


def test_error_of_a_kernel_that_tells_it_only_in_its_outputs():
    done = result(stream("x"), failure("Oops", "it broke", ["t"]), stream("y"))
    assert done.status == "ok"
    assert not done.ok
    assert done.error == ErrorInfo("Oops", "it broke", ["t"])
    with pytest.raises(ExecutionError, match="Oops: it broke"):
        done.raise_for_error()


def test_error_of_a_kernel_that_tells_it_only_in_its_reply():
    done = result(status="error", ename="Oops", evalue="it broke", traceback=[])
    assert (done.ok, done.error) == (False, ErrorInfo("Oops", "it broke", []))


def test_error_without_its_parts_is_still_an_error():
    done = result(status="error")
    assert (done.ok, done.error) == (False, ErrorInfo("Error", "", []))
    with pytest.raises(ExecutionError, match="^Error$"):
        done.raise_for_error()


KNOWS_NOTHING = [
    {"ename": "NoneType", "evalue": "None", "traceback": ["a traceback", "ValueError: bad"]},  # IPython 9.18: __repr__
    {},
    {"ename": None, "evalue": None, "traceback": None},
    {"ename": "", "evalue": "", "traceback": []},
]


@pytest.mark.parametrize("content", KNOWS_NOTHING)
def test_error_is_the_published_one_if_the_reply_does_not_name_it(content):
    done = result(failure("Early", "no"), failure("ValueError", "bad", ["t"]), status="error", **content)
    assert done.error == ErrorInfo("ValueError", "bad", ["t"])
    with pytest.raises(ExecutionError, match="^ValueError: bad$"):
        done.raise_for_error()


def test_error_of_a_reply_that_names_none_is_what_it_says_if_none_was_published():
    assert result(status="error", ename="NoneType", evalue="None").error == ErrorInfo("NoneType", "None")
    assert result(status="error", evalue="bad").error == ErrorInfo("Error", "bad")


def test_traceback_that_is_one_text_is_one_entry():
    assert result(status="error", ename="E", evalue="v", traceback="one\ntwo").error.traceback == ["one\ntwo"]
    assert result(status="error", ename="E", evalue="v", traceback="").error.traceback == []


def test_error_that_says_nothing_but_its_traceback_has_the_last_line_of_that():
    traceback = ["Traceback", "\x1b[31mQuery is malformed\x1b[0m\n\n", "\x1b[0m"]
    assert result(status="error", traceback=traceback).error == ErrorInfo("Error", "Query is malformed", traceback)


def test_reply_without_a_status_that_names_an_error_is_an_error():
    done = Result(reply(ename="E", evalue="v", traceback=[]), [])
    assert (done.status, done.error) == ("error", ErrorInfo("E", "v", []))


OK, ERROR, ABORTED, NO_STATUS = "ok", "error", "aborted", None

DECIDED = [
    # reply, an error in outputs: ok, raised by check=True, raised by check="reply"
    (OK, False, True, None, None),
    (OK, True, False, ExecutionError, None),
    (ERROR, False, False, ExecutionError, ExecutionError),
    (ERROR, True, False, ExecutionError, ExecutionError),
    (ABORTED, False, False, ExecutionAborted, ExecutionAborted),
    (NO_STATUS, False, False, ExecutionError, ExecutionError),
    (NO_STATUS, True, False, ExecutionError, ExecutionError),
]


@pytest.mark.parametrize(("status", "shows_error", "is_ok", "raised", "raised_by_reply"), DECIDED)
def test_table_of_what_counts_as_failed(status, shows_error, is_ok, raised, raised_by_reply):
    """docs/kernels.md has this table."""
    done = result(stream("x"), *([failure()] if shows_error else []), status=status)
    assert done.ok is is_ok
    for by_reply, error in ((False, raised), (True, raised_by_reply)):
        with nullcontext() if error is None else pytest.raises(error) as caught:
            done.raise_for_error(by_reply=by_reply)
        assert caught is None or caught.type is error


def test_error_is_raised_on_request_with_all_that_is_known():
    done = result(stream("before"), failure(), status="error", ename="E", evalue="v", traceback=["t"])
    with pytest.raises(ExecutionError, match="^E: v$") as caught:
        done.raise_for_error()
    error = caught.value
    assert (error.ename, error.evalue, error.traceback) == ("E", "v", ["t"])
    assert error.result is done
    assert not isinstance(error, ExecutionAborted)


def test_result_that_may_lack_outputs_raises_on_request_unless_the_code_failed():
    cut = attrs.evolve(result(stream("some")), complete=False)
    with pytest.raises(IncompleteOutput, match="may be missing") as caught:
        cut.raise_for_error()
    assert caught.value.result is cut
    with pytest.raises(ExecutionError):
        attrs.evolve(result(status="error"), complete=False).raise_for_error()


@pytest.mark.parametrize("status", ["aborted", "abort"])
def test_request_that_was_skipped_is_aborted_by_either_name(status):
    done = result(status=status)
    assert (done.ok, done.status, done.error) == (False, "aborted", None)
    with pytest.raises(ExecutionAborted) as caught:
        done.raise_for_error()
    assert caught.value.result is done


def test_partial_result_is_unknown_and_not_ok():
    partial = Result(None, [stream("so far")])
    assert (partial.status, partial.ok, partial.error, partial.stdout) == ("unknown", False, None, "so far")
    with pytest.raises(ExecutionError):
        partial.raise_for_error()
    broken = Result(None, [failure()])
    assert broken.error == ErrorInfo("ValueError", "bad", ["line"])


def test_status_that_is_none_is_unknown():
    for status in (None, 5, ["ok"], {}):
        done = result(status=status)
        assert (done.status, done.ok) == ("unknown", False)
    assert Result(reply(), []).status == "unknown"


def test_error_info_shows_name_and_value_and_no_traceback():
    assert repr(ErrorInfo("E", "v", ["a very long line"])) == "ErrorInfo(ename='E', evalue='v')"


# Made of a transcript


def iopub(msg_type, **content):
    return Message({"msg_id": "k", "msg_type": msg_type}, {"msg_id": "0"}, {}, content, [], 1.0, 1)


def transcript(*messages, **options):
    made = Transcript(**options)
    for message in messages:
        made.take(message)
    return made


IDLE = iopub("status", execution_state="idle")
TEXT = iopub("stream", name="stdout", text="hello")


def test_result_is_complete_once_reply_and_idle_are_in():
    made = transcript(TEXT)
    assert Result.of(made).complete is False
    made.set_reply(reply(status="ok", execution_count=7))
    assert Result.of(made).complete is False
    made.take(IDLE)
    done = Result.of(made)
    assert (done.complete, done.truncated, done.ok) == (True, False, True)
    assert (done.execution_count, done.stdout, done.reply) == (7, "hello", made.reply)


def test_result_whose_idle_was_lost_is_incomplete():
    made = transcript(TEXT)
    made.set_reply(reply(status="ok"))
    made.complete = False
    done = Result.of(made)
    assert (done.complete, done.ok, done.stdout) == (False, True, "hello")


def test_result_tells_that_outputs_were_dropped():
    made = transcript(TEXT, TEXT, IDLE, max_output_bytes=8)
    made.set_reply(reply(status="ok"))
    done = Result.of(made)
    assert (done.truncated, done.complete, done.stdout) == (True, True, "hellohel" + CUT_MARK)


def test_result_never_changes():
    made = transcript(TEXT, iopub("display_data", data={"text/plain": "a"}, transient={"display_id": "d"}))
    early = Result.of(made)
    expected = copy.deepcopy(early.outputs)
    made.take(iopub("update_display_data", data={"text/plain": "b"}, transient={"display_id": "d"}))
    made.take(TEXT)
    made.take(iopub("clear_output", wait=False))
    assert early.outputs == expected
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        early.complete = True
    for name in ("status", "ok", "text", "data", "stdout", "error", "payload", "user_expressions"):
        with pytest.raises(AttributeError):
            setattr(early, name, None)


def test_result_survives_pickling_and_copying():
    done = result(stream("a"), value("42"), execution_count=1)
    for again in (pickle.loads(pickle.dumps(done)), copy.copy(done), copy.deepcopy(done)):
        assert (again.outputs, again.text, again.status) == (done.outputs, "42", "ok")
        assert again.reply.content == done.reply.content


def test_repr_tells_how_it_went():
    assert repr(result(stream("hi\n"), value("42"))) == "<Result ok text='42' stdout='hi\\n'>"
    assert repr(result(failure())) == "<Result ok error='ValueError: bad'>"
    assert repr(Result(None, [], complete=False, truncated=True)) == "<Result unknown incomplete truncated>"


def test_repr_is_short_however_much_was_printed():
    assert len(repr(result(stream("x" * 10_000), value("y" * 10_000)))) < 200
