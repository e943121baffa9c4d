"""CurveZMQ on every socket, against a FakeKernel: a client with the key can talk to it, a client without it cannot."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import attrs
import leaks
import pytest
import zmq
from proxy import Line
from zmq.utils.monitor import parse_monitor_message

import kclient
from kclient.concurrency.deadline import Deadline
from kclient.protocol.connection import CHANNELS
from kclient.testing import FakeKernel, Request, result, stream
from kclient.transport.zmq.context import context

WAIT = 20


def ask(request: Request) -> None:
    request.publish(*stream(f"hello {request.ask('your name? ')}\n"))


SCRIPT = {"6 * 7": [stream("hi\n"), result("42")], "ask": ask}


@pytest.fixture
def fake(transport: str) -> Iterator[FakeKernel]:
    with FakeKernel(SCRIPT, transport=transport, curve=True) as fake:
        yield fake


def stranger(fake: FakeKernel, key: str) -> kclient.ConnectionInfo:
    """The connection of a client that knows the signing key, and not the key of the curve, or another one."""
    public, secret = zmq.curve_keypair() if key == "another" else (b"", b"")
    return attrs.evolve(fake.connection_info, curve_publickey=public, curve_secretkey=secret)


def test_all_channels_work(fake: FakeKernel) -> None:
    with kclient.connect(fake.connection_info, timeout=WAIT) as client:
        outcome = client.run("6 * 7", timeout=WAIT)
        assert (outcome.stdout, outcome.text, outcome.complete) == ("hi\n", "42", True)
        assert client.run("ask", on_input=lambda *_: "Ada", timeout=WAIT).stdout == "hello Ada\n"
        assert client.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"
        beats = client.hb_channel.since_last_beat()
        client.hb_channel.pause()
        client.hb_channel.unpause()
        while client.hb_channel.is_beating() is None:
            leaks.turn_loop(0.001)
        assert (beats < WAIT, client.hb_channel.is_beating()) == (True, True)


@pytest.mark.parametrize("key", ["none", "another"])
def test_client_without_the_key_is_turned_away_at_every_socket(fake: FakeKernel, key: str) -> None:
    succeeded, failed = zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    with ExitStack() as stack:
        monitors = {}
        for name in CHANNELS:
            socket = fake._ports[name].wire.socket
            monitors[name] = stack.enter_context(socket.get_monitor_socket(succeeded | failed))
            stack.callback(socket.disable_monitor)
        with kclient.KernelClient(stranger(fake, key)) as client:
            client.start_channels()
            client.hb_channel.unpause()
            events = {name: parse_monitor_message(monitor.recv_multipart()) for name, monitor in monitors.items()}
            fake.publish(*stream("unread"))
            with pytest.raises(kclient.KClientError):
                client.control_channel.kernel_info(timeout=0.05)
            assert client.iopub_channel.get_msgs() == []
    assert {name: event["event"] for name, event in events.items()} == dict.fromkeys(CHANNELS, failed)
    assert fake.requests == []


def test_request_is_lost_when_libzmq_has_given_up_the_connection(fake: FakeKernel) -> None:
    """libzmq gives up if only one side encrypts: it reconnects no more, and refuses to send."""
    with kclient.KernelClient(stranger(fake, "none")) as client:
        client.start_channels()
        for channel in (client.shell_channel, client.hb_channel):
            channel.disconnect()
        client.hb_channel.unpause()
        assert client.hb_channel.misses == 0
        with pytest.raises(kclient.KernelTimeout):
            client.kernel_info(timeout=0)
        with pytest.raises(kclient.ConnectionFileError, match="wants an encrypted"):
            client.wait_for_ready(WAIT)


@pytest.mark.parametrize("key", ["none", "another"])
def test_client_without_the_key_is_told_what_may_be_wrong_and_does_no_harm(fake: FakeKernel, key: str) -> None:
    words = {"none": "wants an encrypted", "another": "has another key than the curve_publickey"}[key]
    with kclient.connect(fake.connection_info, timeout=WAIT) as client:
        with pytest.raises(kclient.ConnectionFileError, match=words):
            kclient.connect(stranger(fake, key), timeout=WAIT)
        assert client.run("6 * 7", timeout=WAIT).text == "42"


def test_manager_that_attaches_without_the_key_is_told_so_too(fake: FakeKernel, folder: Path) -> None:
    path = folder / "without.json"
    path.write_text(json.dumps(stranger(fake, "none").to_dict()))
    manager = kclient.KernelManager()
    manager.load_connection_file(path)
    manager.start_channels()
    with pytest.raises(kclient.ConnectionFileError, match=f"^connection file {path}: .* wants an encrypted") as caught:
        manager.wait_for_ready(WAIT)
    assert caught.value.path == str(path)
    manager.stop_channels()


def test_client_with_keys_gets_no_answer_from_a_kernel_that_does_not_encrypt() -> None:
    public, secret = zmq.curve_keypair()
    with FakeKernel() as fake:
        info = attrs.evolve(fake.connection_info, curve_publickey=public, curve_secretkey=secret)
        with pytest.raises(kclient.ConnectionFileError, match="does not encrypt"):
            kclient.connect(info, timeout=WAIT)
        assert fake.requests == []


@pytest.mark.parametrize("curve", [False, True])
def test_what_goes_over_the_wire_can_be_read_only_without_encryption(curve: bool) -> None:
    seen = bytearray()
    with FakeKernel(SCRIPT, curve=curve) as fake, Line(fake.connection_info, seen.extend) as line:
        with kclient.connect(line.connection_info, timeout=WAIT) as client:
            client.run("6 * 7", timeout=WAIT)
            client.run("ask", on_input=lambda *_: "Ada", timeout=WAIT)
            client.control_channel.kernel_info(timeout=WAIT)
    told = [b"6 * 7", b"hi\\n", b"your name?", b'"Ada"', b"hello Ada", b"kernel_info_request", client.session.identity]
    assert [words in seen for words in told] == [not curve] * len(told)
    assert b"CURVE" in seen if curve else b"NULL" in seen


def test_session_of_the_callers_own_is_told_of_the_key(fake: FakeKernel) -> None:
    info = fake.connection_info
    with kclient.KernelClient(info, session=kclient.Session(info.key)) as client:
        client.start_channels()
        client.wait_for_ready(WAIT)
        assert client.run("6 * 7", timeout=WAIT).text == "42"


def test_knock_over_a_connection_of_its_own_is_encrypted_too(fake: FakeKernel) -> None:
    with kclient.connect(fake.connection_info, timeout=WAIT) as client:
        asked = len(fake.requests)
        client.kernel_connection.readiness.nudge(Deadline(WAIT))
        assert [request.msg_type for request in fake.requests[asked:]] == ["kernel_info_request"]


def test_keys_are_in_no_repr_log_or_error(fake: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    info = fake.connection_info
    with caplog.at_level(logging.DEBUG), kclient.connect(info, timeout=WAIT) as client:
        shown = [*map(repr, (client, client.connection, client.session, client.shell_channel, client.hb_channel, fake))]
        for key in ("none", "another"):
            with pytest.raises(kclient.KClientError) as caught:
                kclient.connect(stranger(fake, key), timeout=0.05)
            shown += [repr(caught.value), str(caught.value), str(vars(caught.value))]
        client.run("6 * 7", timeout=WAIT)
    shown.append(caplog.text)
    keys = [key.decode() for key in (info.key, info.curve_publickey, info.curve_secretkey)]
    assert not [text for text in shown for key in keys if key in text]


def test_channel_made_by_hand_without_the_key_says_what_may_lack() -> None:
    with FakeKernel(curve=True) as fake:
        info = fake.connection_info
        channel = kclient.ShellChannel(context(), kclient.Session(info.key), info.address("shell"))
        channel.start()
        with pytest.raises(kclient.KernelTimeout, match="server_key"):
            channel.kernel_info(timeout=0.05)
        channel.stop()
        session = kclient.Session(info.key, server_key=info.curve_publickey)
        channel = kclient.ShellChannel(context(), session, info.address("shell"))
        channel.start()
        assert channel.kernel_info(timeout=WAIT).content["status"] == "ok"
        channel.stop()
