"""The receiver of a comm message, and the content of the comm messages that a client sends."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kclient.errors import InvalidArgument, KernelRestarted
from kclient.protocol.comms import COMM_TYPES, CommRoutes, comm_message, comms_of, open_comm
from kclient.protocol.messages import Message
from kclient.protocol.pending_answers import PendingAnswers
from kclient.protocol.routing import Outputs

OURS = "our session"
NO_BOUND = 10**9


class Taker:
    """A comm, or the collection that opens comms."""

    def __init__(self):
        self.failure = None

    def feed(self, message):
        raise AssertionError("routing must not feed a comm")

    def fail(self, failure):
        self.failure = failure


@pytest.fixture
def opener():
    return Taker()


@pytest.fixture
def routes(opener):
    routes = CommRoutes(OURS, opener)
    routes.add_target("slider", print)
    return routes


def comm_message_of(msg_type="comm_msg", *, session="another", **content):
    return Message({"msg_id": "1", "msg_type": msg_type}, {"msg_id": "0", "session": session}, content=content)


def comm_open(target_name="slider", comm_id="a", **more):
    return comm_message_of("comm_open", comm_id=comm_id, target_name=target_name, **more)


# The receiver


@pytest.mark.parametrize("msg_type", ["comm_msg", "comm_close"])
def test_message_goes_to_its_comm_with_any_parent(routes, msg_type):
    comms = {comm_id: Taker() for comm_id in "ab"}
    for comm_id, comm in comms.items():
        routes.add(comm_id, comm)
    for session in (OURS, "another"):
        assert routes.route(comm_message_of(msg_type, comm_id="b", session=session)) is comms["b"]


@pytest.mark.parametrize("msg_type", ["comm_msg", "comm_close"])
def test_message_of_an_unknown_comm_is_left_alone(routes, msg_type):
    assert routes.route(comm_message_of(msg_type, comm_id="of another client")) is None


@pytest.mark.parametrize("session", [OURS, "another"])
def test_comm_to_a_registered_target_is_for_us(routes, opener, session):
    assert routes.route(comm_open(session=session)) is opener


def test_comm_to_an_unknown_target_is_for_us_if_our_own_request_led_to_it(routes, opener):
    assert routes.route(comm_open("unknown", session=OURS)) is opener
    assert routes.route(comm_open("unknown", session="another")) is None


def test_client_without_targets_leaves_every_open_alone(routes):
    routes.remove_target("slider")
    assert routes.route(comm_open("slider", session=OURS)) is None


def test_second_open_of_a_comm_is_left_alone(routes):
    routes.add("a", Taker())
    assert routes.route(comm_open(comm_id="a")) is None


@pytest.mark.parametrize(
    "message",
    [
        comm_message_of(),
        comm_message_of(comm_id=None),
        comm_message_of(comm_id=["a"]),
        comm_message_of("comm_open", comm_id="b"),
        comm_message_of("comm_open", comm_id="b", target_name=["slider"]),
        comm_message_of("comm_open", target_name="slider"),
        comm_message_of("stream", comm_id="a"),
    ],
)
def test_other_or_malformed_messages_are_left_alone(routes, message):
    routes.add("a", Taker())
    assert routes.route(message) is None


values = st.sampled_from(["a", "slider", ""]) | st.none() | st.integers() | st.lists(st.text(max_size=1), max_size=1)


@given(
    st.sampled_from([*sorted(COMM_TYPES), "status", "x"]),
    st.dictionaries(st.sampled_from(["comm_id", "target_name", "data"]), values),
    st.sampled_from([OURS, None, 5]),
)
def test_message_with_any_content_is_for_its_comm_or_opens_one_or_is_left_alone(msg_type, content, session):
    opener, comm = Taker(), Taker()
    routes = CommRoutes(OURS, opener)
    routes.add_target("slider", print)
    routes.add("a", comm)
    taker = routes.route(comm_message_of(msg_type, session=session, **content))
    if taker is comm:
        assert (content["comm_id"], msg_type in ("comm_msg", "comm_close")) == ("a", True)
    elif taker is opener:
        assert (msg_type, content["comm_id"] != "a", isinstance(content["target_name"], str)) == (
            "comm_open",
            True,
            True,
        )
    else:
        assert taker is None


def test_message_of_a_comm_is_not_in_the_inbox_and_others_are(routes):
    outputs = Outputs(NO_BOUND, NO_BOUND, PendingAnswers(), routes)
    comm = Taker()
    routes.add("a", comm)
    other = comm_message_of(comm_id="b")
    assert outputs.route(comm_message_of(comm_id="a")) is comm
    assert outputs.route(other) is None
    assert outputs.inbox.pop_all() == [other]
    assert outputs.subscribed


def test_end_of_the_kernel_ends_every_comm_and_leaves_the_targets(routes):
    comms = [Taker(), Taker()]
    for comm_id, comm in zip("ab", comms, strict=True):
        routes.add(comm_id, comm)
    routes.fail(KernelRestarted)
    assert [comm.failure for comm in comms] == [KernelRestarted] * 2
    assert (routes.comms, list(routes.targets)) == ({}, ["slider"])


def test_end_of_a_kernel_that_is_known_late_ends_its_own_comms_only(routes):
    comms = {comm_id: Taker() for comm_id in "abc"}
    for comm_id, comm in comms.items():
        routes.add(comm_id, comm)
    routes.fail(KernelRestarted, ["a", "b", "closed meanwhile"])
    assert [comm.failure for comm in comms.values()] == [KernelRestarted, KernelRestarted, None]
    assert routes.comms == {"c": comms["c"]}


# Names


def test_id_of_an_open_comm_cannot_be_taken(routes):
    routes.add("a", Taker())
    with pytest.raises(InvalidArgument, match="an open comm has the comm_id 'a'"):
        routes.add("a", Taker())


def test_target_cannot_be_registered_twice(routes):
    with pytest.raises(InvalidArgument, match="unregister_target"):
        routes.add_target("slider", print)
    routes.remove_target("slider")
    routes.add_target("slider", None)


@pytest.mark.parametrize("target_name", ["unknown", "", None, ["slider"]])
def test_target_that_is_not_registered_cannot_be_removed(routes, target_name):
    with pytest.raises(InvalidArgument, match="there are: slider"):
        routes.remove_target(target_name)


@pytest.mark.parametrize("target_name", ["", None, 5, "\ud800"])
def test_name_of_a_target_is_a_string_that_can_be_sent(routes, target_name):
    with pytest.raises(InvalidArgument, match="target_name"):
        routes.add_target(target_name, print)
    with pytest.raises(InvalidArgument, match="target_name"):
        open_comm("a", target_name, None, None)


# Contents


def test_open_says_target_and_data():
    assert open_comm("a", "slider", {"x": 1}, None) == {"comm_id": "a", "target_name": "slider", "data": {"x": 1}}
    assert open_comm("a", "slider", None, "module")["target_module"] == "module"


def test_message_without_data_has_empty_data():
    assert comm_message("a", None) == {"comm_id": "a", "data": {}}


@pytest.mark.parametrize("data", [[], "x", 5, b"x"])
def test_data_is_a_dict(data):
    with pytest.raises(InvalidArgument, match="data must be a dict"):
        comm_message("a", data)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (
            {"status": "ok", "comms": {"a": {"target_name": "slider"}, "b": {}, "c": None}},
            {"a": "slider", "b": "", "c": ""},
        ),
        ({"status": "ok", "comms": {"": {"target_name": "slider"}}}, {}),
        ({"status": "ok", "comms": ["a"]}, {}),
        ({"status": "error"}, {}),
    ],
)
def test_comms_that_the_kernel_tells_of_are_found(content, found):
    assert comms_of(content) == found
