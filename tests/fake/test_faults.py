"""Faults of a kernel, which loses, repeats or delays messages, and mistakes of a caller."""

from __future__ import annotations

import gc
import logging
import signal
import time
import weakref
from collections.abc import Iterator
from typing import Any

import gevent
import gevent.event
import pytest

import kclient
from kclient.client import watchdog
from kclient.protocol.kept_outputs import CUT_MARK
from kclient.testing import FakeKernel, Request, result, stream
from kclient.transport.zmq.stream import ZmqStream

Client = kclient.KernelClient


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    with FakeKernel({"6 * 7": [stream("hi\n"), result("42")]}) as fake:
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[Client]:
    with kclient.connect(fake.connection_info) as client:
        yield client


def test_a_reply_to_an_unknown_request_goes_to_the_inbox(fake: FakeKernel, client: Client) -> None:
    stray = fake.session.msg("execute_reply", {"status": "ok"}, parent={"msg_id": "never sent"})
    fake.send("shell", stray, [client.session.identity])
    assert client.shell_channel.get_msg(timeout=20).parent_id == "never sent"
    assert client.run("6 * 7", timeout=20).text == "42"


def test_an_unknown_message_type_passes_through(fake: FakeKernel, client: Client) -> None:
    fake.publish("news_of_tomorrow", {"x": [1, 2]})
    message = client.iopub_channel.get_msg(timeout=20)
    assert (message.msg_type, message.content) == ("news_of_tomorrow", {"x": [1, 2]})


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
            client.iopub_channel.changed.wait(kclient.concurrency.deadline.Deadline(20))
        gevent.idle()
    assert [message.content["text"] for message in client.iopub_channel.get_msgs()] == [str(n) for n in range(15, 25)]
    assert caplog.text.count("iopub is not read") == 1


def test_text_beyond_the_limit_is_cut_and_the_run_still_ends(fake: FakeKernel, client: Client) -> None:
    fake.script["much"] = [stream("x" * 1000)] * 5
    outcome = client.run("much", max_output_bytes=2500, timeout=20)
    assert (outcome.stdout, outcome.truncated, outcome.complete) == ("x" * 2500 + CUT_MARK, True, True)
    seen: list[str] = []
    client.run("much", max_output_bytes=2500, on_output=lambda message: seen.append(message.content["text"]))
    assert "".join(seen) == outcome.stdout[: len("".join(seen))]  # each message counts 2 KiB until it is read


@pytest.fixture
def nudged(client: Client, monkeypatch: pytest.MonkeyPatch) -> gevent.event.Event:
    """Set when the watchdog has nudged the kernel."""
    nudge, nudged = client.kernel_connection.readiness.nudge, gevent.event.Event()
    monkeypatch.setattr(client.kernel_connection.readiness, "nudge", lambda deadline: (nudge(deadline), nudged.set()))
    return nudged


# Lost messages, and other calls meanwhile


def lose_idle_of(code: str) -> Any:
    """A `lose` that drops the idle statuses of that code."""

    def lose(channel: str, message: kclient.Message) -> bool:
        return channel == "iopub" and message.content.get("execution_state") == "idle" and message.parent_id in lost

    def note(request: Request) -> None:
        lost.add(request.message.msg_id)

    lost: set[str] = set()
    lose.script = {code: note}  # type: ignore[attr-defined]
    return lose


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the watchdog ask for an overdue answer after 50 ms."""
    monkeypatch.setattr(watchdog, "OVERDUE_S", 0.05)


@pytest.fixture
def forgetful(fake: FakeKernel, impatient: None) -> FakeKernel:
    """A kernel that loses the idle status of the code "lossy"."""
    fake.lose = lose_idle_of("lossy")
    fake.script.update(fake.lose.script)  # type: ignore[attr-defined]
    return fake


def test_a_flush_meanwhile_does_not_keep_a_run_from_noticing_a_lost_idle(forgetful: FakeKernel, client: Client) -> None:
    replied = gevent.event.Event()
    client.shell_channel.call_handlers = lambda message: replied.set()  # type: ignore[method-assign]
    running = gevent.spawn(client.run, "lossy", timeout=20)
    assert replied.wait(20)
    assert client.iopub_channel.outputs.pending.owed_idle
    client.iopub_channel.flush(timeout=0.05)
    client.iopub_channel.flush(timeout=0)
    assert not running.get().complete


def test_a_control_channel_that_answers_nothing_does_not_keep_a_run_from_noticing_a_lost_idle(
    forgetful: FakeKernel, client: Client
) -> None:
    forgetful.lose = (lambda lose: lambda channel, message: channel == "control" or lose(channel, message))(
        forgetful.lose
    )
    unanswered = gevent.spawn(client.interrupt)
    gevent.sleep(0.1)  # time itself: longer than OVERDUE_S
    try:
        assert not client.run("lossy", timeout=20).complete
        assert not unanswered.ready()
    finally:
        unanswered.kill()


@pytest.mark.usefixtures("impatient")
def test_get_reply_long_after_the_idle_raises_no_reply(fake: FakeKernel, client: Client) -> None:
    fake.lose = lambda channel, message: message.msg_type == "complete_reply"
    msg_id = client.shell_channel.send("complete_request", {"code": "", "cursor_pos": 0})
    client.kernel_info()
    gevent.sleep(0.1)  # time itself: longer than OVERDUE_S
    client.kernel_info()
    with pytest.raises(kclient.NoReply):
        client.shell_channel.get_reply(msg_id, timeout=20)


@pytest.mark.usefixtures("impatient")  # before `client`
def test_kernel_that_is_silent_while_it_works_on_a_request_is_waited_for(
    fake: FakeKernel, client: Client, nudged: gevent.event.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Kotlin kernel is busy with a completion only when it has found it. It answers other requests meanwhile."""
    real, late = fake.take, []

    def take(port: Any, frames: list[bytes]) -> None:
        if port.name == "shell" and b"complete_request" in frames[frames.index(b"<IDS|MSG>") + 2]:
            late.append((port, frames))
        else:
            real(port, frames)

    monkeypatch.setattr(fake, "take", take)
    call = gevent.spawn(client.complete, "", timeout=20)
    assert nudged.wait(20)
    assert client.kernel_connection.watchdog._silent
    real(*late[0])
    assert call.get().content["status"] == "ok"


@pytest.mark.usefixtures("impatient")  # before `client`
def test_kernel_that_is_silent_about_a_request_is_nudged_only_once(
    fake: FakeKernel, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, nudge, nudges = fake.take, client.kernel_connection.readiness.nudge, []
    monkeypatch.setattr(
        fake,
        "take",
        lambda port, frames: None if any(b"complete_" in frame for frame in frames) else real(port, frames),
    )
    monkeypatch.setattr(
        client.kernel_connection.readiness, "nudge", lambda deadline: (nudges.append(deadline), nudge(deadline))
    )
    with pytest.raises(kclient.KernelTimeout):
        client.complete("", timeout=1)
    assert (len(nudges), len(client.kernel_connection.watchdog._silent)) == (1, 1)


@pytest.mark.usefixtures("impatient")  # before `client`
def test_channel_that_is_stopped_while_it_is_watched_is_collected(
    fake: FakeKernel, client: Client, nudged: gevent.event.Event
) -> None:
    real = fake.take
    fake.take = lambda port, frames: (  # type: ignore[method-assign]
        None if any(b"complete_request" in frame for frame in frames) else real(port, frames)
    )
    channel = weakref.ref(client.shell_channel)
    call = gevent.spawn(client.complete, "", timeout=20)
    assert nudged.wait(20)
    assert client.kernel_connection.watchdog._silent
    client.stop_channels()
    call.join()
    del call
    gevent.idle()
    gc.collect()
    assert channel() is None


@pytest.mark.usefixtures("impatient")  # before `client`
def test_kernel_that_never_answers_a_request_is_given_up_in_the_end(
    fake: FakeKernel, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "PATIENCE_S", 0.1)
    real = fake.take

    def take(port: Any, frames: list[bytes]) -> None:
        if port.name != "shell" or b"history_request" not in frames[frames.index(b"<IDS|MSG>") + 2]:
            real(port, frames)

    monkeypatch.setattr(fake, "take", take)
    with pytest.raises(kclient.NoReply):
        client.history(timeout=20)
    assert client.run("6 * 7", timeout=20).text == "42"


def test_kernel_that_asks_although_it_must_not_is_interrupted_and_reported(fake: FakeKernel, client: Client) -> None:
    """R asks in this way. The code would wait for ever."""
    fake.script["ask"] = lambda request: request.ask("name? ")
    with pytest.raises(kclient.RemoteProtocolError, match=r"'name\? '.*on_input"):
        client.run("ask")
    client.control_channel.kernel_info(timeout=20)
    assert "interrupt_request" in [request.msg_type for request in fake.requests]


def test_input_request_of_an_invalid_parent_goes_to_the_inbox(fake: FakeKernel, client: Client) -> None:
    def ask(request: Request) -> None:
        parent = {"msg_id": [1], "msg_type": "execute_request"}
        message = fake.session.msg("input_request", {"prompt": "? ", "password": False}, parent=parent)
        fake.send("stdin", message, request.identities)

    fake.script["ask"] = ask
    assert client.run("ask", on_input=lambda prompt, password: "", timeout=20).ok
    assert client.stdin_channel.get_msg(timeout=20).content["prompt"] == "? "


def overlook(fake: FakeKernel) -> list[list[bytes]]:
    """Hold the messages of the first connection to shell until something comes over another connection."""

    def take(port: Any, frames: list[bytes]) -> None:
        if port.name != "shell":
            FakeKernel.take(fake, port, frames)
            return
        held.append(frames)
        if frames[0] != held[0][0]:
            fake.take = real  # type: ignore[method-assign]
            for one in held:
                fake.take(port, one)

    held: list[list[bytes]] = []
    real = fake.take
    fake.take = take  # type: ignore[method-assign]
    return held


@pytest.mark.usefixtures("impatient")  # before `client`
def test_request_that_the_kernel_did_not_notice_is_followed_by_another(fake: FakeKernel, client: Client) -> None:
    """ipykernel 7.3 may sleep on in spite of messages over this connection, until something comes over another one."""
    held = overlook(fake)
    client.iopub_channel.flush()
    executions = [client.submit("6 * 7") for _ in range(3)]
    assert [execution.result(timeout=20).text for execution in executions] == ["42"] * 3
    assert len(held) == 4
    assert client.iopub_channel.flush() == [], "the nudge is not in the inbox"


@pytest.mark.usefixtures("impatient")
def test_first_request_that_the_kernel_did_not_notice_is_followed_by_another(fake: FakeKernel) -> None:
    """The kernel has sent its iopub_welcome, and has not yet said that it is idle."""
    fake.lose = lambda channel, message: message.msg_type == "status"
    with kclient.connect(fake.connection_info, timeout=20) as client:
        fake.lose = None
        assert client.iopub_channel.outputs.execution_state == "unknown"
        held = overlook(fake)
        assert client.run("6 * 7", timeout=20).text == "42"
        assert len(held) == 2


@pytest.mark.usefixtures("impatient")  # before `client`
def test_request_that_was_overlooked_while_other_code_ran_is_knocked_for_when_that_has_ended(
    fake: FakeKernel, client: Client
) -> None:
    goes_on = gevent.event.Event()
    fake.script["long"] = lambda request: goes_on.wait(20)
    with kclient.connect(fake.connection_info) as other:
        long = other.submit("long")
        while not client.iopub_channel.outputs.executing:
            client.iopub_channel.changed.wait(kclient.concurrency.deadline.Deadline(20))
        overlook(fake)
        overlooked = client.submit("6 * 7")
        gevent.sleep(0.2)  # time itself: longer than OVERDUE_S
        goes_on.set()
        assert overlooked.result(timeout=20).text == "42"
        assert long.result(timeout=20).ok


@pytest.mark.usefixtures("impatient")  # before `client`
def test_comm_message_that_the_kernel_did_not_notice_is_knocked_for(fake: FakeKernel, client: Client) -> None:
    """No call awaits a reply to it, but the kernel does not say that it is busy with it either."""
    held = overlook(fake)
    comm = client.comms.open("unknown")
    with pytest.raises(kclient.CommClosed):
        comm.receive(timeout=20)
    assert len(held) == 2


# Coming and going


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_channels_can_be_opened_again_at_once(transport: str) -> None:
    """A ROUTER without ROUTER_HANDOVER ignores a peer whose identity it still knows from the connection before."""
    with FakeKernel({"1": [result("1")]}, transport=transport) as fake, kclient.connect(fake.connection_info) as client:
        for _ in range(5):
            client.stop_channels()
            client.start_channels()
            client.wait_for_ready(20)
            assert client.run("1", timeout=20).text == "1"


def test_channel_that_was_stopped_alone_is_replaced_by_start_channels(client: Client) -> None:
    client.shell_channel.stop()
    with pytest.raises(kclient.ChannelClosed, match="start_channels"):
        client.kernel_info()
    client.start_channels()
    client.wait_for_ready(20)
    assert client.run("6 * 7", timeout=20).text == "42"


def test_client_of_a_kernel_that_came_back_can_be_used_again() -> None:
    with FakeKernel() as fake:
        client = kclient.connect(fake.connection_info)
        client.hb_channel.pause()
        client.kernel_connection.availability.fail(lambda msg_id: kclient.DeadKernelError("taken for dead"))
        with pytest.raises(kclient.DeadKernelError):
            client.kernel_info()
        client.stop_channels()
        client.start_channels()
        client.wait_for_ready(20)
        assert client.kernel_info(timeout=20).content["status"] == "ok"
        assert client.hb_channel.is_beating() is not False, "it is watched again"
        client.close()


def test_heartbeat_of_a_dead_kernel_rests(client: Client) -> None:
    assert client.hb_channel.is_beating() is not False
    client.kernel_connection.availability.fail(lambda msg_id: kclient.DeadKernelError("dead"))
    assert client.hb_channel.is_beating() is False
    assert not client.hb_channel._timer.is_set


def test_heartbeat_opens_a_new_socket_after_a_miss(fake: FakeKernel, client: Client) -> None:
    hb = client.hb_channel
    hb.pause()
    hb.time_to_dead = 0.05
    missed = gevent.event.Event()
    hb.call_handlers = lambda since: missed.set()  # type: ignore[method-assign]
    first, fake_hb = hb._line._stream, fake._ports["hb"]
    fake_hb.name = "mute"
    fake.take_before = fake.take  # type: ignore[attr-defined]
    fake.take = lambda port, frames: None if port is fake_hb else type(fake).take(fake, port, frames)  # type: ignore[method-assign]
    hb.unpause()
    assert missed.wait(20)
    assert hb._line._stream is not first
    assert first is not None
    assert first.is_closed


# Callbacks


def test_run_whose_callbacks_take_turns_with_a_flood_ends_at_its_timeout(fake: FakeKernel, client: Client) -> None:
    def flood(request: Request) -> None:
        while True:
            request.publish(*stream("x"))
            gevent.sleep(0.0005)

    fake.script["flood"] = flood
    with pytest.raises(kclient.KernelTimeout) as caught:
        client.run("flood", timeout=0.1, on_output=lambda message: gevent.sleep(0.001))
    assert caught.value.result.stdout.startswith("xx")


class Stop(BaseException):
    """A BaseException that is no Exception, as gevent.Timeout and GreenletExit are."""


def test_base_exception_of_on_output_comes_out_of_result(fake: FakeKernel, client: Client) -> None:
    def fail(message: kclient.Message) -> None:
        raise Stop

    with pytest.raises(Stop):
        client.submit("6 * 7", on_output=fail).result(timeout=20)


def test_base_exception_of_call_handlers_keeps_no_other_message_waiting(client: Client) -> None:
    seen = []
    handled_last = gevent.event.Event()

    def handle(message: kclient.Message) -> None:
        if message.parent_header.get("msg_type") == "execute_request":
            seen.append(message.msg_type)
        if message.content.get("execution_state") == "idle" and seen:
            handled_last.set()
        raise Stop

    client.iopub_channel.call_handlers = handle  # type: ignore[method-assign]
    client.run("6 * 7", timeout=20)
    assert handled_last.wait(20)
    assert seen == ["status", "execute_input", "stream", "execute_result", "status"]


def test_callback_that_waits_for_its_own_end_is_refused(client: Client) -> None:
    execution = client.submit("6 * 7", on_output=lambda message: execution.result())
    with pytest.raises(kclient.LocalProtocolError, match="callback"):
        execution.result(timeout=20)


def test_callbacks_of_submit_get_on_in_a_script_that_only_polls(client: Client) -> None:
    seen: list[str] = []
    execution = client.submit("6 * 7", on_output=lambda message: seen.append(message.msg_type))
    until = time.monotonic() + 20
    while time.monotonic() < until:
        try:
            execution.result(timeout=0)
            break
        except kclient.KernelTimeout:
            time.sleep(0.001)
    assert seen == ["stream", "execute_result"]


def test_abandoned_run_leaves_its_prompt_to_the_next_caller(fake: FakeKernel, client: Client) -> None:
    fake.script["ask"] = lambda request: request.publish(*stream(request.ask("name? ")))
    prompted = gevent.event.Event()

    def never(prompt: str, password: bool) -> str:
        prompted.set()
        gevent.sleep(20)
        return ""

    running = gevent.spawn(client.run, "ask", on_input=never, on_abandon="leave")
    assert prompted.wait(20)
    running.kill()
    client.input("Ada")
    client.iopub_channel.flush()


@pytest.mark.parametrize("of", ["run", "client"])
def test_answer_to_code_that_has_ended_meanwhile_is_not_sent(fake: FakeKernel, client: Client, of: str) -> None:
    """The kernel would give the answer to the code that asks next."""
    ended, answers = gevent.event.Event(), []

    def ask_and_end(request: Request) -> None:
        message = fake.session.msg("input_request", {"prompt": "? ", "password": True}, parent=request.message)
        fake.send("stdin", message, request.identities)
        asked.wait(20)

    def note(port: Any, frames: list[bytes]) -> None:
        if port.name == "stdin":
            answers.append(fake.session.deserialize(frames).content["value"])
        else:
            FakeKernel.take(fake, port, frames)

    def answer(prompt: str, password: bool) -> str:
        asked.set()
        ended.wait(20)
        return "secret"

    def look(message: kclient.Message) -> None:
        if message.content.get("execution_state") == "idle" and message.parent_header["msg_type"] == "execute_request":
            ended.set()

    asked = gevent.event.Event()
    fake.script["ask"] = ask_and_end
    fake.take = note  # type: ignore[method-assign]
    client.iopub_channel.call_handlers = look  # type: ignore[method-assign]
    if of == "run":
        assert client.run("ask", on_input=answer, timeout=20).ok
    else:
        client.on_input = answer
        client.execute("ask", timeout=20)
        assert ended.wait(20)
        while client.kernel_connection.input_requests._answerers:
            gevent.idle()
    client.run("6 * 7", timeout=20)
    assert answers == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"on_output": 5},
        {"on_input": 5},
        {"max_output_bytes": "1 MB"},
        {"max_output_bytes": -1},
        {"max_output_bytes": float("nan")},
        {"code": "x = '\ud83d'"},
    ],
    ids=str,
)
@pytest.mark.parametrize("method", ["run", "submit"])
def test_argument_that_is_wrong_is_refused_and_nothing_is_sent(
    fake: FakeKernel, client: Client, arguments: dict[str, Any], method: str
) -> None:
    client.kernel_info()
    before = len(fake.requests)
    with pytest.raises(kclient.LocalProtocolError):
        getattr(client, method)(**{"code": "6 * 7", **arguments})
    client.kernel_info()
    assert [request.msg_type for request in fake.requests[before:]] == ["kernel_info_request"]


@pytest.mark.parametrize("change", [{"header": None}, {"header": {}}, {"header": {"msg_id": [1]}}, {"buffers": 5}])
def test_message_that_was_changed_for_the_worse_is_refused(client: Client, change: dict[str, Any]) -> None:
    message = client.session.msg("kernel_info_request")
    for name, value in change.items():
        setattr(message, name, value)
    with pytest.raises(kclient.LocalProtocolError):
        client.shell_channel.send(message)


@pytest.mark.parametrize("msg_id", [[], None, 5])
def test_id_that_is_none_is_refused(client: Client, msg_id: Any) -> None:
    with pytest.raises(kclient.LocalProtocolError):
        client.shell_channel.get_reply(msg_id)


@pytest.mark.parametrize("ip", ["no such host!", "a\0b", "\ud800"])
def test_ip_that_is_none_is_refused(fake: FakeKernel, ip: str) -> None:
    with pytest.raises(kclient.KClientError):
        kclient.connect({**fake.connection_info.to_dict(), "ip": ip}, timeout=1)


def test_time_to_dead_that_is_no_time_is_refused(client: Client) -> None:
    client.hb_channel.pause()
    client.hb_channel.time_to_dead = "x"  # type: ignore[assignment]
    with pytest.raises(kclient.LocalProtocolError, match="time_to_dead"):
        client.hb_channel.unpause()


def test_ctrl_c_while_the_request_goes_out_interrupts_its_code(
    fake: FakeKernel, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = gevent.event.Event()
    interrupted = gevent.event.Event()
    fake.script["long"] = lambda request: finished.wait(20)
    fake.on("interrupt_request", lambda request: (interrupted.set(), finished.set()))
    real, struck = ZmqStream.send, []

    def strike_once(line: ZmqStream, frames: Any) -> None:
        real(line, frames)
        if not struck:
            struck.append(True)
            signal.raise_signal(signal.SIGINT)

    client.kernel_info()
    monkeypatch.setattr(ZmqStream, "send", strike_once)
    with pytest.raises(KeyboardInterrupt):
        client.run("long", timeout=20)
    assert interrupted.wait(20)
    assert client.run("6 * 7", timeout=20).text == "42"
    assert len(client.shell_channel.requests) == 0


def test_answer_to_code_that_was_given_up_meanwhile_is_not_sent(fake: FakeKernel, client: Client) -> None:
    """The kernel was started again, say, and stdin is not connected yet."""
    fake.lose = lambda channel, message: message.content.get("execution_state") == "busy"
    fake.script["ask"] = lambda request: request.publish(*stream(request.ask("name? ")))

    def answer(prompt: str, password: bool) -> str:
        client.kernel_connection.reopen()
        return "Ada"

    with pytest.raises(kclient.KernelRestarted):
        client.run("ask", on_input=answer, timeout=20)
