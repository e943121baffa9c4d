"""FakeKernel: its claims, checked against a real kernel, and its use in other projects' tests."""

from __future__ import annotations

import array
import json
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest

import kclient
from kclient.protocol.registration import Registration
from kclient.testing import FakeKernel, Request, display, error, registering, result, stream

CODE = {
    "print('hi'); 6 * 7": [stream("hi\n"), result("42")],
    "1 / 0": [error("ZeroDivisionError", "division by zero")],
    "pass": [],
}

Ask = Callable[[kclient.KernelClient], kclient.Message]

REQUESTS: dict[str, Ask] = {
    "kernel_info": lambda client: client.kernel_info(),
    "complete": lambda client: client.complete("xy", 2),
    "inspect": lambda client: client.inspect("nothing_of_that_name"),
    "is_complete": lambda client: client.is_complete("1"),
    "history": lambda client: client.history(hist_access_type="tail", n=1),
    "comm_info": lambda client: client.comm_info(),
    "execute": lambda client: client.execute("pass"),
    "failing execute": lambda client: client.execute("1 / 0"),
}


def shape(messages: list[kclient.Message]) -> list[tuple[str, Any]]:
    """The part of the messages that a client can rely on: types and states in order."""
    return [(message.msg_type, message.content.get("execution_state")) for message in messages]


@pytest.fixture
def real(kernel: kclient.KernelManager) -> kclient.KernelClient:
    kernel.run("%config Completer.use_jedi = False")
    return kernel.client


@pytest.fixture
def fake_client(transport: str) -> Any:
    with FakeKernel(CODE, transport=transport) as fake, kclient.connect(fake.connection_info) as client:
        yield client


@pytest.mark.parametrize("name", REQUESTS)
def test_answers_as_a_real_kernel_does(
    name: str, real: kclient.KernelClient, fake_client: kclient.KernelClient
) -> None:
    seen = []
    for client in (real, fake_client):
        client.iopub_channel.flush()
        reply = REQUESTS[name](client)
        published = client.iopub_channel.flush()
        seen.append((reply.msg_type, reply.content["status"], shape(published)))
        own = [message for message in published if message.parent_id == reply.parent_id]
        assert own == published
    assert seen[0] == seen[1]


@pytest.mark.parametrize("code", CODE)
def test_runs_scripted_code_as_a_real_kernel_does(
    code: str, real: kclient.KernelClient, fake_client: kclient.KernelClient
) -> None:
    expected, scripted = real.run(code), fake_client.run(code)
    assert [output["output_type"] for output in scripted.outputs] == [
        output["output_type"] for output in expected.outputs
    ]
    assert (scripted.text, scripted.stdout, scripted.status, scripted.ok) == (
        expected.text,
        expected.stdout,
        expected.status,
        expected.ok,
    )
    if expected.error is not None and scripted.error is not None:
        assert (scripted.error.ename, scripted.error.evalue) == (expected.error.ename, expected.error.evalue)


def test_asks_for_input_as_a_real_kernel_does(real: kclient.KernelClient, fake_client: kclient.KernelClient) -> None:
    prompts = []

    def answer(prompt: str, password: bool) -> str:
        prompts.append((prompt, password))
        return "Ada"

    def ask(request: Request) -> None:
        request.publish(*stream(request.ask("name? ") + request.ask("secret? ", password=True)))

    with FakeKernel({"ask": ask}) as fake, kclient.connect(fake.connection_info) as client:
        scripted = client.run("ask", on_input=answer, timeout=20)
    code = "import getpass; print(input('name? ') + getpass.getpass('secret? '), end='')"
    expected = real.run(code, on_input=answer, timeout=20)
    assert scripted.stdout == expected.stdout == "AdaAda"
    assert prompts == [("name? ", False), ("secret? ", True)] * 2


def test_a_blocking_jupyter_client_can_talk_to_it() -> None:
    """It runs in a process of its own, since jupyter_client leaves the loop of asyncio open."""
    script = """
        import jupyter_client
        from kclient.testing import FakeKernel, result, stream

        with FakeKernel({"6 * 7": [stream("hi"), result("42")]}, thread=True) as fake:
            client = jupyter_client.BlockingKernelClient()
            client.load_connection_info(fake.connection_info.to_dict())
            client.start_channels()
            client.wait_for_ready(timeout=20)
            outputs = []
            reply = client.execute_interactive("6 * 7", timeout=20, output_hook=outputs.append)
            client.stop_channels()
            print(reply["content"]["status"], *[message["msg_type"] for message in outputs])
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)],
        capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip
    assert (done.stdout.split(), done.stderr) == (
        ["ok", "status", "execute_input", "stream", "execute_result", "status"],
        "",
    )


def test_a_client_finds_out_about_a_kernel_that_sends_no_welcome(transport: str) -> None:
    with FakeKernel(CODE, transport=transport, welcome=False) as fake, kclient.connect(fake.connection_info) as client:
        assert client.run("print('hi'); 6 * 7", timeout=20).stdout == "hi\n"


def test_buffers_of_any_size_and_kind_go_both_ways(transport: str) -> None:
    kinds = [bytearray(b"ab"), memoryview(b"xcdx")[1:3], array.array("B", b"ef"), b"g" * 1_000_000, b""]
    sent = [bytes(kind) for kind in kinds]
    with FakeKernel(transport=transport) as fake, kclient.connect(fake.connection_info) as client:
        fake.on("echo_request", lambda request: request.publish("echo", {}, buffers=request.message.buffers))
        client.iopub_channel.flush()
        client.shell_channel.get_reply(client.shell_channel.send("echo_request", buffers=kinds), timeout=20)
        assert fake.requests[-1].buffers == sent
        while client.iopub_channel.inbox.nbytes < 1_000_000:
            client.iopub_channel.changed.wait(kclient.concurrency.deadline.Deadline(20))
        (message,) = [message for message in client.iopub_channel.flush() if message.msg_type == "echo"]
        assert [bytes(buffer) for buffer in message.buffers] == sent
        assert message.nbytes == 2 + sum(map(len, sent))


def test_remembers_what_it_was_asked() -> None:
    with FakeKernel() as fake, kclient.connect(fake.connection_info) as client:
        client.complete("impor", 5)
        assert fake.requests[-1].msg_type == "complete_request"
        assert fake.requests[-1].content == {"code": "impor", "cursor_pos": 5}


def test_a_handler_can_answer_what_no_kernel_knows() -> None:
    with FakeKernel() as fake, kclient.connect(fake.connection_info) as client:
        fake.on("tea_request", lambda request: request.reply({"milk": request.content["milk"]}))
        message_id = client.shell_channel.send("tea_request", {"milk": True})
        reply = client.shell_channel.get_reply(message_id, timeout=20)
        assert (reply.msg_type, reply.content["milk"]) == ("tea_reply", True)


@pytest.mark.parametrize("status", ["complete", "incomplete", "invalid", "unknown"])
def test_answer_of_is_complete_is_not_taken_for_an_error(status: str) -> None:
    with FakeKernel() as fake, kclient.connect(fake.connection_info) as client:
        fake.on("is_complete_request", lambda request: request.reply({"status": status, "indent": "  "}))
        assert client.is_complete("x").content == {"status": status, "indent": "  "}


def test_runs_in_a_thread_of_its_own_as_well_as_in_this_hub(transport: str) -> None:
    with (
        FakeKernel(CODE, transport=transport, thread=True) as fake,
        kclient.connect(fake.connection_info) as client,
    ):
        assert client.run("print('hi'); 6 * 7", timeout=20).text == "42"
        fake.publish("stream", {"name": "stdout", "text": "from another thread"})
        assert client.iopub_channel.get_msg(timeout=20).content["text"] == "from another thread"


def test_displays_and_their_updates_are_scripted() -> None:
    update = ("update_display_data", {"data": {"text/plain": "2"}, "metadata": {}, "transient": {"display_id": "d"}})
    script = {"show": [display({"text/plain": "1"}, display_id="d"), update]}
    with FakeKernel(script) as fake, kclient.connect(fake.connection_info) as client:
        assert [output["data"] for output in client.run("show").outputs] == [{"text/plain": "2"}]


def test_listens_only_in_its_with_block() -> None:
    fake = FakeKernel()
    with pytest.raises(kclient.InvalidState, match="with"):
        _ = fake.connection_info
    with fake:
        connection = fake.connection_info
    client = kclient.KernelClient(connection)
    client.start_channels(hb=False)
    try:
        with pytest.raises(kclient.KernelTimeout):
            client.wait_for_ready(timeout=0.1)
    finally:
        client.close()


def test_a_shutdown_request_is_noted() -> None:
    with FakeKernel() as fake, kclient.connect(fake.connection_info) as client:
        assert client.shutdown(restart=True).content["restart"] is True
        assert fake.was_shut_down


def test_many_greenlets_get_their_own_replies_and_outputs() -> None:
    script = {str(number): [stream(f"{number}\n"), result(str(number * 2))] for number in range(50)}
    with FakeKernel(script) as fake, kclient.connect(fake.connection_info) as client:
        greenlets = [gevent.spawn(client.run, code, timeout=30) for code in script]
        gevent.joinall(greenlets)
        got = {
            code: (greenlet.value.stdout, greenlet.value.text) for code, greenlet in zip(script, greenlets, strict=True)
        }
    assert got == {code: (f"{code}\n", str(int(code) * 2)) for code in script}


def test_handler_that_raises_answers_with_its_error_and_the_kernel_goes_on() -> None:
    def fail(request: Request) -> None:
        raise ValueError("the script is wrong")

    with FakeKernel({"bad": fail}) as fake, kclient.connect(fake.connection_info) as client:
        error = client.run("bad", timeout=20).error
        assert error is not None
        assert (error.ename, error.evalue) == ("ValueError", "the script is wrong")
        assert client.run("good", timeout=20).ok


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"shell_port": 1})])
def test_file_that_is_no_registration_file_is_refused(folder: Path, text: str) -> None:
    (folder / "file.json").write_text(text)
    with pytest.raises(kclient.InvalidArgument, match="registration file"):
        FakeKernel(registration_file=folder / "file.json")
    with pytest.raises(kclient.InvalidArgument, match="No such file"):
        FakeKernel(registration_file=folder / "none.json")


def test_kernel_of_whose_registration_nobody_takes_note_gives_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registering, "RECEIPT_WAIT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        registration = Registration(kclient.ConnectionInfo(key=b"k"), "id", "127.0.0.1", deaf.getsockname()[1])
        (folder / "file.json").write_text(json.dumps(registration.to_dict()))
        with pytest.raises(kclient.KernelTimeout, match="no receipt of the registration"):
            FakeKernel(registration_file=folder / "file.json").open()


def test_client_that_is_moved_talks_to_the_other_kernel() -> None:
    """Its first output arrives, too: iopub is not subscribed there yet."""
    script = {"6 * 7": [stream("hi\n"), result("42")]}
    with (
        FakeKernel(script, key="k") as one,
        FakeKernel(script, key="k") as other,
        kclient.connect(one.connection_info, timeout=20) as client,
    ):
        client.run("6 * 7", timeout=20)
        client.move(other.connection_info)
        run = client.run("6 * 7", timeout=20)
        assert (run.stdout, run.text) == ("hi\n", "42")
        assert client.shell_channel.address == client.connection.address("shell")
        assert other.execution_count == 1
