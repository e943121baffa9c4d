"""The polite end of a kernel: a shutdown_request."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, cast

from kclient.channels.shell import ControlChannel, RequestChannel, ShellChannel
from kclient.client.connection import KernelConnection
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.errors import KClientError
from kclient.protocol.connection import ConnectionInfo
from kclient.transport.zmq.context import context

CONTROL_WAIT: Final = 1.0
"""Seconds, half of its time at most, after which a kernel that says nothing on control is asked on shell as well."""

_CLASSES: Final[dict[str, type[RequestChannel]]] = {"control": ControlChannel, "shell": ShellChannel}


def ask_to_exit(
    link: KernelConnection,
    connection: ConnectionInfo,
    wait_for_exit: Callable[[Deadline], bool],
    deadline: Deadline,
    *,
    restart: bool,
) -> None:
    """Send a shutdown_request on control and wait; on shell, too, if it is not heard there, as by a kernel without one.

    A kernel that cannot be asked is not waited for.
    """
    first_wait = deadline.half().at_most(CONTROL_WAIT)
    with ExitStack() as stack:
        for name, patience in (("control", first_wait), ("shell", deadline)):
            try:
                channel = stack.enter_context(_channel(link, connection, name))
                slot = channel.post(link.session.msg("shutdown_request", {"restart": restart}))
            except KClientError as exc:
                log().debug("cannot ask the kernel to exit on %s: %s", name, exc)
                continue
            channel.requests.abandon(slot)
            if wait_for_exit(patience):
                return
            if channel.requests.get(slot.msg_id) is None:  # the reply came
                wait_for_exit(deadline)
                return


@contextmanager
def _channel(link: KernelConnection, connection: ConnectionInfo, name: str) -> Iterator[RequestChannel]:
    """That of the link, or one for the time being if that does not run."""
    if link.runs(name):
        yield cast(RequestChannel, link.channel(name))
        return
    channel = _CLASSES[name](context(), link.session, connection.address(name))
    channel.identity = link.renew_identity()
    try:
        channel.start()
        yield channel
    finally:
        channel.stop()
