"""What the kernel supports: known before a request is sent that it would never answer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import gevent

from kclient.client.execution import Execution
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.errors import InvalidArgument, KClientError, KernelTimeout, NoReply
from kclient.protocol.messages import Message, check_code
from kclient.protocol.peer import feature_of
from kclient.protocol.routing import Slot

if TYPE_CHECKING:
    from kclient.client.connection import KernelConnection

ANSWER_WAIT: Final = 1.0
"""Seconds in which a kernel that answers for a deleted subshell does: ipykernel 7.4 at once, older ones never."""


class Subshells:
    """Refuses what the kernel is known not to understand; knows its subshells, and ends what awaits a deleted one.

    ipykernel drops a request for a subshell that it does not have (since 7.4 it replies with an error), and what is
    queued in a subshell that is deleted.
    """

    def __init__(self, link: KernelConnection) -> None:
        self._link = link
        self._subshells: set[str] = set()
        self._is_outdated = False
        self._lister: gevent.Greenlet[..., Any] | None = None
        self._endings: dict[str, gevent.Greenlet[..., Any]] = {}
        link.peer.observers |= {
            "create_subshell_reply": self._note_created,
            "list_subshell_reply": self._note_list,
            "delete_subshell_reply": lambda reply: self.subshell_deleted(),
        }

    def admit(self, message: Message, deadline: Deadline | None) -> None:
        """Raise UnsupportedFeature, or InvalidArgument for a subshell that is not there.

        What is not known yet the kernel is asked, within the deadline; without one only what is known counts. Whether
        a subshell is there only control can tell.
        """
        link, header = self._link, message.header
        if link.peer.info is None and deadline is not None and feature_of(header) is not None:
            link.prober.ask(link.control if link.runs("control") else link.shell, deadline)
        link.peer.check(header)
        parts = message.content if header["msg_type"] == "delete_subshell_request" else header
        subshell_id = parts.get("subshell_id")
        if subshell_id is None or check_code(subshell_id, "subshell_id") in self._subshells or deadline is None:
            return
        if not link.runs("control"):
            return
        there = self._list(deadline)
        if there is not None and subshell_id not in there:
            raise InvalidArgument(
                f"the kernel has no subshell {subshell_id!r}; create_subshell() makes one, list_subshells() lists them"
            )

    def forget(self) -> None:
        """Another kernel has other subshells."""
        self._subshells.clear()

    def stop(self) -> None:
        greenlets = (self._lister, *self._endings.values())
        gevent.killall([greenlet for greenlet in greenlets if greenlet is not None], block=False)
        self._lister = None
        self._endings.clear()

    def _list(self, deadline: Deadline) -> set[str] | None:
        """Ask for the subshells there are; None if the kernel does not tell.

        Not what is known by the time that the caller goes on: the next deletion may have been heard of.
        """
        link = self._link
        with link.owner.call():
            reply = link.control.exchange(link.session.msg("list_subshell_request"), deadline)
        return _listed(reply)

    def _note_created(self, reply: Message) -> None:
        subshell_id = reply.content.get("subshell_id")
        if isinstance(subshell_id, str):
            self._subshells.add(subshell_id)

    def _note_list(self, reply: Message) -> None:
        there = _listed(reply)
        if there is not None:
            self._subshells = there

    def subshell_deleted(self) -> None:
        """Somebody deleted one, nobody says which: they are listed before the next is used."""
        self._subshells = set()
        self._is_outdated = True
        if self._lister is None and self._awaited() and self._link.runs("control"):
            self._lister = gevent.spawn(self._end_orphans)

    def _awaited(self) -> set[str]:
        """The subshells from which something is awaited."""
        executions = (execution.subshell_id for execution in self._executions())
        return {shell for shell in (*executions, *(slot.subshell_id for slot in self._slots())) if shell is not None}

    def _slots(self) -> list[Slot]:
        link = self._link
        return [slot for slot in link.shell.requests if slot.is_pending()] if link.runs("shell") else []

    def _executions(self) -> list[Execution]:
        outputs = self._link.outputs
        sinks = outputs.executions.values() if outputs is not None else ()
        return [sink for sink in sinks if isinstance(sink, Execution)]

    def _end_orphans(self) -> None:
        """End what is awaited from subshells that are gone; many deletions in a row are asked about but twice."""
        try:
            while self._is_outdated:
                self._is_outdated = False
                awaited = self._awaited()
                there = self._list(Deadline(None))
                for subshell_id in () if there is None else awaited - there - self._endings.keys():
                    self._endings[subshell_id] = gevent.spawn(self._end, subshell_id)
        except KClientError as exc:  # closed, dead or restarted: whoever waits learns of that elsewhere
            log().debug("the calls in a deleted subshell were not ended: %s", exc)
        finally:
            if self._lister is gevent.getcurrent():
                self._lister = None

    def _end(self, subshell_id: str) -> None:
        """End what is awaited from a subshell that is gone, when what it sent last is in."""
        try:
            self._await_last_words(subshell_id)
            self._give_up(subshell_id)
        except KClientError as exc:
            log().debug("the calls in the deleted subshell %s were not ended: %s", subshell_id, exc)
        finally:
            self._endings.pop(subshell_id, None)

    def _await_last_words(self, subshell_id: str) -> None:
        link = self._link
        with suppress(KernelTimeout, NoReply):
            probe = link.prober.ask(link.shell, Deadline(ANSWER_WAIT), subshell_id=subshell_id)
            link.prober.wait_for_idle(probe, Deadline(ANSWER_WAIT))
            probe.forget()

    def _give_up(self, subshell_id: str) -> None:
        self._link.shell.give_up(
            [slot for slot in self._slots() if slot.subshell_id == subshell_id], _deleted(subshell_id)
        )
        for execution in self._executions():
            if execution.subshell_id == subshell_id:
                execution.conclude()


def _listed(reply: Message) -> set[str] | None:
    """The subshells that a list_subshell_reply tells of; None if it tells nothing."""
    subshell_ids = reply.content.get("subshell_id")
    if not isinstance(subshell_ids, list):
        return None
    return {subshell_id for subshell_id in subshell_ids if isinstance(subshell_id, str)}


def _deleted(subshell_id: str) -> Callable[[str | None], NoReply]:
    return lambda msg_id: NoReply(f"subshell {subshell_id} was deleted before it answered", msg_id=msg_id)
