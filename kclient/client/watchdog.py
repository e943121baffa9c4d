"""What a client watches for: an idle status or a reply that was lost, on the way or with the kernel that owed it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import attrs
import gevent

from kclient.channels.iopub import IOPubChannel
from kclient.channels.shell import RequestChannel
from kclient.client.execution import Execution
from kclient.client.readiness import ASK_AT_MOST, Probe
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Timer
from kclient.errors import Failure, KClientError, KernelRestarted, KernelTimeout, NoReply
from kclient.protocol.messages import Message
from kclient.protocol.routing import Outputs, Slot

if TYPE_CHECKING:
    from kclient.client.connection import KernelConnection

OVERDUE: Final = 1.0
"""Seconds between the one half of an answer and the other after which the kernel is asked again."""

KNOCK_WAIT: Final = 10.0
"""Seconds that a kernel which is idle has to answer; then it has another reason not to."""

PATIENCE: Final = 30.0
"""Seconds for which an idle kernel may be silent about a request that is no code: one for Kotlin is not busy while it
looks for completions, which takes it seconds. Of the beginning of code every kernel tells."""

BACKLOG: Final = 60.0
"""Seconds that iopub may lag behind shell: a flood is not read in the time that it takes to reply."""


@attrs.frozen
class Overdue:
    """Something that the kernel owes `since` then: where to ask for it, and what to do if it will not come."""

    channel: RequestChannel
    subshell_id: str | None
    since: float
    is_still_owed: Callable[[], bool]
    give_up: Callable[[], None]
    msg_id: str = ""
    is_code: bool = True

    @property
    def shell(self) -> tuple[str, str | None]:
        """Who would have to answer first: one channel, or one subshell."""
        return self.channel.name, self.subshell_id


class Unnoticed:
    """A message that gets no reply, until the kernel says that it is busy with it, and so was with those before it."""

    def __init__(self, iopub: IOPubChannel, msg_id: str, since: float) -> None:
        self.since = since
        self._iopub = iopub
        self._executions = iopub.outputs.executions
        self._msg_id = msg_id
        self._executions[msg_id] = self

    def is_unnoticed(self) -> bool:
        return self._msg_id in self._executions

    def feed(self, message: Message) -> None:
        """This, and what follows, goes where it would have gone without us."""
        self.forget()
        self._iopub.leave(message)

    def update_display(self, message: Message) -> None:
        """It displays nothing."""

    def fail(self, failure: Failure) -> None:
        self.forget()

    def forget(self) -> None:
        self._executions.pop(self._msg_id, None)


class Watchdog:
    """Ends executions whose idle was lost, and requests whose reply was: a kernel's PUB may drop messages.

    It asks kernel_info on the same shell. What the kernel has not sent before it answers that, it never will. A shell
    that answers nothing holds up its own only.

    It knocks at a kernel that is idle although a request has come: ipykernel 7.3 may sleep on, with messages
    of any number in a connection, until something comes over another one.

    And when the connection to a kernel that nobody here started was cut and is back, it asks in the same way: what was
    answered meanwhile is lost and, if it is another kernel that answers, so is what the old one was at.
    """

    def __init__(self, link: KernelConnection) -> None:
        self._link = link
        self._alarm = Timer(link.owner, self._look_next_turn)
        self._turn = Timer(link.owner, self._look)
        self._patience = Timer(link.owner, self._look_at_silent)
        self._silent: dict[str, tuple[float, Overdue]] = {}
        self._watchers: dict[object, gevent.Greenlet[..., Any]] = {}
        self._knocked = -1.0
        self._known: object = None
        self._unnoticed: Unnoticed | None = None

    def arm(self) -> None:
        """Look for what is overdue in a second's time."""
        if not self._alarm.is_set and not self._turn.is_set:
            self._alarm.set(OVERDUE)

    def expect_status(self, msg_id: str) -> None:
        """A message was sent on the main shell that gets no reply, and that the kernel may overlook.

        Kernels of protocol 4 publish no status about such a message, and overlook none.
        """
        link, before = self._link, self._unnoticed
        if not link.runs("iopub") or link.peer.version_4 is not None:
            return
        since = perf_counter()
        if before is not None and before.is_unnoticed():
            since = before.since
            before.forget()
        self._unnoticed = Unnoticed(link.iopub, msg_id, since)
        self.arm()

    @property
    def expects_status(self) -> bool:
        """True if it is not known that the kernel has noticed the latest such message."""
        return self._unnoticed is not None and self._unnoticed.is_unnoticed()

    def stop(self) -> None:
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
            self._known = self._link.prober.kernel_session
        for key, channel in keys.items():
            if self._is_watched(key):  # its question may be lost, too
                self._watchers.pop(key).kill(block=False)
            self._spawn(key, self._ask_after_cut, channel)

    def _spawn(self, key: object, method: Callable[..., None], *args: object) -> None:
        self._watchers[key] = gevent.spawn(self._run, key, method, args)

    def _run(self, key: object, method: Callable[..., None], args: tuple[object, ...]) -> None:
        try:
            method(*args)
        except KClientError as exc:  # closed, dead or restarted: whoever waits learns of that elsewhere
            log().debug("the watch for lost messages ended: %s", exc)
        if self._watchers.get(key) is gevent.getcurrent():
            del self._watchers[key]
        self._arm_again()

    def _is_watched(self, key: object) -> bool:
        watcher = self._watchers.get(key)
        return watcher is not None and not watcher.ready()

    def _look_next_turn(self) -> None:
        """When the wires have taken in what came while the loop stood still: for them this is no safety net."""
        self._turn.set(0)

    def _look(self) -> None:
        for channel in self._link.running():
            channel.mend()
        until = perf_counter() - OVERDUE
        found: dict[tuple[str, str | None], list[Overdue]] = {}
        for overdue in self._owed():
            if overdue.since <= until and not self._is_watched(overdue.shell):
                found.setdefault(overdue.shell, []).append(overdue)
        for shell, all_overdue in found.items():
            self._spawn(shell, self._watch, all_overdue)
        unheard = self._unheard()
        if unheard and min(overdue.since for overdue in unheard) <= until and not self._is_watched("knock"):
            self._knocked = perf_counter()
            self._spawn("knock", self._knock, [overdue for overdue in unheard if overdue.since <= until])
        self._arm_again()

    def _arm_again(self) -> None:
        """If something is owed that nobody watches for."""
        owed = [overdue.since for overdue in self._owed() if not self._is_watched(overdue.shell)]
        if not self._is_watched("knock"):
            owed += [overdue.since for overdue in self._unheard()]
        if owed and not self._turn.is_set:
            self._alarm.set(min(owed) + OVERDUE - perf_counter())

    def _watch(self, all_overdue: Sequence[Overdue]) -> None:
        """Ask on the shell of all these, and give up what has not come by then."""
        self._ask(all_overdue)
        for overdue in all_overdue:
            if overdue.is_still_owed():
                overdue.give_up()

    def _knock(self, unheard: Sequence[Overdue]) -> None:
        """Wake the kernel; code that it does not begin then, it never got."""
        self._link.prober.knock(Deadline(KNOCK_WAIT))
        until = perf_counter() + PATIENCE
        self._silent.update((overdue.msg_id, (until, overdue)) for overdue in unheard if not overdue.is_code)
        self._look_at_silent()
        code = [overdue for overdue in unheard if overdue.is_code]
        if code:
            self._watch(code)

    def _look_at_silent(self) -> None:
        """Let the kernel answer in its own time what it is silent about; ask when that is over."""
        now = perf_counter()
        self._silent = {key: entry for key, entry in self._silent.items() if entry[1].is_still_owed()}
        over = [overdue for until, overdue in self._silent.values() if until <= now]
        if over:
            self._silent.update((overdue.msg_id, (math.inf, overdue)) for overdue in over)
            self._spawn(("silent", over[0].msg_id), self._end_silence, over)
        next_end = min((until for until, _ in self._silent.values()), default=math.inf)
        if next_end < math.inf:
            self._patience.set(next_end - now)

    def _end_silence(self, all_overdue: Sequence[Overdue]) -> None:
        self._watch(all_overdue)
        for overdue in all_overdue:
            self._silent.pop(overdue.msg_id, None)

    def _ask_after_cut(self, channel: RequestChannel) -> None:
        pending = [slot for slot in channel.requests if slot.is_pending()]
        comm_ids = self._link.open_comms
        if not pending and not comm_ids:
            return
        probe = self._ask_and_knock(channel)
        self._link.prober.meet(probe.kernel_session)
        before = [slot for slot in channel.requests if slot.subshell_id is None and slot.sent < probe.made]
        if probe.kernel_session == self._known:
            channel.give_up(before, lost)
        else:
            channel.give_up({*before, *pending}, KernelRestarted)
            if comm_ids:
                self._link.comms.routes.fail(KernelRestarted, comm_ids)
        self._link.prober.wait_for_idle(probe, Deadline(OVERDUE))
        probe.forget()

    def _ask_and_knock(self, channel: RequestChannel) -> Probe:
        """The question, too, may be lost with the connection, or overlooked: knock and ask again, ever more rarely."""
        pause = OVERDUE
        while True:
            with suppress(KernelTimeout, NoReply):
                return self._link.prober.ask(channel, Deadline(pause))
            with suppress(KernelTimeout, NoReply):
                self._link.prober.knock(Deadline(pause))
            pause *= 2

    def _ask(self, all_overdue: Sequence[Overdue]) -> None:
        """Return when the kernel has answered a later request, or when there is no use in asking on."""
        channel, subshell_id = all_overdue[0].channel, all_overdue[0].subshell_id
        for _ in range(ASK_AT_MOST):
            if not any(overdue.is_still_owed() for overdue in all_overdue):
                return
            probe = self._link.prober.ask(channel, Deadline(None), subshell_id=subshell_id)
            try:
                if self._link.prober.wait_for_idle(probe, Deadline(BACKLOG)):
                    return
            finally:
                probe.forget()

    def _request_channels(self) -> list[RequestChannel]:
        return [channel for channel in self._link.running() if isinstance(channel, RequestChannel)]

    def _owed(self) -> list[Overdue]:
        """Halves of answers that have come and whose other half somebody awaits."""
        link = self._link
        if link.outputs is None or not link.runs("shell"):
            return []
        return [*self._owed_idles(link.outputs), *self._owed_replies()]

    def _owed_idles(self, outputs: Outputs) -> Iterator[Overdue]:
        for msg_id, since in self._link.ledger.owed_idle.items():
            execution = outputs.executions.get(msg_id)
            if isinstance(execution, Execution):
                yield Overdue(self._link.shell, execution.subshell_id, since, execution.is_running, execution.conclude)

    def _owed_replies(self) -> Iterator[Overdue]:
        for msg_id, since in self._link.ledger.owed_reply.items():
            for channel in self._request_channels():
                slot = channel.requests.get(msg_id)
                if slot is not None and slot.on_settled is not None:
                    yield _overdue_reply(channel, slot, since, no_reply)

    def _unheard(self) -> list[Overdue]:
        """What was sent on the main shell, if the kernel has been idle since it was knocked at.

        Or if it has told no state since we listen: to knock at a busy one does no harm.
        """
        link = self._link
        outputs = link.outputs
        if outputs is None or outputs.executing or not link.runs("shell"):
            return []
        if outputs.execution_state not in ("idle", "unknown"):
            return []
        if outputs.state_since <= self._knocked:  # once in each time of rest
            return []
        unheard_of = [
            _overdue_reply(link.shell, slot, max(slot.sent, outputs.state_since), unheard)
            for slot in link.shell.requests
            if slot.on_settled is not None and slot.subshell_id is None and slot.msg_id not in self._silent
        ]
        latest = self._unnoticed
        if latest is not None and latest.is_unnoticed():
            since = max(latest.since, outputs.state_since)
            unheard_of.append(Overdue(link.shell, None, since, latest.is_unnoticed, latest.forget))
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
