"""Subshells: refuse a request for one that is not there, and end calls that wait for a deleted one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

import gevent

from kclient.client.catch_up import CatchUp
from kclient.client.channel_set import ChannelSet
from kclient.client.readiness import Readiness
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.errors import Failure, InvalidArgument, KClientError, KernelTimeout, NoReply
from kclient.protocol.messages import Message, check_code
from kclient.protocol.peer import feature_of, listed_subshells
from kclient.protocol.routing import Slot
from kclient.protocol.sink import Sink

ANSWER_WAIT_S: Final = 1.0
"""Seconds to wait for an answer for a deleted subshell. ipykernel 7.4 answers at once, older versions never."""


class Subshells:
    """Refuses requests that the kernel is known not to understand, and ends calls that wait for a deleted subshell.

    ipykernel drops a request for a subshell that it does not have; since 7.4 it replies with an error. It also drops
    the requests that are queued in a subshell when that is deleted.
    """

    def __init__(self, channels: ChannelSet, readiness: Readiness) -> None:
        self._channels = channels
        self._readiness = readiness
        self._is_outdated = False
        self._lister: gevent.Greenlet[..., Any] | None = None
        self._endings: dict[str, gevent.Greenlet[..., Any]] = {}

    def admit(self, message: Message, deadline: Deadline | None) -> None:
        """Raise UnsupportedFeature, or InvalidArgument for a subshell that is not there.

        With a deadline it asks the kernel for the facts that are not known yet. Without one, only known facts count.
        Only control can tell whether a subshell is there.
        """
        channels, header = self._channels, message.header
        if channels.peer.info is None and deadline is not None and feature_of(header) is not None:
            self._readiness.ask(channels.control if channels.runs("control") else channels.shell, deadline)
        channels.peer.check(header)
        parts = message.content if header["msg_type"] == "delete_subshell_request" else header
        subshell_id = parts.get("subshell_id")
        if subshell_id is None or check_code(subshell_id, "subshell_id") in channels.peer.subshells:
            return
        if deadline is None or not channels.runs("control"):
            return
        there = self._list(deadline)
        if there is not None and subshell_id not in there:
            raise InvalidArgument(
                f"the kernel has no subshell {subshell_id!r}; create_subshell() makes one, list_subshells() lists them"
            )

    def deleted(self) -> None:
        """A subshell was deleted, and the kernel does not say which: ask for the list before one is used again."""
        self._channels.peer.forget_subshells()
        self._is_outdated = True
        if self._lister is None and self._awaited() and self._channels.runs("control"):
            self._lister = gevent.spawn(self._end_orphans)

    def stop(self) -> None:
        """End no calls any more: the channels close."""
        greenlets = (self._lister, *self._endings.values())
        gevent.killall([greenlet for greenlet in greenlets if greenlet is not None], block=False)
        self._lister = None
        self._endings.clear()

    def _list(self, deadline: Deadline) -> set[str] | None:
        """Ask for the ids of the subshells; None if the kernel does not tell.

        Returns the ids of the reply, not those in `peer`: another deletion may have cleared those meanwhile.
        """
        channels = self._channels
        with channels.owner.call():
            reply = channels.control.exchange(channels.session.msg("list_subshell_request"), deadline)
        return listed_subshells(reply)

    def _awaited(self) -> set[str]:
        """The ids of the subshells for which calls wait."""
        waiting = [sink.subshell_id for sink in self._executions()] + [slot.subshell_id for slot in self._slots()]
        return {subshell_id for subshell_id in waiting if subshell_id is not None}

    def _slots(self) -> list[Slot]:
        channels = self._channels
        return [slot for slot in channels.shell.requests if slot.is_pending()] if channels.runs("shell") else []

    def _executions(self) -> list[Sink]:
        outputs = self._channels.outputs
        return [] if outputs is None else [sink for sink in outputs.executions.values() if sink.awaits_idle()]

    def _end_orphans(self) -> None:
        """End the calls that wait for subshells that are gone. Many deletions in a row cost two requests only."""
        try:
            while self._is_outdated:
                self._is_outdated = False
                awaited = self._awaited()
                there = self._list(Deadline(None))
                for subshell_id in () if there is None else awaited - there - self._endings.keys():
                    self._endings[subshell_id] = gevent.spawn(self._end, subshell_id)
        except KClientError as exc:  # closed, dead or restarted: then the calls that wait fail anyway
            log().debug("the calls in a deleted subshell were not ended: %s", exc)
        finally:
            if self._lister is gevent.getcurrent():
                self._lister = None

    def _end(self, subshell_id: str) -> None:
        """End the calls that wait for a subshell that is gone, after its latest messages have come."""
        try:
            self._read_latest_messages(subshell_id)
            self._give_up(subshell_id)
        except KClientError as exc:
            log().debug("the calls in the deleted subshell %s were not ended: %s", subshell_id, exc)
        finally:
            self._endings.pop(subshell_id, None)

    def _read_latest_messages(self, subshell_id: str) -> None:
        with suppress(KernelTimeout, NoReply):
            probe = self._readiness.ask(self._channels.shell, Deadline(ANSWER_WAIT_S), subshell_id=subshell_id)
            self._readiness.take_in_idle(probe, Deadline(ANSWER_WAIT_S))
        # The subshell had ended when the kernel listed the others. A status on control from now on lies behind its own.
        CatchUp(self._channels, self._readiness, self._channels.control, lambda: self._owes_idle(subshell_id)).wait()

    def _owes_idle(self, subshell_id: str) -> bool:
        return any(execution.subshell_id == subshell_id for execution in self._executions())

    def _give_up(self, subshell_id: str) -> None:
        self._channels.shell.give_up(
            [slot for slot in self._slots() if slot.subshell_id == subshell_id], _deleted(subshell_id)
        )
        for execution in self._executions():
            if execution.subshell_id == subshell_id:
                execution.conclude()


def _deleted(subshell_id: str) -> Failure:
    return lambda msg_id: NoReply(f"subshell {subshell_id} was deleted before it answered", msg_id=msg_id)
