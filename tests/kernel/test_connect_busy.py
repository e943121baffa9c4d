"""Connecting to a kernel that runs the code of another client: control answers, so the client is ready at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs
import gevent.event
import pytest
from fixtures import WAIT

import kclient
from kclient.testing import FakeKernel, Request
from kclient.testing.script import DEFAULT_HANDLERS


def test_client_of_a_busy_kernel_is_ready_at_once_and_its_code_waits_its_turn(
    kernel: kclient.KernelManager, gate: Any
) -> None:
    execution = kernel.submit(f"print(1)\n{gate.code}")
    assert next(iter(execution)).content["text"] == "1\n"
    with kclient.connect(kernel.connection_file, timeout=WAIT) as client:
        assert client.info.supported_features == kernel.info.supported_features
        mine = client.submit("6 * 7")
        assert client.control_channel.kernel_info(timeout=WAIT).content["status"] == "ok"
        assert not mine.done()
        gate.open()
        assert mine.result(WAIT).text == "42"
        assert execution.result(WAIT).ok
        client.iopub_channel.flush(WAIT)
        assert client.shell_channel.get_msgs() == [], "the question on shell was answered, too, and is ours"


def test_busy_kernel_without_control_is_said_to_be_busy(kernel: kclient.KernelManager, gate: Any) -> None:
    execution = kernel.submit(f"print(1)\n{gate.code}")
    assert next(iter(execution)).content["text"] == "1\n"
    info = attrs.evolve(kernel.client.connection, control_port=0)
    with kclient.KernelClient(info) as client:
        client.start_channels()
        while not client.iopub_channel.outputs.subscribed:
            kernel.control_channel.kernel_info(timeout=WAIT)
            client.iopub_channel.drain()
        with pytest.raises(kclient.KernelTimeout, match="it is busy with other code; wait longer, or interrupt it"):
            client.wait_for_ready(0.1)
        gate.open()
        client.wait_for_ready(WAIT)
    assert execution.result(WAIT).ok


class QuietKernel(FakeKernel):
    """Publishes no status about requests on control, nor about the first question on shell, which waits for control."""

    def __init__(self) -> None:
        super().__init__()
        self._shown: set[str | None] = set()
        self._asked_on_control = gevent.event.Event()
        self._answered = 0
        self.on("kernel_info_request", self._answer_later)

    def publish(
        self, msg_type: str, content: Mapping[str, Any], *, parent: kclient.Message | None = None, **more: Any
    ) -> None:
        if parent is not None and parent.msg_id in self._shown:
            super().publish(msg_type, content, parent=parent, **more)

    def _answer_later(self, request: Request) -> None:
        if request.channel == "control":
            self._asked_on_control.set()
        elif self._answered:
            self._shown.add(request.message.msg_id)
        else:
            self._asked_on_control.wait(WAIT)
            self._answered += 1
        DEFAULT_HANDLERS["kernel_info_request"](request)


def test_kernel_that_is_late_and_publishes_nothing_about_control_is_asked_on_shell_again() -> None:
    with QuietKernel() as fake, kclient.connect(fake.connection_info, watch=False, timeout=WAIT) as client:
        assert client.iopub_channel.outputs.subscribed
