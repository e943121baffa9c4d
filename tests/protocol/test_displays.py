"""Displays: what each display_id shows now, over several runs."""

import copy

import nbformat
import pytest

from kclient import Displays, InvalidArgument, Result
from kclient.protocol.messages import Message
from kclient.protocol.transcript import Transcript


def display(text, display_id=None, msg_type="display_data", nbytes=1):
    content = {"data": {"text/plain": text}, "metadata": {}}
    if display_id is not None:
        content["transient"] = {"display_id": display_id}
    return Message({"msg_id": "k", "msg_type": msg_type}, {"msg_id": "0"}, {}, content, [], 1.0, nbytes)


def result_of(*messages, displays=None):
    transcript = Transcript(displays=displays)
    for message in messages:
        transcript.take(message)
    return Result.of(transcript)


def texts(outputs):
    return [output["data"]["text/plain"] for output in outputs]


def test_later_run_updates_a_display_of_an_earlier_one():
    displays = Displays()
    first = result_of(display("a", "1"), display("b"), display("c", "2"), displays=displays)
    before = copy.deepcopy(first.outputs)
    result_of(display("new", "1", "update_display_data"), displays=displays)
    result_of(display("again", "2"), displays=displays)
    assert texts(first.with_displays(displays).outputs) == ["new", "b", "again"]
    assert first.outputs == before
    assert displays["1"] == {"data": {"text/plain": "new"}, "metadata": {}}
    assert ([*displays], len(displays)) == (["1", "2"], 2)
    with pytest.raises(KeyError):
        displays["3"]


def test_result_with_displays_has_all_else_of_the_result():
    displays = Displays()
    result = result_of(display("a", "1"), displays=displays)
    newer = result.with_displays(displays)
    assert newer.outputs == result.outputs
    assert (newer.reply, newer.truncated, newer.execution_count) == (None, False, None)


def test_display_keeps_its_display_id_but_not_in_a_notebook():
    result = result_of(display("a", "1"), display("b"), display("c", "1", "execute_result"))
    assert [output.get("transient") for output in result.outputs] == [{"display_id": "1"}, None, {"display_id": "1"}]
    assert [output.keys() & {"transient"} for output in result.notebook_outputs] == [set()] * 3
    cell = nbformat.v4.new_code_cell(outputs=[nbformat.from_dict(each) for each in result.notebook_outputs])
    nbformat.validate(nbformat.v4.new_notebook(cells=[cell]))
    assert texts(result.notebook_outputs) == texts(result.outputs)


def test_run_without_displays_tells_them_nothing():
    displays = Displays()
    result_of(display("a", "1"))
    result_of(display("b"), displays=displays)
    assert len(displays) == 0


def test_message_of_no_run_is_taken_by_hand():
    displays = Displays()
    assert displays.take(display("a", "1", "update_display_data"))
    assert not displays.take(display("a"))
    assert not displays.take(Message({"msg_id": "k", "msg_type": "stream"}, content={"transient": {"display_id": "1"}}))
    assert texts([displays["1"]]) == ["a"]


def test_displays_that_changed_longest_ago_are_forgotten_if_they_are_too_many():
    displays = Displays(max_bytes=2500)
    for display_id in ("1", "2", "1", "3"):
        displays.take(display(display_id, display_id, nbytes=1000))
    assert ([*displays], displays.dropped) == (["1", "3"], 1)
    displays.take(display("x", "4", nbytes=5000))
    assert ([*displays], displays.dropped, displays.nbytes) == ([], 4, 0)


@pytest.mark.parametrize("nonsense", [{}, [], "x", 5])
def test_displays_of_another_type_are_refused(nonsense):
    with pytest.raises(InvalidArgument, match=r"kclient\.Displays"):
        Transcript(displays=nonsense)
    with pytest.raises(InvalidArgument, match="max_bytes"):
        Displays(max_bytes=nonsense if nonsense != 5 else -1)
