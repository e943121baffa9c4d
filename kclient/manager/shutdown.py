"""Asks a kernel to exit, by a shutdown_request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, cast

from kclient.channels.shell import RequestChannel
from kclient.channels.turns import Turn
from kclient.client.channel_set import ChannelSet
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.errors import KClientError

CONTROL_WAIT_S: Final = 1.0
"""Seconds, or half of the deadline if that is less, after which a kernel silent on control is asked on shell, too."""


def ask_to_exit(
    channels: ChannelSet, wait_for_exit: Callable[[Deadline], bool], deadline: Deadline, *, restart: bool
) -> None:
    """Send a shutdown_request on control and wait; send it on shell as well if control brings no reply.

    A kernel that has replied exits within half of the deadline, or will not exit by itself. The other half is for one
    that is still busy with code. Some kernels have no control channel. If no request can be sent, it does not wait.
    """
    wait_if_answered = deadline.half()
    waits = {"control": wait_if_answered.at_most(CONTROL_WAIT_S), "shell": wait_if_answered}
    was_asked = False
    with ExitStack() as stack:
        for name, wait in waits.items():
            try:
                channel = stack.enter_context(_channel(channels, name))
                slot = channel.post(channels.session.msg("shutdown_request", {"restart": restart}), turn=Turn.AT_ONCE)
            except KClientError as exc:
                log().debug("cannot ask the kernel to exit on %s: %s", name, exc)
                continue
            was_asked = True
            channel.requests.abandon(slot)
            if wait_for_exit(wait):
                return
            if channel.requests.get(slot.msg_id) is None:  # the reply came
                wait_for_exit(wait_if_answered)
                return
        if was_asked:
            wait_for_exit(deadline)


@contextmanager
def _channel(channels: ChannelSet, name: str) -> Iterator[RequestChannel]:
    """The client's own channel or, if that does not run, a temporary one."""
    if channels.runs(name):
        yield cast(RequestChannel, channels.channel(name))
    else:
        with channels.temporary_channel(name) as channel:
            yield channel
