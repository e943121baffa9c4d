"""Connecting to what is no kernel, or no longer one: told at once, before anything is sent, with what to do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import gevent
import pytest
from gevent import socket

import kclient
from kclient.errors import copies_of
from kclient.protocol.connection import CHANNELS
from kclient.testing import FakeKernel
from kclient.transport.zmq.reachability import refuses

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""


@pytest.fixture
def path(folder: Path) -> Path:
    return folder / "kernel-of-this-test.json"


@pytest.fixture
def gone(transport: str, path: Path) -> kclient.ConnectionInfo:
    """The values of the file `path`, whose kernel is gone."""
    with FakeKernel(transport=transport) as fake:
        info = fake.connection_info
        write(path, info)
    while not all(refuses(info.address(name)) for name in CHANNELS):  # libzmq's thread closes the sockets
        gevent.sleep(0.001)
    return info


@pytest.fixture
def sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that opens a channel fails the test."""

    def start_channels(client: kclient.KernelClient) -> None:
        raise AssertionError("a channel was opened")

    monkeypatch.setattr(kclient.KernelClient, "start_channels", start_channels)


def write(path: Path, info: kclient.ConnectionInfo, **values: object) -> None:
    path.write_text(json.dumps(info.to_dict() | values))
    path.chmod(0o600)


@contextmanager
def another_program(says: bytes) -> Iterator[int]:
    """The port of a program that is no kernel. It says its words, and keeps the connection."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        held: list[Any] = []

        def serve() -> None:
            while True:
                held.append(server.accept()[0])
                held[-1].sendall(says)

        greenlet = gevent.spawn(serve)
        try:
            yield server.getsockname()[1]
        finally:
            greenlet.kill()
            for connection in held:
                connection.close()


@pytest.mark.usefixtures("sends_nothing")
def test_file_whose_kernel_is_gone_is_told_of_with_its_date(path: Path, gone: kclient.ConnectionInfo) -> None:
    words = f"^no kernel listens at {re.escape(gone.address('shell'))}.*{path} of 20[0-9-]* [0-9:]*; .*remove the file"
    with pytest.raises(kclient.DeadKernelError, match=words):
        kclient.connect(path, timeout=WAIT)


def test_manager_and_client_that_attach_to_it_are_told_so_too(path: Path, gone: kclient.ConnectionInfo) -> None:
    manager = kclient.KernelManager()
    manager.load_connection_file(path)
    manager.start_channels()
    with pytest.raises(kclient.DeadKernelError, match="no kernel listens"):
        manager.wait_for_ready(WAIT)
    manager.stop_channels()
    with kclient.KernelClient(path) as client:
        client.start_channels()
        with pytest.raises(kclient.DeadKernelError, match="no kernel listens"):
            client.wait_for_ready(WAIT)


def test_kernel_that_has_not_begun_to_listen_is_waited_for(path: Path, gone: kclient.ConnectionInfo) -> None:
    """A process that has the file among its arguments may be the kernel."""
    command = [sys.executable, "-c", "input()", "-f", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as starting:
        with pytest.raises(kclient.KernelTimeout, match="no program listens .*, or does not listen yet"):
            kclient.connect(path, timeout=0.05)
        starting.communicate(b"\n")


def test_call_that_waits_is_told_why_its_client_was_closed(gone: kclient.ConnectionInfo, background: Any) -> None:
    """A pool ends the use of a kernel, then closes its channels, before those who wait have had their turn."""
    with kclient.KernelClient(gone) as client:
        client.start_channels()
        waits = [client.stdin_channel.wait_for_peer, client.iopub_channel.get_msg, client.kernel_info]
        calls = [background(wait) for wait in waits]
        assert all(call.is_waiting for call in calls)
        client.kernel_connection.availability.fail(copies_of(kclient.InvalidState("the kernel was returned")))
    assert [str(call.error()) for call in calls] == ["the kernel was returned"] * 3


def test_kernel_that_was_given_without_a_file_is_waited_for(gone: kclient.ConnectionInfo) -> None:
    with pytest.raises(kclient.KernelTimeout, match="no program listens"):
        kclient.connect(gone, timeout=0.05)


@pytest.mark.usefixtures("sends_nothing")
@pytest.mark.parametrize("host", ["kernel.invalid", "kernel..invalid"])
def test_host_that_is_not_known_is_named(path: Path, host: str, capfd: pytest.CaptureFixture[str]) -> None:
    with FakeKernel() as fake:
        write(path, fake.connection_info, ip=host)
        with pytest.raises(kclient.ConnectionFileError, match=f"^connection file {path}: the host '{host}'"):
            kclient.connect(path, timeout=WAIT)
    assert capfd.readouterr() == ("", "")


def test_host_that_is_given_by_name_is_looked_up() -> None:
    with FakeKernel() as fake, kclient.connect(attrs.evolve(fake.connection_info, ip="localhost"), timeout=WAIT) as it:
        assert it.kernel_info(timeout=WAIT).content["status"] == "ok"


@pytest.mark.usefixtures("sends_nothing")
def test_another_program_is_told_from_a_kernel_by_its_words(path: Path) -> None:
    with FakeKernel() as fake, another_program(b"SSH-2.0-OpenSSH_9.9\r\n") as port:
        write(path, fake.connection_info, shell_port=port)
        words = rf"^connection file {path}: the program at tcp://127.0.0.1:{port} is no kernel: .*SSH-2.0-OpenSSH_9.9"
        with pytest.raises(kclient.ConnectionFileError, match=words) as caught:
            kclient.connect(path, timeout=WAIT)
        assert caught.value.path == str(path)


def test_another_program_that_is_silent_is_told_of_when_the_time_is_up() -> None:
    with FakeKernel() as fake, another_program(b"") as port:
        info = attrs.evolve(fake.connection_info, **{f"{name}_port": port for name in CHANNELS})
        with pytest.raises(kclient.KernelTimeout, match="sends no greeting of ZeroMQ: it is no kernel"):
            kclient.connect(info, timeout=0.2)


@pytest.mark.parametrize("call", ["kernel_info", "run"])
def test_call_of_a_client_that_never_asked_whether_it_is_ready_ends_if_the_key_is_wrong(call: str) -> None:
    with FakeKernel() as fake, kclient.KernelClient(attrs.evolve(fake.connection_info, key=b"another")) as client:
        client.start_channels()
        with pytest.raises(kclient.ConnectionFileError, match="has another key"):
            getattr(client, call)(*["1"] * (call == "run"))


@pytest.mark.parametrize("others", [0, 1])
def test_wrong_key_is_named_also_if_another_client_is_there(path: Path, others: int) -> None:
    """The kernel drops our requests. It signs the welcome to iopub, which a second client gets as well."""
    with FakeKernel() as fake, kclient.KernelClient(fake.connection_info) as first:
        if others:
            first.start_channels()
            first.wait_for_ready(WAIT)
        write(path, fake.connection_info, key="another")
        with pytest.raises(kclient.ConnectionFileError, match=f"^connection file {path}: .* has another key") as caught:
            kclient.connect(path, timeout=WAIT)
        assert fake.connection_info.key.decode() not in str(caught.value)
