"""The wire format: messages that are written and read, and frames that are refused before they do harm."""

import array
import enum
import hashlib
import hmac
import json
import math
import sys
import uuid
from datetime import datetime, timedelta, timezone
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from kclient.errors import BadMessage, InvalidArgument
from kclient.protocol.framing import DELIMITER
from kclient.protocol.messages import Message
from kclient.protocol.session import Session

KEY = b"a-very-secret-key"
HEADER = b'{"msg_id":"a_1","msg_type":"stream"}'
EMPTY = b"{}"
DEEP = 20_000
"""Levels of nesting that are too many for any recursive parser."""

TOO_DEEP = b'{"a":' + b"[" * DEEP + b"]" * DEEP + b"}"


@pytest.fixture
def session():
    return Session(KEY)


def raw(session, header=HEADER, parent=EMPTY, metadata=EMPTY, content=EMPTY, buffers=()):
    """Frames with any parts, and a signature that fits them."""
    parts = [header, parent, metadata, content]
    return [DELIMITER, session.sign(parts), *parts, *buffers]


def reason(session, frames):
    """The reason why `frames` were refused; None if they were not."""
    try:
        session.deserialize(frames)
    except BadMessage as exc:
        return exc.reason
    return None


# Round trips of values that hypothesis makes


def joined(text):
    """`text` with its surrogate pairs joined, as every JSON parser joins them. Lone surrogates stay."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")


text = st.text(st.characters(exclude_categories=()), max_size=20).map(joined)
whole_numbers = st.integers() | st.integers(-(2**70), 2**70) | st.sampled_from([2**63, -(2**63) - 1, 2**64 - 1, 2**64])
scalars = st.none() | st.booleans() | whole_numbers | st.floats() | text
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4))
contents = st.dictionaries(text, values, max_size=5)
small_scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | text
metadatas = st.dictionaries(text, small_scalars | st.lists(small_scalars, max_size=3), max_size=3)
frame_of_anything = st.binary(max_size=40) | st.sampled_from(
    [
        DELIMITER,
        b"",
        EMPTY,
        HEADER,
        b"null",
        b"[]",
        b"1",
        b'"',
        b"NaN",
        b"\xff",
        b'{"msg_id":1,"msg_type":"a"}',
        TOO_DEEP,
    ]
)


def same(one, other):
    """True if both are equal, of the same types and in the same order. NaN equals NaN."""
    return repr(one) == repr(other)


# Round trips


def test_message_reads_back_as_it_was_written(session):
    parent = session.msg("execute_request", {"code": "1"})
    message = session.msg("stream", {"name": "stdout", "text": "é 😀\n"}, parent, {"started": "now"})
    message.buffers = [b"one", b"", b"two"]
    received = session.deserialize(session.serialize(message))
    assert received.header == message.header
    assert received.parent_header == parent.header
    assert received.metadata == {"started": "now"}
    assert received.content == {"name": "stdout", "text": "é 😀\n"}
    assert received.buffers == [b"one", b"", b"two"]
    assert (received.msg_id, received.msg_type, received.parent_id) == (message.msg_id, "stream", parent.msg_id)


def test_message_knows_when_it_came_and_how_big_it_was(session):
    before = perf_counter()
    received = session.deserialize(raw(session, content=b'{"a":1}', buffers=[b"12345", b"678"]))
    assert before <= received.received <= perf_counter()
    assert received.nbytes == len(b'{"a":1}') + 8
    built = session.msg("stream")
    assert (built.received, built.nbytes) == (0.0, 0)


def test_identities_and_topics_before_the_delimiter_are_skipped(session):
    frames = raw(session, content=b'{"a":1}')
    assert session.deserialize([b"router-id", b"kernel.x.stream", *frames]).content == {"a": 1}


def test_delimiter_among_the_buffers_is_a_buffer(session):
    message = session.msg("comm_msg")
    message.buffers = [DELIMITER, b"after"]
    assert session.deserialize(session.serialize(message)).buffers == [DELIMITER, b"after"]


def test_missing_parent_and_metadata_are_empty_dicts(session):
    received = session.deserialize(raw(session, parent=b"null", metadata=b"null"))
    assert (received.parent_header, received.metadata, received.parent_id) == ({}, {}, None)


def test_unknown_keys_of_a_newer_protocol_pass_through(session):
    header = b'{"msg_id":"a","msg_type":"brand_new","version":"9.1","flavour":[1]}'
    received = session.deserialize(raw(session, header=header, content=b'{"news":{"a":null}}'))
    assert received.header["flavour"] == [1]
    assert received.content == {"news": {"a": None}}


def test_strange_version_does_not_matter(session):
    for version in (b"5", b'"five"', b"null", b"[5]"):
        header = b'{"msg_id":"a","msg_type":"b","version":' + version + b"}"
        assert session.deserialize(raw(session, header=header)).msg_id == "a"


def test_header_without_date_and_version_is_taken(session):
    received = session.deserialize(raw(session))
    assert received.header == {"msg_id": "a_1", "msg_type": "stream"}


def test_header_has_what_the_spec_asks_for(session):
    before = datetime.now(timezone.utc)
    header = session.msg("kernel_info_request").header
    assert set(header) == {"msg_id", "msg_type", "username", "session", "date", "version"}
    assert header["session"] == session.session == session.identity.decode()
    assert header["version"] == "5.5"
    when = datetime.fromisoformat(header["date"])
    assert when.utcoffset() == timedelta(0)
    assert before <= when <= datetime.now(timezone.utc)


def test_message_ids_are_never_the_same():
    sessions = [Session(), Session()]
    ids = [session.msg("x").msg_id for session in sessions for _ in range(1000)]
    assert len(set(ids)) == 2000


def test_parent_may_be_a_message_a_header_or_a_dict_of_both(session):
    parent = session.msg("execute_request")
    for given_parent in (parent, parent.header, {"header": parent.header, "content": {}}):
        assert session.msg("stream", parent=given_parent).parent_header == parent.header
    assert session.msg("stream", parent={}).parent_header == {}


@given(contents, metadatas, st.lists(st.binary(max_size=20), max_size=3))
@example({"a": 2**64, "b": [-(2**63) - 1]}, {}, [])
@example({"a": math.nan, "b": math.inf, "c": -0.0, "d": 1e300}, {}, [])
@example({"\ud800": "\udfff", "null": None}, {"a": "\udc80"}, [DELIMITER])
def test_any_json_reads_back_exactly(content, metadata, buffers):
    session = Session(KEY)
    parent = Message({"msg_id": "p", "msg_type": "execute_request", **metadata})
    message = session.msg("x", content, parent, metadata)
    message.buffers = buffers
    received = session.deserialize(session.serialize(message))
    assert same(received.content, content)
    assert same(received.metadata, metadata)
    assert same(received.parent_header, parent.header)
    assert received.buffers == buffers


@settings(max_examples=50)
@given(contents)
def test_any_content_is_written_as_the_standard_library_would_read_it(content):
    frame = Session().serialize(Session().msg("x", content))[5]
    assert same(json.loads(frame), content)


# JSON that only some parsers know


ODD = {
    b"NaN": math.nan,
    b"Infinity": math.inf,
    b"-Infinity": -math.inf,
    b'"\\ud800"': "\ud800",
    b"18446744073709551615": 2**64 - 1,
    b"18446744073709551616": 2**64,
    b"-9223372036854775808": -(2**63),
    b"-9223372036854775809": -(2**63) - 1,
    b"1" + b"0" * 100: 10**100,
    b"9007199254740993": 2**53 + 1,
    b"1e19": 1e19,
    b"0.1": 0.1,
    b"-0.0": -0.0,
}


@pytest.mark.parametrize("wrap", [b'{"a":%b}', b'{"a":[[%b]]}', b'{"a":{"b":[0,%b]}}'], ids=["flat", "list", "dict"])
def test_content_is_read_and_written_without_loss(session, wrap):
    for text, value in ODD.items():
        expected = {b'{"a":%b}': value, b'{"a":[[%b]]}': [[value]], b'{"a":{"b":[0,%b]}}': {"b": [0, value]}}[wrap]
        content = session.deserialize(raw(session, content=wrap % text)).content
        assert same(content, {"a": expected})
        assert same(session.deserialize(session.serialize(session.msg("x", content))).content, content)


def test_none_is_written_as_null_and_nan_is_not(session):
    frame = session.serialize(session.msg("x", {"a": None, "b": math.nan, "c": "null"}))[5]
    assert frame == b'{"a":null,"b":NaN,"c":"null"}'


def test_keys_that_are_numbers_are_written_as_the_standard_library_writes_them(session):
    content = {1: "int", 2.5: "float", False: "bool", None: "none"}
    frame = session.serialize(session.msg("x", content))[5]
    assert json.loads(frame) == json.loads(json.dumps(content))


def test_subclasses_of_json_types_and_tuples_are_written_as_what_they_are(session):
    class Text(str):
        __slots__ = ()

    class Colour(enum.IntEnum):
        RED = 3

    frame = session.serialize(session.msg("x", {"a": Text("t"), "b": (1, 2), "c": Colour.RED, Text("d"): True}))[5]
    assert json.loads(frame) == {"a": "t", "b": [1, 2], "c": 3, "d": True}


def nested(levels):
    value = []
    for _ in range(levels):
        value = [value]
    return value


def cyclic():
    value = {}
    value["self"] = value
    return value


@pytest.mark.parametrize("part", ["content", "metadata", "header", "parent_header"])
def test_value_that_json_cannot_hold_is_an_invalid_argument(session, part):
    when = datetime(2026, 1, 1, tzinfo=timezone.utc)
    for value in (b"x", {1, 2}, object(), when, when.date(), 1j, {(1, 2): 1}, {b"key": 1}, nested(DEEP), cyclic()):
        message = session.msg("x")
        getattr(message, part)["bad"] = value
        with pytest.raises(InvalidArgument, match="JSON"):
            session.serialize(message)


@pytest.mark.parametrize("value", [uuid.UUID(int=7), enum.Enum("Fruit", ["PEAR"]).PEAR], ids=["uuid", "enum"])
def test_whether_a_value_can_be_written_does_not_depend_on_its_neighbours(session, value):
    def written(**neighbours):
        try:
            return json.loads(session.serialize(session.msg("x", {"value": value, **neighbours}))[5])["value"]
        except InvalidArgument:
            return "refused"

    assert written() == written(other=None) == written(other=math.nan) == written(other=2**70)


def test_content_and_metadata_that_are_no_dict_are_an_invalid_argument(session):
    for value in ([], "text", 5, [("a", 1)]):
        with pytest.raises(InvalidArgument, match="content"):
            session.msg("x", value)
        with pytest.raises(InvalidArgument, match="metadata"):
            session.msg("x", {}, metadata=value)


def test_parent_that_is_no_message_is_an_invalid_argument(session):
    for parent in (5, "an id", ["msg_id"], {"header": None}, {"header": "an id"}):
        with pytest.raises(InvalidArgument, match="parent"):
            session.msg("x", {}, parent)


def test_message_type_that_is_no_name_is_an_invalid_argument(session):
    for msg_type in ("", None, 5, b"x"):
        with pytest.raises(InvalidArgument, match="msg_type"):
            session.msg(msg_type)


# Buffers


def test_buffers_may_be_anything_with_contiguous_bytes(session):
    message = session.msg("comm_msg")
    numbers = array.array("i", [1, 2])
    table = np.arange(6, dtype="u1").reshape(2, 3)
    message.buffers = [bytearray(b"ab"), memoryview(b"cd"), b"ef", numbers, table, b"", memoryview(b"ghij")[1:3]]
    expected = [b"ab", b"cd", b"ef", numbers.tobytes(), b"\0\1\2\3\4\5", b"", b"hi"]
    assert [bytes(frame) for frame in session.serialize(message)[6:]] == expected


def test_buffer_that_cannot_be_sent_is_refused_before_half_a_message_is_sent(session):
    released = memoryview(b"x")
    released.release()
    for buffer in (5, "text", None, [b"x"], released):
        message = session.msg("comm_msg")
        message.buffers = [b"fine", buffer]
        with pytest.raises(InvalidArgument, match="must be a bytes-like object"):
            session.serialize(message)
    columns = np.asfortranarray([[1, 2], [3, 4]])
    for buffer in (memoryview(b"abcdef")[::2], columns, columns[0]):
        message = session.msg("comm_msg")
        message.buffers = [b"fine", buffer]
        with pytest.raises(InvalidArgument, match="must be C-contiguous.* send a copy"):
            session.serialize(message)


# Signatures


SCHEMES = {
    "hmac-sha256": hashlib.sha256,
    "hmac-sha512": hashlib.sha512,
    "hmac-md5": hashlib.md5,
    "hmac-sha1": hashlib.sha1,
    "hmac-sha3-256": hashlib.sha3_256,
    "hmac-sha3_256": hashlib.sha3_256,
    "hmac-blake2b": hashlib.blake2b,
}


def test_signature_is_the_hex_hmac_of_the_four_dicts_and_not_of_the_buffers():
    for scheme, digest in SCHEMES.items():
        session = Session(KEY, signature_scheme=scheme)
        message = session.msg("x", {"a": 1}, metadata={"b": 2})
        message.buffers = [b"not signed"]
        frames = session.serialize(message)
        assert frames[1] == hmac.new(KEY, b"".join(frames[2:6]), digest).hexdigest().encode()
        assert Session(KEY, signature_scheme=scheme).deserialize(frames).content == {"a": 1}


def test_scheme_that_is_none_is_an_invalid_argument():
    for scheme in ("hmac-no-such-hash", "hmac-", "", "hmac-shake_128", "none"):
        with pytest.raises(InvalidArgument, match="signature_scheme"):
            Session(KEY, signature_scheme=scheme)


def test_key_may_be_text(session):
    assert Session(KEY.decode()).deserialize(raw(session)).msg_id == "a_1"


FORGED = {
    "empty": b"",
    "wrong": b"0" * 64,
    "short": b"0" * 63,
    "long": b"0" * 65,
    "not ASCII": b"\xff" * 64,
    "UTF-8": "é".encode() * 32,
    "binary": bytes(range(64)),
    "huge": b"0" * 100_000,
}


def test_wrong_signature_is_refused(session):
    frames = raw(session)
    for name, signature in FORGED.items():
        assert reason(session, [DELIMITER, signature, *frames[2:]]) == "signature", name


def test_signature_in_capitals_or_with_a_tail_is_refused(session):
    frames = raw(session)
    for forged in (frames[1].upper(), frames[1] + b" ", frames[1][:-1], frames[1] + frames[1]):
        assert reason(session, [DELIMITER, forged, *frames[2:]]) == "signature"


def test_message_of_another_key_or_scheme_is_refused(session):
    message = session.msg("x")
    for other in (Session(b"other"), Session(KEY, signature_scheme="hmac-sha512"), Session(b"")):
        assert reason(session, other.serialize(message)) == "signature"


def test_message_changed_under_way_is_refused(session):
    frames = session.serialize(session.msg("x", {"a": 1}, {"msg_id": "p"}, {"m": 1}))
    for position in range(2, 6):
        changed = list(frames)
        changed[position] = changed[position][:-1] + b',"evil":1}'
        assert reason(session, changed) == "signature"


def test_parts_in_another_order_are_refused(session):
    frames = session.serialize(session.msg("x", {"a": 1}, {"msg_id": "p"}, {"m": 1}))
    frames[4], frames[5] = frames[5], frames[4]
    assert reason(session, frames) == "signature"


def test_session_without_key_neither_signs_nor_checks():
    unsigned = Session()
    frames = unsigned.serialize(unsigned.msg("x", {"a": 1}))
    assert frames[1] == b""
    for signature in FORGED.values():
        assert unsigned.deserialize([DELIMITER, signature, *frames[2:]]).content == {"a": 1}


def test_signature_is_checked_before_anything_is_parsed(session):
    for bad in (b"not JSON", b"[]", b"\xff", TOO_DEEP):
        assert reason(session, [DELIMITER, b"0" * 64, bad, bad, bad, bad]) == "signature"


def test_forged_copy_does_not_shut_out_the_genuine_message(session):
    frames = raw(session)
    forged = [*frames[:5], b'{"evil":1}']  # the genuine signature, and another content
    assert reason(session, forged) == "signature"
    assert session.deserialize(frames).content == {}


def test_forged_messages_push_nothing_out_of_the_history():
    session = Session(KEY, replay_history=2)
    frames = raw(session)
    session.deserialize(frames)
    for number in range(10):
        assert reason(session, [DELIMITER, b"%064d" % number, *frames[2:]]) == "signature"
    assert reason(session, frames) == "replay"


# Replays


def test_replayed_message_is_refused(session):
    frames = raw(session)
    assert reason(session, frames) is None
    assert [reason(session, frames) for _ in range(3)] == ["replay"] * 3
    assert reason(session, [b"another topic", *frames]) == "replay"


def test_replay_with_other_buffers_is_refused(session):
    frames = raw(session, buffers=[b"one"])
    assert reason(session, frames) is None
    assert reason(session, [*frames[:-1], b"two"]) == "replay"


def test_unsigned_messages_are_no_replays():
    unsigned = Session()
    frames = raw(unsigned)
    assert [reason(unsigned, frames) for _ in range(3)] == [None] * 3


def test_own_message_that_comes_back_is_taken_once(session):
    frames = session.serialize(session.msg("x"))
    assert [reason(session, frames) for _ in range(2)] == [None, "replay"]


def test_history_is_bounded_and_forgets_the_oldest_first():
    session = Session(KEY, replay_history=3)
    a, b, c, d = (raw(session, content=b'{"n":%d}' % number) for number in range(4))
    assert [reason(session, frames) for frames in (a, b, c)] == [None] * 3
    assert reason(session, a) == "replay"
    assert reason(session, d) is None  # a is forgotten: its replay a moment ago did not make it younger
    assert [reason(session, frames) for frames in (b, c, d)] == ["replay"] * 3
    assert reason(session, a) is None  # b is forgotten
    assert [reason(session, frames) for frames in (c, d, a)] == ["replay"] * 3
    assert reason(session, b) is None


def test_history_of_none_remembers_nothing():
    session = Session(KEY, replay_history=0)
    frames = raw(session)
    assert [reason(session, frames) for _ in range(3)] == [None] * 3


def test_history_of_two_sessions_is_not_shared(session):
    frames = raw(session)
    assert [reason(Session(KEY), frames) for _ in range(2)] == [None, None]


def test_history_takes_no_more_memory_than_its_bound():
    session = Session(KEY, replay_history=10)
    for number in range(1000):
        session.deserialize(raw(session, content=b'{"n":%d}' % number))
    remembered = [held for held in vars(session).values() if hasattr(held, "__len__")]
    assert sum(map(len, remembered)) < 200
    assert sum(map(sys.getsizeof, remembered)) < 10_000


# Malformed frames


@pytest.mark.parametrize("key", [KEY, b""], ids=["signed", "unsigned"])
def test_frames_that_are_no_message_are_a_bad_layout(key):
    session = Session(key)
    for frames in (
        [],
        [b""],
        [b"<IDS|MSG"],
        [b"topic", b"signature", HEADER, EMPTY, EMPTY, EMPTY],
        [b"<ids|msg>", b"", HEADER, EMPTY, EMPTY, EMPTY],
        [b" <IDS|MSG>", b"", HEADER, EMPTY, EMPTY, EMPTY],
        [DELIMITER],
        [DELIMITER, b""],
        [DELIMITER, b"", HEADER],
        [DELIMITER, b"", HEADER, EMPTY, EMPTY],
        [HEADER, EMPTY, EMPTY, EMPTY, DELIMITER],
        [b"", HEADER, EMPTY, EMPTY, EMPTY, DELIMITER, b""],
    ):
        assert reason(session, frames) == "layout", frames


BAD_JSON = {
    "empty": b"",
    "no JSON": b"hello",
    "half": b'{"msg_id":"a","msg_type":',
    "two": b"{}{}",
    "list": b"[]",
    "string": b'"x"',
    "number": b"5",
    "bare NaN": b"NaN",
    "true": b"true",
    "invalid UTF-8": b'{"msg_id":"a","msg_type":"\xff"}',
    "half of UTF-8": b'{"msg_id":"a","msg_type":"\xc3"}',
    "bare control character": b'{"msg_id":"a","msg_type":"\n"}',
    "NUL": b"\0",
    "trailing NUL": b"{}\0",
    "single quotes": b"{'a': 1}",
    "deep list": TOO_DEEP,
    "deep dict": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "deep and cut": b"[" * DEEP,
    "more digits than Python reads": b'{"a":' + b"1" * 5000 + b"}",
}


@pytest.mark.parametrize("part", ["header", "parent", "metadata", "content"])
def test_part_that_is_no_json_object_is_refused(session, part):
    for name, text in BAD_JSON.items():
        assert reason(session, raw(session, **{part: text})) == "json", name
    assert reason(session, raw(session)) is None  # the session goes on


def test_header_without_an_id_and_a_type_is_refused(session):
    for header in (
        b"{}",
        b"null",
        b'{"msg_id":"a"}',
        b'{"msg_type":"b"}',
        b'{"msg_id":null,"msg_type":"b"}',
        b'{"msg_id":"a","msg_type":null}',
        b'{"msg_id":1,"msg_type":"b"}',
        b'{"msg_id":"a","msg_type":2}',
        b'{"msg_id":["a"],"msg_type":"b"}',
        b'{"msg_id":"a","msg_type":{"b":1}}',
        b'{"MSG_ID":"a","MSG_TYPE":"b"}',
        b'[["msg_id","a"],["msg_type","b"]]',
    ):
        assert reason(session, raw(session, header=header)) == "json", header


def test_content_that_is_no_object_is_refused(session):
    for content in (b"null", b"[]", b'[{"a":1}]', b'"text"', b"0"):
        assert reason(session, raw(session, content=content)) == "json", content


def test_refusal_says_which_part_is_wrong(session):
    with pytest.raises(BadMessage, match="content is a list"):
        session.deserialize(raw(session, content=b"[]"))
    with pytest.raises(BadMessage, match="metadata is not JSON"):
        session.deserialize(raw(session, metadata=b"x"))
    with pytest.raises(BadMessage, match="lacks a msg_id"):
        session.deserialize(raw(session, header=b"{}"))
    with pytest.raises(BadMessage, match="<IDS|MSG>"):
        session.deserialize([b"x"])


def test_nesting_of_ordinary_depth_is_read_and_written(session):
    for levels in (10, 100, 300):
        content = {"a": nested(levels), "big": 2**70, "none": None}
        assert session.deserialize(session.serialize(session.msg("x", content))).content == content


def test_nesting_near_what_a_parser_takes_is_read_or_refused(session):
    for levels in range(900, 1100):
        content = b'{"a":' + b"[" * levels + b"%d" % levels + b"]" * levels + b"}"
        assert reason(session, raw(session, content=content)) in ("json", None)


@given(st.lists(frame_of_anything, max_size=9), st.sampled_from([b"", KEY]))
def test_no_frames_raise_anything_but_bad_message(frames, key):
    session = Session(key)
    if reason(session, frames) is None:
        assert not key  # no signature can be guessed


@given(*[frame_of_anything | contents.map(lambda content: json.dumps(content).encode())] * 4)
def test_no_signed_parts_raise_anything_but_bad_message(header, parent, metadata, content):
    session = Session(KEY)
    frames = raw(session, header, parent, metadata, content)
    assert reason(session, frames) in ("json", None)


@given(contents, st.data())
def test_no_damaged_message_raises_anything_but_bad_message(content, data):
    session = Session(KEY)
    frames = session.serialize(session.msg("x", content, {"msg_id": "p"}, {"m": 1}))
    which = data.draw(st.integers(2, 5))
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(frames[which]))] * 2)))
    frames[which] = frames[which][:start] + data.draw(st.binary(max_size=3)) + frames[which][end:]
    frames[1] = session.sign(frames[2:6])
    assert reason(session, frames) in ("json", None)


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(0, 5))
def test_replay_is_refused_exactly_while_it_is_remembered(numbers, bound):
    session = Session(KEY, replay_history=bound)
    remembered = []
    for number in numbers:
        is_replay = number in remembered
        assert reason(session, raw(session, content=b'{"n":%d}' % number)) == ("replay" if is_replay else None)
        if not is_replay:
            remembered = [*remembered, number][-bound:] if bound else []


# Secrets


def test_key_is_in_no_repr_and_no_error(session):
    message = session.msg("x", {"a": 1})
    shown = [repr(session), str(session), repr(message), f"{session!r:>200}"]
    bad = [
        raw(session, header=b"[]"),
        raw(session, content=b"x"),
        [DELIMITER],
        [DELIMITER, b"0", HEADER, EMPTY, EMPTY, EMPTY],
    ]
    for frames in bad:
        with pytest.raises(BadMessage) as caught:
            session.deserialize(frames)
        shown.append(repr(caught.value))
    with pytest.raises(InvalidArgument) as caught:
        session.serialize(session.msg("x", {"a": object()}))
    shown.append(repr(caught.value))
    assert not [text for text in shown if KEY.decode() in text]


def test_repr_tells_whether_messages_are_signed(session):
    assert "signed" in repr(session)
    assert "unsigned" in repr(Session())


def test_server_key_may_be_text_as_in_a_connection_file():
    key = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
    assert Session(server_key=key).server_key == Session(server_key=key.encode()).server_key == key.encode()
    assert Session(server_key="").server_key == b""


@pytest.mark.parametrize("key", ["text", b"short", 5, ["x"], "\ud800" * 40, "x" * 41])
def test_server_key_that_is_none_is_refused_before_anything_connects(key):
    with pytest.raises(InvalidArgument, match="server_key must be a key of CurveZMQ"):
        Session(server_key=key)


@pytest.mark.parametrize("key", [None, [], {}, 0, 5, True, memoryview(b"key")], ids=lambda key: type(key).__name__)
def test_key_that_is_no_key_is_refused(key: Any) -> None:
    """An empty value that passes for no key would turn the signatures off without a word."""
    with pytest.raises(InvalidArgument, match="key must be bytes or a string"):
        Session(key)


@pytest.mark.parametrize("bound", [None, "x", -1, 1.5, math.nan, True], ids=repr)
def test_replay_history_that_is_no_number_is_refused(bound: Any) -> None:
    with pytest.raises(InvalidArgument, match="replay_history must be a number of messages"):
        Session(KEY, replay_history=bound)
