"""The heartbeat channel: does the kernel's process still answer?"""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from kclient.channels.base import Channel
from kclient.channels.shared import HeartbeatClient
from kclient.concurrency.deadline import check_seconds
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Timer
from kclient.errors import ChannelClosed, Failure, InvalidState, KClientError
from kclient.transport.base import HeartbeatLine, Transport

if TYPE_CHECKING:
    from kclient.protocol.session import Session

PINGS_IN_TIME_TO_DEAD: Final = 4
"""Number of pings in `time_to_dead`, so that a stopped kernel is missed within that time."""

ANSWER_SHARE: Final = 0.5
"""Share of `time_to_dead` that a kernel has at least to answer a ping, however late the ping went out."""


class HBChannel(Channel):
    """Sends pings; paused until `unpause`.

    After `time_to_dead` seconds of silence it calls `call_handlers(since_last_heartbeat)`, in seconds, opens a new
    connection and goes on. This means that the kernel is silent, not that it is dead.
    """

    name = "hb"
    time_to_dead: float = 3.0

    def __init__(self, context: Any, session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        self._client: HeartbeatClient = self._shared.client
        self.misses = 0
        self._paused = True
        self._beating: bool | None = None
        self._awaits_pong = False
        self._last_beat = 0.0
        self._silent_since = 0.0
        self._next_ping = 0.0
        self._is_suspended = False
        self._timer = Timer(self._owner, self._tick)

    def _new_connection(self, transport: Transport) -> HeartbeatLine:
        line = transport.heartbeat(self)
        if line is None:
            raise InvalidState("the transport to this kernel has no heartbeat channel")
        self._line = line
        return line

    @property
    def is_paused(self) -> bool:
        return self._paused

    def pause(self) -> None:
        """Stop pinging. A paused heartbeat tells nothing about the kernel."""
        self._owner.check()
        self._paused = True
        self._is_suspended = False
        self._timer.cancel()

    def suspend(self) -> None:
        """Pause until `resume`, if it is not paused already: the kernel is about to end."""
        was_paused = self._paused and not self._is_suspended
        self.pause()
        self._is_suspended = not was_paused

    def resume(self) -> None:
        """Undo `suspend`."""
        if self._is_suspended and self.is_alive():
            self.unpause()

    def unpause(self) -> None:
        """Ping from now on. The time to dead starts anew."""
        self.check_running()
        check_seconds(self.time_to_dead, "time_to_dead")
        self._is_suspended = False
        if self._paused:
            self._paused, self._beating = False, None
            self._last_beat = self._silent_since = monotonic()
            self._ping()

    def is_beating(self) -> bool | None:
        """True if the kernel has answered in time; False if it has not, or the channel is paused or does not run.

        None, which is unknown, from `unpause` until the first answer, or until `time_to_dead` is over: some kernels
        have no heartbeat.
        """
        self._owner.check()
        if not self.is_alive() or self._paused:
            return False
        self.drain()
        self._tick()
        return self._beating

    def since_last_beat(self) -> float:
        """Seconds since the latest answer, or since `unpause`, without the time in which no ping could be sent."""
        return monotonic() - self._last_beat

    def stop(self) -> None:
        if not self._owner.forked and not self._owner.is_gone:
            self.pause()
        super().stop()

    def fail(self, failure: Failure) -> None:
        super().fail(failure)
        self._beating = False
        self._timer.cancel()

    def reopen(self) -> None:
        super().reopen()
        self._awaits_pong = False
        self._beating = None
        if not self._paused:
            self._last_beat = self._silent_since = monotonic()
            self._ping()

    def _ping(self) -> None:
        if not self._awaits_pong:
            self._excuse(monotonic() - self.time_to_dead * (1 - ANSWER_SHARE))
        self._schedule(self._silent_since + self.time_to_dead)
        if not self._awaits_pong:
            self._awaits_pong = True
            # InvalidState: the kernel refuses the connection, perhaps because it encrypts. No answer will come.
            with suppress(InvalidState, ChannelClosed):
                self._line.ping()

    def _excuse(self, since: float) -> None:
        """Count the silence from `since`, if it began earlier: the loop stood still until then, and sent no ping."""
        late = since - self._silent_since
        if late > 0:
            self._silent_since += late
            self._last_beat += late

    def beat(self) -> None:
        """The kernel has answered."""
        self._awaits_pong = False
        self._beating = True
        self._last_beat = self._silent_since = monotonic()
        if not self._paused:
            self._next_ping = self._last_beat + self.time_to_dead / PINGS_IN_TIME_TO_DEAD
            self._schedule(self._next_ping)

    def _schedule(self, when: float) -> None:
        self._timer.set(when - monotonic())

    def _tick(self) -> None:
        """Do what is due now: a ping, a miss, or nothing yet."""
        if self._paused or self._failure is not None:
            return
        self.drain()
        now = monotonic()
        if not self._awaits_pong:
            if now >= self._next_ping:
                self._ping()
            else:
                self._schedule(self._next_ping)
        elif now - self._silent_since >= self.time_to_dead:
            self._miss(now)
        else:
            self._schedule(self._silent_since + self.time_to_dead)

    def _miss(self, now: float) -> None:
        self._beating = False
        self.misses += 1
        self._silent_since = now
        self._awaits_pong = False
        self._line.close()
        try:
            self._line.open()
            self._ping()
        except KClientError:
            log().exception("the heartbeat cannot open a connection; it tries again")
            self._awaits_pong = True
            self._schedule(now + self.time_to_dead)
        self._deliver(now - self._last_beat)
        self._client.heart_missed()
