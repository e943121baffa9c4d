"""Debug requests and events. The kernel sends all that the test wants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from fixtures import WAIT, Background

import kclient
from kclient.testing import FakeKernel, Request, result

Client = kclient.KernelClient


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    with FakeKernel(supported_features=["debugger"]) as fake:
        fake.on("debug_request", respond)
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[Client]:
    with kclient.connect(fake.connection_info) as client:
        yield client


def respond(request: Request) -> None:
    """Answer as a debugger does: the answer says whether the command succeeded."""
    content = request.content
    request.reply(
        {
            "type": "response",
            "seq": 100,
            "request_seq": content["seq"],
            "command": content["command"],
            "success": content["command"] != "fail",
            "body": content["arguments"],
        }
    )


def debug_event(event: str, **body: Any) -> tuple[str, dict[str, Any]]:
    return "debug_event", {"type": "event", "seq": 1, "event": event, "body": body}


def test_request_goes_out_as_the_debug_adapter_protocol_wants_it(fake: FakeKernel, client: Client) -> None:
    reply = client.debug("variables", {"variablesReference": 5}, timeout=WAIT)
    assert reply.content["body"] == {"variablesReference": 5}
    sent = fake.requests[-1]
    assert sent.content == {
        "type": "request",
        "seq": 1,
        "command": "variables",
        "arguments": {"variablesReference": 5},
    }
    client.debug("threads", timeout=WAIT)
    assert fake.requests[-1].content["arguments"] == {}


def test_requests_of_a_connection_are_numbered_whoever_sends_them(client: Client) -> None:
    def numbers() -> list[int]:
        replies = [client.debug("a"), client.control_channel.debug("b"), client.debug("c")]
        return [reply.content["request_seq"] for reply in replies]

    assert numbers() == [1, 2, 3]
    with pytest.raises(kclient.InvalidArgument):
        client.debug("", {})
    with pytest.raises(kclient.InvalidArgument):
        client.debug("d", [])  # type: ignore[arg-type]
    assert numbers() == [4, 5, 6]
    client.stop_channels()
    client.start_channels()
    assert numbers() == [1, 2, 3]


def test_requests_to_another_kernel_are_numbered_anew(client: Client) -> None:
    client.debug("a")
    client.kernel_connection.reopen()  # as a restart of the kernel does
    assert client.next_debug_seq() == 1


def test_request_that_the_debugger_could_not_follow_returns_its_answer(client: Client) -> None:
    assert client.debug("fail", {"why": "x"}).content["success"] is False


def test_event_that_bears_the_id_of_an_execution_is_none_of_its_outputs(fake: FakeKernel, client: Client) -> None:
    """Kernels give events different parents."""
    fake.script["f()"] = [debug_event("stopped", threadId=1), result("1")]
    shown: list[kclient.Message] = []
    outcome = client.run("f()", on_output=shown.append)
    assert [output["output_type"] for output in outcome.outputs] == ["execute_result"]
    assert [message.msg_type for message in shown] == ["execute_result"]
    event = client.wait_for_debug_event(timeout=WAIT)
    assert outcome.reply is not None
    assert (event.content["body"], event.parent_id) == ({"threadId": 1}, outcome.reply.parent_id)


def test_each_wait_takes_the_oldest_event_of_its_name(fake: FakeKernel, client: Client) -> None:
    client.iopub_channel.flush()
    for event, number in (("output", 1), ("stopped", 2), ("output", 3), ("stopped", 4)):
        fake.publish(*debug_event(event, number=number))
    fake.publish("news_of_tomorrow", {})

    def take(event: str | None = None) -> int:
        return int(client.wait_for_debug_event(event, timeout=WAIT).content["body"]["number"])

    assert [take("stopped"), take(), take("stopped"), take()] == [2, 1, 4, 3]
    assert client.iopub_channel.get_msg(timeout=WAIT).msg_type == "news_of_tomorrow"


def test_event_is_waited_for_beside_other_messages(
    fake: FakeKernel, client: Client, background: Callable[..., Background]
) -> None:
    waiting = background(client.wait_for_debug_event, "stopped")
    fake.publish("stream", {"name": "stdout", "text": "x"})
    fake.publish(*debug_event("output"))
    assert client.wait_for_debug_event("output", timeout=WAIT).content["event"] == "output"
    assert waiting.is_waiting
    fake.publish(*debug_event("stopped"))
    assert waiting.get().content["event"] == "stopped"


def test_event_that_does_not_come_is_a_timeout_that_names_it(client: Client) -> None:
    for timeout in (0, 0.01):
        with pytest.raises(kclient.KernelTimeout, match="no debug_event stopped on the iopub channel within"):
            client.wait_for_debug_event("stopped", timeout=timeout)
    with pytest.raises(kclient.KernelTimeout, match="no debug_event on the iopub channel within"):
        client.iopub_channel.wait_for_debug_event(timeout=0)
    with pytest.raises(kclient.InvalidArgument, match="event must be a string"):
        client.wait_for_debug_event(5)  # type: ignore[arg-type]


def test_wait_for_an_event_ends_with_the_kernel_or_the_client(
    client: Client, background: Callable[..., Background]
) -> None:
    waiting = background(client.wait_for_debug_event)
    client.kernel_connection.reopen()  # as a restart of the kernel does
    assert isinstance(waiting.error(), kclient.KernelRestarted)
    waiting = background(client.wait_for_debug_event)
    client.close()
    assert isinstance(waiting.error(), kclient.ChannelClosed)


def test_call_handlers_sees_events(fake: FakeKernel) -> None:
    seen: list[str] = []

    class Listening(kclient.IOPubChannel):
        def call_handlers(self, msg: kclient.Message) -> None:
            if msg.msg_type == "debug_event":
                seen.append(msg.content["event"])

    client = kclient.KernelClient(fake.connection_info)
    client.iopub_channel_class = Listening
    with client:
        client.start_channels()
        client.wait_for_ready(WAIT)
        fake.publish(*debug_event("output"))
        client.wait_for_debug_event(timeout=WAIT)
        gevent.idle()
    assert seen == ["output"]
