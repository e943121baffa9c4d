"""Watchdog: notices that an idle status or a reply was lost, and ends the call that waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Any, Final

import gevent

from kclient.channels.shell import RequestChannel
from kclient.client.catch_up import CatchUp, Question, Verdict, deaf
from kclient.client.channel_set import ChannelSet
from kclient.client.connection_watch import ConnectionWatch
from kclient.client.overdue import AnyOwed, Event, Overdue, Phase, Unnoticed, lost, no_reply, unheard
from kclient.client.readiness import Probe, Readiness
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Timer
from kclient.errors import Failure, KClientError, KernelRestarted, KernelTimeout, NoReply
from kclient.protocol.comms import CommRoutes, OpenComm
from kclient.protocol.routing import Outputs, Slot
from kclient.protocol.sink import Sink

OVERDUE_S: Final = 1.0
"""Seconds after one half of an answer (reply, idle status) after which the kernel is asked for the other half."""

NUDGE_WAIT_S: Final = 10.0
"""Seconds that an idle kernel has to answer a nudge. If it does not, it is silent for another reason than sleep."""

PATIENCE_S: Final = 30.0
"""Seconds for which an idle kernel may be silent about a request that is no code. A kernel for Kotlin publishes no busy
status while it looks for completions, which takes seconds. Every kernel publishes a status when it begins with code."""


class Watchdog:
    """Ends executions whose idle status was lost, and requests whose reply was lost: a kernel's PUB may drop messages.

    It acts in three cases. `overdue` has the table of the steps.

    | it notices                                  | it does                                                            |
    |---------------------------------------------|--------------------------------------------------------------------|
    | one half of an answer has come, the other   | asks kernel_info on the same shell; a shell answers in order, so   |
    | half is overdue                             | an answer that is missing after that reply is lost                 |
    | the kernel is idle, although a request was  | nudges it over another connection, because ipykernel 7.3 may sleep |
    | sent                                        | until a message comes over another one; then asks as above         |
    | the connection to a kernel that this        | asks as above, because answers that were sent during the cut are   |
    | program did not start was cut and is back   | lost; if another kernel answers, all earlier requests are lost     |

    It asks each shell separately. A shell that answers nothing holds up its own answers only.
    """

    def __init__(
        self,
        channels: ChannelSet,
        readiness: Readiness,
        comm_routes: CommRoutes[OpenComm],
        connection_watch: ConnectionWatch,
    ) -> None:
        self._channels = channels
        self._readiness = readiness
        self._comm_routes = comm_routes
        self._connection_watch = connection_watch
        self._overdue_timer = Timer(channels.owner, self._look_next_turn)
        self._turn_timer = Timer(channels.owner, self._look)
        self._patience_timer = Timer(channels.owner, self._look_at_silent)
        self._silent: dict[str, tuple[float, Overdue]] = {}
        self._watchers: dict[object, gevent.Greenlet[..., Any]] = {}
        self._nudged = -1.0
        self._known: object = None
        self._unnoticed: Unnoticed | None = None

    def arm(self) -> None:
        """Look for overdue answers after `OVERDUE_S`."""
        if not self._overdue_timer.is_set and not self._turn_timer.is_set:
            self._overdue_timer.set(OVERDUE_S)

    def expect_status(self, msg_id: str) -> None:
        """A message that gets no reply was sent on the main shell. The kernel may overlook it.

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
        """True until the kernel is known to have noticed the latest such message."""
        return self._unnoticed is not None and self._unnoticed.is_unnoticed()

    def stop(self) -> None:
        """Watch no longer: the channels close."""
        self._overdue_timer.cancel()
        self._turn_timer.cancel()
        self._patience_timer.cancel()
        self._silent.clear()
        gevent.killall(list(self._watchers.values()), block=False)
        self._watchers.clear()  # the traceback of each holds on to its channel

    def reconnected(self) -> None:
        """The connection was cut and is back, perhaps to another kernel."""
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
        except KClientError as exc:  # closed, dead or restarted: then the calls that wait fail anyway
            log().debug("the watch for lost messages ended: %s", exc)
        if self._watchers.get(key) is gevent.getcurrent():
            del self._watchers[key]
        self._arm_again()

    def _is_watched(self, key: object) -> bool:
        watcher = self._watchers.get(key)
        return watcher is not None and not watcher.ready()

    def _look_next_turn(self) -> None:
        """Look at the loop's next turn. Before, the channels take in what came while the loop stood still."""
        self._turn_timer.set(0)

    def _look(self) -> None:
        for channel in self._channels.running():
            channel.mend()
        self._connection_watch.look()
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
        """Look again later, if an answer is owed that no greenlet watches for."""
        owed = [overdue.since for overdue in self._owed() if not self._is_watched(overdue.shell)]
        if not self._is_watched("nudge"):
            owed += [overdue.since for overdue in self._unheard()]
        if owed and not self._turn_timer.is_set:
            self._overdue_timer.set(min(owed) + OVERDUE_S - perf_counter())

    def _spawn_watch(self, key: object, all_overdue: Sequence[Overdue]) -> None:
        for overdue in all_overdue:
            overdue.note(Event.ASK)
        self._spawn(key, self._watch, all_overdue)

    def _watch(self, all_overdue: Sequence[Overdue]) -> None:
        """Ask on the shell that owes all these, then give up the answers that have not come."""
        try:
            verdict = self._catch_up(all_overdue)
            for overdue in all_overdue:
                if verdict is Verdict.DEAF:
                    overdue.failure = deaf
                if verdict is not Verdict.NOT_NEEDED or not overdue.is_still_owed():
                    overdue.conclude()
        finally:
            for overdue in all_overdue:
                self._silent.pop(overdue.msg_id, None)

    def _nudge(self, unheard: Sequence[Overdue]) -> None:
        """Wake the kernel. Code that it does not begin then was lost on the way, unless it has become deaf."""
        is_awake = self._wakes_up()
        unheard = [overdue for overdue in unheard if not self._is_question(overdue.msg_id)]
        until = perf_counter() + PATIENCE_S
        asked = [overdue for overdue in unheard if overdue.is_code or not is_awake]
        for overdue in unheard:
            overdue.note(Event.ASK if overdue in asked else Event.WAIT)
            if overdue not in asked:
                self._silent[overdue.msg_id] = until, overdue
        self._look_at_silent()
        if asked:
            self._watch(asked)

    def _wakes_up(self) -> bool:
        """True if the kernel answers over another connection."""
        with suppress(KernelTimeout, NoReply):
            self._readiness.nudge(Deadline(NUDGE_WAIT_S))
            return True
        return False

    def _look_at_silent(self) -> None:
        """Ask about the requests that the kernel has been silent about for too long."""
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
            self._patience_timer.set(min(ends) - now)

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
        self._readiness.take_in_idle(probe, Deadline(OVERDUE_S))

    def _ask_and_nudge(self, channel: RequestChannel) -> Probe:
        """Ask until there is a reply, and nudge in between: a question may get lost. Each pause is twice as long."""
        pause = OVERDUE_S
        while True:
            with suppress(KernelTimeout, NoReply):
                return self._readiness.ask(channel, Deadline(pause))
            with suppress(KernelTimeout, NoReply):
                self._readiness.nudge(Deadline(pause))
            pause *= 2

    def _catch_up(self, all_overdue: Sequence[Overdue]) -> Verdict:
        """Wait until all that the shell of these has sent before now has come, or is lost."""
        return CatchUp(
            self._channels,
            self._readiness,
            all_overdue[0].channel,
            AnyOwed(all_overdue),
            subshell_id=all_overdue[0].subshell_id,
            needs_reply=any(overdue.is_reply for overdue in all_overdue),
        ).wait()

    def _request_channels(self) -> list[RequestChannel]:
        return [channel for channel in self._channels.running() if isinstance(channel, RequestChannel)]

    def _owed(self) -> list[Overdue]:
        """Answers of which one half has come, while a call waits for the other half."""
        channels = self._channels
        if channels.outputs is None or not channels.runs("shell"):
            return []
        return [*self._owed_idles(channels.outputs), *self._owed_replies()]

    def _owed_idles(self, outputs: Outputs) -> Iterator[Overdue]:
        """Those of executions, and those for which a flush waits.

        The latter may be of other shells than the main one. The kernel published them when it sent their replies, which
        have come: so the status of a question that is asked from now on lies behind them, whichever shell gets it.
        """
        shell, pending = self._channels.shell, self._channels.pending
        for msg_id, since in pending.owed_idle.items():
            execution = outputs.executions.get(msg_id)
            if execution is None and msg_id in pending.sought:
                is_owed = partial(pending.owed_idle.__contains__, msg_id)
                yield Overdue(shell, None, since, is_owed, partial(self._forget_idle, msg_id))
            elif execution is not None and execution.awaits_idle():
                yield Overdue(shell, execution.subshell_id, since, execution.awaits_idle, partial(_conclude, execution))

    def _forget_idle(self, msg_id: str, failure: Failure) -> None:
        self._channels.pending.owed_idle.pop(msg_id, None)
        self._channels.iopub.changed.wake()

    def _owed_replies(self) -> Iterator[Overdue]:
        for msg_id, since in self._channels.pending.owed_reply.items():
            for channel in self._request_channels():
                slot = channel.requests.get(msg_id)
                if slot is not None and slot.on_settled is not None and not self._is_question(msg_id):
                    yield _overdue_reply(channel, slot, since, no_reply)

    def _is_question(self, msg_id: str) -> bool:
        """True for a question of a CatchUp, which itself asks again if that gets lost."""
        outputs = self._channels.outputs
        return outputs is not None and isinstance(outputs.executions.get(msg_id), Question)

    def _unheard(self) -> list[Overdue]:
        """Requests on the main shell without any answer, if the kernel is idle and was not nudged in this idle time.

        A kernel that has published no status yet counts as idle: a nudge does no harm to a busy one.
        """
        channels = self._channels
        outputs = channels.outputs
        if outputs is None or not channels.runs("shell") or channels.executing():
            return []
        if outputs.execution_state not in ("idle", "unknown"):
            return []
        if outputs.state_since <= self._nudged:  # it was nudged in this idle time already
            return []
        unheard_of = [
            _overdue_reply(channels.shell, slot, max(slot.sent, outputs.state_since), unheard, Phase.UNHEARD)
            for slot in channels.shell.waited_for()
            if slot.subshell_id is None and slot.msg_id not in self._silent
        ]
        latest = self._unnoticed
        if latest is not None and latest.is_unnoticed():
            since = max(latest.since, outputs.state_since)
            is_owed, give_up = latest.is_unnoticed, latest.give_up
            unheard_of.append(Overdue(channels.shell, None, since, is_owed, give_up, phase=Phase.UNHEARD))
        return unheard_of


def _overdue_reply(
    channel: RequestChannel, slot: Slot, since: float, failure: Failure, phase: Phase = Phase.OWED
) -> Overdue:
    return Overdue(
        channel,
        slot.subshell_id,
        since,
        slot.is_pending,
        partial(channel.give_up, [slot]),
        failure,
        slot.msg_id,
        is_reply=True,
        is_code=slot.reply_type == "execute_reply",
        phase=phase,
    )


def _conclude(execution: Sink, failure: Failure) -> None:
    execution.conclude()
