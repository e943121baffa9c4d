"""What a client watches for: an idle status or a reply that was lost, and the death of a kernel it did not start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import attrs
import gevent

from kclient.channels.base import Failure, copies_of
from kclient.channels.heartbeat import HBChannel
from kclient.channels.shell import RequestChannel
from kclient.errors import DeadKernelError, KClientError, NoReply
from kclient.execution import Execution
from kclient.hub import Alarm, Deadline, weakly
from kclient.log import log
from kclient.protocol.messages import Message
from kclient.protocol.routing import Outputs

if TYPE_CHECKING:
    from kclient.link import Link

OVERDUE: Final = 1.0
"""Seconds between the one half of an answer and the other after which the kernel is asked again."""

KNOCK_WAIT: Final = 10.0
"""Seconds that a kernel which is idle has to answer; then it has another reason not to."""

ASK_AT_MOST: Final = 3
"""Times that the kernel is asked before it is taken for one that sends no idle status at all."""


class Probe:
    """The statuses of a kernel_info request of kclient's own, which are for nobody else."""

    def __init__(self, outputs: Outputs | None, msg_id: str) -> None:
        self.is_idle = False
        self._outputs = outputs
        self._msg_id = msg_id
        if outputs is not None:
            outputs.executions[msg_id] = self

    def feed(self, message: Message) -> None:
        if message.content.get("execution_state") == "idle":
            self.is_idle = True
            self.forget()

    def update_display(self, message: Message) -> None:
        """A probe displays nothing."""

    def fail(self, failure: Failure) -> None:
        self.forget()

    def forget(self) -> None:
        if self._outputs is not None:
            self._outputs.executions.pop(self._msg_id, None)

    def is_answered(self) -> None:
        """The reply is in. Its idle is nothing that a flush should wait for; it may have come before we listened."""
        if self._outputs is not None:
            self._outputs.ledger.owed_idle.pop(self._msg_id, None)


@attrs.frozen
class Overdue:
    """Something the kernel should have sent: where to ask for it, and what to do if it will not come."""

    channel: RequestChannel
    subshell_id: str | None
    is_still_owed: Callable[[], bool]
    give_up: Callable[[], None]

    @property
    def shell(self) -> tuple[str, str | None]:
        """Who would have to answer first: one channel, or one subshell."""
        return self.channel.name, self.subshell_id


class Watchdog:
    """Ends executions whose idle was lost, and requests whose reply was: a kernel's PUB may drop messages.

    It asks kernel_info on the same shell. What the kernel has not sent before it answers that, it never will. A shell
    that answers nothing holds up its own only.

    And it knocks at a kernel that is idle although a request has come: ipykernel 7.3 may sleep on, with messages
    of any number in a connection, until something comes over another one.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._alarm = Alarm(link.owner.hub, self._look_next_turn)
        self._turn = Alarm(link.owner.hub, self._look)
        self._watchers: dict[tuple[str, str | None], gevent.Greenlet[..., Any]] = {}
        self._knocker: gevent.Greenlet[..., Any] | None = None
        self._knocked = 0.0

    def arm(self) -> None:
        """Look for what is overdue in a second's time."""
        if not self._alarm.is_set and not self._turn.is_set:
            self._alarm.set(OVERDUE)

    def stop(self) -> None:
        self._alarm.cancel()
        self._turn.cancel()
        gevent.killall([*self._watchers.values(), *filter(None, [self._knocker])], block=False)

    def _look_next_turn(self) -> None:
        """When the wires have taken in what came while the loop stood still: for them this is no safety net."""
        self._turn.set(0)

    def _look(self) -> None:
        found: dict[tuple[str, str | None], list[Overdue]] = {}
        for overdue in self._overdue(perf_counter() - OVERDUE):
            found.setdefault(overdue.shell, []).append(overdue)
        for shell, all_overdue in found.items():
            if not self._is_watched(shell):
                self._watchers[shell] = gevent.spawn(self._watch, shell, all_overdue)
        idle_since = self._unheard(perf_counter() - OVERDUE)
        if idle_since > self._knocked:  # once in each time of rest
            self._knocked = idle_since
            self._knocker = gevent.spawn(self._knock)
        self._arm_again()

    def _is_watched(self, shell: tuple[str, str | None]) -> bool:
        watcher = self._watchers.get(shell)
        return watcher is not None and not watcher.ready()

    def _watch(self, shell: tuple[str, str | None], all_overdue: list[Overdue]) -> None:
        try:
            for overdue in all_overdue:
                if overdue.is_still_owed() and self._ask(overdue) and overdue.is_still_owed():
                    overdue.give_up()
        except KClientError as exc:
            log().debug("the watch for lost messages ended: %s", exc)
        del self._watchers[shell]
        self._arm_again()

    def _knock(self) -> None:
        try:
            self._link.knock(Deadline(KNOCK_WAIT))
        except KClientError as exc:
            log().debug("the kernel does not hear that we knock: %s", exc)

    def _arm_again(self) -> None:
        """If something is owed that nobody watches for."""
        if self._unheard(perf_counter()) > self._knocked:
            self.arm()
        if any(not self._is_watched(overdue.shell) for overdue in self._overdue(perf_counter())):
            self.arm()

    def _overdue(self, since: float) -> list[Overdue]:
        """Halves of answers that came before `since` and whose other half somebody awaits."""
        link = self._link
        if link.outputs is None or not link.runs("shell"):
            return []
        return [*self._overdue_idles(link.outputs, since), *self._overdue_replies(since)]

    def _overdue_idles(self, outputs: Outputs, since: float) -> Iterator[Overdue]:
        for msg_id, received in self._link.ledger.owed_idle.items():
            execution = outputs.executions.get(msg_id)
            if isinstance(execution, Execution) and received <= since:
                yield Overdue(self._link.shell, execution.subshell_id, execution.is_running, execution.conclude)

    def _overdue_replies(self, since: float) -> Iterator[Overdue]:
        channels = [channel for channel in self._link.running() if isinstance(channel, RequestChannel)]
        for msg_id, received in self._link.ledger.owed_reply.items():
            for channel in channels:
                slot = channel.requests.get(msg_id)
                if slot is not None and slot.on_settled is not None and received <= since:
                    yield Overdue(channel, slot.subshell_id, slot.is_pending, partial(channel.settle, slot, no_reply))

    def _unheard(self, since: float) -> float:
        """When the kernel became idle, if it has been since `since` and was sent a request before that; else 0."""
        link = self._link
        outputs = link.outputs
        if outputs is None or outputs.execution_state != "idle" or outputs.state_since > since or outputs.executing:
            return 0.0
        is_waiting = link.runs("shell") and any(
            slot.on_settled is not None and slot.sent <= since for slot in link.shell.requests
        )
        return outputs.state_since if is_waiting else 0.0

    def _ask(self, overdue: Overdue) -> bool:
        """True when the kernel has answered a later request, or when there is no use in asking on."""
        for _ in range(ASK_AT_MOST):
            probe = self._link.probe(overdue.channel, Deadline(None), subshell_id=overdue.subshell_id)
            try:
                if self._link.wait_for_idle(probe, Deadline(OVERDUE)) or not overdue.is_still_owed():
                    return True
            finally:
                probe.forget()
        return True


class DeathWatch:
    """Tells, after missed heartbeats, whether a kernel that nobody here started is dead.

    It is when its hb address and, since some kernels have no heartbeat, its shell address refuse a connection; a
    kernel that is merely stopped still accepts one. Where no refusal can come, from a host that is gone, `dead_after`
    seconds of silence decide (None: never).
    """

    def __init__(
        self, hb: HBChannel, shell_address: str, dead_after: float | None, bury: Callable[[Failure], None]
    ) -> None:
        self.is_running = True
        self.dead_after = dead_after
        self._hb = hb
        self._shell_address = shell_address
        self._bury = bury
        self._prober: gevent.Greenlet[..., Any] | None = None
        hb.on_miss = weakly(self._on_miss)

    def stop(self) -> None:
        self.is_running = False
        if self._prober is not None:
            self._prober.kill(block=False)

    def _on_miss(self) -> None:
        if self._prober is None:
            self._prober = gevent.spawn(self._probe)

    def _probe(self) -> None:
        try:
            silence = self._hb.since_last_beat()
            refused = refuses(self._hb.address) and refuses(self._shell_address)
        finally:
            self._prober = None
        if refused:
            self._bury(copies_of(DeadKernelError(f"the kernel died: {self._hb.address} refuses connections")))
        elif self.dead_after is not None and silence >= self.dead_after:
            self._bury(copies_of(DeadKernelError(f"the kernel has been silent for {silence:.1f} s")))


def refuses(address: str) -> bool:
    """True if nobody listens at a ZeroMQ `address`; False if somebody does, or if it can't be told within 1 s."""
    from gevent import socket  # only a silent kernel needs it

    transport, _, where = address.partition("://")
    try:
        if transport == "ipc":
            with socket.socket(socket.AF_UNIX) as probe:
                probe.settimeout(1.0)
                probe.connect(where)
        else:
            host, _, port = where.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), timeout=1.0).close()
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except OSError:
        return False
    return False


def no_reply(msg_id: str | None) -> NoReply:
    return NoReply("the kernel finished the request and sent no reply to it", msg_id=msg_id)
