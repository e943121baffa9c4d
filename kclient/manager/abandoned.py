"""`on_abandon="restart"`: a kernel whose code does not heed its interrupt is replaced."""

from __future__ import annotations

import weakref
from contextlib import suppress
from typing import Protocol

import gevent

from kclient.client.availability import Availability
from kclient.client.connection import KernelConnection
from kclient.client.execution import Execution
from kclient.client.giving_up import RESTART_GRACE_S
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.errors import KClientError
from kclient.kernels.process.local import KernelProcess
from kclient.manager.lifecycle import Lifecycle


class Manager(Protocol):
    """The KernelManager, as this module sees it."""

    @property
    def process(self) -> KernelProcess | None: ...

    @property
    def kernel_connection(self) -> KernelConnection: ...

    def is_alive(self) -> bool: ...

    def restart_kernel(self, now: bool = False) -> None: ...


def restart_unless_it_ends(manager: Manager, lifecycle: Lifecycle, execution: Execution) -> None:
    """Let new calls wait until the code of `execution`, which was given up, has ended or the kernel is restarted.

    It does not wait itself. The manager may be dropped meanwhile.
    """
    availability = lifecycle.availability
    availability.begin_restart("code whose call was given up still ran; the kernel is restarted if it does not end")
    gevent.spawn(_restart, weakref.ref(manager), lifecycle, availability, execution)


def _restart(
    reference: weakref.ref[Manager], lifecycle: Lifecycle, availability: Availability, execution: Execution
) -> None:
    process = lifecycle.provisioner.process
    try:
        with suppress(KClientError):  # it ends otherwise, or not at all
            execution.result(RESTART_GRACE_S)
        manager = reference()
        if manager is None or manager.process is not process or not execution.is_running():
            return
        if manager.is_alive() and manager.kernel_connection.channels.is_busy_with(execution.msg_id):
            log().warning("the kernel is restarted: code goes on that was interrupted (%s)", execution.msg_id)
            manager.restart_kernel(now=True)
    except KClientError as exc:
        log().warning("the kernel was not restarted: %s", exc)
    finally:
        restarter = lifecycle.restarter
        if availability.is_restarting and (restarter is None or not restarter.is_at_work):
            with suppress(KClientError), lifecycle.in_charge(Deadline(None)):
                pass  # at its end the calls that wait go on, or fail if the kernel is dead
