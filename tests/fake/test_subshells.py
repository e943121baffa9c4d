"""A client knows the features that a kernel announces, and refuses requests that the kernel cannot understand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from fixtures import WAIT, Background

import kclient
from kclient.testing import FakeKernel, Request, result
from kclient.transport.zmq.context import context

Client = kclient.KernelClient

FEATURES = ["kernel subshells", "debugger"]

NEEDS_A_FEATURE: dict[str, Callable[[Client], object]] = {
    "debug": lambda client: client.debug("initialize"),
    "create_subshell": lambda client: client.create_subshell(),
    "delete_subshell": lambda client: client.delete_subshell("a"),
    "list_subshells": lambda client: client.list_subshells(),
    "run": lambda client: client.run("1", subshell_id="a"),
    "submit": lambda client: client.submit("1", subshell_id="a"),
    "execute": lambda client: client.execute("1", subshell_id="a"),
    "request": lambda client: client.request("debug_request", {}),
    "create_subshell on control": lambda client: client.control_channel.create_subshell(),
    "execute on shell": lambda client: client.shell_channel.execute("1", subshell_id="a"),
    "send": lambda client: client.shell_channel.send("complete_request", {}, subshell_id="a"),
    "send on control": lambda client: client.control_channel.send("debug_request", {}),
}

NAMES_A_SUBSHELL = ["delete_subshell", "run", "submit", "execute", "execute on shell"]


class SubshellKernel(FakeKernel):
    """A kernel whose only subshell is "a", until it is deleted. A request to a deleted subshell gets no answer."""

    def __init__(self) -> None:
        super().__init__({"1": [result("1")], "wait": self._wait}, supported_features=FEATURES)
        self.subshells: list[str] = []
        self.may_go_on = gevent.event.Event()
        self.lose = self._is_of_a_deleted_one
        self.on("create_subshell_request", self._create)
        self.on("list_subshell_request", lambda request: request.reply({"subshell_id": self.subshells}))
        self.on("delete_subshell_request", self._delete)

    def _wait(self, request: Request) -> None:
        self.may_go_on.wait()

    def _create(self, request: Request) -> None:
        self.subshells = ["a"]
        request.reply({"subshell_id": "a"})

    def _delete(self, request: Request) -> None:
        self.subshells = []
        request.reply()

    def _is_of_a_deleted_one(self, channel: str, message: kclient.Message) -> bool:
        return message.parent_header.get("subshell_id") not in (None, *self.subshells)


def connect(fake: FakeKernel) -> Client:
    return kclient.connect(fake.connection_info, watch=False, timeout=WAIT)


@pytest.fixture
def plain() -> Iterator[FakeKernel]:
    with FakeKernel({"1": [result("1")]}) as fake:
        yield fake


@pytest.fixture
def fake() -> Iterator[SubshellKernel]:
    with SubshellKernel() as fake:
        yield fake


@pytest.fixture
def client(fake: SubshellKernel) -> Iterator[Client]:
    with connect(fake) as client:
        yield client


def count(fake: FakeKernel, msg_type: str) -> int:
    return [request.msg_type for request in fake.requests].count(msg_type)


# Known features


def test_kernel_is_not_known_before_it_has_told(plain: FakeKernel) -> None:
    with Client(plain.connection_info) as client:
        client.start_channels()
        with pytest.raises(kclient.InvalidState, match="wait_for_ready"):
            client.kernel  # noqa: B018
        client.kernel_info(timeout=WAIT)
        assert client.kernel.implementation == "fake"


def test_latest_kernel_info_reply_counts_although_another_call_asked(plain: FakeKernel) -> None:
    with connect(plain) as client:
        assert client.kernel.supported_features == frozenset()
        plain.supported_features = FEATURES
        client.shell_channel.get_reply(client.shell_channel.send("kernel_info_request"), timeout=WAIT)
        assert client.kernel.supported_features == frozenset(FEATURES)


@pytest.mark.parametrize("status", ["error", "aborted"])
def test_reply_that_tells_nothing_takes_nothing_back(plain: FakeKernel, status: str) -> None:
    with connect(plain) as client:
        plain.on("kernel_info_request", lambda request: request.reply({"status": status}))
        assert client.kernel_info(timeout=WAIT).content["status"] == status
        assert client.kernel.implementation == "fake"


def test_kernel_is_unknown_again_once_another_takes_its_place(plain: FakeKernel) -> None:
    with connect(plain) as client:
        client.kernel_connection.reopen()
        with pytest.raises(kclient.InvalidState):
            client.kernel  # noqa: B018


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"status": "error", "ename": "NotImplementedError", "evalue": "", "traceback": []},
        {"protocol_version": "5.3.0", "language_info": None, "help_links": "none", "banner": 3},
        {"protocol_version": ["5", None], "implementation": [], "supported_features": {"debugger": True}},
    ],
    ids=["nothing", "error", "wrong types", "other wrong types"],
)
def test_client_gets_on_with_a_kernel_that_tells_little(plain: FakeKernel, content: dict[str, Any]) -> None:
    plain.on("kernel_info_request", lambda request: request.reply(content))
    with connect(plain) as client:
        assert client.kernel.supported_features == frozenset()
        assert client.run("1", timeout=WAIT).text == "1"
        assert client.is_complete("1", timeout=WAIT).content["status"] == "complete"


# Refused requests


@pytest.mark.parametrize("name", NEEDS_A_FEATURE)
def test_request_that_needs_a_feature_is_refused_by_a_kernel_without_it(plain: FakeKernel, name: str) -> None:
    with connect(plain) as client:
        sent = len(plain.requests)
        with pytest.raises(kclient.UnsupportedFeature, match=r"fake 0.*supported_features") as caught:
            NEEDS_A_FEATURE[name](client)
        assert caught.value.feature in FEATURES
        client.control_channel.kernel_info(timeout=WAIT)
        assert len(plain.requests) == sent + 1


def test_kernel_of_which_nothing_is_known_is_asked_first(plain: FakeKernel) -> None:
    with Client(plain.connection_info) as client:
        client.start_channels()
        with pytest.raises(kclient.UnsupportedFeature):
            client.create_subshell(timeout=WAIT)
        assert [request.msg_type for request in plain.requests] == ["kernel_info_request"]


def test_kernel_that_does_not_tell_is_waited_for_no_longer_than_the_call_may_take(plain: FakeKernel) -> None:
    plain.lose = lambda channel, message: channel == "control"
    with Client(plain.connection_info) as client:
        client.start_channels()
        with pytest.raises(kclient.KernelTimeout, match="kernel_info_reply"):
            client.debug("initialize", timeout=0.05)


def test_channel_of_its_own_refuses_nothing(plain: FakeKernel) -> None:
    plain.on("create_subshell_request", lambda request: request.reply({"subshell_id": "a"}))
    with connect(plain) as client:
        address = client.control_channel.address
        control = kclient.ControlChannel(context(), kclient.Session(plain.connection_info.key), address)
        control.start()
        try:
            control.kernel_info(timeout=WAIT)
            assert control.create_subshell(timeout=WAIT).content["subshell_id"] == "a"
        finally:
            control.stop()


@pytest.mark.parametrize("name", NAMES_A_SUBSHELL)
def test_subshell_that_is_not_there_is_refused(fake: SubshellKernel, client: Client, name: str) -> None:
    with pytest.raises(kclient.InvalidArgument, match="no subshell 'a'"):
        NEEDS_A_FEATURE[name](client)
    assert [request.msg_type for request in fake.requests][-1] == "list_subshell_request"


@pytest.mark.parametrize("name", NAMES_A_SUBSHELL)
def test_subshell_that_another_client_made_is_found(fake: SubshellKernel, client: Client, name: str) -> None:
    with connect(fake) as other:
        other.create_subshell(timeout=WAIT)
    NEEDS_A_FEATURE[name](client)


def test_subshell_that_the_client_knows_is_not_looked_up(fake: SubshellKernel, client: Client) -> None:
    subshell_id = client.create_subshell(timeout=WAIT).content["subshell_id"]
    assert client.run("1", subshell_id=subshell_id, timeout=WAIT).text == "1"
    assert count(fake, "list_subshell_request") == 0
    client.delete_subshell(subshell_id, timeout=WAIT)
    with pytest.raises(kclient.InvalidArgument):
        client.run("1", subshell_id=subshell_id, timeout=WAIT)
    assert count(fake, "list_subshell_request") == 1


def test_subshells_of_an_earlier_kernel_are_forgotten(fake: SubshellKernel, client: Client) -> None:
    client.create_subshell(timeout=WAIT)
    fake.subshells = []
    client.kernel_connection.readiness.meet("the session of another kernel")
    with pytest.raises(kclient.InvalidArgument):
        client.run("1", subshell_id="a", timeout=WAIT)


def test_what_waits_for_a_subshell_ends_when_that_is_deleted(fake: SubshellKernel, client: Client) -> None:
    """ipykernel 7.3 sends nothing about requests that were queued in a deleted subshell."""
    client.create_subshell(timeout=WAIT)
    calls = [
        Background(client.run, "wait", subshell_id="a"),
        Background(client.execute, "1", subshell_id="a"),
    ]
    busy = client.submit("wait")
    client.delete_subshell("a", timeout=WAIT)
    for call in calls:
        error = call.error()
        assert isinstance(error, kclient.NoReply)
        assert "subshell a was deleted" in str(error)
    assert not busy.done()
    fake.may_go_on.set()
    assert busy.result(WAIT).ok


def test_subshell_that_another_client_deletes_ends_calls_here(fake: SubshellKernel, client: Client) -> None:
    client.create_subshell(timeout=WAIT)
    with connect(fake) as other:
        call = Background(client.run, "wait", subshell_id="a")
        other.delete_subshell("a", timeout=WAIT)
        assert isinstance(call.error(), kclient.NoReply)


def test_kernel_that_deletes_many_subshells_in_a_row_is_asked_but_twice_what_is_left(
    fake: SubshellKernel, client: Client, background: Callable[..., Background]
) -> None:
    client.create_subshell(timeout=WAIT)
    asked, may_answer = gevent.event.Event(), gevent.event.Event()

    def list_them(request: Request) -> None:
        asked.set()
        may_answer.wait()
        request.reply({"subshell_id": fake.subshells})

    call = background(client.run, "wait", subshell_id="a", timeout=WAIT)
    fake.on("list_subshell_request", list_them)
    for number in range(50):
        header = {"msg_id": str(number), "msg_type": "delete_subshell_request"}
        fake.publish("status", {"execution_state": "idle"}, parent=kclient.Message(header))
    assert asked.wait(WAIT)
    may_answer.set()
    client.control_channel.kernel_info(timeout=WAIT)
    client.control_channel.kernel_info(timeout=WAIT)
    assert count(fake, "list_subshell_request") <= 2
    assert call.is_waiting
    fake.may_go_on.set()
    assert call.get().ok


def test_deletion_that_is_heard_of_just_after_the_list_came_changes_nothing_of_what_that_said(
    client: Client,
) -> None:
    observers, support = client.kernel_connection.channels.peer.observers, client.kernel_connection.subshells
    note_list = observers["list_subshell_reply"]

    def hear_of_another(reply: kclient.Message) -> None:
        observers["list_subshell_reply"] = note_list
        note_list(reply)
        support.deleted()

    client.create_subshell(timeout=WAIT)
    client.kernel_connection.channels.peer.forget_subshells()
    observers["list_subshell_reply"] = hear_of_another
    assert client.run("1", subshell_id="a", timeout=WAIT).ok


def test_run_whose_idle_status_went_with_its_subshell_ends_incomplete(fake: SubshellKernel, client: Client) -> None:
    client.create_subshell(timeout=WAIT)
    fake.lose = lambda channel, message: (
        message.content.get("execution_state") == "idle" and "subshell_id" in message.parent_header
    )
    execution = client.submit("1", subshell_id="a")
    client.shell_channel.kernel_info(timeout=WAIT)
    client.delete_subshell("a", timeout=WAIT)
    outcome = execution.result(WAIT)
    assert (outcome.text, outcome.complete) == ("1", False)


def test_client_that_closes_ends_its_look_at_a_deleted_subshell(fake: SubshellKernel, client: Client) -> None:
    client.create_subshell(timeout=WAIT)
    call = Background(client.run, "wait", subshell_id="a")
    client.delete_subshell("a", timeout=WAIT)
    client.close()
    assert isinstance(call.error(), kclient.ChannelClosed)
