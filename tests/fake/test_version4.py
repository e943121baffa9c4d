"""A kernel of protocol 4: only the channels see its messages; everything above them sees protocol 5."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fixtures import WAIT
from gevent.event import Event
from gevent.queue import Queue

import kclient
from kclient.testing import FakeKernel, Request, display, error, result, stream
from kclient.transport.zmq.context import context

FORMULA = {"text/plain": "{}", "application/json": {"a": 1}}


def ask(request: Request) -> None:
    request.publish(*stream(request.ask("name? ", password=True)))


SCRIPT: dict[str, Any] = {
    "6 * 7": [stream("hi\n"), display(FORMULA), result("42")],
    "1 / 0": [error("ZeroDivisionError", "division by zero", ["line 1"])],
    "ask": ask,
}


def complete(request: Request) -> None:
    cursor = request.content["cursor_pos"]
    request.reply({"matches": ["x.real"], "cursor_start": cursor - 3, "cursor_end": cursor, "metadata": {}})


def inspect(request: Request) -> None:
    if request.content["code"].endswith("len"):
        request.reply({"found": True, "data": {"text/plain": "the length"}, "metadata": {}})
    else:
        request.reply({"found": False, "data": {}, "metadata": {}})


def make(protocol_version: str) -> FakeKernel:
    fake = FakeKernel(SCRIPT, protocol_version=protocol_version)
    fake.on("complete_request", complete)
    fake.on("inspect_request", inspect)
    fake.on("history_request", lambda request: request.reply({"history": [[1, 1, "6 * 7"]]}))
    return fake


@pytest.fixture
def old() -> Iterator[FakeKernel]:
    with make("4.1") as fake:
        yield fake


@pytest.fixture
def client(old: FakeKernel) -> Iterator[kclient.KernelClient]:
    with kclient.connect(old.connection_info, watch=False, timeout=WAIT) as client:
        client.iopub_channel.flush()
        yield client


@pytest.fixture
def new_client() -> Iterator[kclient.KernelClient]:
    with make("5.5") as fake, kclient.connect(fake.connection_info, watch=False, timeout=WAIT) as client:
        client.iopub_channel.flush()
        yield client


@pytest.fixture
def clients(client: kclient.KernelClient, new_client: kclient.KernelClient) -> list[kclient.KernelClient]:
    return [client, new_client]


def types(fake: FakeKernel) -> list[str]:
    return [request.msg_type for request in fake.requests]


def test_client_knows_that_the_kernel_is_old(client: kclient.KernelClient) -> None:
    assert client.kernel.protocol_version_info == (4, 1)
    assert client.kernel.language == "none"
    content = client.kernel_info(timeout=WAIT).content
    assert (content["status"], content["protocol_version"]) == ("ok", "4.1")
    assert content["language_info"] == {"name": "none", "version": "0"}


@pytest.mark.parametrize("code", ["6 * 7", "1 / 0", "silence"])
def test_run_brings_what_it_brings_from_a_new_kernel(clients: list[kclient.KernelClient], code: str) -> None:
    results = [client.run(code, timeout=WAIT) for client in clients]
    assert results[0].outputs == results[1].outputs
    for name in ("stdout", "text", "data", "error", "execution_count", "status", "ok", "complete"):
        assert getattr(results[0], name) == getattr(results[1], name)


def test_run_is_sent_as_protocol_4_has_it(old: FakeKernel, client: kclient.KernelClient) -> None:
    client.run("6 * 7", user_expressions={"x": "1"}, timeout=WAIT)
    content = old.requests[-1].content
    assert (content["code"], content["user_variables"], content["user_expressions"]) == ("6 * 7", [], {"x": "1"})


@pytest.mark.parametrize(
    "request_of",
    [
        lambda client: client.complete("y = 1\nx.r", 9, timeout=WAIT),
        lambda client: client.history(hist_access_type="tail", n=1, timeout=WAIT),
        lambda client: client.inspect("nothing", timeout=WAIT),
        lambda client: client.execute("1 / 0", timeout=WAIT),
    ],
    ids=["complete", "history", "inspect", "execute"],
)
def test_reply_is_that_of_a_new_kernel(clients: list[kclient.KernelClient], request_of: Any) -> None:
    old, new = (request_of(client) for client in clients)
    assert old.msg_type == new.msg_type
    expected = {**new.content}
    if "cursor_start" in expected:  # the count of the line is in a message of protocol 4
        expected |= {"cursor_start": 6, "cursor_end": 9}
    assert {name: old.content[name] for name in expected} == expected


def test_inspection_asks_for_the_object(old: FakeKernel, client: kclient.KernelClient) -> None:
    content = client.inspect("len(x)", 2, timeout=WAIT).content
    assert content["data"] == {"text/plain": "Docstring: the length"}
    assert (types(old)[-1], old.requests[-1].content) == ("object_info_request", {"oname": "len", "detail_level": 0})
    assert client.object_info("len", timeout=WAIT).content["found"]


def test_question_in_the_code_is_answered(clients: list[kclient.KernelClient]) -> None:
    for client in clients:
        asked = []

        def answer(prompt: str, password: bool, asked: list[Any] = asked) -> str:
            asked.append((prompt, password))
            return "Ada"

        assert client.run("ask", on_input=answer, timeout=WAIT).stdout == "Ada"
        assert asked == [("name? ", client.kernel.protocol_version == "5.5")]  # protocol 4 knows no passwords


@pytest.mark.parametrize("name", ["is_complete", "comm_info", "interrupt", "debug", "create_subshell"])
def test_request_that_protocol_4_does_not_know_is_refused_at_once(
    old: FakeKernel, client: kclient.KernelClient, name: str
) -> None:
    sent = len(old.requests)
    arguments = {"is_complete": ["1"], "debug": ["initialize"]}.get(name, [])
    with pytest.raises(kclient.UnsupportedFeature):
        getattr(client, name)(*arguments)
    client.kernel_info(timeout=WAIT)
    assert len(old.requests) == sent + 1


def test_get_msg_and_call_handlers_see_the_messages_of_protocol_5(old: FakeKernel) -> None:
    seen: Queue[kclient.Message] = Queue()

    class IOPubChannel(kclient.KernelClient.iopub_channel_class):  # type: ignore[misc]
        def call_handlers(self, msg: kclient.Message) -> None:
            if msg.parent_header.get("msg_type") == "execute_request" and msg.parent_id == msg_id:
                seen.put(msg)

    class Client(kclient.KernelClient):
        iopub_channel_class = IOPubChannel

    with Client(old.connection_info) as client:
        client.start_channels()
        msg_id = ""
        client.wait_for_ready(WAIT)
        client.iopub_channel.flush()
        msg_id = client.shell_channel.send("execute_request", {"code": "6 * 7", "silent": False})
        assert client.shell_channel.get_msg(timeout=WAIT).parent_id == msg_id
        msg_types = [message.msg_type for message in client.iopub_channel.flush(WAIT)]
        expected = ["status", "execute_input", "stream", "display_data", "execute_result", "status"]
        assert msg_types == expected
        assert [seen.get(timeout=WAIT).msg_type for _ in expected] == expected


def test_flush_awaits_no_status_of_a_request_that_gets_none(client: kclient.KernelClient) -> None:
    """Protocol 4 publishes statuses of executions only."""
    client.complete("x", timeout=WAIT)
    assert not client.kernel_connection.channels.pending.owed_idle


def test_lost_idle_status_ends_a_run_of_an_old_kernel(old: FakeKernel, client: kclient.KernelClient) -> None:
    lost: list[kclient.Message] = []

    def lose_first_idle(channel: str, message: kclient.Message) -> bool:
        if lost or message.content.get("execution_state") != "idle":
            return False
        lost.append(message)
        return True

    old.lose = lose_first_idle
    outcome = client.run("6 * 7", timeout=WAIT)
    assert (outcome.text, outcome.complete) == ("42", False)


def test_client_that_connects_while_the_kernel_is_busy_can_run(old: FakeKernel, client: kclient.KernelClient) -> None:
    """The kernel publishes nothing about kernel_info, so `run` must go on without a first message over iopub."""
    with kclient.KernelClient(old.connection_info) as other:
        other.start_channels()
        assert other.run("6 * 7", timeout=WAIT).text == "42"


def test_channel_of_its_own_adapts_once_it_has_asked(old: FakeKernel, client: kclient.KernelClient) -> None:
    session = kclient.Session(old.connection_info.key)
    shell = kclient.ShellChannel(context(), session, client.shell_channel.address)
    shell.start()
    try:
        shell.kernel_info(timeout=WAIT)
        assert shell.inspect("len", timeout=WAIT).content["found"]
    finally:
        shell.stop()


@pytest.mark.parametrize("msg_type", ["object_info_request", "complete_request"])
def test_fake_kernel_answers_a_request_that_lacks_everything(client: kclient.KernelClient, msg_type: str) -> None:
    message = client.session.msg(msg_type)
    client.kernel_connection.channels.peer.version_4 = None  # as a client that has not asked the kernel yet
    reply = client.shell_channel.get_reply(client.shell_channel.send(message), timeout=WAIT)
    assert reply.parent_id == message.msg_id


def test_latest_reply_tells_the_version(old: FakeKernel, client: kclient.KernelClient) -> None:
    old.protocol_version = "5.3"
    client.kernel_info(timeout=WAIT)
    assert client.kernel.protocol_version == "5.3"
    assert client.is_complete("1", timeout=WAIT).content["status"] == "complete"


def test_run_that_is_abandoned_tries_to_interrupt_its_code(old: FakeKernel, client: kclient.KernelClient) -> None:
    """The client cannot know whether the interrupt helps; its failure is no error of the run."""
    old.script["wait"] = lambda request: Event().wait()
    with pytest.raises(kclient.KernelTimeout):
        client.run("wait", timeout=0.05)
    client.control_channel.kernel_info(timeout=WAIT)
    assert "interrupt_request" in types(old)


def test_old_request_may_be_sent_by_its_own_name(client: kclient.KernelClient) -> None:
    reply = client.request("object_info_request", {"oname": "len", "detail_level": 0}, timeout=WAIT)
    assert (reply.msg_type, reply.content["data"]) == ("inspect_reply", {"text/plain": "Docstring: the length"})


def test_comm_works_encrypted_and_nobody_waits_for_statuses_that_an_old_kernel_does_not_publish() -> None:
    def echo(request: Request) -> None:
        request.publish("comm_msg", request.content, buffers=[bytes(part) for part in request.message.buffers])

    with FakeKernel(SCRIPT, protocol_version="4.1", curve=True) as fake:
        fake.on("comm_open", lambda request: None)
        fake.on("comm_msg", echo)
        with kclient.connect(fake.connection_info, watch=False, timeout=WAIT) as client:
            comm = client.comms.open("echo")
            comm.send({"n": 1}, buffers=[bytes(100_000)])
            message = comm.receive(timeout=WAIT)
            assert (message.content["data"], bytes(message.buffers[0])) == ({"n": 1}, bytes(100_000))
            assert not client.iopub_channel.outputs.executions, "nothing is awaited"
