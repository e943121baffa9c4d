"""Transcript: the outputs of an execution, in notebook format."""

import copy
import gc
import json
import sys
import tracemalloc
from itertools import pairwise

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kclient.protocol.kept_outputs import CUT_MARK, OUTPUT_NBYTES, cut_text
from kclient.protocol.memory import SPARE_NBYTES
from kclient.protocol.messages import Message
from kclient.protocol.result import Result
from kclient.protocol.transcript import MAX_OUTPUT_BYTES, Transcript


def iopub(msg_type, content=None, *, nbytes=1, received=1.0):
    header = {"msg_id": "of-the-kernel", "msg_type": msg_type}
    return Message(header, {"msg_id": "request"}, {}, {} if content is None else content, [], received, nbytes)


def stream(text, name="stdout"):
    return iopub("stream", {"name": name, "text": text}, nbytes=len(text) + 30)


def display(text, display_id=None, *, msg_type="display_data", nbytes=1):
    content = {"data": {"text/plain": text}, "metadata": {}}
    if display_id is not None:
        content["transient"] = {"display_id": display_id}
    if msg_type == "execute_result":
        content["execution_count"] = 3
    return iopub(msg_type, content, nbytes=nbytes)


def update(text, display_id, *, nbytes=1):
    return display(text, display_id, msg_type="update_display_data", nbytes=nbytes)


def clear(*, wait=False):
    return iopub("clear_output", {"wait": wait})


def error(ename="ValueError", evalue="bad", traceback=("line 1", "line 2")):
    return iopub("error", {"ename": ename, "evalue": evalue, "traceback": list(traceback)})


def status(state, received=1.0):
    return iopub("status", {"execution_state": state}, received=received)


def reply(received=1.0, **content):
    return iopub("execute_reply", {"status": "ok", "execution_count": 1, **content}, received=received)


def fed(*messages, **options):
    transcript = Transcript(**options)
    for message in messages:
        transcript.take(message)
    return transcript


def shown(transcript):
    """The texts of the outputs, one short text for each."""
    texts = []
    for output in transcript.outputs():
        if output["output_type"] == "stream":
            texts.append(f"{output['name']}:{output['text']}")
        elif output["output_type"] == "error":
            texts.append(f"error:{output['ename']}")
        else:
            texts.append(output["data"].get("text/plain"))
    return texts


def validate(outputs):
    """Raise if a notebook may not hold these outputs."""
    outputs = Result(None, outputs).notebook_outputs
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.from_dict(output) for output in copy.deepcopy(outputs)])
    nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))


# Outputs


def test_execution_without_output_has_none():
    transcript = fed(status("busy"), iopub("execute_input", {"code": "1", "execution_count": 1}), status("idle"))
    assert transcript.outputs() == []


def test_outputs_are_what_a_notebook_would_hold():
    transcript = fed(stream("a\n"), display("b"), display("c", msg_type="execute_result"), error())
    assert transcript.outputs() == [
        {"output_type": "stream", "name": "stdout", "text": "a\n"},
        {"output_type": "display_data", "data": {"text/plain": "b"}, "metadata": {}},
        {"output_type": "execute_result", "data": {"text/plain": "c"}, "metadata": {}, "execution_count": 3},
        {"output_type": "error", "ename": "ValueError", "evalue": "bad", "traceback": ["line 1", "line 2"]},
    ]
    validate(transcript.outputs())


def test_display_id_is_kept_and_no_other_transient_value():
    content = {"data": {}, "metadata": {}, "transient": {"display_id": "an-id", "other": 1}}
    assert fed(iopub("display_data", content)).outputs()[0]["transient"] == {"display_id": "an-id"}


def test_metadata_of_a_display_is_kept():
    content = {"data": {"image/png": "aGk="}, "metadata": {"image/png": {"width": 5}}}
    outputs = fed(iopub("display_data", content)).outputs()
    assert outputs[0]["metadata"] == {"image/png": {"width": 5}}
    validate(outputs)


def test_stream_that_goes_on_is_one_output():
    assert shown(fed(stream("a"), stream("b\n"), stream(""), stream("c"))) == ["stdout:ab\nc"]


def test_streams_of_two_names_take_turns():
    transcript = fed(stream("a"), stream("b", "stderr"), stream("c", "stderr"), stream("d"))
    assert shown(transcript) == ["stdout:a", "stderr:bc", "stdout:d"]


def test_display_between_two_pieces_of_a_stream_parts_them():
    assert shown(fed(stream("a"), display("x"), stream("b"))) == ["stdout:a", "x", "stdout:b"]


def test_status_between_two_pieces_of_a_stream_does_not_part_them():
    assert shown(fed(stream("a"), status("busy"), iopub("execute_input"), stream("b"))) == ["stdout:ab"]


def test_several_results_are_all_kept():
    transcript = fed(display("a", msg_type="execute_result"), display("b", msg_type="execute_result"))
    assert shown(transcript) == ["a", "b"]


def test_reader_is_shown_outputs_and_nothing_else():
    transcript = Transcript()
    outputs = [stream("a"), display("b", "d"), update("c", "d"), error(), clear(), clear(wait=True)]
    assert [transcript.take(message) for message in outputs] == outputs
    others = [status("busy"), status("idle"), iopub("execute_input", {"execution_count": 1}), iopub("brand_new")]
    assert [transcript.take(message) for message in others] == [None] * 4
    assert (transcript.version, transcript.input_at > 0) == (6, True)


# clear_output


def test_clear_removes_what_came_before():
    assert shown(fed(stream("a"), display("b"), clear())) == []
    assert shown(fed(stream("a"), clear(), stream("b"))) == ["stdout:b"]


def test_clear_that_waits_clears_with_the_next_output():
    transcript = fed(stream("a"), display("b"), clear(wait=True))
    assert shown(transcript) == ["stdout:a", "b"]
    transcript.take(display("c"))
    assert shown(transcript) == ["c"]
    transcript.take(display("d"))
    assert shown(transcript) == ["c", "d"]


def test_clear_that_waits_waits_for_an_output_and_for_no_other_message():
    transcript = fed(display("a", "d"), clear(wait=True), status("busy"), iopub("execute_input"), update("b", "d"))
    assert shown(transcript) == ["b"]
    transcript.take(error())
    assert shown(transcript) == ["error:ValueError"]


def test_clear_that_waits_for_nothing_clears_nothing():
    transcript = fed(stream("a"), clear(wait=True), status("idle"))
    transcript.set_reply(reply())
    assert shown(transcript) == ["stdout:a"]


def test_clear_at_once_takes_the_place_of_one_that_waits():
    transcript = fed(stream("a"), clear(wait=True), clear(), stream("b"), stream("c"))
    assert shown(transcript) == ["stdout:bc"]
    assert shown(fed(stream("a"), clear(), clear(wait=True), stream("b"), stream("c"))) == ["stdout:bc"]


def test_stream_after_a_clear_does_not_go_on_where_it_was():
    assert shown(fed(stream("10%"), clear(wait=True), stream("20%"), clear(wait=True), stream("30%"))) == ["stdout:30%"]


def test_clear_of_nothing_is_fine():
    assert shown(fed(clear(), clear(wait=True), clear())) == []


# update_display_data


def test_update_changes_every_display_of_its_id_and_no_other():
    transcript = fed(display("a", "1"), display("b", "2"), display("c", "1"), display("d"), update("new", "1"))
    assert shown(transcript) == ["new", "b", "new", "d"]
    validate(transcript.outputs())


def test_display_of_an_id_that_was_there_before_changes_those_before_it():
    transcript = fed(display("a", "1"), display("b"), display("c", "1"))
    assert shown(transcript) == ["c", "b", "c"]
    transcript.take(display("d", "1", msg_type="execute_result"))
    assert shown(transcript) == ["d", "b", "d", "d"]
    validate(transcript.outputs())


def test_displays_of_one_id_are_changed_all_at_once_however_many_they_are():
    transcript = fed(*[display("a", "1") for _ in range(1000)], display("b", "2"))
    looked_at = 0

    def look(frame, event, arg):
        nonlocal looked_at
        looked_at += 1
        return look

    traced = sys.gettrace()
    sys.settrace(look)
    try:
        transcript.take(update("c", "1"))
        transcript.take(display("d", "1"))
    finally:
        sys.settrace(traced)
    assert shown(transcript) == ["d"] * 1000 + ["b", "d"]
    assert looked_at < 500


def test_display_that_changes_those_before_it_keeps_to_the_bound():
    displays = [display("a", "1", nbytes=10), display("b", "1", nbytes=10), display("x" * 50, "1", nbytes=50)]
    transcript = fed(*displays, max_output_bytes=100)
    assert (shown(transcript), transcript.dropped) == (["b", "b"], 1)
    transcript = fed(display("a", "1", nbytes=60), clear(wait=True), display("b", "1", nbytes=90), max_output_bytes=100)
    assert (shown(transcript), transcript.truncated) == (["b"], False)


def test_update_changes_a_result_as_well():
    transcript = fed(display("a", "1", msg_type="execute_result"), update("new", "1"))
    assert shown(transcript) == ["new"]
    assert transcript.outputs()[0]["execution_count"] == 3


def test_update_replaces_data_and_metadata_whole():
    first = {"data": {"text/plain": "a", "text/html": "<a>"}, "metadata": {"x": 1}, "transient": {"display_id": "1"}}
    second = {"data": {"text/plain": "b"}, "metadata": {"y": 2}, "transient": {"display_id": "1"}}
    transcript = fed(iopub("display_data", first), iopub("update_display_data", second))
    assert transcript.outputs()[0]["data"] == {"text/plain": "b"}
    assert transcript.outputs()[0]["metadata"] == {"y": 2}


def test_update_that_comes_before_its_display_or_has_no_id_changes_nothing():
    transcript = fed(update("early", "1"), display("a", "1"), display("b"), update("c", ""), update("d", None))
    assert shown(transcript) == ["a", "b"]


def test_update_of_a_cleared_display_brings_nothing_back():
    transcript = fed(display("a", "1"), clear(), update("b", "1"))
    assert shown(transcript) == []
    transcript.take(display("c", "1"))
    transcript.take(update("d", "1"))
    assert shown(transcript) == ["d"]


def test_update_of_another_execution_changes_the_display_and_counts_as_no_message_of_this_one():
    transcript = fed(display("a", "1"))
    transcript.update_display(update("b", "1"))
    transcript.update_display(update("c", "2"))
    assert shown(transcript) == ["b"]
    assert transcript.version == 1


# Output widgets


def widget(comm_id, msg_id="request", *, method="update"):
    """An Output widget begins to take the output of that request, or ends it: its id is then ""."""
    return iopub("comm_msg", {"comm_id": comm_id, "data": {"method": method, "state": {"msg_id": msg_id}}})


def end_of(comm_id):
    return widget(comm_id, "")


def with_widgets(*messages, **options):
    transcript = Transcript(**options)
    transcript.note_sent("request", 1.0)
    for message in messages:
        (transcript.update_display if message.msg_type.startswith("comm") else transcript.take)(message)
    return transcript


def shown_in_widgets(transcript):
    return {
        comm_id: [output.get("text") or output.get("ename") or output["data"]["text/plain"] for output in outputs]
        for comm_id, outputs in transcript.widget_outputs().items()
    }


def test_output_and_clear_output_go_to_the_widget_until_it_ends():
    made = with_widgets(stream("a"), widget("w"), stream("b"), clear(), stream("c"), error(), end_of("w"), stream("d"))
    assert shown(made) == ["stdout:ad"]
    assert shown_in_widgets(made) == {"w": ["c", "ValueError"]}


def test_widget_that_took_nothing_or_was_cleared_has_no_outputs():
    made = with_widgets(widget("w"), stream("b"), clear(), end_of("w"), widget("v"), end_of("v"))
    assert (shown(made), shown_in_widgets(made)) == ([], {"w": [], "v": []})


def test_widgets_within_each_other_take_turns_and_the_latest_takes_the_output():
    made = with_widgets(
        *(widget("w"), stream("a"), widget("v"), stream("b"), end_of("v"), stream("c"), end_of("w")),
        *(stream("d"), widget("v"), stream("e")),
    )
    assert (shown(made), shown_in_widgets(made)) == (["stdout:d"], {"w": ["ac"], "v": ["be"]})


def test_widget_that_begins_twice_ends_once_and_one_that_is_closed_ends():
    made = with_widgets(widget("w"), widget("w"), end_of("w"), stream("a"))
    assert shown(made) == ["stdout:a"]
    closed = with_widgets(widget("w"), iopub("comm_close", {"comm_id": "w"}), stream("a"))
    assert shown(closed) == ["stdout:a"]


def test_widget_of_another_request_or_an_echo_takes_nothing():
    made = with_widgets(widget("w", "another"), widget("v", method="echo_update"), stream("a"))
    assert (shown(made), shown_in_widgets(made)) == (["stdout:a"], {})


def test_update_changes_displays_in_the_cell_and_in_widgets():
    made = with_widgets(display("a", "1"), widget("w"), display("b", "1"), end_of("w"), update("c", "1"))
    assert (shown(made), shown_in_widgets(made)) == (["c"], {"w": ["c"]})


def test_outputs_of_widgets_share_the_bound_of_the_cell():
    made = with_widgets(stream("a" * 60), widget("w"), stream("b" * 60), max_output_bytes=100)
    assert shown_in_widgets(made) == {"w": ["b" * 40 + CUT_MARK]}
    assert made.truncated


# Copies


def test_returned_copy_never_changes():
    transcript = fed(stream("a"), display("b", "1"), display("c", "1", msg_type="execute_result"))
    before = transcript.outputs()
    expected = copy.deepcopy(before)
    for message in (stream("d"), update("new", "1"), error(), clear(wait=True), stream("e"), clear()):
        transcript.take(message)
        assert before == expected
    assert shown(transcript) == []


def test_change_to_a_returned_list_changes_no_other():
    transcript = fed(stream("a"), display("b"))
    outputs = transcript.outputs()
    outputs[0]["text"] = "changed"
    outputs[1]["data"] = {}
    outputs.clear()
    assert shown(transcript) == ["stdout:a", "b"]


# Bounds


def test_text_is_cut_at_the_bound_and_marked_and_no_text_follows():
    transcript = Transcript(max_output_bytes=100)
    whole = stream("a" * 60)
    assert transcript.take(whole) is whole
    cut = transcript.take(stream("b" * 41))
    assert cut.content == {"name": "stdout", "text": "b" * 40 + CUT_MARK}
    assert transcript.take(stream("c")) is None
    assert transcript.take(stream("c", "stderr")) is None
    assert shown(transcript) == ["stdout:" + "a" * 60 + "b" * 40 + CUT_MARK]
    assert (transcript.truncated, transcript.dropped) == (True, 3)


def test_one_text_that_is_too_long_is_kept_up_to_the_bound():
    transcript = fed(stream("x" * 10**6), max_output_bytes=100_000)
    assert shown(transcript) == ["stdout:" + "x" * 100_000 + CUT_MARK]


def test_message_whose_text_is_cut_is_not_changed():
    message = stream("x" * 100)
    fed(message, max_output_bytes=10)
    assert message.content["text"] == "x" * 100


@given(st.text(), st.integers(-1, 40))
def test_cut_text_is_the_longest_beginning_of_whole_characters_that_fits(text, nbytes):
    beginnings = [text[:length] for length in range(len(text) + 1)]
    assert cut_text(text, nbytes) == max(
        (each for each in beginnings if not each or len(each.encode()) <= nbytes), key=len
    )


def test_text_with_half_a_surrogate_pair_is_cut_too():
    assert cut_text("\ud83d\ud83d", 5) == "\ud83d"


def test_displays_and_errors_beyond_the_bound_are_dropped_whole_and_smaller_outputs_still_fit():
    big_error = error(evalue="x" * 90)
    big_error.nbytes = 200
    messages = [display("a", nbytes=90), display("b", nbytes=11), big_error, stream("text"), display("c", nbytes=5)]
    transcript = fed(*messages, max_output_bytes=100)
    assert shown(transcript) == ["a", "stdout:text", "c"]
    assert (transcript.truncated, transcript.dropped) == (True, 2)


def test_text_after_a_clear_output_begins_anew():
    outputs = [stream("a" * 90), stream("b" * 20), clear(), stream("c")]
    assert shown(fed(*outputs, max_output_bytes=100)) == ["stdout:c"]


def test_output_up_to_the_bound_is_not_truncated():
    transcript = fed(stream("a" * 99), stream("b"), max_output_bytes=100)
    assert (transcript.truncated, transcript.dropped) == (False, 0)


BOUND = 2**17


def memory_kept(messages):
    """The bytes that the outputs of `messages` take, with a copy of them; and their transcript."""
    transcript = Transcript(max_output_bytes=BOUND)
    gc.collect()
    tracemalloc.start()
    try:
        for message in messages:
            transcript.take(message)
        del message
        copied = transcript.outputs()  # noqa: F841  # it is measured
        return tracemalloc.get_traced_memory()[0], transcript
    finally:
        tracemalloc.stop()


def parsed(msg_type, content):
    """A message as it comes over the wire."""
    text = json.dumps(content)
    return iopub(msg_type, json.loads(text), nbytes=len(text))


MANY_SMALL = {
    "short lines": lambda: (stream("x\n") for _ in range(30_000)),
    "streams that take turns": lambda: (stream("x", ("stdout", "stderr")[n % 2]) for n in range(1_000)),
    "empty streams that take turns": lambda: (stream("", ("stdout", "stderr")[n % 2]) for n in range(1_000)),
    "displays": lambda: (parsed("display_data", {"data": {"text/plain": str(n)}}) for n in range(1_000)),
    "displays of nothing": lambda: (parsed("display_data", {}) for n in range(1_000)),
    "errors": lambda: (parsed("error", {"traceback": [str(n)] * 3}) for n in range(1_000)),
    "empty dicts": lambda: (
        parsed("display_data", {"data": {"application/json": [{} for _ in range(200)]}}) for _ in range(100)
    ),
    "dicts": lambda: (
        parsed("display_data", {"data": {"application/json": [{"a": n, "b": 0.5} for n in range(100)]}})
        for _ in range(100)
    ),
}


@pytest.mark.parametrize("kind", MANY_SMALL)
def test_small_outputs_take_little_more_memory_than_the_bound(kind):
    """Once as they are kept and, of text, once more in the result."""
    used, transcript = memory_kept(MANY_SMALL[kind]())
    assert used <= 2 * (BOUND + SPARE_NBYTES)
    assert transcript.truncated or kind == "short lines"


def test_room_for_a_few_small_outputs_is_there_whatever_the_bound():
    number = SPARE_NBYTES // (3 * OUTPUT_NBYTES)
    transcript = fed(*[display(str(n), nbytes=1) for n in range(number)], max_output_bytes=number)
    assert len(transcript.outputs()) == number
    assert not transcript.truncated


def test_reply_and_states_pass_whatever_the_bound():
    transcript = fed(stream("a" * 101), iopub("execute_input", {"execution_count": 5}), max_output_bytes=100)
    assert transcript.execution_count == 5
    idle = status("idle")
    idle.nbytes = 10**9
    transcript.take(idle)
    huge = reply()
    huge.nbytes = 10**9
    transcript.set_reply(huge)
    assert transcript.is_done
    assert transcript.truncated


def test_what_was_cleared_makes_room():
    transcript = fed(stream("a" * 90), clear(), stream("b" * 90), max_output_bytes=100)
    assert (shown(transcript), transcript.truncated) == (["stdout:" + "b" * 90], False)
    transcript = fed(stream("a" * 90), clear(wait=True), stream("b" * 9), max_output_bytes=100)
    assert (shown(transcript), transcript.truncated) == (["stdout:" + "b" * 9], False)


def test_clear_passes_whatever_the_bound():
    """A clear makes room. Without it the old output would stay for ever."""
    for wait in (False, True):
        cleared = clear(wait=wait)
        cleared.nbytes = 14
        transcript = fed(stream("a" * 100), cleared, stream("b" * 50), max_output_bytes=100)
        assert (shown(transcript), transcript.truncated) == (["stdout:" + "b" * 50], False)


def test_output_that_replaces_what_a_waiting_clear_removes_need_not_share_its_room():
    transcript = fed(stream("a" * 90), clear(wait=True), stream("b" * 90), max_output_bytes=100)
    assert (shown(transcript), transcript.truncated) == (["stdout:" + "b" * 90], False)


def test_updates_count_towards_the_bound():
    displays = [display("", str(number), nbytes=5) for number in range(10)]
    updates = [update("x" * 50, str(number), nbytes=50) for number in range(10)]
    transcript = fed(*displays, *updates, max_output_bytes=100)
    assert transcript.truncated
    assert sum(map(len, shown(transcript))) <= 100


def test_update_of_a_cleared_display_counts_for_nothing():
    messages = [display("a", "1", nbytes=10), clear(), update("b", "1", nbytes=1000), stream("c" * 100)]
    transcript = fed(*messages, max_output_bytes=100)
    assert (shown(transcript), transcript.truncated) == (["stdout:" + "c" * 100], False)


def test_updates_of_one_display_replace_each_other_within_the_bound():
    updates = [update(str(number), "1", nbytes=50) for number in range(100)]
    transcript = fed(display("", "1", nbytes=10), *updates, max_output_bytes=100)
    assert (shown(transcript), transcript.truncated) == (["99"], False)


def test_there_may_be_no_bound():
    transcript = fed(stream("a"), display("b", nbytes=10 * MAX_OUTPUT_BYTES), max_output_bytes=None)
    assert (shown(transcript), transcript.truncated) == (["stdout:a", "b"], False)


def test_bound_of_nothing_keeps_nothing():
    transcript = fed(stream("a"), display("b"), max_output_bytes=0)
    assert (shown(transcript), transcript.dropped) == ([], 2)


# The end


def test_execution_is_done_when_reply_and_idle_are_in_whichever_came_first():
    transcript = Transcript()
    transcript.set_reply(reply())
    assert not transcript.is_done
    transcript.take(status("idle"))
    assert transcript.is_done

    transcript = fed(status("busy"), status("idle"))
    assert not transcript.is_done
    transcript.set_reply(reply())
    assert transcript.is_done


def test_execution_whose_idle_was_lost_is_done_when_it_is_called_incomplete():
    transcript = Transcript()
    transcript.complete = False
    assert not transcript.is_done
    transcript.set_reply(reply())
    assert transcript.is_done


def test_times_tell_when_each_step_was_taken_in():
    transcript = Transcript()
    times = transcript.times
    assert (times.sent, times.busy, times.reply, times.idle) == (0, 0, 0, 0)
    times.sent = 1.0
    transcript.take(status("busy", 2.0))
    transcript.set_reply(reply(3.0))
    transcript.take(status("idle", 4.0))
    assert (times.sent, times.busy, times.reply, times.idle) == (1, 2, 3, 4)


def test_execution_count_comes_with_the_input_and_with_the_reply():
    transcript = fed(iopub("execute_input", {"code": "1", "execution_count": 7}))
    assert transcript.execution_count == 7
    transcript.set_reply(reply(execution_count=8))
    assert transcript.execution_count == 8


def test_execution_count_that_is_none_is_no_count():
    transcript = fed(iopub("execute_input", {"execution_count": None}), iopub("execute_input", {}))
    transcript.set_reply(reply(execution_count="9"))
    assert transcript.execution_count is None


# Careless kernels


def test_error_without_its_parts_is_still_an_error():
    for content in ({}, {"ename": None, "evalue": None, "traceback": None}, {"traceback": ["", "\x1b[0m"]}):
        outputs = fed(iopub("error", content)).outputs()
        assert outputs[0]["ename"] == "Error"
        assert outputs[0]["evalue"] == ""
        validate(outputs)
    outputs = fed(iopub("error", {"ename": 5, "evalue": ["x"], "traceback": [1, None]})).outputs()
    assert outputs[0] == {"output_type": "error", "ename": "5", "evalue": "['x']", "traceback": ["1", "None"]}


def test_display_without_data_is_empty():
    for content in (
        {},
        {"data": None, "metadata": None, "transient": None},
        {"data": [], "metadata": 5, "transient": "x"},
    ):
        for msg_type in ("display_data", "execute_result", "update_display_data"):
            transcript = fed(display("a", "1"), iopub(msg_type, content))
            validate(transcript.outputs())
            assert shown(transcript) == (["a"] if msg_type == "update_display_data" else ["a", None])


def test_display_id_that_is_no_text_is_none():
    for display_id in (5, None, ["1"], {}):
        transcript = fed(
            iopub("display_data", {"data": {"text/plain": "a"}, "transient": {"display_id": display_id}}),
            iopub("update_display_data", {"data": {"text/plain": "b"}, "transient": {"display_id": display_id}}),
        )
        assert shown(transcript) == ["a"]


def test_stream_without_its_parts_is_empty_standard_output():
    for content in ({}, {"name": None, "text": None}, {"name": "stdout"}, {"text": ""}):
        outputs = fed(iopub("stream", content)).outputs()
        assert outputs == [{"output_type": "stream", "name": "stdout", "text": ""}]


def test_result_whose_count_is_no_number_is_valid_all_the_same():
    for count in (None, "5", 1.5, [1]):
        outputs = fed(iopub("execute_result", {"data": {"text/plain": "a"}, "execution_count": count})).outputs()
        assert outputs[0]["execution_count"] is None
        validate(outputs)


def test_status_that_tells_nothing_changes_nothing():
    for content in ({}, {"execution_state": None}, {"execution_state": ["idle"]}, {"execution_state": "starting"}):
        transcript = fed(iopub("status", content))
        assert (transcript.idle, transcript.times.busy, transcript.times.idle) == (False, 0, 0)


# Any order of all messages

ids = st.sampled_from(["1", "2"])
texts = st.text(max_size=5)
outputs_of_any_kind = st.one_of(
    st.builds(stream, texts, st.sampled_from(["stdout", "stderr"])),
    st.builds(display, texts, st.none() | ids, msg_type=st.sampled_from(["display_data", "execute_result"])),
    st.builds(update, texts, ids),
    st.builds(clear, wait=st.booleans()),
    st.builds(error, texts, texts, st.lists(texts, max_size=2)),
    st.builds(status, st.sampled_from(["busy", "idle"])),
)


@given(st.lists(outputs_of_any_kind, max_size=20))
def test_outputs_of_any_messages_are_valid_and_copies_of_them_never_change(messages):
    transcript, copies = Transcript(), []
    for message in messages:
        transcript.take(message)
        copies.append((transcript.outputs(), copy.deepcopy(transcript.outputs())))
    assert all(output == as_it_was for output, as_it_was in copies)
    validate(transcript.outputs())
    assert transcript.version <= len(messages)
    names = [output.get("name") for output in transcript.outputs()]
    assert not any(name is not None and name == following for name, following in pairwise(names))


@given(st.lists(st.tuples(st.text(max_size=40), st.sampled_from(["stdout", "stderr"])), max_size=20))
def test_bound_holds_and_what_fits_is_whole(pieces):
    transcript, kept, room = Transcript(max_output_bytes=100), {"stdout": "", "stderr": ""}, 100
    for text, name in pieces:
        message = stream(text, name)
        taken = transcript.take(message)
        if room is not None and len(text.encode()) <= room:
            assert taken is message
            kept[name] += text
            room -= len(text.encode())
        elif room is not None:
            kept[name] += cut_text(text, room) + CUT_MARK
            assert taken.content["text"] == cut_text(text, room) + CUT_MARK
            room = None
        else:
            assert taken is None
    for name, text in kept.items():
        assert text == "".join(output["text"] for output in transcript.outputs() if output["name"] == name)
    assert transcript.truncated is (room is None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
)
keys = [
    "name",
    "text",
    "data",
    "metadata",
    "transient",
    "ename",
    "traceback",
    "wait",
    "execution_state",
    "execution_count",
]


types = ["stream", "display_data", "execute_result", "update_display_data", "error", "clear_output", "status"]


@given(st.lists(st.tuples(st.sampled_from(types), st.dictionaries(st.sampled_from(keys), json_values, max_size=4))))
def test_no_content_of_a_message_raises(messages):
    transcript = Transcript()
    for msg_type, content in messages:
        transcript.take(iopub(msg_type, content))
        transcript.set_reply(iopub("execute_reply", content))
    assert all(isinstance(output, dict) for output in transcript.outputs())
