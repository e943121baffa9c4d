"""Comms with a real ipykernel: its comm package, and a widget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fixtures import WAIT, Background

import kclient
from kclient.testing import FakeKernel

BOTH_LINES = True

TARGET = """
def target(comm, opened):
    def on_msg(message):
        data = message["content"]["data"]
        if data.get("close"):
            comm.close({"bye": data["close"]}, buffers=[b"last"])
        else:
            comm.send({"got": data}, metadata=message["metadata"], buffers=[bytes(b)[::-1] for b in message["buffers"]])

    comm.on_msg(on_msg)
    comm.on_close(lambda message: closed.append(message["content"]["data"]))
    comm.send({"opened": opened["content"]["data"]}, buffers=opened["buffers"])

closed = []
get_ipython().kernel.comm_manager.register_target("echo", target)
"""

OPEN = """
from comm import create_comm

def on_msg(message):
    comm.send({"got": message["content"]["data"]}, buffers=message["buffers"])

comm = create_comm(target_name="here", data={"a": 1}, buffers=[b"some"])
comm.on_msg(on_msg)
comm.send({"b": 2})
"""

WIDGET = """
import ipywidgets
slider = ipywidgets.IntSlider(5)
image = ipywidgets.Image(value=b"pixels")
slider.comm.comm_id
"""


@pytest.fixture
def comms(client: kclient.KernelClient) -> Iterator[Any]:
    yield client.comms
    client.run("get_ipython().kernel.comm_manager.targets.pop('echo', None)", silent=True, timeout=WAIT)


def buffers_of(message: kclient.Message) -> list[bytes]:
    return list(map(bytes, message.buffers))


def test_comm_to_a_target_of_the_kernel(client: kclient.KernelClient, comms: Any) -> None:
    client.run(TARGET, check=True, timeout=WAIT)
    with comms.open("echo", {"a": 1}, buffers=[b"some"]) as comm:
        opened = comm.receive(timeout=WAIT)
        assert (opened.content["data"], buffers_of(opened)) == ({"opened": {"a": 1}}, [b"some"])
        msg_id = comm.send({"b": 2}, metadata={"m": 3}, buffers=[b"abc", memoryview(b"def")])
        answer = comm.receive(timeout=WAIT)
        assert (answer.content["data"], answer.metadata["m"]) == ({"got": {"b": 2}}, 3)
        assert (buffers_of(answer), answer.parent_id) == ([b"cba", b"fed"], msg_id)
        comm.close({"c": 4})
    assert client.run("closed", timeout=WAIT).text == "[{'c': 4}]"


def test_comm_that_the_kernel_closes(client: kclient.KernelClient, comms: Any) -> None:
    client.run(TARGET, check=True, timeout=WAIT)
    comm = comms.open("echo")
    comm.receive(timeout=WAIT)
    comm.send({"close": "now"})
    with pytest.raises(kclient.CommClosed) as caught:
        comm.receive(timeout=WAIT)
    assert caught.value.data == {"bye": "now"}
    with pytest.raises(kclient.CommClosed):
        comm.send()


@pytest.mark.parametrize("kind", ["real", "fake"])
def test_target_that_the_kernel_does_not_know_gets_a_clear_error(kernel: kclient.KernelManager, kind: str) -> None:
    with FakeKernel() as fake:
        connection = kernel.connection_file if kind == "real" else fake.connection_info
        with kclient.connect(connection, watch=False, timeout=WAIT) as client:
            comm = client.comms.open("unknown")
            with pytest.raises(kclient.CommClosed, match="the kernel has no comm target 'unknown'"):
                comm.receive(timeout=WAIT)


def test_comm_that_the_kernel_opens(client: kclient.KernelClient, comms: Any) -> None:
    comms.register_target("here")
    client.run(OPEN, check=True, timeout=WAIT)
    [comm] = comms.values()
    assert (comm.open_message.content["data"], buffers_of(comm.open_message)) == ({"a": 1}, [b"some"])
    assert comm.receive(timeout=WAIT).content["data"] == {"b": 2}
    comm.send({"c": 3}, buffers=[b"more"])
    answer = comm.receive(timeout=WAIT)
    assert (answer.content["data"], buffers_of(answer)) == ({"got": {"c": 3}}, [b"more"])
    client.run("comm.close({'d': 4})", check=True, timeout=WAIT)
    with pytest.raises(kclient.CommClosed) as caught:
        comm.receive(timeout=WAIT)
    assert caught.value.data == {"d": 4}


def test_comm_to_a_target_that_we_do_not_know_is_closed_in_the_kernel(client: kclient.KernelClient, comms: Any) -> None:
    comms.register_target("another")
    client.run(OPEN, check=True, timeout=WAIT)
    client.run("pass", timeout=WAIT)  # the comm_close goes out meanwhile
    assert client.run("comm.comm_id in get_ipython().kernel.comm_manager.comms", timeout=WAIT).text == "False"


def test_widget_is_seen_changed_and_closed_from_either_side(client: kclient.KernelClient, comms: Any) -> None:
    comms.register_target("jupyter.widget")
    comm_id = client.run(WIDGET, check=True, timeout=WAIT).data["text/plain"].strip("'")
    slider, states = comms[comm_id], {}
    for comm in comms.values():
        data = comm.open_message.content["data"]
        states[data["state"]["_model_name"]] = data["state"], data["buffer_paths"], buffers_of(comm.open_message)
    assert states["IntSliderModel"][0]["value"] == 5
    assert states["ImageModel"][1:] == ([["value"]], [b"pixels"])

    slider.send({"method": "update", "state": {"value": 42}, "buffer_paths": []})
    assert client.run("slider.value", timeout=WAIT).text == "42"
    echo = slider.receive(timeout=WAIT).content["data"]
    assert (echo["method"], echo["state"]) == ("echo_update", {"value": 42})
    client.run("slider.value = 7", check=True, timeout=WAIT)
    update = slider.receive(timeout=WAIT).content["data"]
    assert (update["method"], update["state"]) == ("update", {"value": 7})

    with kclient.connect(client.connection, watch=False, timeout=WAIT) as later:
        found = {comm.comm_id: comm for comm in later.comms.discover("jupyter.widget", timeout=WAIT)}
        assert found.keys() == comms.keys()
        found[comm_id].send({"method": "request_state"})
        assert found[comm_id].receive(timeout=WAIT).content["data"]["state"]["value"] == 7
        assert slider.receive(timeout=WAIT).content["data"]["state"]["value"] == 7, "every client gets it"

    client.run("slider.close()", check=True, timeout=WAIT)
    with pytest.raises(kclient.CommClosed):
        slider.receive(timeout=WAIT)
    for comm in list(comms.values()):
        comm.close()
    assert client.comm_info("jupyter.widget", timeout=WAIT).content["comms"] == {}


def test_restart_ends_comms_and_keeps_targets(start_kernel: Any, background: Any) -> None:
    """A client of the kernel's owner, and a client that is not told of the restart and waits for nothing else."""
    kernel = start_kernel()
    kernel.comms.register_target("here")
    with kclient.connect(kernel.connection_file, watch=False, timeout=WAIT) as other:
        calls: list[Background] = []
        for client in (kernel, other):
            client.run(TARGET, check=True, timeout=WAIT)
            comm = client.comms.open("echo")
            comm.receive(timeout=WAIT)
            calls.append(background(comm.receive))
        kernel.restart_kernel(now=True, timeout=WAIT)
        for call in calls:
            error = call.error()
            assert isinstance(error, kclient.KernelRestarted)
            assert "open another" in str(error)
    kernel.run(OPEN, check=True, timeout=WAIT)
    [comm] = kernel.comms.values()
    assert comm.receive(timeout=WAIT).content["data"] == {"b": 2}
    waiting = background(comm.receive)
    kernel.kill_kernel()
    assert isinstance(waiting.error(), kclient.DeadKernelError)
