"""The death of a kernel that this program did not start: its heartbeat fails, and its addresses answer no more."""

from __future__ import annotations

from typing import Any, Final

import gevent

from kclient.client.availability import Availability
from kclient.client.channel_set import ChannelSet
from kclient.errors import DeadKernelError, copies_of
from kclient.transport.base import held

RESTART_S: Final = 0.5
"""Seconds from the end of a kernel until its successor listens, if the program that owns it restarts it."""


class KernelDeath:
    """Decides, after missed heartbeats, whether a kernel that this program did not start is dead.

    It is dead if no program listens at its addresses, neither at once nor after the time that a restart takes, or if
    only processes hold them that it had forked, which cannot serve them. A kernel that is merely stopped accepts
    connections. A host that is gone refuses nothing: then the kernel counts as dead after `dead_after` seconds of
    silence (None: never).
    """

    def __init__(self, channels: ChannelSet, availability: Availability) -> None:
        self.dead_after: float | None = None
        self._channels = channels
        self._availability = availability
        self._is_wanted = self._is_watching = False
        self._prober: gevent.Greenlet[..., Any] | None = None

    def watch(self, dead_after: float | None) -> None:
        """Watch the kernel from here on, by its heartbeat."""
        self.dead_after = dead_after
        self._is_wanted = self._is_watching = True
        self._channels.hb.unpause()

    def watch_again(self) -> None:
        """Watch again, after the channels were stopped and started, if `watch` was called before."""
        if self._is_wanted and not self._is_watching and self._channels.runs("hb"):
            self.watch(self.dead_after)

    def stop(self) -> None:
        """Watch no longer."""
        self._is_watching = False
        prober, self._prober = self._prober, None
        if prober is not None:
            prober.kill(block=False)

    def heart_missed(self) -> None:
        """The kernel has missed a heartbeat: find out whether it is dead."""
        if self._is_watching and self._prober is None:
            self._prober = gevent.spawn(self._probe)

    def _probe(self) -> None:
        transport, me = self._channels.transport, gevent.getcurrent()
        try:
            silence_s = self._channels.hb.since_last_beat()
            is_refused, holders = transport.is_refused(), transport.left_to()
            if is_refused or holders:
                gevent.sleep(RESTART_S)
                is_refused, holders = transport.is_refused(), transport.left_to()
        finally:
            is_wanted = self._prober is me  # else `stop` came too late to end this greenlet
            if is_wanted:
                self._prober = None
        if not is_wanted:
            return
        if is_refused:
            where = self._channels.hb.address
            self._availability.died(copies_of(DeadKernelError(f"the kernel died: {where} refuses connections")))
        elif holders:
            self._availability.died(copies_of(DeadKernelError(held(self._channels.hb.address, holders))))
        elif self.dead_after is not None and silence_s >= self.dead_after:
            self._availability.died(copies_of(DeadKernelError(f"the kernel has been silent for {silence_s:.1f} s")))
