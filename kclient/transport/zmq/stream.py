"""A ZeroMQ socket that never loses a wake-up and never starves the loop.

The file descriptor of a ZeroMQ socket is edge-triggered, and any operation on the socket can consume the
edge, a send too (zmq_getsockopt(3), ZMQ_FD). So each operation reads the socket's events afterwards and takes in the
messages that are there: `send` does, and the pump, which the watcher calls. A greenlet that the pump has just woken may
send while the pump is under way. That send leaves the reading to the pump, which looks again when the greenlet waits.
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
from kclient.concurrency.waiting import READABLE, TURN_S, Parking, switch_soon, weakly
from kclient.errors import ChannelClosed, InvalidState
from kclient.transport.zmq.frames import DONTWAIT, FrameReader

NEXT_TURN_S: Final = 1e-6
"""A timer of this length fires after the loop has really turned. Callbacks run 50 at a time ahead of timers."""

# Methods of pyzmq's C binding: those of a green socket take five times as long, those of a plain one twice.
_send: Final = zmq.backend.Socket.send
_get: Final[Callable[[zmq.Socket[Any], int], int]] = zmq.backend.Socket.get  # type: ignore[assignment]

# Plain numbers, as DONTWAIT is.
_MORE: Final = int(zmq.SNDMORE) | DONTWAIT
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
_EVENTS: Final = int(zmq.EVENTS)


@lru_cache(maxsize=64)
def _send_flags(count: int) -> tuple[int, ...]:
    return (*[_MORE] * (count - 1), DONTWAIT)


class FrameReceiver(Protocol):
    """The object that a stream gives the messages of its socket to. No method blocks or raises."""

    def receive(self, frames: list[bytes]) -> None:
        """Take in one message."""

    def lost(self) -> None:
        """The socket, or its context, was closed by other code."""


class ZmqStream:
    """One socket of the owner's hub.

    The loop holds the stream. The stream holds its receiver only weakly, so a line that is dropped can be collected.
    `on_touched`, a method that is held weakly as well, is called after each operation on the socket.
    """

    def __init__(
        self,
        owner: Owner,
        socket: zmq.Socket[Any],
        receiver: FrameReceiver,
        *,
        reader: FrameReader | None = None,
        name: str = "kernel's",
        on_touched: Callable[[], None] | None = None,
    ) -> None:
        self.socket = socket
        self.name = name
        self._reader = reader or FrameReader(socket)
        self.is_closed = False
        self._owner = owner
        self._receiver = weakref.ref(receiver)
        self._is_taking_in = False
        self._is_pumping = False
        self._come_in_groups = False  # as far as the latest pump tells: the next one looks first, or reads at once
        self._woken: list[Waiter[bool]] = []
        self._touched = Parking(owner)
        self._on_touched = None if on_touched is None else weakly(on_touched)
        _retire_own_watcher(socket)
        loop = owner.hub.loop
        # It fires at each turn until `_go_on` stops it. A Ctrl-C that is raised in `_go_on` prevents only that.
        self._again: Any = loop.timer(NEXT_TURN_S, NEXT_TURN_S)
        self._readable: Any = loop.io(_get(socket, zmq.FD), READABLE)
        self._readable.start(self._on_readable)
        owner.at_thread_end(self.close)
        # The descriptor signals only a reader that has found it empty before. So look once without a signal.
        self._again.start(self._go_on)

    def send(self, frames: Sequence[Any]) -> None:
        """Queue a message, and take in the messages that have arrived meanwhile. A Ctrl-C is raised when it is out.

        Raises ChannelClosed, and InvalidState if the kernel is not connected and the socket does not keep the message.
        """
        is_held = sigint.hold(self._owner.hub)
        try:
            list(map(_send, repeat(self.socket), frames, _send_flags(len(frames))))
            if not self._is_pumping and self._has_input():
                self._take_in_for(TURN_S, is_sure=True)
        except zmq.Again as exc:  # the peer is not there yet (with ZMQ_IMMEDIATE), or has refused the connection
            raise InvalidState(f"the kernel is not connected to the {self.name} channel") from exc
        except zmq.ZMQError as exc:
            self._lose()
            raise ChannelClosed(self.name) from exc
        finally:
            if is_held:
                sigint.release(self._owner.hub)

    def drain(self, seconds: float = TURN_S) -> None:
        """Take in messages for at most so many seconds. Those that are left wait for the loop's next turn."""
        self._take_in_for(seconds)

    def glance(self) -> None:
        """Take in one message, if there is one. Those that are left wait for the loop's next turn.

        It costs 3 us less than `drain`, which reads until pyzmq raises an exception.
        """
        if self._has_input():
            self._take_in_for(0, is_sure=True)

    def _take_in_for(self, seconds: float, *, is_sure: bool = False) -> None:
        if self._is_taking_in:
            return
        is_empty = False
        try:
            is_empty = self._take_in(monotonic() + seconds, is_sure=is_sure)
        finally:
            if not is_empty:
                self._go_on_soon()

    def _has_input(self) -> bool:
        try:
            return bool(_get(self.socket, _EVENTS) & _POLLIN)
        except zmq.ZMQError:
            return True  # the socket is closed; the next read finds out

    def _on_readable(self) -> None:
        if not self._again.active:  # else the pump would run twice in one turn of the loop
            self._pump()

    def _pump(self) -> bool:
        """Take in messages and switch to the greenlets that they wake, for at most `TURN_S` seconds. Runs in the hub.

        Returns True if the socket is empty, and False if the pump goes on at the loop's next turn.

        The first greenlet that is woken goes on before the pump looks for more messages: if there are none, that look
        takes 2 us. After that all messages are taken in together, which saves a switch for each.
        """
        if self._is_taking_in:
            return True  # what takes in asks for more itself
        until = monotonic() + TURN_S
        wakeups, woken = self._owner.wakeups, self._woken
        is_over = is_first_over = False
        try:
            self._is_pumping = True
            while not is_over and monotonic() <= until:
                if not woken:
                    wakeups.woken = woken
                    try:
                        if is_first_over:
                            is_empty = self._take_in(until, is_sure=self._come_in_groups)
                            self._come_in_groups = bool(woken)
                        else:
                            is_empty = self._take_in(until, woken, is_sure=True)
                    finally:
                        wakeups.woken = None
                    is_first_over = True
                    is_over = is_empty and not woken
                while woken and monotonic() <= until:
                    woken[0].switch(True)  # the greenlet may send; this loop looks for input afterwards
                    del woken[0]  # after an exception it is woken again, which does no harm
        finally:
            self._is_pumping = False
            if not is_over:
                self._go_on_soon()
        return is_over

    def _take_in(self, until: float, woken: Sequence[object] = (), *, is_sure: bool = False) -> bool:
        """Take in messages. True if the socket is empty; False if, before that, a greenlet was woken or time was up.

        `is_sure`: there is a message, most probably. Else this looks first: to read takes twice as long if it raises.
        """
        receiver = self._receiver()
        if receiver is None or self._owner.forked:
            self._stop_watching()
            return True
        is_held = sigint.hold(self._owner.hub)
        self._is_taking_in = True
        try:
            if not is_sure and not self._reader.ahead and not self._has_input():
                return True
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
            if self._on_touched is not None:
                self._on_touched()
            if is_held:
                sigint.release(self._owner.hub)

    def _go_on_soon(self) -> None:
        if self.is_closed:
            switch_soon(self._woken)
        else:
            self._again.start(self._go_on)

    def _go_on(self) -> None:
        """Take in and watch again: the loop stops a watcher whose callback has raised. Runs until all is taken in."""
        if self.is_closed:  # a Ctrl-C came in `detach`
            self._stop_watching()
            return
        self._readable.start(self._on_readable)
        if self._pump():
            self._again.stop()

    def wait_for_peer(self, deadline: Deadline) -> bool:
        """Wait until the socket, which has ZMQ_IMMEDIATE, is connected; False if it is not within the deadline."""
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
        except zmq.ZMQError:  # other code has closed it
            return False
        if events & _POLLIN:
            self._go_on_soon()
        return bool(events & _POLLOUT)

    def mend(self) -> None:
        """Look for messages and woken greenlets that a Ctrl-C has left, if it was raised in a callback of ours.

        The loop then has stopped the watcher, too. That can happen only while the main greenlet waits outside of
        kclient. No attribute tells of it for certain, so this looks always.
        """
        if not self.is_closed:
            self._go_on_soon()

    def close(self) -> None:
        """Close the socket at once. Messages that were not sent are dropped. Idempotent."""
        if not self.is_closed:
            self.detach().close(0)

    def detach(self) -> zmq.Socket[Any]:
        """Close this stream, and return its socket, still open, for another stream."""
        self.is_closed = True
        if self._owner.hub.loop is not None:  # else the hub was destroyed, and so are its watchers
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
            receiver.lost()

    def _stop_watching(self) -> None:
        """Stop in a forked child, whose loop still watches the parent's socket, or if the receiver was dropped."""
        self._readable.stop()
        self._again.stop()


def _retire_own_watcher(socket: zmq.Socket[Any]) -> None:
    """Stop the watcher that a green socket starts: the stream has its own. This saves 2.5 us an event."""
    watcher = getattr(socket, "_state_event", None)
    if watcher is not None:
        watcher.stop()
        watcher.close()
        socket._state_event = None  # else the socket stops it when it is closed, also if the hub was destroyed
