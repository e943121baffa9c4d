"""jupyter_client reads what kclient writes, and kclient reads what jupyter_client writes."""

import copy
import json
from datetime import datetime, timedelta, timezone

import jupyter_client.session
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.adapter import adapt

from kclient.errors import BadMessage
from kclient.protocol import messages
from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.framing import DELIMITER
from kclient.protocol.messages import Message
from kclient.protocol.session import REPLAY_HISTORY_SIGNATURES, Session
from kclient.protocol.version4 import Version4

KEY = b"the-shared-key"
SCHEMES = ["hmac-sha256", "hmac-sha512", "hmac-md5", "hmac-sha3_256", "hmac-blake2b"]
PACKERS = ["json", "orjson"]


class Oracle:
    """A jupyter_client Session that takes and returns frames."""

    def __init__(self, key=KEY, *, scheme="hmac-sha256", packer="json", **traits):
        self.session = jupyter_client.session.Session(key=key, signature_scheme=scheme, packer=packer, **traits)
        self.sent = []

    def send_multipart(self, frames, copy):
        self.sent = [bytes(frame) for frame in frames]

    def write(self, *args, **kwargs):
        self.session.send(self, *args, **kwargs)
        return self.sent

    def read(self, frames):
        identities, rest = self.session.feed_identities(frames)
        return identities, self.session.deserialize(rest)


def pairs():
    """Sessions of both kinds with every key, scheme and packer."""
    for scheme in SCHEMES:
        for packer in PACKERS:
            yield Session(KEY, signature_scheme=scheme), Oracle(scheme=scheme, packer=packer)
    yield Session(), Oracle(b"")


def same(one, other):
    """True if both are equal, of the same types and in the same order."""
    return repr(one) == repr(other)


# Values that both can hold. jupyter_client turns a text that looks like a date into a datetime in headers.
text = st.text(max_size=20)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | finite | text
exact_scalars = scalars | st.integers()
any_scalars = exact_scalars | st.floats()


def contents(scalars):
    values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))
    return st.dictionaries(text, values, max_size=4)


metadatas = st.dictionaries(text, scalars, max_size=3)
buffers = st.lists(st.binary(max_size=20), max_size=3)


def test_jupyter_client_reads_what_we_write_with_every_scheme():
    for ours, oracle in pairs():
        parent = ours.msg("execute_request", {"code": "1"})
        message = ours.msg("stream", {"name": "stdout", "text": "é\n"}, parent, {"a": [None]})
        message.buffers = [b"one", b""]
        identities, received = oracle.read([b"topic", *ours.serialize(message)])
        assert identities == [b"topic"]
        assert (received["msg_id"], received["msg_type"]) == (message.msg_id, "stream")
        assert received["content"] == message.content
        assert received["metadata"] == message.metadata
        assert [bytes(buffer) for buffer in received["buffers"]] == [b"one", b""]
        for header, written in ((received["header"], message.header), (received["parent_header"], parent.header)):
            assert header | {"date": written["date"]} == written


def test_we_read_what_jupyter_client_writes_with_every_scheme():
    for ours, oracle in pairs():
        parent = oracle.session.msg("execute_request", {"code": "1"})
        frames = oracle.write(
            "stream",
            {"name": "stdout", "text": "é\n"},
            parent=parent,
            ident=[b"router", b"topic"],
            buffers=[b"one", memoryview(b"two")],
            metadata={"a": [None]},
        )
        received = ours.deserialize(frames)
        assert received.msg_type == "stream"
        assert received.parent_id == parent["msg_id"]
        assert received.content == {"name": "stdout", "text": "é\n"}
        assert received.metadata == {"a": [None]}
        assert received.buffers == [b"one", b"two"]
        assert received.header["session"] == oracle.session.session


def test_signatures_are_the_same_bytes():
    for ours, oracle in pairs():
        parts = [b"{}", b'{"a":1}', b"", b"\xff"]
        assert ours.sign(parts) == oracle.session.sign(parts)


@given(contents(any_scalars), metadatas, buffers)
def test_jupyter_client_reads_any_content_that_we_write(content, metadata, buffers):
    ours, oracle = Session(KEY), Oracle()
    message = ours.msg("x", content, ours.msg("execute_request"), metadata)
    message.buffers = buffers
    _, received = oracle.read(ours.serialize(message))
    assert same(received["content"], content)
    assert same(received["metadata"], metadata)
    assert [bytes(buffer) for buffer in received["buffers"]] == buffers


@given(contents(exact_scalars), metadatas, buffers, st.sampled_from(PACKERS))
def test_we_read_any_content_that_jupyter_client_writes(content, metadata, buffers, packer):
    ours, oracle = Session(KEY), Oracle(packer=packer)
    received = ours.deserialize(oracle.write("x", content, metadata=metadata, buffers=buffers))
    assert same(received.content, content)
    assert same(received.metadata, metadata)
    assert received.buffers == buffers


@given(contents(exact_scalars))
def test_message_passed_on_by_us_is_the_same_message_to_jupyter_client(content):
    """A relay: jupyter_client to kclient to jupyter_client."""
    near, ours, far = Oracle(), Session(KEY), Oracle()
    parent = near.session.msg("execute_request")
    received = ours.deserialize(near.write("x", content, parent=parent))
    _, again = far.read(ours.serialize(received))
    assert same(again["content"], content)
    assert again["parent_header"] == parent["header"]
    assert again["header"]["session"] == near.session.session


def test_lone_surrogates_arrive_both_ways():
    ours, oracle = Session(KEY), Oracle()
    _, received = oracle.read(ours.serialize(ours.msg("x", {"a": "\ud800"})))
    assert received["content"] == {"a": "\ud800"}
    oracle.session.pack = lambda value: json.dumps(value, default=str).encode()
    assert ours.deserialize(oracle.write("x", {"a": "\ud800"})).content == {"a": "\ud800"}


def test_header_has_the_types_that_jupyter_client_expects():
    ours, oracle = Session(KEY), Oracle()
    before = datetime.now(timezone.utc)
    _, received = oracle.read(ours.serialize(ours.msg("x", parent=ours.msg("y"))))
    reference = oracle.session.msg("x")["header"]
    for header in (received["header"], received["parent_header"]):
        assert {name: type(value) for name, value in header.items()} == {
            name: type(value) for name, value in reference.items()
        }
        assert header["date"].utcoffset() == timedelta(0)
        assert before <= header["date"] <= datetime.now(timezone.utc)
        assert header["version"].partition(".")[0] == reference["version"].partition(".")[0]


def test_jupyter_client_date_stays_text_that_can_be_parsed():
    for packer in PACKERS:
        date = Session(KEY).deserialize(Oracle(packer=packer).write("x", {})).header["date"]
        assert datetime.fromisoformat(date.replace("Z", "+00:00")).utcoffset() == timedelta(0)


def test_reply_to_our_request_bears_our_id():
    ours, oracle = Session(KEY), Oracle()
    request = ours.msg("kernel_info_request")
    _, received = oracle.read(ours.serialize(request))
    reply = ours.deserialize(oracle.write("kernel_info_reply", {"status": "ok"}, parent=received))
    assert reply.parent_id == request.msg_id
    assert reply.parent_header["session"] == ours.session


def test_our_reply_to_their_request_bears_their_id():
    ours, oracle = Session(KEY), Oracle()
    request = oracle.session.msg("kernel_info_request")
    received = ours.deserialize(oracle.write(request))
    _, reply = oracle.read(ours.serialize(ours.msg("kernel_info_reply", {}, received)))
    assert reply["parent_header"]["msg_id"] == request["msg_id"]
    assert reply["parent_header"]["date"] == request["header"]["date"]


def test_message_dict_of_jupyter_client_serves_as_a_parent():
    ours, oracle = Session(KEY), Oracle()
    request = oracle.session.msg("execute_request")
    assert ours.msg("stream", {}, request).parent_id == request["msg_id"]
    assert ours.msg("stream", {}, request["header"]).parent_id == request["msg_id"]


def refused_by_us(session, frames):
    try:
        session.deserialize(frames)
    except BadMessage:
        return True
    return False


def refused_by_oracle(oracle, frames):
    try:
        oracle.read(frames)
    except (ValueError, TypeError, IndexError, KeyError):
        return True
    return False


def test_both_refuse_a_replay_and_a_forgery():
    ours, oracle = Session(KEY), Oracle()
    genuine = ours.serialize(ours.msg("x", {"a": 1}))
    forged = [DELIMITER, b"0" * 64, *genuine[2:]]
    unsigned = Session().serialize(ours.msg("x"))
    other_key = Session(b"other").serialize(ours.msg("x"))
    cut = ours.serialize(ours.msg("x"))[:4]
    changed = [*genuine[:5], b'{"a":2}']
    for frames in (forged, unsigned, other_key, cut, genuine[1:]):
        assert refused_by_us(ours, frames)
        assert refused_by_oracle(oracle, frames)
    for frames, is_refused in ((genuine, False), (genuine, True), (changed, True), (genuine, True)):
        assert refused_by_us(ours, frames) is is_refused
        assert refused_by_oracle(oracle, frames) is is_refused


def test_neither_refuses_a_replay_without_a_key():
    ours, oracle = Session(), Oracle(b"")
    frames = ours.serialize(ours.msg("x"))
    for _ in range(2):
        assert not refused_by_us(ours, frames)
        assert not refused_by_oracle(oracle, frames)


def test_both_remember_the_same_number_of_messages():
    assert Oracle().session.digest_history_size == REPLAY_HISTORY_SIGNATURES


def test_message_read_from_jupyter_client_works_as_its_dict_does():
    ours, oracle = Session(KEY), Oracle()
    theirs = oracle.session.msg("execute_reply", {"status": "ok"}, metadata={"a": 1})
    received = ours.deserialize(oracle.write(theirs))
    assert isinstance(received, Message)
    for name in ("msg_id", "msg_type", "parent_header", "metadata", "content"):
        assert received[name] == theirs[name]
        assert received.get(name) == theirs[name]
        assert name in received
    assert set(dict(received)) == {*theirs, "buffers"} - {"tracker"}


REQUESTS = {
    "execute_request": messages.execute("6 * 7", user_expressions={"x": "1"}),
    "complete_request": messages.complete("x = 1\nx.re", 10),
    "inspect_request": messages.inspect("len(x", 3, 1),
    "kernel_info_request": {},
}

FROM_PROTOCOL_4 = {
    "pyin": {"code": "1", "execution_count": 1},
    "pyout": {"data": {"text/plain": "1"}, "metadata": {}, "execution_count": 1},
    "pyerr": {"ename": "E", "evalue": "", "traceback": []},
    "stream": {"name": "stdout", "data": "hi"},
    "display_data": {"source": "x", "data": {"application/json": "[1]"}, "metadata": {}},
    "input_request": {"prompt": "?"},
    "execute_reply": {
        "status": "ok",
        "user_variables": {},
        "user_expressions": {},
        "payload": [{"source": "page", "text": "?"}],
    },
}


def test_request_to_a_kernel_of_protocol_4_is_that_of_jupyter_client():
    ours, adapter = Session(), Version4()
    for msg_type, content in REQUESTS.items():
        request = ours.msg(msg_type, content)
        theirs = adapt(copy.deepcopy(dict(request)), 4)
        sent = adapter.outgoing(request)
        assert sent.msg_type == theirs["header"]["msg_type"]
        expected = theirs["content"]
        if "block" in expected:  # jupyter_client leaves them out
            expected["block"] = content["code"]
        assert sent.content == expected


def test_message_from_a_kernel_of_protocol_4_becomes_that_of_jupyter_client():
    ours, adapter = Session(), Version4()
    for msg_type, content in FROM_PROTOCOL_4.items():
        received = ours.msg(msg_type, copy.deepcopy(content))
        del received.header["version"]
        theirs = adapt(copy.deepcopy(dict(received)), 5)
        adapter.incoming(received)
        assert received.msg_type == theirs["header"]["msg_type"]
        assert received.content == theirs["content"]


def test_scheme_that_is_spelled_another_way_is_written_so_that_the_peer_understands_it():
    written = ConnectionInfo.from_dict(
        {"shell_port": 1, "iopub_port": 2, "signature_scheme": "hmac-sha3-256"}
    ).to_dict()
    oracle, ours = Oracle(scheme=written["signature_scheme"]), Session(KEY, signature_scheme="hmac-sha3-256")
    _, message = oracle.read(ours.serialize(ours.msg("kernel_info_request")))
    assert message["header"]["msg_type"] == "kernel_info_request"
