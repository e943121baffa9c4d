"""A ZeroMQ socket that never loses a wake-up and never starves the loop.

The file descriptor of a ZeroMQ socket is edge-triggered, and any operation on the socket can consume the
edge, a send too (zmq_getsockopt(3), ZMQ_FD). So whoever touches the socket reads its events afterwards and
takes in what is there: the watcher's callback, and `send`.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any, Final

import zmq
import zmq.green

from kclient import sigint
from kclient.errors import ChannelClosed, InvalidState
from kclient.hub import Deadline, Owner, Parking, weakly

TURN: Final = 0.002
"""Seconds for which a socket may be read before the loop must turn."""

NEXT_TURN: Final = 1e-6
"""A timer of this length fires after the loop has really turned; callbacks run 50 at a time ahead of timers."""

RECONNECT_IVL: Final = 5
"""Milliseconds; ZeroMQ's 100 would be most of the time that a kernel takes to start."""

_recv: Final = zmq.Socket.recv
_send: Final = zmq.Socket.send
_get: Final[Callable[[zmq.Socket[Any], int], int]] = zmq.Socket.get  # type: ignore[assignment]

# Plain numbers: an operation on pyzmq's enums costs 1 us, and a round trip has a dozen of them.
_MORE: Final = int(zmq.SNDMORE) | int(zmq.DONTWAIT)
_DONTWAIT: Final = int(zmq.DONTWAIT)
_POLLIN: Final = int(zmq.POLLIN)
_POLLOUT: Final = int(zmq.POLLOUT)
_EVENTS: Final = int(zmq.EVENTS)
_RCVMORE: Final = int(zmq.RCVMORE)

_contexts: dict[int, zmq.green.Context[Any]] = {}


def context() -> zmq.green.Context[Any]:
    """The ZeroMQ context of this process, made when first needed: one from before a fork is of no use."""
    pid = os.getpid()
    if pid not in _contexts:
        made = zmq.green.Context()
        made.set(zmq.MAX_SOCKETS, made.get(zmq.SOCKET_LIMIT))
        return _contexts.setdefault(pid, made)
    return _contexts[pid]


class Wire:
    """One socket of the owner's hub; `receive(frames)` gets each message, and must neither block nor raise.

    `lost()` is called when somebody else closed the socket, or its context. The loop holds the wire, and the wire
    holds the object of `receive` and `lost` only weakly: a channel that is dropped can be collected.
    """

    def __init__(
        self,
        owner: Owner,
        socket: zmq.Socket[Any],
        receive: Callable[[list[bytes]], None],
        lost: Callable[[], None],
        name: str = "kernel's",
    ) -> None:
        self.socket = socket
        self.name = name
        self.is_closed = False
        self._owner = owner
        self._receive = weakref.WeakMethod(receive)
        self._lost = weakly(lost)
        self._is_draining = False
        self._touched = Parking(owner.hub)
        _retire_own_watcher(socket)
        loop = owner.hub.loop
        self._again = loop.timer(NEXT_TURN)
        self._readable = loop.io(_get(socket, zmq.FD), 1)
        self._readable.start(self._on_event)
        # A pipe signals only a reader that has found it empty before, so have a look without being told.
        self._again.start(self.drain)

    def send(self, frames: Sequence[Any]) -> None:
        """Queue a message, and take in what has arrived meanwhile; raises ChannelClosed.

        A Ctrl-C is raised when the message is out.
        """
        is_held = sigint.hold(self._owner.hub)
        try:
            if self._send(frames):
                self.drain()
        finally:
            if is_held:
                sigint.release()

    def drain(self) -> None:
        """Take in what is there, for at most `TURN` seconds; what is left waits for the loop's next turn."""
        receive = self._receive()
        if self._owner.forked or receive is None:
            self._stop_watching()
            return
        if self._is_draining or self.is_closed:
            return
        is_held = sigint.hold(self._owner.hub)
        try:
            self._take_in(receive)
        finally:
            if is_held:
                sigint.release()

    def _take_in(self, receive: Callable[[list[bytes]], None]) -> None:
        self._is_draining = True
        is_empty = False
        until = monotonic() + TURN
        try:
            while not self.is_closed:
                frames = self._read()
                if frames is None:
                    is_empty = True
                    break
                receive(frames)
                if monotonic() > until:
                    break
        finally:
            self._is_draining = False
            self._touched.wake()
            if not is_empty and not self.is_closed:
                self._again.start(self._go_on)

    def _on_event(self) -> None:
        try:
            self.drain()
        except BaseException:
            if not self.is_closed:
                self._again.start(self._go_on)
            raise

    def _go_on(self) -> None:
        """Take in again, and watch again: the loop stops a watcher whose callback has raised."""
        if not self.is_closed:
            self._readable.start(self._on_event)
            self.drain()

    def wait_for_peer(self, deadline: Deadline) -> bool:
        """Until the socket, which has ZMQ_IMMEDIATE, is connected; False if it is not within the deadline."""
        while not self.is_closed:
            self.drain()
            if _get(self.socket, _EVENTS) & _POLLOUT:
                return True
            if not self._touched.wait(deadline) and deadline.is_over:
                break
        return False

    def close(self) -> None:
        """Close the socket at once, without waiting for what was not sent. Idempotent."""
        if self.is_closed:
            return
        self.is_closed = True
        self._touched.wake()
        self._stop_watching()
        self._readable.close()
        self._again.close()
        self.socket.close(0)

    def _stop_watching(self) -> None:
        """In a forked child, whose loop still watches the parent's socket, or for a channel that was dropped."""
        self._readable.stop()
        self._again.stop()

    def _send(self, frames: Sequence[Any]) -> int:
        """Queue a message; true if one has arrived."""
        socket = self.socket
        try:
            for frame in frames[:-1]:
                _send(socket, frame, _MORE)
            _send(socket, frames[-1], _DONTWAIT)
            return _get(socket, _EVENTS) & _POLLIN
        except zmq.Again as exc:  # only where nothing may be sent to a peer that is not there
            raise InvalidState(f"the kernel is not connected to the {self.name} channel") from exc
        except zmq.ZMQError as exc:
            self.close()
            self._lost()
            raise ChannelClosed(self.name) from exc

    def _read(self) -> list[bytes] | None:
        socket = self.socket
        try:
            frames = [_recv(socket, _DONTWAIT)]
        except zmq.Again:
            return None
        except zmq.ZMQError:
            self.close()
            self._lost()
            return None
        while _get(socket, _RCVMORE):
            frames.append(_recv(socket, _DONTWAIT))
        return frames


def _retire_own_watcher(socket: zmq.Socket[Any]) -> None:
    """Stop the watcher that a green socket starts at construction: ours stands in, and saves 2.5 us an event."""
    watcher = getattr(socket, "_state_event", None)
    if watcher is not None:
        watcher.stop()
