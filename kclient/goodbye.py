"""The polite end of a kernel: a shutdown_request."""

from __future__ import annotations

from collections.abc import Callable

from kclient.channels.shell import ControlChannel
from kclient.channels.wire import context
from kclient.errors import KClientError
from kclient.link import Link
from kclient.log import log


def ask_to_exit(link: Link, control_address: str, wait_for_exit: Callable[[], object], *, restart: bool) -> None:
    """Send a shutdown_request, on a control channel of its own if none runs, and wait.

    A kernel that cannot be asked is not waited for.
    """
    own = None if link.runs("control") else ControlChannel(context(), link.session, control_address)
    control = own or link.control
    try:
        control.start()
        control.requests.abandon(control.post(link.session.msg("shutdown_request", {"restart": restart})))
        wait_for_exit()
    except KClientError as exc:
        log().debug("cannot ask the kernel to exit: %s", exc)
    finally:
        if own is not None:
            own.stop()
