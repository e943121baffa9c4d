"""The watchdog of a client: it notices an idle status or a reply that was lost, and ends the call that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, Final

import gevent

from kclient.channels.shell import RequestChannel
from kclient.client.channel_set import ChannelSet
from kclient.client.overdue import Event, Overdue, Phase, Unnoticed
from kclient.client.readiness import ASK_AT_MOST, Probe, Readiness
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Timer
from kclient.errors import Failure, KClientError, KernelRestarted, KernelTimeout, NoReply
from kclient.protocol.comms import CommRoutes, OpenComm
from kclient.protocol.routing import Outputs, Slot

OVERDUE_S: Final = 1.0
"""Seconds between the one half of an answer and the other after which the kernel is asked again."""

NUDGE_WAIT_S: Final = 10.0
"""Seconds that an idle kernel has to answer a nudge. One that does not answer by then has another reason."""

PATIENCE_S: Final = 30.0
"""Seconds for which an idle kernel may be silent about a request that is no code. A kernel for Kotlin is not busy while
it looks for completions, which takes it seconds. Every kernel tells that it begins with code."""

BACKLOG_S: Final = 60.0
"""Seconds that iopub may lag behind shell: a flood is not read in the time that it takes to reply."""


class Watchdog:
    """Ends executions whose idle was lost, and requests whose reply was: a kernel's PUB may drop messages.

    It asks kernel_info on the same shell. An answer that the kernel has not sent before it answers that, it never will
    send. A shell that answers nothing holds up its own answers only. `overdue` has the table of what happens when.

    It nudges a kernel that is idle although a request has come: ipykernel 7.3 may sleep on, with any number of messages
    in a connection, until something comes over another connection.

    When the connection to a kernel that this program did not start was cut and is back, it asks in the same way.
    Answers that were sent meanwhile are lost. If another kernel answers, the requests of the old one are lost, too.
    """

    def __init__(self, channels: ChannelSet, readiness: Readiness, comm_routes: CommRoutes[OpenComm]) -> None:
        self._channels = channels
        self._readiness = readiness
        self._comm_routes = comm_routes
        self._alarm = Timer(channels.owner, self._look_next_turn)
        self._turn = Timer(channels.owner, self._look)
        self._patience = Timer(channels.owner, self._look_at_silent)
        self._silent: dict[str, tuple[float, Overdue]] = {}
        self._watchers: dict[object, gevent.Greenlet[..., Any]] = {}
        self._nudged = -1.0
        self._known: object = None
        self._unnoticed: Unnoticed | None = None

    def arm(self) -> None:
        """Look for what is overdue in a second's time."""
        if not self._alarm.is_set and not self._turn.is_set:
            self._alarm.set(OVERDUE_S)

    def expect_status(self, msg_id: str) -> None:
        """A message was sent on the main shell that gets no reply, and that the kernel may overlook.

        Kernels of protocol 4 publish no status about such a message, and overlook none.
        """
        channels, before = self._channels, self._unnoticed
        if not channels.runs("iopub") or channels.peer.version_4 is not None:
            return
        since = perf_counter()
        if before is not None and before.is_unnoticed():
            since = before.since
            before.forget()
        self._unnoticed = Unnoticed(channels.iopub, msg_id, since)
        self.arm()

    @property
    def expects_status(self) -> bool:
        """True if it is not known that the kernel has noticed the latest such message."""
        return self._unnoticed is not None and self._unnoticed.is_unnoticed()

    def stop(self) -> None:
        """Watch no longer: the channels close."""
        self._alarm.cancel()
        self._turn.cancel()
        self._patience.cancel()
        self._silent.clear()
        gevent.killall(list(self._watchers.values()), block=False)
        self._watchers.clear()  # the traceback of each holds on to its channel

    def reconnected(self) -> None:
        """The connection was cut and is back, perhaps to another kernel than the one that we know so far."""
        keys = {("reconnected", channel.name): channel for channel in self._request_channels()}
        if not any(map(self._is_watched, keys)):
            self._known = self._readiness.kernel_session
        for key, channel in keys.items():
            if self._is_watched(key):  # its question may be lost, too
                self._watchers.pop(key).kill(block=False)
            self._spawn(key, self._ask_after_cut, channel)

    def _spawn(self, key: object, method: Callable[..., None], *args: object) -> None:
        self._watchers[key] = gevent.spawn(self._run, key, method, args)

    def _run(self, key: object, method: Callable[..., None], args: tuple[object, ...]) -> None:
        try:
            method(*args)
        except KClientError as exc:  # closed, dead or restarted: the calls that wait are told of that elsewhere
            log().debug("the watch for lost messages ended: %s", exc)
        if self._watchers.get(key) is gevent.getcurrent():
            del self._watchers[key]
        self._arm_again()

    def _is_watched(self, key: object) -> bool:
        watcher = self._watchers.get(key)
        return watcher is not None and not watcher.ready()

    def _look_next_turn(self) -> None:
        """Look when the channels have taken in the messages that came while the loop stood still."""
        self._turn.set(0)

    def _look(self) -> None:
        for channel in self._channels.running():
            channel.mend()
        until = perf_counter() - OVERDUE_S
        found: dict[tuple[str, str | None], list[Overdue]] = {}
        for overdue in self._owed():
            if overdue.since <= until and not self._is_watched(overdue.shell):
                found.setdefault(overdue.shell, []).append(overdue)
        for shell, all_overdue in found.items():
            self._spawn_watch(shell, all_overdue)
        unheard = self._unheard()
        if unheard and min(overdue.since for overdue in unheard) <= until and not self._is_watched("nudge"):
            self._nudged = perf_counter()
            due = [overdue for overdue in unheard if overdue.since <= until]
            for overdue in due:
                overdue.note(Event.NUDGE)
            self._spawn("nudge", self._nudge, due)
        self._arm_again()

    def _arm_again(self) -> None:
        """Look again, if an answer is owed that no greenlet watches for."""
        owed = [overdue.since for overdue in self._owed() if not self._is_watched(overdue.shell)]
        if not self._is_watched("nudge"):
            owed += [overdue.since for overdue in self._unheard()]
        if owed and not self._turn.is_set:
            self._alarm.set(min(owed) + OVERDUE_S - perf_counter())

    def _spawn_watch(self, key: object, all_overdue: Sequence[Overdue]) -> None:
        for overdue in all_overdue:
            overdue.note(Event.ASK)
        self._spawn(key, self._watch, all_overdue)

    def _watch(self, all_overdue: Sequence[Overdue]) -> None:
        """Ask on the shell of all these, and give up the answers that have not come by then."""
        try:
            self._ask(all_overdue)
            for overdue in all_overdue:
                overdue.conclude()
        finally:
            for overdue in all_overdue:
                self._silent.pop(overdue.msg_id, None)

    def _nudge(self, unheard: Sequence[Overdue]) -> None:
        """Wake the kernel. Code that it does not begin then was lost on the way."""
        self._readiness.nudge(Deadline(NUDGE_WAIT_S))
        until = perf_counter() + PATIENCE_S
        code = [overdue for overdue in unheard if overdue.is_code]
        for overdue in unheard:
            overdue.note(Event.ASK if overdue.is_code else Event.WAIT)
            if not overdue.is_code:
                self._silent[overdue.msg_id] = until, overdue
        self._look_at_silent()
        if code:
            self._watch(code)

    def _look_at_silent(self) -> None:
        """Give the kernel time for requests that it is silent about; ask when that time is over."""
        now = perf_counter()
        for _, overdue in list(self._silent.values()):
            if overdue.phase is Phase.SILENT and not overdue.is_still_owed():
                overdue.note(Event.SETTLE)
                del self._silent[overdue.msg_id]
        over = [overdue for until, overdue in self._silent.values() if overdue.phase is Phase.SILENT and until <= now]
        if over:
            self._spawn_watch(("silent", over[0].msg_id), over)
        ends = [until for until, overdue in self._silent.values() if overdue.phase is Phase.SILENT]
        if ends:
            self._patience.set(min(ends) - now)

    def _ask_after_cut(self, channel: RequestChannel) -> None:
        pending = [slot for slot in channel.requests if slot.is_pending()]
        comm_ids = list(self._comm_routes.comms)
        if not pending and not comm_ids:
            return
        probe = self._ask_and_nudge(channel)
        self._readiness.meet(probe.kernel_session)
        before = [slot for slot in channel.requests if slot.subshell_id is None and slot.sent < probe.made]
        if probe.kernel_session == self._known:
            channel.give_up(before, lost)
        else:
            channel.give_up({*before, *pending}, KernelRestarted)
            if comm_ids:
                self._comm_routes.fail(KernelRestarted, comm_ids)
        self._readiness.wait_for_idle(probe, Deadline(OVERDUE_S))
        probe.forget()

    def _ask_and_nudge(self, channel: RequestChannel) -> Probe:
        """The question may be lost with the connection, too, or overlooked: nudge and ask again, ever more rarely."""
        pause = OVERDUE_S
        while True:
            with suppress(KernelTimeout, NoReply):
                return self._readiness.ask(channel, Deadline(pause))
            with suppress(KernelTimeout, NoReply):
                self._readiness.nudge(Deadline(pause))
            pause *= 2

    def _ask(self, all_overdue: Sequence[Overdue]) -> None:
        """Return when the kernel has answered a later request, or when it does not answer at all."""
        channel, subshell_id = all_overdue[0].channel, all_overdue[0].subshell_id
        for _ in range(ASK_AT_MOST):
            if not any(overdue.is_still_owed() for overdue in all_overdue):
                return
            probe = self._readiness.ask(channel, Deadline(None), subshell_id=subshell_id)
            try:
                if self._readiness.wait_for_idle(probe, Deadline(BACKLOG_S)):
                    return
            finally:
                probe.forget()

    def _request_channels(self) -> list[RequestChannel]:
        return [channel for channel in self._channels.running() if isinstance(channel, RequestChannel)]

    def _owed(self) -> list[Overdue]:
        """Answers of which one half has come, and of which a call awaits the other."""
        channels = self._channels
        if channels.outputs is None or not channels.runs("shell"):
            return []
        return [*self._owed_idles(channels.outputs), *self._owed_replies()]

    def _owed_idles(self, outputs: Outputs) -> Iterator[Overdue]:
        for msg_id, since in self._channels.pending.owed_idle.items():
            execution = outputs.executions.get(msg_id)
            if execution is not None and execution.awaits_idle():
                shell = self._channels.shell
                yield Overdue(shell, execution.subshell_id, since, execution.awaits_idle, execution.conclude)

    def _owed_replies(self) -> Iterator[Overdue]:
        for msg_id, since in self._channels.pending.owed_reply.items():
            for channel in self._request_channels():
                slot = channel.requests.get(msg_id)
                if slot is not None and slot.on_settled is not None:
                    yield _overdue_reply(channel, slot, since, no_reply)

    def _unheard(self) -> list[Overdue]:
        """Requests on the main shell of which nothing has come, if the kernel has been idle since the latest nudge.

        A kernel that has told no state yet counts as idle: to nudge a busy one does no harm.
        """
        channels = self._channels
        outputs = channels.outputs
        if outputs is None or outputs.executing or not channels.runs("shell"):
            return []
        if outputs.execution_state not in ("idle", "unknown"):
            return []
        if outputs.state_since <= self._nudged:  # it was nudged already in this time of rest
            return []
        unheard_of = [
            _overdue_reply(channels.shell, slot, max(slot.sent, outputs.state_since), unheard)
            for slot in channels.shell.requests
            if slot.on_settled is not None and slot.subshell_id is None and slot.msg_id not in self._silent
        ]
        latest = self._unnoticed
        if latest is not None and latest.is_unnoticed():
            since = max(latest.since, outputs.state_since)
            unheard_of.append(Overdue(channels.shell, None, since, latest.is_unnoticed, latest.forget))
        for overdue in unheard_of:
            overdue.phase = Phase.UNHEARD
        return unheard_of


def _overdue_reply(channel: RequestChannel, slot: Slot, since: float, failure: Failure) -> Overdue:
    give_up = partial(channel.give_up, [slot], failure)
    is_code = slot.reply_type == "execute_reply"
    return Overdue(channel, slot.subshell_id, since, slot.is_pending, give_up, slot.msg_id, is_code)


def no_reply(msg_id: str | None) -> NoReply:
    return NoReply("the kernel finished the request and sent no reply to it", msg_id=msg_id)


def unheard(msg_id: str | None) -> NoReply:
    return NoReply("the kernel is idle and has not answered the request: that, or its reply, was lost", msg_id=msg_id)


def lost(msg_id: str | None) -> NoReply:
    return NoReply("the connection to the kernel was cut, and the reply is lost", msg_id=msg_id)
