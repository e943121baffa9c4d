"""Comms from either side, their callbacks, and every way in which they end."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import gevent.event
import pytest
from fixtures import Background, in_forked_child

import kclient
from kclient.errors import copies_of
from kclient.testing import FakeKernel, Request, result

BOTH_LINES = True

WAIT = 20
Client = kclient.KernelClient


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    """A kernel that accepts every comm, and sends back what comes over it."""
    with FakeKernel({"6 * 7": [result("42")]}, supported_features=["kernel subshells"]) as fake:
        fake.on("comm_open", lambda request: None)
        fake.on("comm_msg", echo)
        yield fake


@pytest.fixture
def client(fake: FakeKernel) -> Iterator[Client]:
    with kclient.connect(fake.connection_info) as client:
        yield client


@pytest.fixture
def comm(client: Client) -> kclient.Comm:
    return client.comms.open("echo")


def echo(request: Request) -> None:
    content = {"comm_id": request.content["comm_id"], "data": request.content["data"]}
    request.publish("comm_msg", content, buffers=[bytes(buffer) for buffer in request.message.buffers])


def publish(fake: FakeKernel, comm_id: str, number: int) -> None:
    fake.publish("comm_msg", {"comm_id": comm_id, "data": {"n": number}})


def open_from(fake: FakeKernel, target_name: str, comm_id: str = "k", parent: kclient.Message | None = None) -> None:
    """Let the kernel open a comm. Without a parent, no request of the client's led to it."""
    content = {"comm_id": comm_id, "target_name": target_name, "data": {"from": "kernel"}}
    fake.publish("comm_open", content, parent=parent, buffers=[b"some"])


def number_of(message: kclient.Message) -> int:
    return message.content["data"]["n"]  # type: ignore[no-any-return]


def sent(fake: FakeKernel) -> list[tuple[str, Any]]:
    return [
        (message.msg_type, message.content["data"])
        for message in fake.requests
        if message.msg_type.startswith("comm") and "data" in message.content
    ]


class Told:
    """A callback that keeps its arguments. `wait` waits until it was called a number of times."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._called = gevent.event.Event()

    def __call__(self, *args: Any) -> None:
        self.calls.append(args[0] if len(args) == 1 else args)
        self._called.set()

    def wait(self, count: int) -> list[Any]:
        while len(self.calls) < count:
            self._called.clear()
            assert self._called.wait(WAIT)
        return self.calls


# From the client to the kernel


def test_open_message_and_close_reach_the_kernel_in_order_with_their_buffers(fake: FakeKernel, client: Client) -> None:
    comm = client.comms.open("echo", {"a": 1}, metadata={"m": 1}, buffers=[b"zero"], target_module="module")
    comm.send({"b": 2}, metadata={"m": 2}, buffers=[b"one", memoryview(b"two")])
    comm.close({"c": 3})
    assert client.run("6 * 7", timeout=WAIT).text == "42"
    opened, message, closed, _ = fake.requests[-4:]
    assert opened.content == {
        "comm_id": comm.comm_id,
        "target_name": "echo",
        "target_module": "module",
        "data": {"a": 1},
    }
    assert (message.content, closed.content) == (
        {"comm_id": comm.comm_id, "data": {"b": 2}},
        {"comm_id": comm.comm_id, "data": {"c": 3}},
    )
    assert [each.metadata for each in (opened, message)] == [{"m": 1}, {"m": 2}]
    assert [list(map(bytes, each.buffers)) for each in (opened, message, closed)] == [[b"zero"], [b"one", b"two"], []]


def test_answers_come_out_of_receive_in_order_and_bear_the_id_of_what_they_answer(comm: kclient.Comm) -> None:
    ids = [comm.send({"n": number}, buffers=[bytes([number])]) for number in range(5)]
    messages = [comm.receive(timeout=WAIT) for _ in ids]
    assert [(message.parent_id, number_of(message)) for message in messages] == list(zip(ids, range(5), strict=True))
    assert [list(map(bytes, message.buffers)) for message in messages] == [[bytes([number])] for number in range(5)]


def test_comm_messages_leave_nothing_open(client: Client, comm: kclient.Comm) -> None:
    comm.send()
    comm.receive(timeout=WAIT)
    client.run("6 * 7", timeout=WAIT)
    types = {message.msg_type for message in client.iopub_channel.flush(timeout=WAIT)}
    assert types == {"status"}, "what a comm takes is not in the inbox, the statuses of its messages are"
    assert (len(client.shell_channel.requests), client.shell_channel.get_msgs()) == (0, [])
    pending = client.kernel_connection.channels.pending
    assert (pending.unanswered, list(pending.owed_idle), list(pending.owed_reply)) == (set(), [], [])


def test_message_for_a_subshell_says_so(fake: FakeKernel, client: Client, comm: kclient.Comm) -> None:
    comm.send(subshell_id="s")
    comm.receive(timeout=WAIT)
    assert fake.requests[-1].header["subshell_id"] == "s"


def test_status_of_a_comm_message_wakes_get_msg(
    fake: FakeKernel, client: Client, comm: kclient.Comm, background: Callable[..., Background]
) -> None:
    goes_on = gevent.event.Event()
    fake.on("comm_msg", lambda request: goes_on.wait(WAIT))
    client.kernel_info(timeout=WAIT)
    client.iopub_channel.flush()
    first = background(client.iopub_channel.get_msg, timeout=WAIT)
    msg_id = comm.send({"a": 1})
    message = first.get()
    goes_on.set()
    assert (message.parent_id, message.content) == (msg_id, {"execution_state": "busy"})


def test_many_greenlets_each_get_the_messages_of_their_own_comm(client: Client) -> None:
    def talk(greenlet: int) -> list[int]:
        with client.comms.open("echo") as comm:
            for number in range(5):
                comm.send({"n": 10 * greenlet + number})
            return [number_of(comm.receive(timeout=WAIT)) for _ in range(5)]

    greenlets = [gevent.spawn(talk, number) for number in range(40)]
    gevent.joinall(greenlets, timeout=WAIT)
    assert [each.value for each in greenlets] == [[10 * n + k for k in range(5)] for n in range(40)]
    assert len(client.comms) == 0


def test_several_greenlets_may_receive_from_one_comm(comm: kclient.Comm, background: Callable[..., Background]) -> None:
    calls = [background(comm.receive, timeout=WAIT) for _ in range(3)]
    for number in range(3):
        comm.send({"n": number})
    assert sorted(number_of(call.get()) for call in calls) == [0, 1, 2]


# Requests that are refused before anything is sent


@pytest.mark.parametrize(
    "arguments",
    [
        {"data": [1]},
        {"data": {"x": object()}},
        {"metadata": 5},
        {"buffers": b"bytes"},
        {"buffers": ["text"]},
        {"buffers": [memoryview(b"abcd")[::2]]},
    ],
)
def test_message_that_cannot_be_sent_is_refused_and_changes_nothing(
    fake: FakeKernel, client: Client, comm: kclient.Comm, arguments: dict[str, Any]
) -> None:
    for call in (comm.send, comm.close, lambda **each: client.comms.open("echo", **each)):
        with pytest.raises(kclient.InvalidArgument):
            call(**arguments)
    assert (comm.is_open, list(client.comms.values())) == (True, [comm])
    client.run("6 * 7", timeout=WAIT)
    assert sent(fake) == [("comm_open", {})]


def test_names_and_callbacks_are_checked(client: Client, comm: kclient.Comm) -> None:
    with pytest.raises(kclient.InvalidArgument, match="an open comm has the comm_id"):
        client.comms.open("echo", comm_id=comm.comm_id)
    with pytest.raises(kclient.InvalidArgument, match="an open comm has the comm_id"):
        client.comms.attach(comm.comm_id)
    for bad in ("", 5):
        with pytest.raises(kclient.InvalidArgument, match="comm_id"):
            client.comms.open("echo", comm_id=bad)  # type: ignore[arg-type]
    with pytest.raises(kclient.InvalidArgument, match="callback must be a function"):
        client.comms.register_target("t", "no function")  # type: ignore[arg-type]
    with pytest.raises(kclient.InvalidArgument, match="on_message must be a function"):
        comm.on_message = 5  # type: ignore[assignment]
    with pytest.raises(kclient.InvalidArgument, match="on_close must be a function"):
        comm.on_close = 5  # type: ignore[assignment]
    with pytest.raises(KeyError):
        client.comms["unknown"]


def test_comms_need_the_shell_and_the_iopub_channel(fake: FakeKernel) -> None:
    with kclient.KernelClient(fake.connection_info) as client:
        client.start_channels(iopub=False)
        for call in (client.comms.open, client.comms.attach):
            with pytest.raises(kclient.InvalidState, match="start_channels"):
                call("echo")


# From the kernel to the client


def test_comm_that_the_kernel_opens_to_a_target_is_found_with_its_message(fake: FakeKernel, client: Client) -> None:
    def code(request: Request) -> None:
        open_from(fake, "target", parent=request.message)
        publish(fake, "k", 1)

    fake.script["code"] = code
    client.comms.register_target("target")
    client.run("code", timeout=WAIT)
    comm = client.comms["k"]
    assert list(client.comms.values()) == [comm]
    assert comm.open_message is not None
    assert comm.open_message.content["data"] == {"from": "kernel"}
    assert list(map(bytes, comm.open_message.buffers)) == [b"some"]
    assert number_of(comm.receive(timeout=WAIT)) == 1
    comm.send({"n": 2})
    assert number_of(comm.receive(timeout=WAIT)) == 2


def test_target_is_called_with_the_comm_and_its_message(fake: FakeKernel, client: Client) -> None:
    told = Told()
    client.comms.register_target("target", told)
    open_from(fake, "target")
    [(comm, message)] = told.wait(1)
    assert (comm.comm_id, comm.target_name, message) == ("k", "target", comm.open_message)


def test_comm_to_an_unknown_target_is_closed_and_logged(
    fake: FakeKernel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    closed = gevent.event.AsyncResult()
    fake.on("comm_close", lambda request: closed.set(request.content))
    fake.script["code"] = lambda request: open_from(fake, "unknown", parent=request.message)
    client.comms.register_target("target")
    with caplog.at_level(logging.WARNING):
        client.run("code", timeout=WAIT)
        assert closed.get(timeout=WAIT) == {"comm_id": "k", "data": {}}
    assert "'unknown': no such target is registered" in caplog.text
    assert len(client.comms) == 0


def test_comm_that_another_client_has_to_do_with_is_left_in_the_inbox(fake: FakeKernel, client: Client) -> None:
    client.comms.register_target("target")
    with kclient.connect(fake.connection_info) as other:
        client.iopub_channel.flush()
        other.comms.register_target("other")
        open_from(fake, "other")
        publish(fake, "k", 1)
        types: list[str] = []
        while "comm_msg" not in types:  # the statuses of the other client's requests come between
            types.append(client.iopub_channel.get_msg(timeout=WAIT).msg_type)
        assert [name for name in types if name != "status"] == ["comm_open", "comm_msg"]
        client.run("6 * 7", timeout=WAIT)
        assert (list(other.comms), list(client.comms), sent(fake)) == (["k"], [], [])


def test_comm_whose_target_fails_is_closed_and_the_next_is_not(
    fake: FakeKernel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    def target(comm: kclient.Comm, message: kclient.Message) -> None:
        if comm.comm_id == "bad":
            raise ValueError("no such widget")
        told(comm)

    told = Told()
    client.comms.register_target("target", target)
    for comm_id in ("bad", "good"):
        open_from(fake, "target", comm_id)
    assert [comm.comm_id for comm in told.wait(1)] == ["good"]
    assert list(client.comms) == ["good"]
    client.run("6 * 7", timeout=WAIT)
    assert sent(fake) == [("comm_close", {})]
    assert "no such widget" in caplog.text


def test_comms_of_a_kernel_that_ran_before_are_discovered(fake: FakeKernel, client: Client, comm: kclient.Comm) -> None:
    comms = {comm_id: {"target_name": "echo"} for comm_id in (comm.comm_id, "older")}
    fake.on("comm_info_request", lambda request: request.reply({"comms": comms}))
    known, older = client.comms.discover("echo", timeout=WAIT)
    assert fake.requests[-1].content == {"target_name": "echo"}
    assert (known, older.comm_id, older.target_name) == (comm, "older", "echo")
    older.send({"n": 1})
    assert number_of(older.receive(timeout=WAIT)) == 1
    attached = client.comms.attach("another")
    publish(fake, "another", 2)
    assert number_of(attached.receive(timeout=WAIT)) == 2
    with pytest.raises(kclient.KernelTimeout, match="no message on the comm 'another' within"):
        attached.receive(timeout=0)


# Callbacks


def test_callbacks_of_all_comms_run_one_after_the_other_in_order_of_arrival(fake: FakeKernel, client: Client) -> None:
    def on_message(message: kclient.Message) -> None:
        gevent.sleep(0)  # a callback that waits holds up the callbacks behind it
        told((number_of(message), gevent.getcurrent()))

    def target(comm: kclient.Comm, message: kclient.Message) -> None:
        told((comm.comm_id, gevent.getcurrent()))
        comm.on_message = on_message

    told = Told()
    client.comms.register_target("target", target)
    for comm_id in "ab":
        open_from(fake, "target", comm_id)
    for number in range(6):
        publish(fake, "ab"[number % 2], number)
    calls = told.wait(8)
    assert [what for what, _ in calls] == ["a", "b", 0, 1, 2, 3, 4, 5]
    assert not {greenlet for _, greenlet in calls} & {gevent.getcurrent(), gevent.get_hub()}


def test_on_message_gets_what_waits_in_the_inbox_first(fake: FakeKernel, client: Client, comm: kclient.Comm) -> None:
    for number in range(3):
        comm.send({"n": number})
    first = comm.receive(timeout=WAIT)
    client.run("6 * 7", timeout=WAIT)  # the other messages are there
    told = Told()
    comm.on_message = lambda message: told(number_of(message))
    publish(fake, comm.comm_id, 3)
    assert (number_of(first), told.wait(3)) == (0, [1, 2, 3])


def test_message_for_on_message_cannot_be_received(comm: kclient.Comm, background: Callable[..., Background]) -> None:
    waiting = background(comm.receive)
    comm.on_message = print
    for error in (waiting.error(), background(comm.receive).error()):
        assert isinstance(error, kclient.InvalidState)
    comm.on_message = None
    comm.send({"n": 1})
    assert number_of(comm.receive(timeout=WAIT)) == 1


@pytest.mark.parametrize("error", [ValueError("oops"), gevent.Timeout(0, ValueError("oops"))])
def test_callback_that_fails_is_logged_and_the_next_message_comes(
    comm: kclient.Comm, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    def on_message(message: kclient.Message) -> None:
        if number_of(message) == 0:
            raise error
        told(number_of(message))

    told = Told()
    comm.on_message = on_message
    for number in range(2):
        comm.send({"n": number})
    assert told.wait(1) == [1]
    assert "a callback of a comm failed" in caplog.text


def test_callback_may_run_code_and_talk_over_comms(client: Client, comm: kclient.Comm) -> None:
    def on_message(message: kclient.Message) -> None:
        with client.comms.open("echo") as other:
            other.send({"n": 7})
            told((client.run("6 * 7", timeout=WAIT).text, number_of(other.receive(timeout=WAIT))))

    told = Told()
    comm.on_message = on_message
    comm.send({"n": 1})
    assert told.wait(1) == [("42", 7)]


# Waiting, and messages that are kept meanwhile


def test_callbacks_can_be_set_by_the_thread_of_the_client_only(client: Client, comm: kclient.Comm) -> None:
    comm.send({"n": 1})
    client.kernel_info(timeout=WAIT)
    client.iopub_channel.flush(WAIT)
    told, errors = Told(), []

    def set_both() -> None:
        for name in ("on_message", "on_close"):
            with pytest.raises(kclient.WrongThread) as caught:
                setattr(comm, name, told)
            errors.append(caught.value)

    thread = threading.Thread(target=set_both)
    thread.start()
    thread.join()
    assert len(errors) == 2
    assert comm.receive(timeout=WAIT).content["data"] == {"n": 1}
    assert (comm.on_message, comm.on_close, told.calls) == (None, None, [])


def test_stop_ends_a_callback_that_waits_for_ever_and_tells_of_the_end(client: Client, comm: kclient.Comm) -> None:
    told, begun = Told(), gevent.event.Event()

    def wait(message: kclient.Message) -> None:
        begun.set()
        gevent.event.Event().wait()

    comm.on_message, comm.on_close = wait, told
    for _ in range(3):
        comm.send()
    assert begun.wait(WAIT)
    client.stop_channels()
    told.wait(1)
    assert [type(call) for call in told.calls] == [kclient.ChannelClosed]
    client.start_channels()
    again = client.comms.open("echo")
    again.on_message = told
    again.send()
    told.wait(2)


def test_stop_just_after_a_message_came_loses_no_later_one(client: Client, comm: kclient.Comm) -> None:
    comm.send()
    client.kernel_info(timeout=WAIT)
    client.iopub_channel.flush(WAIT)
    assert len(comm.inbox) == 1
    comm.on_message = Told()  # its greenlet has not begun when the channels stop
    client.stop_channels()
    client.start_channels()
    again, told = client.comms.open("echo"), Told()
    again.on_message = told
    again.send()
    told.wait(1)


def test_receive_keeps_to_its_timeout(comm: kclient.Comm) -> None:
    for timeout in (0, 0.01):
        with pytest.raises(kclient.KernelTimeout, match="no message on the comm 'echo' within"):
            comm.receive(timeout=timeout)


def test_script_that_only_polls_gets_its_messages() -> None:
    with FakeKernel(thread=True) as fake, kclient.connect(fake.connection_info) as client:
        fake.on("comm_open", lambda request: None)
        fake.on("comm_msg", echo)
        comm = client.comms.open("echo")
        comm.send({"n": 1})
        with gevent.Timeout(WAIT):
            while True:
                try:
                    message = comm.receive(timeout=0)
                    break
                except kclient.KernelTimeout:
                    continue
        assert number_of(message) == 1
        fake.publish("comm_close", {"comm_id": comm.comm_id, "data": {}})
        while comm.is_open:
            pass


def test_unread_comm_keeps_the_newest_messages(
    comm: kclient.Comm, fake: FakeKernel, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    comm.inbox.max_messages = 3
    for number in range(10):
        publish(fake, comm.comm_id, number)
    client.run("6 * 7", timeout=WAIT)
    assert comm.inbox.dropped == 7
    assert [number_of(comm.receive(timeout=WAIT)) for _ in range(3)] == [7, 8, 9]
    assert caplog.text.count("its inbox is full") == 1


# The end

ENDS: dict[str, tuple[Callable[[FakeKernel, Client, str], object], type[kclient.KClientError]]] = {
    "the kernel closes it": (
        lambda fake, client, comm_id: fake.publish("comm_close", {"comm_id": comm_id, "data": {"why": "done"}}),
        kclient.CommClosed,
    ),
    "restart": (lambda fake, client, comm_id: client.kernel_connection.reopen(), kclient.KernelRestarted),
    "death": (
        lambda fake, client, comm_id: client.kernel_connection.availability.fail(
            copies_of(kclient.DeadKernelError(exit_code=3))
        ),
        kclient.DeadKernelError,
    ),
    "stop_channels": (lambda fake, client, comm_id: client.stop_channels(), kclient.ChannelClosed),
}


@pytest.mark.parametrize("end", ENDS)
def test_end_of_a_comm_comes_to_all_who_have_to_do_with_it(
    fake: FakeKernel, client: Client, comm: kclient.Comm, background: Callable[..., Background], end: str
) -> None:
    call, error = ENDS[end]
    told, silent = Told(), client.comms.open("silent")
    comm.on_close = told
    waiting = background(comm.receive)
    call(fake, client, comm.comm_id)
    assert type(waiting.error()) is error
    assert [type(each) for each in told.wait(1)] == [error]
    for action in (comm.send, comm.receive):
        with pytest.raises(error):
            action()
    assert (comm.is_open, comm.comm_id in client.comms) == (False, False)
    assert silent.is_open == (error is kclient.CommClosed)
    comm.close()
    late = Told()
    comm.on_close = late
    assert [str(each) for each in late.wait(1)] == [str(each) for each in told.calls]


def test_close_of_the_kernel_says_why(fake: FakeKernel, comm: kclient.Comm) -> None:
    comm.send({"n": 1})
    messages = iter(comm)
    assert number_of(next(messages)) == 1
    fake.publish("comm_close", {"comm_id": comm.comm_id, "data": {"why": "done"}})
    assert list(messages) == []
    with pytest.raises(kclient.CommClosed, match="the kernel closed the comm 'echo'") as caught:
        comm.receive(timeout=WAIT)
    assert (caught.value.comm_id, caught.value.target_name, caught.value.data) == (
        comm.comm_id,
        "echo",
        {"why": "done"},
    )


def test_comm_without_a_target_in_the_kernel_ends_with_a_clear_error() -> None:
    with FakeKernel() as fake, kclient.connect(fake.connection_info) as client:
        comm = client.comms.open("unknown")
        with pytest.raises(kclient.CommClosed, match="the kernel has no comm target 'unknown'"):
            comm.receive(timeout=WAIT)


def test_message_that_came_before_the_end_can_be_received_after_it(
    fake: FakeKernel, client: Client, comm: kclient.Comm
) -> None:
    for number in range(2):
        publish(fake, comm.comm_id, number)
    client.run("6 * 7", timeout=WAIT)
    client.stop_channels()
    assert [number_of(comm.receive()) for _ in range(2)] == [0, 1]
    with pytest.raises(kclient.ChannelClosed):
        comm.receive()


def test_comm_that_was_closed_here_is_closed_at_once(
    fake: FakeKernel, client: Client, background: Callable[..., Background]
) -> None:
    told = Told()
    with client.comms.open("echo") as comm:
        comm.on_close = told
        waiting = background(comm.receive)
    for error in (waiting.error(), background(comm.send).error(), background(comm.receive).error()):
        assert isinstance(error, kclient.CommClosed)
        assert "was closed here" in str(error)
    comm.close()
    client.run("6 * 7", timeout=WAIT)
    assert (sent(fake), told.calls) == ([("comm_open", {}), ("comm_close", {})], [])


def test_restart_ends_comms_with_the_advice_to_open_another(client: Client, comm: kclient.Comm) -> None:
    client.kernel_connection.reopen()
    with pytest.raises(kclient.KernelRestarted, match="open another"):
        comm.send()


def test_targets_outlive_the_channels(fake: FakeKernel, client: Client) -> None:
    client.comms.register_target("target")
    client.stop_channels()
    client.start_channels()
    client.wait_for_ready(WAIT)
    fake.script["code"] = lambda request: open_from(fake, "target", parent=request.message)
    client.run("code", timeout=WAIT)
    assert list(client.comms) == ["k"]


def test_targets_of_a_manager_are_there_when_its_kernel_has_ports(runtime_dir: Any) -> None:
    manager = kclient.KernelManager()
    manager.comms.register_target("target")
    manager.on_input = input
    manager.write_connection_file()
    assert (list(manager.kernel_connection._comm_routes.targets), manager.on_input) == (["target"], input)
    manager.cleanup_connection_file()


def test_client_that_has_no_comms_does_not_look_for_them(client: Client) -> None:
    client.run("6 * 7", timeout=WAIT)
    client.stop_channels()
    assert client.kernel_connection._comms is None


def test_forked_child_closes_no_comm(fake: FakeKernel, client: Client, comm: kclient.Comm) -> None:
    def in_child() -> str:
        comm.close()
        try:
            comm.send()
        except kclient.ForkedProcess:
            return "refused"
        return "sent"

    assert in_forked_child(in_child) == "refused"
    assert comm.is_open


def test_client_with_open_comms_can_be_collected(fake: FakeKernel) -> None:
    client = kclient.connect(fake.connection_info, watch=False)
    comm = client.comms.open("echo")
    comm.on_message = comm.send
    references = [weakref.ref(client), weakref.ref(comm)]
    del client, comm
    gc.collect()
    assert [reference() for reference in references] == [None, None]
