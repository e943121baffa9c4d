"""How long a kernel that was asked to exit is waited for."""

from __future__ import annotations

import pytest
from fixtures import WAIT

import kclient
from kclient.concurrency.deadline import Deadline
from kclient.manager.shutdown import CONTROL_WAIT_S, ask_to_exit
from kclient.testing import FakeKernel


@pytest.mark.parametrize(
    ("answers_on", "expected"),
    [("control", [CONTROL_WAIT_S, 50]), ("shell", [CONTROL_WAIT_S, 50, 50]), ("none", [CONTROL_WAIT_S, 50, 100])],
)
def test_kernel_that_replied_has_half_of_the_time_to_exit(answers_on: str, expected: list[float]) -> None:
    waits: list[float | None] = []
    with FakeKernel() as fake, kclient.connect(fake.connection_info, watch=False) as client:
        fake.lose = lambda channel, message: message.msg_type == "shutdown_reply" and channel != answers_on

        def wait_for_exit(deadline: Deadline) -> bool:
            waits.append(deadline.timeout)
            for channel in (client.control_channel, client.shell_channel):
                channel.kernel_info(timeout=WAIT)  # so a reply that the kernel has sent before is in
            return False

        ask_to_exit(client.kernel_connection.channels, wait_for_exit, Deadline(100), restart=False)
    assert waits == pytest.approx(expected, abs=5)
