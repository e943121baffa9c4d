"""A client when messages between it and its kernel are late, lost, doubled, changed, or cut off."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from figures import Figures
from fixtures import WAIT
from proxy import CLIENT, KERNEL, Frames, Held, Line, On, Passing, Relay, Rule, changed, doubled, dropped

import kclient
from kclient.client import watchdog
from kclient.concurrency.deadline import Deadline
from kclient.protocol import messages
from kclient.protocol.framing import DELIMITER
from kclient.protocol.session import Session
from kclient.testing import FakeKernel, result, stream

Client = kclient.KernelClient

NOTICED = 2.0
"""Seconds within which a lost message is noticed."""


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    with FakeKernel({"6 * 7": [stream("hi\n"), result("42")], "big": [stream("x" * 1_000_000)]}) as fake:
        yield fake


@pytest.fixture
def relay(fake: FakeKernel) -> Iterator[Relay]:
    with Relay(fake.connection_info) as relay:
        yield relay


@pytest.fixture
def line(fake: FakeKernel) -> Iterator[Line]:
    with Line(fake.connection_info) as line:
        yield line


@pytest.fixture
def patience(figures: Figures) -> Iterator[None]:
    """Let the watchdog ask after 50 ms; with ``--long``, after its own time.

    Not in the teardown of a kernel, whose own client would ask as soon and be seen at it.
    """
    with pytest.MonkeyPatch.context() as patch:
        if not figures.is_long:
            patch.setattr(watchdog, "OVERDUE_S", 0.05)
        yield


@pytest.fixture
def far_client(relay: Relay, patience: None) -> Iterator[Client]:
    """A client on the other side of the relay."""
    with kclient.connect(relay.connection_info, timeout=WAIT) as client:
        client.iopub_channel.flush()
        yield client


@pytest.fixture
def patient_client(far_client: Client) -> Iterator[Client]:
    """A client that takes no late message for lost, even if a busy machine makes it wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(watchdog, "OVERDUE_S", WAIT)
        yield far_client


@pytest.fixture
def line_client(line: Line) -> Iterator[Client]:
    with kclient.connect(line.connection_info, timeout=WAIT) as client:
        client.iopub_channel.flush()
        yield client


def works(client: Client) -> bool:
    """True if the client runs code, and no code awaits a reply. A question of the watchdog's may be under way."""
    outcome = client.run("6 * 7", timeout=WAIT)
    pending = [slot for slot in client.shell_channel.requests if slot.reply_type == "execute_reply"]
    return (outcome.text, outcome.complete, pending) == ("42", True, [])


def wait_until_back(client: Client) -> None:
    """Wait until the kernel answers and a message has come over iopub: a new connection has to subscribe first."""
    client.iopub_channel.get_msgs()
    client.wait_for_ready(timeout=WAIT)


def all_dropped(client: Client) -> dict[str, dict[str, int]]:
    return {
        channel.name: dict(channel.dropped)
        for channel in client.kernel_connection.channels.running()
        if channel.dropped
    }


# Late


def test_message_that_is_late_is_waited_for(relay: Relay, patient_client: Client) -> None:
    for late in ("stream", "execute_reply", "execute_result"):
        relay.rule = rule = On(relay.delayed(0.02), late)
        outcome = patient_client.run("6 * 7", timeout=WAIT)
        assert (outcome.complete, outcome.reply is not None, len(rule.met)) == (True, True, 1)
        if late == "execute_reply":
            assert (outcome.text, outcome.stdout) == ("42", "hi\n")


def test_reply_that_comes_after_the_timeout_is_nobody_elses(relay: Relay, patient_client: Client) -> None:
    held = Held()
    relay.rule = On(held, "execute_reply", times=1)
    with pytest.raises(kclient.KernelTimeout) as caught:
        patient_client.run("6 * 7", timeout=0.05)
    assert held.arrived.wait(WAIT)
    assert patient_client.run("6 * 7", timeout=WAIT).text == "42"
    held.release()
    assert works(patient_client), "the late reply closes the slot that was kept for it"
    assert caught.value.execution is not None
    assert (all_dropped(patient_client), patient_client.shell_channel.get_msgs()) == ({}, [])


def test_messages_in_another_order_are_put_where_they_belong(relay: Relay, patient_client: Client) -> None:
    """The replies to three requests come in reverse order, after all published messages."""
    held = Held()
    relay.rule = On(held, "execute_reply")
    executions = [patient_client.submit("6 * 7") for _ in range(3)]
    while len(held.waiting) < 3:
        patient_client.control_channel.kernel_info(timeout=WAIT)
    held.release(backwards=True)
    for execution in executions:
        outcome = execution.result(timeout=WAIT)
        assert (outcome.text, outcome.stdout, outcome.complete) == ("42", "hi\n", True)
        assert outcome.reply is not None
        assert outcome.reply.parent_id == execution.msg_id


# Lost


def test_run_whose_idle_is_lost_ends_as_incomplete(relay: Relay, far_client: Client, figures: Figures) -> None:
    relay.rule = On(dropped, "status", state="idle", times=1)
    started = time.monotonic()
    outcome = far_client.run("6 * 7", timeout=WAIT)
    figures.note("a run whose idle is lost ends after", time.monotonic() - started, "s", at_most=NOTICED)
    assert (outcome.text, outcome.stdout, outcome.complete) == ("42", "hi\n", False)
    assert works(far_client)


@pytest.mark.parametrize("call", ["run", "execute"])
def test_request_whose_reply_is_lost_raises_no_reply(
    relay: Relay, far_client: Client, figures: Figures, call: str
) -> None:
    relay.rule = On(dropped, "execute_reply", times=1)
    started = time.monotonic()
    with pytest.raises(kclient.NoReply):
        getattr(far_client, call)("6 * 7", timeout=WAIT)
    figures.note("NoReply is raised after", time.monotonic() - started, "s", at_most=NOTICED)
    assert works(far_client)


def test_output_that_is_lost_keeps_no_run_from_its_end_nor_others_from_theirs(relay: Relay, far_client: Client) -> None:
    relay.rule = On(dropped, "stream", times=1)
    first, second = far_client.submit("6 * 7"), far_client.submit("6 * 7")
    outcomes = [execution.result(timeout=WAIT) for execution in (first, second)]
    assert [(one.text, one.stdout, one.complete) for one in outcomes] == [("42", "", True), ("42", "hi\n", True)]


@pytest.mark.parametrize("call", ["run", "execute"])
def test_request_that_is_lost_ends_at_its_timeout_or_when_that_is_known(
    relay: Relay, far_client: Client, call: str
) -> None:
    relay.rule = rule = On(dropped, "execute_request", to=KERNEL, times=1)
    with pytest.raises((kclient.KernelTimeout, kclient.NoReply)):
        getattr(far_client, call)("6 * 7", timeout=0.2)
    assert len(rule.met) == 1
    assert far_client.run("6 * 7", timeout=WAIT).text == "42"


@pytest.mark.parametrize("given_up", ["call", "send"])
def test_code_that_waits_its_turn_behind_a_request_that_is_lost_runs(
    relay: Relay, far_client: Client, given_up: str
) -> None:
    """No call waits for the request that is lost. The code behind it is not sent before that is known."""
    relay.rule = rule = On(dropped, "execute_request", to=KERNEL, times=1)
    if given_up == "call":
        with pytest.raises(kclient.KernelTimeout):
            far_client.execute("6 * 7", timeout=0)
    else:
        far_client.shell_channel.send("execute_request", messages.execute("6 * 7"))
    assert far_client.run("6 * 7", timeout=WAIT).text == "42"
    assert len(rule.met) == 1


def test_interrupt_that_is_lost_is_sent_again(relay: Relay, fake: FakeKernel, far_client: Client) -> None:
    is_over = gevent.event.Event()
    fake.script["long"] = lambda request: is_over.wait(WAIT)
    fake.on("interrupt_request", lambda request: is_over.set())
    relay.rule = rule = On(dropped, "interrupt_request", to=KERNEL, times=1)
    execution = far_client.submit("long")
    execution.interrupt()
    assert execution.result(timeout=WAIT).ok
    assert len(rule.met) == 1


# Doubled


def test_message_that_comes_twice_is_counted_and_taken_once(relay: Relay, far_client: Client) -> None:
    rule = On(doubled)
    relay.rule = rule
    outcome = far_client.run("6 * 7", timeout=WAIT)
    execute = far_client.execute("6 * 7", timeout=WAIT)
    relay.rule = None
    assert [output["output_type"] for output in outcome.outputs] == ["stream", "execute_result"]
    assert (outcome.stdout, execute.content["status"]) == ("hi\n", "ok")
    assert works(far_client)  # the last of the doubled messages has come by then
    replays = {name: sum(passing.channel == name for passing in rule.met) for name in ("shell", "iopub")}
    assert all_dropped(far_client) == {name: {"replay": number} for name, number in replays.items()}
    assert replays["shell"] == 2


def test_request_that_comes_twice_runs_once(relay: Relay, fake: FakeKernel, far_client: Client) -> None:
    relay.rule = On(doubled, "execute_request", to=KERNEL)
    assert far_client.run("6 * 7", timeout=WAIT).text == "42"
    assert works(far_client)
    assert sum(request.msg_type == "execute_request" for request in fake.requests) == 2


# Changed


def at(offset: int, change: Callable[[bytes], bytes]) -> Callable[[Frames], Frames]:
    """Change the frame `offset` places behind the delimiter: signature, header, parent, metadata, content."""

    def change_one(frames: Frames) -> Frames:
        place = frames.index(DELIMITER) + offset
        return [*frames[:place], change(frames[place]), *frames[place + 1 :]]

    return change_one


def flipped(data: bytes) -> bytes:
    return data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]


def no_delimiter(frames: Frames) -> Frames:
    return [frame for frame in frames if frame != DELIMITER]


CHANGES: dict[str, tuple[str, Callable[[Frames], Frames]]] = {
    "a bit of the signature": ("signature", at(1, flipped)),
    "a bit of the header": ("signature", at(2, flipped)),
    "a bit of the parent": ("signature", at(3, flipped)),
    "a bit of the content": ("signature", at(5, flipped)),
    "the end of the signature": ("signature", at(1, lambda data: data[:32])),
    "the end of the content": ("signature", at(5, lambda data: data[:-1])),
    "the delimiter": ("layout", no_delimiter),
    "the content": ("layout", lambda frames: frames[:-1]),
    "all but the envelope": ("layout", lambda frames: [*frames[:1], b""]),
}


@pytest.mark.parametrize("what", CHANGES)
def test_output_that_was_changed_is_counted_and_dropped(relay: Relay, far_client: Client, what: str) -> None:
    reason, change = CHANGES[what]
    relay.rule = On(changed(change), "stream", times=1)
    outcome = far_client.run("6 * 7", timeout=WAIT)
    assert (outcome.text, outcome.stdout, outcome.complete) == ("42", "", True)
    assert all_dropped(far_client) == {"iopub": {reason: 1}}
    assert works(far_client)


@pytest.mark.parametrize("what", CHANGES)
def test_reply_that_was_changed_is_counted_and_never_taken_for_one(relay: Relay, far_client: Client, what: str) -> None:
    reason, change = CHANGES[what]
    relay.rule = On(changed(change), "execute_reply", times=1)
    with pytest.raises(kclient.NoReply):
        far_client.run("6 * 7", timeout=WAIT)
    assert all_dropped(far_client) == {"shell": {reason: 1}}
    assert works(far_client)


def test_messages_that_were_forged_are_counted_and_reach_nobody(relay: Relay, far_client: Client) -> None:
    """On every channel: unsigned, signed with another key, and genuine messages of another time."""
    held: list[tuple[str, Frames]] = []

    def note(passing: Passing) -> None:
        if passing.to == CLIENT and passing.is_message:
            held.append((passing.channel, passing.frames[1:]))

    relay.rule = note
    outcome = far_client.run("6 * 7", timeout=WAIT)
    far_client.control_channel.kernel_info(timeout=WAIT)
    far_client.iopub_channel.flush()
    relay.rule = None
    assert outcome.reply is not None
    parent = outcome.reply.parent_header
    for forger in (Session(), Session(b"another key")):
        for channel in ("shell", "control", "stdin", "iopub"):
            message = forger.msg("execute_reply", {"status": "ok"}, parent=parent)
            relay.inject(channel, forger.serialize(message))
    genuine = dict(held)
    for channel, frames in genuine.items():
        relay.inject(channel, frames)
    assert set(genuine) == {"shell", "control", "iopub"}
    while sum(sum(channel.dropped.values()) for channel in far_client.kernel_connection.channels.running()) < 11:
        far_client.kernel_info(timeout=WAIT)
    assert all_dropped(far_client) == {
        **{name: {"signature": 2, "replay": 1} for name in genuine},
        "stdin": {"signature": 2},
    }
    assert works(far_client)


# Cut


def test_call_whose_answer_went_out_while_the_connection_was_cut_raises_no_reply(
    fake: FakeKernel, line: Line, line_client: Client
) -> None:
    """The call has no timeout. The connection is back, and it is the same kernel."""
    go_on = gevent.event.Event()
    fake.script["slow"] = lambda request: go_on.wait(WAIT)
    line_client.hb_channel.pause()
    execution = line_client.submit("slow")
    while not line_client.iopub_channel.outputs.executing:
        line_client.iopub_channel.changed.wait(Deadline(WAIT))
    line.cut()
    go_on.set()
    with kclient.connect(fake.connection_info, timeout=WAIT) as other:
        other.kernel_info(timeout=WAIT)  # the answer has been sent
    line.mend()
    with pytest.raises(kclient.NoReply, match="cut"):
        execution.result(timeout=WAIT)
    wait_until_back(line_client)
    assert works(line_client)


def test_call_under_way_when_the_connection_is_cut_ends_at_its_timeout_and_the_client_works_on(
    line: Line, fake: FakeKernel, line_client: Client
) -> None:
    """The reply is dropped: a ROUTER drops messages for a peer that has left."""
    started, goes_on = gevent.event.Event(), gevent.event.Event()
    fake.script["wait"] = lambda request: (started.set(), goes_on.wait(WAIT))
    line_client.hb_channel.pause()
    execution = line_client.submit("wait")
    assert started.wait(WAIT)
    line.cut()
    goes_on.set()
    with pytest.raises(kclient.KernelTimeout):
        execution.result(timeout=0.2)
    line.mend()
    wait_until_back(line_client)
    assert line_client.run("6 * 7", timeout=WAIT).text == "42"


def test_request_that_is_sent_while_the_connection_is_cut_goes_out_when_it_is_back(
    line: Line, line_client: Client
) -> None:
    line_client.hb_channel.pause()
    line.cut()
    msg_id = line_client.shell_channel.send("kernel_info_request")
    with pytest.raises(kclient.KernelTimeout):
        line_client.shell_channel.get_reply(msg_id, timeout=0.05)
    line.mend()
    assert line_client.shell_channel.get_reply(msg_id, timeout=WAIT).parent_id == msg_id


def test_connections_that_are_cut_and_taken_again_at_once_serve_as_before(line: Line, line_client: Client) -> None:
    for _ in range(3):
        line.cut(refuse=False)
        wait_until_back(line_client)
        assert works(line_client)
    assert line_client.is_alive()


def test_client_that_watches_wakes_when_the_connection_is_cut_for_good(
    line: Line, fake: FakeKernel, figures: Figures
) -> None:
    fake.script["wait"] = lambda request: gevent.sleep(WAIT)
    with kclient.connect(line.connection_info, timeout=WAIT) as client:
        client.hb_channel.pause()
        client.hb_channel.time_to_dead = 3.0 if figures.is_long else 0.2
        client.hb_channel.unpause()
        waiting = [gevent.spawn(client.run, "wait"), gevent.spawn(client.execute, "wait")]
        gevent.idle()
        started = time.monotonic()
        line.cut()
        for greenlet in waiting:
            with pytest.raises(kclient.DeadKernelError):
                greenlet.get(timeout=WAIT)
        figures.note("a connection that refuses is noticed after", time.monotonic() - started, "s", at_most=4.0)
        with pytest.raises(kclient.DeadKernelError):
            client.kernel_info(timeout=WAIT)


# Stalled


def test_stalled_connection_keeps_no_call_beyond_its_timeout_and_loses_nothing(
    line: Line, line_client: Client, figures: Figures
) -> None:
    line.stall()
    shell = line_client.shell_channel
    msg_id = shell.send("kernel_info_request")
    for timeout in (0.05, 0.1):
        started = time.monotonic()
        with pytest.raises(kclient.KernelTimeout):
            shell.get_reply(msg_id, timeout=timeout)
        late = time.monotonic() - started - timeout
        figures.note("a call ends after its timeout by", late * 1000, "ms", at_most=20)
    execution = line_client.submit("6 * 7")
    with pytest.raises(kclient.KernelTimeout):
        execution.result(timeout=0.05)
    line.flow()
    assert shell.get_reply(msg_id, timeout=WAIT).parent_id == msg_id
    outcome = execution.result(timeout=WAIT)
    assert (outcome.text, outcome.stdout, outcome.complete) == ("42", "hi\n", True)


def test_half_a_message_is_never_delivered(line: Line, line_client: Client) -> None:
    """The connection ends within a frame of a megabyte."""
    line_client.hb_channel.pause()
    is_cut = line.cut_after("iopub", 500_000)
    outcomes = gevent.spawn(line_client.run, "big", timeout=1.0)
    assert is_cut.wait(WAIT)
    with pytest.raises(kclient.KernelTimeout) as caught:
        outcomes.get()
    assert (caught.value.result.stdout, all_dropped(line_client)) == ("", {})
    line.mend()
    line_client.iopub_channel.outputs.subscribed = False  # the client cannot know that only iopub was cut
    wait_until_back(line_client)
    assert line_client.run("big", timeout=WAIT).stdout == "x" * 1_000_000


# A real kernel


@pytest.fixture
def real_relay(kernel: kclient.KernelManager) -> Iterator[Relay]:
    with Relay(kernel.get_connection_info()) as relay:
        yield relay


@pytest.fixture
def real_client(real_relay: Relay, patience: None) -> Iterator[Client]:
    with kclient.connect(real_relay.connection_info, timeout=WAIT) as client:
        client.iopub_channel.flush()
        yield client


def test_real_kernel_behind_a_relay_asks_and_displays(real_client: Client) -> None:
    """Without a rule the relay changes nothing."""
    outcome = real_client.run("print(input('name? ')); 6 * 7", on_input=lambda prompt, _: prompt + "Ada", timeout=WAIT)
    assert (outcome.stdout, outcome.text, outcome.complete) == ("name? Ada\n", "42", True)
    assert real_client.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"
    assert real_client.is_alive()
    assert all_dropped(real_client) == {}


FAULTS: dict[str, tuple[Rule, dict[str, Any]]] = {
    "idle lost": (On(dropped, "status", state="idle", times=1), {"stdout": "hi\n", "complete": False}),
    "output lost": (On(dropped, "stream", times=1), {"stdout": "", "complete": True}),
    "all doubled": (On(doubled), {"stdout": "hi\n", "complete": True}),
    "request doubled": (On(doubled, to=KERNEL, msg_type="execute_request"), {"stdout": "hi\n", "complete": True}),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_real_kernel_under_a_fault(real_relay: Relay, real_client: Client, fault: str) -> None:
    rule, expected = FAULTS[fault]
    assert isinstance(rule, On)
    rule.met.clear()
    real_client.run("times = 0", timeout=WAIT)
    real_relay.rule = rule
    outcome = real_client.run("times += 1; print('hi')", timeout=WAIT)
    real_relay.rule = None
    assert {name: getattr(outcome, name) for name in expected} == expected
    assert (outcome.ok, len(rule.met) > 0) == (True, True)
    assert real_client.run("times", timeout=WAIT).text == "1"


def test_real_kernel_whose_reply_is_lost(real_relay: Relay, real_client: Client) -> None:
    real_relay.rule = On(dropped, "execute_reply", times=1)
    with pytest.raises(kclient.NoReply) as caught:
        real_client.run("print('hi')", timeout=WAIT)
    assert caught.value.result is not None
    assert caught.value.result.stdout == "hi\n"
    assert real_client.run("1", timeout=WAIT).text == "1"


def test_real_kernel_whose_connection_is_cut_and_comes_back(kernel: kclient.KernelManager) -> None:
    with Line(kernel.get_connection_info()) as line:
        with kclient.connect(line.connection_info, watch=False, timeout=WAIT) as client:
            client.run("import time", timeout=WAIT)
            execution = client.submit("time.sleep(0.1); print('unheard')")
            line.cut()
            with pytest.raises(kclient.KernelTimeout):
                execution.result(timeout=0.3)
            line.mend()
            wait_until_back(client)
            assert client.run("6 * 7", timeout=WAIT).text == "42"
