"""What a kernel can send and should not: each is counted and dropped, and the pending call gets its own reply."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import gevent
import pytest

import kclient
from kclient.protocol.session import DELIMITER
from kclient.testing import FakeKernel, Request, result, stream

Client = kclient.KernelClient


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    with FakeKernel({"6 * 7": [stream("hi\n"), result("42")]}) as fake:
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[Client]:
    with kclient.connect(fake.connection_info) as client:
        yield client


def signed(fake: FakeKernel, *parts: bytes) -> list[bytes]:
    """Frames with a right signature over whatever they hold."""
    return [DELIMITER, fake.session.sign(parts), *parts]


def bad_frames(fake: FakeKernel) -> dict[str, tuple[str, list[bytes]]]:
    good = fake.session.serialize(fake.session.msg("stream", {"name": "stdout", "text": "x"}))
    header = good[2]
    return {
        "no delimiter": ("layout", [b"just", b"frames"]),
        "too few frames": ("layout", good[:4]),
        "wrong signature": ("signature", [DELIMITER, b"0" * 64, *good[2:]]),
        "empty signature": ("signature", [DELIMITER, b"", *good[2:]]),
        "signature that is not ASCII": ("signature", [DELIMITER, b"\xff" * 64, *good[2:]]),
        "JSON that is none": ("json", signed(fake, header, b"{}", b"{}", b"{nonsense")),
        "header that is a list": ("json", signed(fake, b"[]", b"{}", b"{}", b"{}")),
        "header without a msg_type": ("json", signed(fake, b'{"msg_id": "1"}', b"{}", b"{}", b"{}")),
        "invalid UTF-8": ("json", signed(fake, header, b"{}", b"{}", b'{"text": "\xff"}')),
        "JSON nested 20,000 deep": ("json", signed(fake, header, b"{}", b"{}", b"[" * 20_000 + b"]" * 20_000)),
    }


@pytest.mark.parametrize("channel", ["shell", "control", "stdin", "iopub"])
@pytest.mark.parametrize(
    "kind",
    [
        "no delimiter",
        "too few frames",
        "wrong signature",
        "empty signature",
        "signature that is not ASCII",
        "JSON that is none",
        "header that is a list",
        "header without a msg_type",
        "invalid UTF-8",
        "JSON nested 20,000 deep",
    ],
)
def test_bad_frames_are_counted_and_dropped(
    fake: FakeKernel, client: Client, channel: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    reason, frames = bad_frames(fake)[kind]
    address = [client.session.identity] if channel != "iopub" else [b"topic"]

    def answer(request: Request) -> None:
        fake.send_frames(channel, [*address, *frames])
        request.publish("stream", {"name": "stdout", "text": "after"})

    fake.script["bad"] = answer
    with caplog.at_level(logging.WARNING):
        outcome = client.run("bad", timeout=20)
        assert outcome.stdout == "after"
        while not getattr(client, f"{channel}_channel").dropped:
            client.kernel_info(timeout=20)  # each takes in what has come meanwhile
        gevent.idle()
    assert dict(getattr(client, f"{channel}_channel").dropped) == {reason: 1}
    assert f"dropped a message on {channel}" in caplog.text
    assert fake.session.key.decode() not in caplog.text
    assert client.run("6 * 7", timeout=20).text == "42"


def test_a_replayed_message_is_dropped(fake: FakeKernel, client: Client) -> None:
    frames = [b"topic", *fake.session.serialize(fake.session.msg("stream", {"name": "stdout", "text": "once"}))]
    for _ in range(2):
        fake.send_frames("iopub", frames)
    client.run("6 * 7", timeout=20)
    assert [message.content["text"] for message in client.iopub_channel.get_msgs() if message.msg_type == "stream"] == [
        "once"
    ]
    assert client.iopub_channel.dropped == {"replay": 1}


def test_a_reply_to_nobody_goes_to_the_inbox(fake: FakeKernel, client: Client) -> None:
    stray = fake.session.msg("execute_reply", {"status": "ok"}, parent={"msg_id": "never sent"})
    fake.send("shell", stray, [client.session.identity])
    assert client.shell_channel.get_msg(timeout=20).parent_id == "never sent"
    assert client.run("6 * 7", timeout=20).text == "42"


def test_a_reply_of_another_type_is_not_taken_for_the_reply(fake: FakeKernel, client: Client) -> None:
    fake.on(
        "complete_request", lambda request: (request.reply(msg_type="inspect_reply"), request.reply({"matches": ["a"]}))
    )
    assert client.complete("a", timeout=20).content["matches"] == ["a"]
    assert client.shell_channel.get_msg(timeout=20).msg_type == "inspect_reply"


def test_a_second_reply_is_not_lost_and_not_taken_for_another(fake: FakeKernel, client: Client) -> None:
    fake.on(
        "complete_request",
        lambda request: (request.reply({"matches": ["first"]}), request.reply({"matches": ["second"]})),
    )
    assert client.complete("a", timeout=20).content["matches"] == ["first"]
    assert client.shell_channel.get_msg(timeout=20).content["matches"] == ["second"]


def test_an_unknown_message_type_passes_through(fake: FakeKernel, client: Client) -> None:
    fake.publish("news_of_tomorrow", {"x": [1, 2]})
    message = client.iopub_channel.get_msg(timeout=20)
    assert (message.msg_type, message.content) == ("news_of_tomorrow", {"x": [1, 2]})


def test_a_message_that_json_of_python_kernels_can_hold_is_delivered(fake: FakeKernel, client: Client) -> None:
    content = {"nan": float("nan"), "big": 2**80, "surrogate": "\ud800", "inf": float("inf")}
    fake.publish("odd", content)
    got = client.iopub_channel.get_msg(timeout=20).content
    assert repr(got) == repr(content)


def test_a_lost_idle_ends_the_run_as_incomplete_and_others_go_on(
    fake: FakeKernel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    lost: list[str | None] = []

    def lose_first_idle(channel: str, message: Any) -> bool:
        is_idle = message.content.get("execution_state") == "idle"
        if is_idle and message.parent_header["msg_type"] == "execute_request" and not lost:
            lost.append(message.parent_id)
            return True
        return False

    fake.lose = lose_first_idle
    first = client.submit("6 * 7")
    second = client.submit("6 * 7")
    with caplog.at_level(logging.WARNING):
        assert second.result(timeout=20).complete
        outcome = first.result(timeout=20)
    assert (outcome.text, outcome.complete, lost) == ("42", False, [first.msg_id])
    assert "idle" in caplog.text


@pytest.mark.parametrize("call", ["run", "execute"])
def test_a_request_without_a_reply_raises_no_reply(fake: FakeKernel, client: Client, call: str) -> None:
    fake.lose = lambda channel, message: message.msg_type == "execute_reply"
    with pytest.raises(kclient.NoReply) as caught:
        getattr(client, call)("6 * 7", timeout=20)
    assert caught.value.msg_id is not None
    if call == "run":
        assert caught.value.result is not None
        assert caught.value.result.text == "42"
    fake.lose = None
    assert client.run("6 * 7", timeout=20).complete


def test_a_kernel_that_never_says_idle_still_ends_its_runs(fake: FakeKernel, client: Client) -> None:
    fake.lose = lambda channel, message: message.msg_type == "status"
    assert client.run("6 * 7", timeout=30).complete is False


def test_an_output_that_comes_after_idle_goes_to_the_inbox(fake: FakeKernel, client: Client) -> None:
    outcome = client.run("6 * 7", timeout=20)
    client.iopub_channel.flush()
    assert outcome.reply is not None
    late = fake.session.msg("stream", {"name": "stdout", "text": "late"}, parent=outcome.reply.parent_header)
    fake.send("iopub", late, [b"topic"])
    assert client.iopub_channel.get_msg(timeout=20).content["text"] == "late"
    assert outcome.stdout == "hi\n"


def test_the_inbox_keeps_the_newest_and_says_once_that_it_drops(
    fake: FakeKernel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = client.iopub_channel.outputs.inbox
    client.iopub_channel.flush()
    inbox.max_messages = 10
    with caplog.at_level(logging.WARNING):
        for number in range(25):
            fake.publish("stream", {"name": "stdout", "text": str(number)})
        while inbox.dropped < 15:
            client.iopub_channel.changed.wait(kclient.hub.Deadline(20))
        gevent.idle()
    assert [message.content["text"] for message in client.iopub_channel.get_msgs()] == [str(n) for n in range(15, 25)]
    assert caplog.text.count("nobody reads iopub") == 1


def test_output_beyond_the_limit_is_dropped_whole_and_the_run_still_ends(fake: FakeKernel, client: Client) -> None:
    fake.script["much"] = [stream("x" * 1000)] * 5
    outcome = client.run("much", max_output_bytes=2500, timeout=20)
    assert (len(outcome.stdout), outcome.truncated, outcome.complete) == (2000, True, True)


def test_a_deadline_that_fires_late_still_finds_the_answer() -> None:
    """The hub stands still beyond the timeout, while the reply arrives."""
    with FakeKernel(thread=True) as apart, kclient.connect(apart.connection_info) as other:
        is_answered = threading.Event()

        def answer(request: Request) -> None:
            request.reply({"matches": ["x"]})
            is_answered.set()

        apart.on("complete_request", answer)
        waiting = gevent.spawn(other.complete, "x", timeout=0.03)
        gevent.idle()
        assert is_answered.wait(20)
        time.sleep(0.05)  # time itself: the deadline passes while the hub stands still
        assert waiting.get().content["matches"] == ["x"]
