"""A kernel that lives and has closed a socket: calls without a timeout that wait for it are told."""

from __future__ import annotations

from collections.abc import Iterator

import leaks
import pytest
from gevent.event import Event

import kclient
from kclient.client.connection_watch import WATCH_S, next_look
from kclient.concurrency.deadline import Deadline
from kclient.testing import FakeKernel, Request, stream
from kclient.transport.zmq.line import ZmqLine

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""


class Deaf(FakeKernel):
    """A kernel that closes one of its sockets in the middle of a request, and goes on."""

    def close_socket(self, name: str) -> None:
        self._ports[name].wire.close()


@pytest.fixture
def fake(transport: str) -> Iterator[Deaf]:
    with Deaf({}, transport=transport) as fake:
        yield fake


@pytest.fixture
def client(fake: Deaf) -> Iterator[kclient.KernelClient]:
    with kclient.connect(fake.connection_info, timeout=WAIT) as client:
        yield client


def test_call_on_shell_ends_when_the_kernel_has_closed_that_socket(fake: Deaf, client: kclient.KernelClient) -> None:
    fake.script["stuck"] = lambda request: fake.close_socket("shell")
    with pytest.raises(kclient.NoReply, match="the kernel lives, and has closed its shell socket: .* restart"):
        client.run("stuck")
    with pytest.raises(kclient.NoReply, match="closed its shell socket"):
        client.complete("x")
    assert client.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"
    assert client.is_alive()


def test_request_on_control_ends_when_the_kernel_has_closed_that_socket(
    fake: Deaf, client: kclient.KernelClient
) -> None:
    fake.close_socket("control")
    with pytest.raises(kclient.NoReply, match="closed its control socket"):
        client.control_channel.kernel_info()
    assert client.kernel_info(timeout=WAIT).content["status"] == "ok"


def test_run_ends_incomplete_when_the_kernel_has_closed_iopub(fake: Deaf, client: kclient.KernelClient) -> None:
    def run(request: Request) -> None:
        request.publish(*stream("begun\n"))
        client.iopub_channel.changed.wait(Deadline(WAIT))
        fake.close_socket("iopub")

    fake.script["mute"] = run
    outcome = client.run("mute")
    assert (outcome.status, outcome.stdout, outcome.complete) == ("ok", "begun\n", False)


def test_connection_that_is_cut_and_made_anew_ends_no_call_and_is_watched_only_while_one_waits(
    fake: Deaf, client: kclient.KernelClient
) -> None:
    may_go_on = Event()

    def slow(request: Request) -> None:
        may_go_on.wait()

    fake.script["slow"] = slow
    watch, line = client.kernel_connection.connection_watch, client.shell_channel._line
    assert isinstance(line, ZmqLine)
    while line._monitors:  # of the handshake
        leaks.turn_loop()
    execution = client.submit("slow")
    while not line._monitors:
        leaks.turn_loop(0.01)
    client.shell_channel.cut()
    watch._probers["shell"].join()
    assert not execution.done()
    assert line._monitors, "it is watched again"
    may_go_on.set()
    assert execution.result(WAIT).ok
    while line._monitors:  # for as long again as the call took, and a second at least
        leaks.turn_loop(0.01)


def test_long_call_wakes_the_program_ever_more_rarely_to_look_at_its_connection() -> None:
    waited, looks = 1.0, 0
    while waited < 3600:
        waited, looks = waited + next_look(waited), looks + 1
    assert looks == 65, "at 2, 4, 8, 16, 32 and 64 seconds, and then each minute"
    assert next_look(0.1) == next_look(-1.0) == next_look(float("-inf")) == WATCH_S
