"""The death of a kernel that nobody here started: told by missed heartbeats and refused connections."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import gevent

from kclient.channels.heartbeat import HBChannel
from kclient.concurrency.waiting import weakly
from kclient.errors import DeadKernelError, Failure, copies_of
from kclient.transport.zmq.reachability import refuses

RESTART: Final = 0.5
"""Seconds in which an owner that restarts the kernel has it listen again."""


class HeartbeatWatch:
    """Tells, after missed heartbeats, whether a kernel that nobody here started is dead.

    It is when its hb address and, since some kernels have no heartbeat, its shell address refuse a connection, and do
    so again after the time that a restart takes; a kernel that is merely stopped still accepts one. Where no refusal
    can come, from a host that is gone, `dead_after` seconds of silence decide (None: never).
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
            refused = self._is_refused()
            if refused:
                gevent.sleep(RESTART)
                refused = self._is_refused()
        finally:
            self._prober = None
        if not self.is_running:
            return  # `stop` came too late to end this greenlet; there may be a new connection, which is none of its own
        if refused:
            self._bury(copies_of(DeadKernelError(f"the kernel died: {self._hb.address} refuses connections")))
        elif self.dead_after is not None and silence >= self.dead_after:
            self._bury(copies_of(DeadKernelError(f"the kernel has been silent for {silence:.1f} s")))

    def _is_refused(self) -> bool:
        return refuses(self._hb.address) and refuses(self._shell_address)
