"""A ZeroMQ socket that never loses a wake-up and never starves the loop.

The file descriptor of a ZeroMQ socket is edge-triggered, and any operation on the socket can consume the
edge, a send too (zmq_getsockopt(3), ZMQ_FD). So whoever touches the socket reads its events afterwards and takes in
what is there: `send`, and the pump, which the watcher calls. Who sends while the pump is under way, because that has
just woken him, leaves it to the pump, which looks again when he waits.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import repeat
from time import monotonic
from typing import Any, Final, Protocol

import zmq
import zmq.backend
from gevent.hub import Waiter

from kclient.concurrency import sigint
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking, switch_soon
from kclient.errors import ChannelClosed, InvalidState
from kclient.transport.zmq.frames import FrameReader

TURN: Final = 0.001
"""Seconds for which a socket may be read before the loop must turn."""

NEXT_TURN: Final = 1e-6
"""A timer of this length fires after the loop has really turned; callbacks run 50 at a time ahead of timers."""

RECONNECT_IVL: Final = 5
"""Milliseconds; ZeroMQ's 100 would be most of the time that a kernel takes to start."""

# The methods of libzmq's binding itself: a green socket's take five times as long, a plain one's twice.
_send: Final = zmq.backend.Socket.send
_get: Final[Callable[[zmq.Socket[Any], int], int]] = zmq.backend.Socket.get  # type: ignore[assignment]

# Plain numbers: an operation on pyzmq's enums costs 1 us, and a round trip has a dozen of them.
_MORE: Final = int(zmq.SNDMORE) | int(zmq.DONTWAIT)
_DONTWAIT: Final = int(zmq.DONTWAIT)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
_EVENTS: Final = int(zmq.EVENTS)


@lru_cache(maxsize=64)
def _send_flags(count: int) -> tuple[int, ...]:
    return (*[_MORE] * (count - 1), _DONTWAIT)


class Receiver(Protocol):
    """Whom a wire brings what arrives."""

    def receive(self, frames: list[bytes]) -> None:
        """Take one message; must neither block nor raise."""

    def stop(self) -> None:
        """Somebody else has closed the socket, or its context."""


class ZmqStream:
    """One socket of the owner's hub. The loop holds the wire, and the wire its receiver only weakly.

    So a channel that is dropped can be collected.
    """

    def __init__(
        self,
        owner: Owner,
        socket: zmq.Socket[Any],
        receiver: Receiver,
        *,
        reader: FrameReader | None = None,
        name: str = "kernel's",
    ) -> None:
        self.socket = socket
        self.name = name
        self._reader = reader or FrameReader(socket)
        self.is_closed = False
        self._owner = owner
        self._receiver = weakref.ref(receiver)
        self._is_taking_in = False
        self._is_pumping = False
        self._woken: list[Waiter[bool]] = []
        self._touched = Parking(owner)
        self.on_touched: Callable[[], None] | None = None
        _retire_own_watcher(socket)
        loop = owner.hub.loop
        self._again: Any = loop.timer(NEXT_TURN)
        self._readable: Any = loop.io(_get(socket, zmq.FD), 1)
        self._readable.start(self._on_readable)
        # A pipe signals only a reader that has found it empty before, so have a look without being told.
        self._again.start(self._pump)

    def send(self, frames: Sequence[Any]) -> None:
        """Queue a message, and see that what has arrived meanwhile is taken in; raises ChannelClosed.

        A Ctrl-C is raised when the message is out.
        """
        is_held = sigint.hold(self._owner.hub)
        try:
            list(map(_send, repeat(self.socket), frames, _send_flags(len(frames))))
            if not self._is_pumping and self._has_input():
                self.drain()
        except zmq.Again as exc:  # to a peer that is not there yet, with ZMQ_IMMEDIATE, or that has turned us away
            raise InvalidState(f"the kernel is not connected to the {self.name} channel") from exc
        except zmq.ZMQError as exc:
            self._lose()
            raise ChannelClosed(self.name) from exc
        finally:
            if is_held:
                sigint.release(self._owner.hub)

    def drain(self, seconds: float = TURN) -> None:
        """Take in what is there, for at most so many seconds; what is left waits for the loop's next turn."""
        self._take_in_for(seconds)

    def glance(self) -> None:
        """Take in one message, if there is one; what is left waits for the loop's next turn.

        It costs 3 us less than `drain`, which learns by an exception that there is no more.
        """
        if self._has_input():
            self._take_in_for(0)

    def _take_in_for(self, seconds: float) -> None:
        if self._is_taking_in:
            return
        is_empty = False
        try:
            is_empty = self._take_in(monotonic() + seconds)
        finally:
            if not is_empty:
                self._go_on_soon()

    def _has_input(self) -> bool:
        try:
            return bool(_get(self.socket, _EVENTS) & _POLLIN)
        except zmq.ZMQError:
            return True  # the socket is closed, which whoever reads it finds out

    def _on_readable(self) -> None:
        if not self._again.active:  # it would be a second time in one turn of the loop
            self._pump()

    def _pump(self) -> None:
        """Take in, in the hub, and switch to whoever is woken by that, for at most `TURN` seconds.

        The first to be woken goes on before there is a look for more messages, which takes 3 us where there are none;
        where there are more, they are taken in together, which saves a switch for each.
        """
        if self._is_taking_in:
            return
        until = monotonic() + TURN
        wakeups, woken = self._owner.wakeups, self._woken
        is_over = is_first_over = False
        self._is_pumping = True
        try:
            while not is_over and monotonic() <= until:
                if not woken:
                    wakeups.woken = woken
                    try:
                        is_empty = self._take_in(until, () if is_first_over else woken)
                    finally:
                        wakeups.woken = None
                    is_first_over = True
                    is_over = is_empty and not woken
                while woken and monotonic() <= until:
                    woken[0].switch(True)  # who may send, and leave it to us to look
                    del woken[0]  # after an exception it is woken again, which does no harm
        finally:
            self._is_pumping = False
            if not is_over:
                self._go_on_soon()

    def _take_in(self, until: float, woken: Sequence[object] = ()) -> bool:
        """True when the socket is empty; False if, before that, someone was woken or it is past `until`."""
        receiver = self._receiver()
        if receiver is None or self._owner.forked:
            self._stop_watching()
            return True
        is_held = sigint.hold(self._owner.hub)
        self._is_taking_in = True
        try:
            while not self.is_closed:
                try:
                    frames = self._reader.read()
                except zmq.Again:
                    break
                except zmq.ZMQError:
                    self._lose()
                    break
                receiver.receive(frames)
                if woken or monotonic() > until:
                    return False
            return True
        finally:
            self._is_taking_in = False
            self._touched.wake()
            if self.on_touched is not None:
                self.on_touched()
            if is_held:
                sigint.release(self._owner.hub)

    def _go_on_soon(self) -> None:
        if self.is_closed:
            switch_soon(self._woken)
        else:
            self._again.start(self._go_on)

    def _go_on(self) -> None:
        """Take in again, and watch again: the loop stops a watcher whose callback has raised."""
        if not self.is_closed:
            self._readable.start(self._on_readable)
            self._pump()

    def wait_for_peer(self, deadline: Deadline) -> bool:
        """Until the socket, which has ZMQ_IMMEDIATE, is connected; False if it is not within the deadline."""
        while not self.is_closed:
            self.drain()
            if self.has_peer():
                return True
            if not self._touched.wait(deadline) and deadline.is_over:
                break
        return False

    def has_peer(self) -> bool:
        """True if the socket, which has ZMQ_IMMEDIATE, is connected."""
        try:
            events = _get(self.socket, _EVENTS)
        except zmq.ZMQError:  # somebody else has closed it
            return False
        if events & _POLLIN:
            self._go_on_soon()
        return bool(events & _POLLOUT)

    def mend(self) -> None:
        """Watch again, if a Ctrl-C struck the loop as it called us: it stops a watcher whose callback has raised.

        That is so only while the main greenlet waits for something else than kclient.
        """
        if not self.is_closed and not self._readable.active and not self._again.active:
            self._go_on_soon()

    def close(self) -> None:
        """Close the socket at once, without waiting for what was not sent. Idempotent."""
        if not self.is_closed:
            self.detach().close(0)

    def detach(self) -> zmq.Socket[Any]:
        """Be closed, and leave the socket open for another wire."""
        self.is_closed = True
        self._touched.wake()
        switch_soon(self._woken)
        self._stop_watching()
        self._readable.close()
        self._again.close()
        return self.socket

    def _lose(self) -> None:
        self.close()
        receiver = self._receiver()
        if receiver is not None:
            receiver.stop()

    def _stop_watching(self) -> None:
        """In a forked child, whose loop still watches the parent's socket, or for a channel that was dropped."""
        self._readable.stop()
        self._again.stop()


def _retire_own_watcher(socket: zmq.Socket[Any]) -> None:
    """Stop the watcher that a green socket starts at construction: ours stands in, and saves 2.5 us an event."""
    watcher = getattr(socket, "_state_event", None)
    if watcher is not None:
        watcher.stop()
