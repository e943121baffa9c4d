"""CurveZMQ with a real kernel: of its own accord over both transports, across restart and attach, and refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import jupyter_client
import leaks
import pytest
import zmq
from fixtures import WAIT

import kclient
from kclient.transport.zmq.context import context

pytestmark = pytest.mark.skipif(
    not kclient.find_kernel_spec("python3").supports_curve, reason="ipykernel encrypts since 7.3"
)

CURVE = ("curve_publickey", "curve_secretkey")


def use_every_channel(client: Any) -> None:
    outcome = client.run("print(input('name? ')); 6 * 7", on_input=lambda *_: "Ada", timeout=WAIT)
    assert (outcome.stdout, outcome.text, outcome.complete) == ("Ada\n", "42", True)
    assert client.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"
    client.hb_channel.pause()
    client.hb_channel.unpause()
    silence = client.hb_channel.since_last_beat()
    while client.hb_channel.is_beating() is None:
        leaks.turn_loop(0.001)
    assert (client.hb_channel.is_beating(), client.hb_channel.misses, silence < WAIT) == (True, 0, True)


def test_kernel_that_declares_it_is_encrypted_on_every_channel(kernel: kclient.KernelManager) -> None:
    info = kernel.get_connection_info()
    assert [len(info[name]) for name in CURVE] == [40, 40]
    assert json.loads(Path(kernel.connection_file).read_text()) == info
    assert os.stat(kernel.connection_file).st_mode & 0o777 == 0o600
    use_every_channel(kernel)


def info_keys(kernel: kclient.KernelManager) -> list[str]:
    return [kernel.get_connection_info()[name] for name in ("key", *CURVE)]


def test_channel_made_by_hand_with_the_session_of_a_manager_is_encrypted() -> None:
    with kclient.KernelManager(encryption="required") as manager:
        manager.start_kernel()
        info = kclient.ConnectionInfo.from_dict(manager.get_connection_info())
        channel = kclient.ShellChannel(context(), manager.session, info.address("shell"))
        channel.start()
        assert channel.kernel_info(timeout=WAIT).content["status"] == "ok"
        assert manager.session.server_key == info.curve_publickey != b""
        channel.stop()


@pytest.mark.parametrize("key", ["none", "another"])
def test_client_without_the_key_gets_nothing(kernel: kclient.KernelManager, key: str) -> None:
    public, secret = zmq.curve_keypair() if key == "another" else (b"", b"")
    info = attrs.evolve(kernel.client.connection, curve_publickey=public, curve_secretkey=secret)
    with kclient.KernelClient(info) as stranger:
        stranger.start_channels()
        stranger.hb_channel.unpause()
        with pytest.raises(kclient.KClientError, match="wants an encrypted|has another key") as caught:
            stranger.wait_for_ready(WAIT)
        with pytest.raises(kclient.KClientError, match="wants an encrypted|has another key"):
            stranger.control_channel.kernel_info()
        assert kernel.run("print('secret')", timeout=WAIT).stdout == "secret\n"
        assert [channel.get_msgs() for channel in (stranger.iopub_channel, stranger.stdin_channel)] == [[], []]
        assert not stranger.iopub_channel.outputs.subscribed
        assert stranger.hb_channel.misses == 0
        assert not stranger.hb_channel.is_beating()
    assert not [key for key in info_keys(kernel) if key in str(caught.value)]


def test_keys_stay_across_a_restart_and_serve_who_attaches(
    kernel_manager: kclient.KernelManager, caplog: pytest.LogCaptureFixture
) -> None:
    info = kernel_manager.get_connection_info()
    with caplog.at_level(logging.DEBUG), kclient.connect(kernel_manager.connection_file, timeout=WAIT) as client:
        kernel_manager.run("x = 1", timeout=WAIT)
        kernel_manager.restart_kernel(timeout=WAIT)
        assert kernel_manager.get_connection_info() == info
        assert kernel_manager.run("'x' in dir()", timeout=WAIT).text == "False"
        client.wait_for_ready(WAIT)
        use_every_channel(client)
        attached = kclient.KernelManager()
        attached.load_connection_file(kernel_manager.connection_file)
        attached.start_channels()
        attached.wait_for_ready(WAIT)
        use_every_channel(attached)
        attached.stop_channels()
        kernel_manager.stop_channels()
        process = kernel_manager.process
        kernel_manager.shutdown_kernel()
        assert process.exit_code == 0, "asked by a message, over a connection of its own"
    shown = [caplog.text, *map(repr, (kernel_manager, attached, client, client.connection))]
    assert not [text for text in shown for name in ("key", *CURVE) if info[name] in text]


PEERS = """
import jupyter_client, kclient
with kclient.start_kernel(encryption="required", timeout=30) as kernel:
    peer = jupyter_client.BlockingKernelClient(connection_file=kernel.connection_file)
    peer.load_connection_file()
    peer.start_channels()
    peer.wait_for_ready(timeout=30)
    print(peer.execute_interactive("6 * 7", timeout=30, silent=True)["content"]["status"])
    peer.stop_channels()
manager = jupyter_client.KernelManager(transport_encryption="required")
manager.start_kernel()
with kclient.connect(manager.connection_file, timeout=30) as client:
    print(client.run("6 * 7", timeout=30).text, bool(client.connection.curve_publickey))
manager.shutdown_kernel(now=True)
"""


@pytest.mark.skipif(
    not hasattr(jupyter_client.KernelManager, "transport_encryption"), reason="jupyter_client encrypts since 8.9"
)
def test_jupyter_client_and_we_attach_to_the_encrypted_kernels_of_the_other(run_script: Callable[..., str]) -> None:
    assert run_script(PEERS).split() == ["ok", "42", "True"]


def test_encryption_can_be_switched_off(start_kernel: Callable[..., kclient.KernelManager]) -> None:
    kernel = start_kernel(encryption="off")
    assert not set(CURVE) & kernel.get_connection_info().keys()
    assert kernel.client.connection.curve_publickey == b""
    assert kernel.run("6 * 7", timeout=WAIT).text == "42"


def test_kernel_that_declares_encryption_and_does_not_do_it_is_told_of(install_kernel: Callable[..., str]) -> None:
    name = install_kernel("import signal; signal.pause()", metadata={"supported_encryption": ["curve"]})
    with pytest.raises(kclient.KernelTimeout, match="the connection is encrypted; .* pass encryption='off'"):
        kclient.start_kernel(name, timeout=0.2)


PLAIN_KERNEL = """
import json, sys
from ipykernel.kernelapp import IPKernelApp

with open(sys.argv[1]) as file:
    values = json.load(file)
with open(sys.argv[1], "w") as file:
    json.dump({name: value for name, value in values.items() if not name.startswith("curve_")}, file)
IPKernelApp.launch_instance(["-f", sys.argv[1]])
"""


def test_kernel_that_declares_encryption_and_answers_without_is_told_of_as_soon_as_it_listens(
    install_kernel: Callable[..., str],
) -> None:
    name = install_kernel(PLAIN_KERNEL, metadata={"supported_encryption": ["curve"]})
    with pytest.raises(kclient.ConnectionFileError, match="does not encrypt, .* pass encryption='off'"):
        kclient.start_kernel(name, timeout=None)
