"""ConnectionWatch: notices that a kernel which lives has closed a socket, or that it rejects this client's keys.

A kernel may go deaf and live on: its shell socket is closed, or the whole kernel is gone and its process is not. Then
neither its death nor its heartbeat tells of it. The connection does: it is cut, and the address refuses a new one.
"""

from __future__ import annotations

from time import perf_counter
from typing import Any, Final

import gevent

from kclient.channels.base import Channel
from kclient.channels.iopub import IOPubChannel
from kclient.channels.shell import RequestChannel
from kclient.client.availability import Availability
from kclient.client.channel_set import ChannelSet
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Timer
from kclient.errors import Failure, NoReply, copies_of
from kclient.protocol.connection import CHANNELS

WATCH_S: Final = 1.0
"""Seconds that a call has waited before its connection is watched: that takes two descriptors."""

LOOK_AGAIN_AT_MOST_S: Final = 60.0
"""Seconds from one look for new calls and ended ones to the next: each wakes a program that may have many clients."""

LOOKS: Final = 3
"""So many looks in a row find an address closed before it counts as that."""

PAUSE_S: Final = 0.5
"""Seconds from one look to the next. A kernel that is being restarted listens at its addresses one after the other."""


class ConnectionWatch:
    """Watches the connections that a call has been waiting on for a while, on shell, control and iopub.

    A call ends with NoReply if the address of its channel refuses connections, while another address of the kernel
    accepts them, or while its process, which this program started, lives. An execution that has its reply ends with
    `complete = False` if that of iopub does. If all addresses of another program's kernel refuse connections,
    KernelDeath decides. If such a kernel rejects our keys, or signs with another key, all calls end with that error.
    """

    def __init__(self, channels: ChannelSet, availability: Availability) -> None:
        self._channels = channels
        self._availability = availability
        self._timer = Timer(channels.owner, self.look)
        self._probers: dict[str, gevent.Greenlet[..., Any]] = {}

    def look(self) -> None:
        """Watch the connections that a call waits on, and the others no longer."""
        until, youngest, is_waiting = perf_counter() - WATCH_S / 2, 0.0, False
        for channel in self._channels.running():
            sent = _awaited_since(channel)
            if isinstance(channel, (RequestChannel, IOPubChannel)) and channel.name not in self._probers:
                is_awaited = any(since <= until for since in sent)
                channel.watch_connection(is_awaited)
                is_waiting = is_waiting or is_awaited
            youngest = max(youngest, *sent) if sent else youngest
        if is_waiting and self._channels.kernel is None and self._channels.peer.info is None:
            if self._channels.have_another_key():
                self._availability.fail(copies_of(self._channels.transport.another_key()))
                return
            self.rejected(is_seen=False)  # libzmq tells of it only once, perhaps before the connection was watched
        if is_waiting or youngest > until:  # also to end the watch of a connection when its call has ended
            self._timer.set(next_look(perf_counter() - youngest))

    def stop(self) -> None:
        """Watch no longer: the channels close, or are opened anew."""
        self._timer.cancel()
        probers, self._probers = self._probers, {}
        gevent.killall(list(probers.values()), block=False)

    def cut(self, name: str) -> None:
        """The connection of that channel was cut, or cannot be made: find out why."""
        if name not in self._probers:
            self._probers[name] = gevent.spawn(self._probe, name)

    def rejected(self, is_seen: bool) -> None:
        """The kernel has closed a connection in the middle of its handshake, or may have: are our keys wrong?"""
        if "" not in self._probers:
            self._probers[""] = gevent.spawn(self._ask_for_rejection, is_seen)

    def _ask_for_rejection(self, is_seen: bool) -> None:
        me = gevent.getcurrent()
        error = self._channels.transport.rejection(is_seen=is_seen)
        if self._probers.get("") is me:  # else `stop` came too late to end this greenlet
            del self._probers[""]
            if error is not None and self._channels.peer.info is None:
                self._availability.fail(copies_of(error))

    def _probe(self, name: str) -> None:
        me = gevent.getcurrent()
        is_closed = all(self._is_closed(name, pause_s) for pause_s in (0.0, *[PAUSE_S] * (LOOKS - 1)))
        if self._probers.get(name) is not me:  # `stop` came too late to end this greenlet
            return
        del self._probers[name]
        if is_closed:
            self._end_calls(name)
        self.look()

    def _is_closed(self, name: str, pause_s: float) -> bool:
        """Look after a pause. True if the kernel lives, and no program listens at the address of that channel."""
        gevent.sleep(pause_s)
        channels = self._channels
        if channels.kernel is not None:  # before its first answer it does not listen yet
            lives = channels.peer.info is not None and channels.kernel.is_alive()
        else:
            others = [other for other in CHANNELS if other in channels.transport.channels and other != name]
            lives = any(channels.transport.is_refused([other]) is False for other in others)
        return lives and channels.transport.is_refused([name]) is True

    def _end_calls(self, name: str) -> None:
        channel = self._channels.channel(name)
        failure = _closed(name, channel.address)
        log().warning("%s", failure(None))
        if isinstance(channel, RequestChannel):
            channel.give_up(channel.requests, failure)
        elif isinstance(channel, IOPubChannel):
            for execution in list(channel.outputs.executions.values()):
                if execution.awaits_idle():
                    execution.conclude()
            channel.changed.wake()


def next_look(waited: float) -> float:
    """Seconds until the next look, when the youngest call has waited for so many: so the looks become ever rarer.

    The watchdog looks besides, a second after each new call.
    """
    return min(max(WATCH_S, waited), LOOK_AGAIN_AT_MOST_S)


def _awaited_since(channel: Channel) -> list[float]:
    """Since when calls wait on that channel: for a reply, or on iopub for an idle status whose reply has come."""
    if isinstance(channel, RequestChannel):
        return [slot.sent for slot in channel.waited_for()]
    if isinstance(channel, IOPubChannel):
        executions, owed = channel.outputs.executions, channel.outputs.pending.owed_idle
        return [since for msg_id, since in owed.items() if msg_id in executions and executions[msg_id].awaits_idle()]
    return []


def _closed(name: str, address: str) -> Failure:
    return lambda msg_id: NoReply(
        f"the kernel lives, and has closed its {name} socket: {address} refuses connections; restart the kernel",
        msg_id=msg_id,
    )
