"""Reading messages off a socket: each comes as it was sent, also behind one that is too short."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator

import pytest
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kclient.errors import BadMessage
from kclient.protocol.framing import DELIMITER
from kclient.protocol.session import Session
from kclient.transport.zmq.context import context
from kclient.transport.zmq.frames import VIEW_FROM_BYTES, FrameReader, MessageReader

Pair = tuple["zmq.Socket[bytes]", "zmq.Socket[bytes]"]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A socket that sends, and a socket that receives."""
    sender, receiver = zmq.Socket(context(), zmq.PAIR), zmq.Socket(context(), zmq.PAIR)
    sender.sndhwm = receiver.rcvhwm = 0
    address = f"inproc://frames-{id(receiver)}"
    receiver.bind(address)
    sender.connect(address)
    yield sender, receiver
    sender.close(0)
    receiver.close(0)


def all_of(reader: FrameReader) -> list[list[bytes]]:
    messages = []
    while True:
        try:
            messages.append(reader.read())
        except zmq.Again:
            return messages


bodies = st.lists(st.binary(max_size=3), min_size=1, max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(bodies, max_size=8))
def test_messages_of_any_layout_are_read_whole(pair: Pair, messages: list[list[bytes]]) -> None:
    sender, receiver = pair
    for message in messages:
        sender.send_multipart(message)
    assert all_of(FrameReader(receiver)) == messages


malformed = st.lists(st.sampled_from([DELIMITER, b"x", b"{}", b""]), min_size=1, max_size=9)
buffers = st.lists(st.sampled_from([DELIMITER, b"x", b"{}", b""]), max_size=9)


@pytest.mark.parametrize("topics", [0, 1])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mixture=st.lists(st.tuples(st.booleans(), malformed, buffers), max_size=8))
def test_each_well_formed_message_is_read_whatever_comes_between(
    pair: Pair, topics: int, mixture: list[tuple[bool, list[bytes], list[bytes]]]
) -> None:
    """Of several malformed messages in a row, at least one is refused."""
    socket, receiver = pair
    ours, theirs = Session(b"key"), Session(b"key")
    sent, is_bad_before = [], False
    least_refused = 0
    for is_good, frames, some_buffers in mixture:
        if is_good:
            message = ours.msg("status", {"number": len(sent)})
            message.buffers = some_buffers
            sent.append((message.msg_id, some_buffers))
            frames = [b"topic"] * topics + ours.serialize(message)
        elif not is_bad_before:
            least_refused += 1
        is_bad_before = not is_good
        socket.send_multipart(frames)
    received, refused = [], 0
    for frames in all_of(MessageReader(receiver, topics)):
        try:
            message = theirs.deserialize(frames)
            received.append((message.msg_id, message.buffers))
        except BadMessage:
            refused += 1
    assert received == sent
    assert refused >= least_refused


@pytest.mark.parametrize("topics", [0, 1])
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(mixture=st.lists(st.lists(st.just(b"x"), max_size=9), max_size=8))
def test_each_message_without_a_delimiter_is_read_alone(pair: Pair, topics: int, mixture: list[list[bytes]]) -> None:
    """An empty list stands for a well-formed message."""
    socket, receiver = pair
    ours = Session(b"key")
    sent = [frames or [b"topic"] * topics + ours.serialize(ours.msg("status")) for frames in mixture]
    for frames in sent:
        socket.send_multipart(frames)
    assert all_of(MessageReader(receiver, topics)) == sent


@pytest.mark.parametrize("topics", [0, 1])
@pytest.mark.parametrize("envelope", [[b""], [b"a", b"b"], [b"a"] * 9])
def test_message_in_an_envelope_is_read_whole(pair: Pair, topics: int, envelope: list[bytes]) -> None:
    socket, receiver = pair
    ours = Session(b"key")
    sent = [envelope + [b"topic"] * topics + ours.serialize(ours.msg("status")) for _ in range(3)]
    for frames in sent:
        socket.send_multipart(frames)
    assert all_of(MessageReader(receiver, topics)) == sent


@pytest.mark.parametrize("topics", [0, 1])
@pytest.mark.parametrize("behind", [[], [b"{}"]])
def test_message_ends_where_it_does_whatever_its_envelope_holds(pair: Pair, topics: int, behind: list[bytes]) -> None:
    socket, receiver = pair
    ours = Session(b"key")
    sent = [[b"x"] * (topics + 1) + [DELIMITER, b"x", b"{}", *behind, DELIMITER], ours.serialize(ours.msg("status"))]
    for frames in sent:
        socket.send_multipart(frames)
    assert all_of(MessageReader(receiver, topics)) == sent


def test_messages_without_the_topic_that_iopub_has_are_read(pair: Pair) -> None:
    socket, receiver = pair
    ours = Session(b"key")
    sent = [ours.serialize(ours.msg("status", {"number": number})) for number in range(3)]
    for frames in sent:
        socket.send_multipart(frames)
    assert all_of(MessageReader(receiver, 1)) == sent


# Buffers


def with_buffers(session: Session, *buffers: bytes, **content: object) -> list[bytes]:
    message = session.msg("comm_msg", content)
    message.buffers = list(buffers)
    return session.serialize(message)


def frames_alive() -> int:
    return sum(isinstance(thing, zmq.Frame) for thing in gc.get_objects())


def test_large_buffers_are_views_and_all_else_is_bytes(pair: Pair) -> None:
    socket, receiver = pair
    ours, theirs = Session(b"key"), Session(b"key")
    buffers = [b"s" * (VIEW_FROM_BYTES - 1), b"l" * VIEW_FROM_BYTES, b"", b"L" * 10 * VIEW_FROM_BYTES]
    socket.send_multipart(with_buffers(ours, *buffers, text="x" * VIEW_FROM_BYTES))
    (frames,) = all_of(MessageReader(receiver, 0))
    message = theirs.deserialize(frames)
    assert [type(frame) for frame in frames[:6]] == [bytes] * 6
    assert [type(buffer) for buffer in message.buffers] == [bytes, memoryview, bytes, memoryview]
    assert [bytes(buffer) for buffer in message.buffers] == buffers
    assert message.nbytes == len(frames[5]) + sum(map(len, buffers))
    with pytest.raises(TypeError, match="read-only"):
        message.buffers[1][0] = 0


def test_memory_of_a_view_is_freed_with_the_last_who_holds_it(pair: Pair) -> None:
    """It is freed at once, without the garbage collector."""
    socket, receiver = pair
    before = frames_alive()
    gc.disable()
    try:
        socket.send_multipart(with_buffers(Session(b"key"), b"x" * VIEW_FROM_BYTES))
        (frames,) = all_of(MessageReader(receiver, 0))
        message = Session(b"key").deserialize(frames)
        part = message.buffers[0][10:20]
        del frames, message
        assert frames_alive() == before + 1
        assert part == b"x" * 10
        del part
        assert frames_alive() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("topics", [0, 1])
def test_large_content_behind_a_message_that_is_too_short_is_bytes(pair: Pair, topics: int) -> None:
    """The fast parser refuses NaN, and the other parser takes bytes only."""
    socket, receiver = pair
    ours, theirs = Session(b"key"), Session(b"key")
    socket.send_multipart([b"topic"] * topics + [DELIMITER, b"x", b"{}"])
    long = [b"topic"] * topics + with_buffers(ours, b"b" * VIEW_FROM_BYTES, number=math.nan, text="x" * VIEW_FROM_BYTES)
    socket.send_multipart(long)
    _, frames = all_of(MessageReader(receiver, topics))
    message = theirs.deserialize(frames)
    assert (len(message.content["text"]), message.buffers) == (VIEW_FROM_BYTES, [b"b" * VIEW_FROM_BYTES])
