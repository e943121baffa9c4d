"""The stdin channel: the kernel asks, a person or a callback answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import zmq

from kclient.channels.base import MessageChannel
from kclient.concurrency.deadline import Timeout, as_deadline
from kclient.concurrency.waiting import weakly
from kclient.errors import InvalidState
from kclient.protocol import messages
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import Message

if TYPE_CHECKING:
    from kclient.protocol.session import Session


class StdInChannel(MessageChannel):
    """A DEALER of the shell's identity, on which input requests arrive."""

    name = "stdin"
    socket_type = zmq.DEALER

    def __init__(self, context: zmq.Context[Any], session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        self._inbox = Inbox(1000, 64 * 2**20)
        self.claim: Callable[[Message], bool] | None = None
        self.on_reconnect: Callable[[], None] | None = None
        self._asked: Message | None = None
        self._had_peer = self._was_cut = False

    def input(self, string: str) -> None:
        """Answer the latest input request; raises InvalidState if there was none."""
        self._check().drain()
        if self._asked is None:
            raise InvalidState("the kernel has not asked for input")
        self.answer(self._asked, string)

    def answer(self, request: Message, string: str) -> None:
        """Answer that input request."""
        reply = self.session.msg("input_reply", messages.input_reply(string), parent=request)
        wire = self._check()
        self._check_failure()
        wire.send(self.session.serialize(reply))
        if self._asked is request:
            self._asked = None

    def reopen(self) -> None:
        self._asked = None
        super().reopen()

    def _attach(self, socket: zmq.Socket[Any]) -> None:
        super()._attach(socket)
        self._had_peer = self._was_cut = False
        if self._wire is not None:
            self._wire.on_touched = weakly(self._look_at_peer)

    def _look_at_peer(self) -> None:
        """Notice that the kernel is back after a cut: this socket alone tells, for it has ZMQ_IMMEDIATE."""
        has_peer = self._wire is not None and self._wire.has_peer()
        if has_peer and self._was_cut and self.on_reconnect is not None:
            self.on_reconnect()
        self._was_cut = not has_peer and (self._was_cut or self._had_peer)
        self._had_peer = has_peer

    def is_awaited(self) -> bool:
        """True if someone will answer here: a greenlet waits in `get_msg`, or `call_handlers` is overridden."""
        return self.is_alive() and (len(self._arrived) > 0 or self.handles)

    @property
    def inbox(self) -> Inbox:
        """Input requests that neither an execution nor the client answers."""
        return self._inbox

    def _route(self, message: Message) -> None:
        if message.header["msg_type"] == "input_request":
            self._asked = message
        if self.claim is None or not self.claim(message):
            self.leave(message)

    def leave(self, message: Message) -> None:
        """Put `message` into the inbox, for whoever asks."""
        self.inbox.append(message)
        self._arrived.wake()

    def _next_unclaimed(self) -> Message:
        return self.inbox.pop_oldest()

    def wait_for_peer(self, timeout: Timeout = None) -> bool:
        """Until the kernel can reach us; False if it could not within `timeout` seconds.

        A client's wait_for_ready calls it. Whoever starts a channel by itself should, before code asks for input: the
        kernel's ROUTER drops an input_request to an identity that it has not met, and the code waits for ever.
        """
        is_connected = self._check().wait_for_peer(as_deadline(timeout))
        self._check()
        self._check_failure()
        return is_connected

    def _configure(self, socket: zmq.Socket[Any]) -> None:
        socket.routing_id = self.identity or self.session.identity
        socket.immediate = True
