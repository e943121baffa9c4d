"""Malformed messages, each on every channel, in front of the answer that a call awaits there or in its place.

They are counted and dropped, or delivered where they say enough; the call gets its own answer, the channel goes on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import gevent
import gevent.event
import pytest
from fixtures import WAIT

import kclient
from kclient.protocol.framing import DELIMITER
from kclient.protocol.messages import Message
from kclient.testing import FakeKernel, stream

Client = kclient.KernelClient
Frames = list[bytes]
Parts = list[Any]

DEEP = b'{"a":' + b"[" * 20_000 + b"]" * 20_000 + b"}"

ANSWERS = {"shell": "complete_reply", "control": "interrupt_reply", "stdin": "input_request", "iopub": "stream"}
"""The type of the message that a call of `ask` awaits on each channel."""

each_channel = pytest.mark.parametrize("channel", ANSWERS)


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    with FakeKernel() as fake:
        fake.on("complete_request", lambda request: request.reply({"matches": ["own"]}))
        fake.on("interrupt_request", lambda request: request.reply({"matches": ["own"]}))
        fake.script["ask"] = lambda request: request.publish(*stream(request.ask("own")))
        fake.script["print"] = [stream("own")]
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[Client]:
    with kclient.connect(fake.connection_info, timeout=WAIT) as client:
        client.iopub_channel.flush()
        yield client


def ask(client: Client, channel: str) -> str:
    """Make a call whose answer comes over that channel; the answer is "own"."""
    if channel == "shell":
        return client.complete("x", timeout=WAIT).content["matches"][0]
    if channel == "control":
        return client.control_channel.interrupt(timeout=WAIT).content["matches"][0]
    if channel == "stdin":
        return client.run("ask", on_input=lambda prompt, password: prompt, timeout=WAIT).stdout
    return client.run("print", timeout=WAIT).stdout


Send = Callable[[Frames], None]


@pytest.fixture
def on_answer(fake: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let `change(send, message)` send other messages to the client instead of the answer on that channel."""

    def on_answer(channel: str, change: Callable[[Callable[..., None], Message], object]) -> None:
        real = fake.send

        def send(name: str, message: Message, identities: list[bytes]) -> None:
            if (name, message.msg_type) != (channel, ANSWERS[channel]):
                real(name, message, identities)
                return
            client = fake.requests[-1].header["session"].encode()

            def send_frames(frames: Frames, to: str = channel) -> None:
                fake.send_frames(to, [b"topic" if to == "iopub" else identities_of(client, identities), *frames])

            change(send_frames, message)

        monkeypatch.setattr(fake, "send", send)

    return on_answer


def identities_of(client: bytes, identities: list[bytes]) -> bytes:
    return client if identities[0].startswith(b"kernel.") else identities[0]


def signed(fake: FakeKernel, *parts: bytes) -> Frames:
    """Frames with a right signature over any parts."""
    return [DELIMITER, fake.session.sign(parts), *parts]


def parts_of(message: Message) -> Parts:
    """Header, parent, metadata and content of a message, with "forged" in place of "own"."""
    whole = [message.header, message.parent_header, message.metadata, message.content]
    return json.loads(json.dumps(whole).replace('"own"', '"forged"'))


def in_place(number: int, text: bytes) -> Callable[[FakeKernel, Message], Frames]:
    """A signed message with `text` for its header (0), parent (1), metadata (2) or content (3)."""

    def build(fake: FakeKernel, message: Message) -> Frames:
        parts = [json.dumps(part).encode() for part in parts_of(message)]
        return signed(fake, *parts[:number], text, *parts[number + 1 :])

    return build


def with_header(**changes: Any) -> Callable[[FakeKernel, Message], Frames]:
    """A header with these values. A value of None removes the key."""

    def build(fake: FakeKernel, message: Message) -> Frames:
        header, *rest = parts_of(message)
        header = {name: value for name, value in {**header, **changes}.items() if value is not None}
        return signed(fake, *(json.dumps(part).encode() for part in (header, *rest)))

    return build


def with_signature(change: Callable[[bytes], bytes]) -> Callable[[FakeKernel, Message], Frames]:
    def build(fake: FakeKernel, message: Message) -> Frames:
        delimiter, signature, *parts = with_header()(fake, message)
        return [delimiter, change(signature), *parts]

    return build


DROPPED: dict[str, tuple[str, Callable[[FakeKernel, Message], Frames]]] = {
    "no delimiter": ("layout", lambda fake, message: with_header()(fake, message)[1:]),
    "frames of anything": ("layout", lambda fake, message: [b"just", b"frames"]),
    "too few frames": ("layout", lambda fake, message: with_header()(fake, message)[:5]),
    "a delimiter and no more": ("layout", lambda fake, message: [DELIMITER]),
    "a wrong signature": ("signature", with_signature(lambda signature: b"0" * 64)),
    "an empty signature": ("signature", with_signature(lambda signature: b"")),
    "a signature that is not ASCII": ("signature", with_signature(lambda signature: b"\xff" * 64)),
    "a signature of other length": ("signature", with_signature(lambda signature: signature[:32])),
    "a signature with a tail": ("signature", with_signature(lambda signature: signature + b"0")),
    "JSON that is none": ("json", in_place(3, b"{nonsense")),
    "JSON nested 20,000 deep": ("json", in_place(3, DEEP)),
    "invalid UTF-8": ("json", in_place(3, b'{"text": "\xff"}')),
    "a header that is a list": ("json", in_place(0, b"[]")),
    "a header that is null": ("json", in_place(0, b"null")),
    "a header nested 20,000 deep": ("json", in_place(0, DEEP)),
    "a header without msg_id": ("json", with_header(msg_id=None)),
    "a header without msg_type": ("json", with_header(msg_type=None)),
    "a msg_id that is a number": ("json", with_header(msg_id=5)),
    "a msg_type that is a list": ("json", with_header(msg_type=["stream"])),
    "a parent that is a list": ("json", in_place(1, b"[]")),
    "a parent nested 20,000 deep": ("json", in_place(1, DEEP)),
    "metadata that is text": ("json", in_place(2, b'"x"')),
    "content that is null": ("json", in_place(3, b"null")),
    "content that is a number": ("json", in_place(3, b"NaN")),
}


@each_channel
@pytest.mark.parametrize("kind", DROPPED)
def test_malformed_message_is_counted_and_dropped(
    fake: FakeKernel,
    client: Client,
    on_answer: Callable[..., None],
    channel: str,
    kind: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    reason, build = DROPPED[kind]

    def send_both(send: Send, message: Message) -> None:
        send(build(fake, message))
        send(fake.session.serialize(message))

    on_answer(channel, send_both)
    with caplog.at_level(logging.WARNING):
        assert ask(client, channel) == "own"
        gevent.idle()
    assert dropped(client) == {channel: {reason: 1}}
    assert f"dropped a message on {channel}" in caplog.text
    assert fake.session.key.decode() not in caplog.text
    assert ask(client, channel) == "own", "the channel goes on"
    assert dropped(client) == {channel: {reason: 2}}
    assert unclaimed(client) == {}


@each_channel
def test_message_that_was_received_before_is_counted_and_dropped(
    fake: FakeKernel, client: Client, on_answer: Callable[..., None], channel: str
) -> None:
    def send_twice(send: Send, message: Message) -> None:
        frames = fake.session.serialize(message)
        send(frames)
        send(frames)

    on_answer(channel, send_twice)
    assert [ask(client, channel) for _ in range(2)] == ["own", "own"]
    while dropped(client).get(channel, {}).get("replay") != 2:
        client.control_channel.kernel_info(timeout=WAIT)  # takes in the messages that have come meanwhile
    assert dropped(client) == {channel: {"replay": 2}}
    assert unclaimed(client) == {}


ODD: dict[str, Callable[[Parts], object]] = {
    "version 5": lambda parts: parts[0].update(version=5),
    'version "five"': lambda parts: parts[0].update(version="five"),
    "version that is null": lambda parts: parts[0].update(version=None),
    "no version": lambda parts: parts[0].pop("version"),
    "no date": lambda parts: parts[0].pop("date"),
    "a date that is none": lambda parts: parts[0].update(date=[1]),
    "a header of two keys": lambda parts: [parts[0].pop(name) for name in ("version", "date", "username", "session")],
    "a parent of one key": lambda parts: parts.__setitem__(1, {"msg_id": parts[1]["msg_id"]}),
    "metadata that is null": lambda parts: parts.__setitem__(2, None),
    "NaN and Infinity": lambda parts: parts[3].update(odd=[float("nan"), float("inf"), -float("inf")]),
    "lone surrogates": lambda parts: parts[3].update(odd="\udc00 x \ud800"),
    "a number beyond 64 bits": lambda parts: parts[3].update(odd=2**80),
    "a key of a newer protocol": lambda parts: parts[0].update(odd={"a": [1]}),
}


@each_channel
@pytest.mark.parametrize("kind", ODD)
def test_odd_message_that_says_enough_is_delivered(
    fake: FakeKernel, client: Client, on_answer: Callable[..., None], channel: str, kind: str
) -> None:
    def send_odd(send: Send, message: Message) -> None:
        parts = [message.header, message.parent_header, message.metadata, message.content]
        ODD[kind](parts)
        send(signed(fake, *(json.dumps(part).encode() for part in parts)))

    seen: list[Message] = []
    getattr(client, f"{channel}_channel").call_handlers = seen.append
    on_answer(channel, send_odd)
    assert ask(client, channel) == "own"
    assert (dropped(client), unclaimed(client)) == ({}, {})
    gevent.idle()
    odd = [message.content["odd"] for message in seen if "odd" in message.content]
    expected: dict[str, Any] = {}
    ODD[kind]([dict.fromkeys(["version", "date", "username", "session"]), {"msg_id": ""}, {}, expected])
    assert repr(odd) == repr(list(expected.values())), "content is what was sent"


# The receiver of a message


@each_channel
@pytest.mark.parametrize("parent", [None, {}, {"msg_id": None}, {"msg_id": ["x"]}, {"msg_id": {}}, {"msg_id": "x"}])
def test_message_of_no_known_parent_is_nobodys(
    fake: FakeKernel, client: Client, on_answer: Callable[..., None], channel: str, parent: Any
) -> None:
    def send_both(send: Send, message: Message) -> None:
        header, _, metadata, content = parts_of(message)
        send(
            signed(
                fake, *(json.dumps(part).encode() for part in ({**header, "msg_id": "1"}, parent, metadata, content))
            )
        )
        send(fake.session.serialize(message))

    on_answer(channel, send_both)
    assert ask(client, channel) == "own"
    assert unclaimed(client) == {channel: [ANSWERS[channel]]}
    assert dropped(client) == {}


@each_channel
@pytest.mark.parametrize("msg_type", ["inspect_reply", "kernel_info_request", "x", ""])
def test_message_of_another_type_is_not_taken_for_the_answer(
    fake: FakeKernel, client: Client, on_answer: Callable[..., None], channel: str, msg_type: str
) -> None:
    def send_both(send: Send, message: Message) -> None:
        send(with_header(msg_type=msg_type, msg_id="1")(fake, message))
        send(fake.session.serialize(message))

    on_answer(channel, send_both)
    assert ask(client, channel) == "own"
    assert (unclaimed(client), dropped(client)) == ({channel: [msg_type]}, {})


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_second_reply_is_nobodys(
    fake: FakeKernel, client: Client, on_answer: Callable[..., None], channel: str
) -> None:
    def send_both(send: Send, message: Message) -> None:
        send(fake.session.serialize(message))
        send(with_header(msg_id="1")(fake, message))

    on_answer(channel, send_both)
    assert ask(client, channel) == "own"
    second = getattr(client, f"{channel}_channel").get_msg(timeout=WAIT)
    assert second.content["matches"] == ["forged"]
    assert ask(client, channel) == "own"


@pytest.mark.parametrize(("channel", "wrong"), list(permutations(ANSWERS, 2)))
def test_answer_on_a_wrong_channel_is_not_taken_for_it(
    fake: FakeKernel, client: Client, on_answer: Callable[..., None], channel: str, wrong: str
) -> None:
    arrived = gevent.event.Event()

    def send_both(send: Callable[..., None], message: Message) -> None:
        send(with_header(msg_id="1")(fake, message), to=wrong)
        arrived.wait(WAIT)
        send(fake.session.serialize(message))

    getattr(client, f"{wrong}_channel").call_handlers = lambda msg: msg.msg_id == "1" and arrived.set()
    on_answer(channel, send_both)
    assert ask(client, channel) == "own"
    assert (unclaimed(client), dropped(client)) == ({wrong: [ANSWERS[channel]]}, {})


def dropped(client: Client) -> dict[str, dict[str, int]]:
    return {
        channel.name: dict(channel.dropped)
        for channel in client.kernel_connection.channels.running()
        if channel.dropped
    }


def unclaimed(client: Client) -> dict[str, list[str]]:
    """The types of the messages in the inboxes, without the statuses of requests that are no executions."""
    found = {name: getattr(client, f"{name}_channel").get_msgs() for name in ANSWERS}
    types = {name: [msg.msg_type for msg in messages if msg.msg_type != "status"] for name, messages in found.items()}
    return {name: names for name, names in types.items() if names}
