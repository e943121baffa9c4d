"""The stdin channel: the kernel asks for input, and a person or a callback answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from kclient.channels import message_log
from kclient.channels.base import INBOX_BYTES, MessageChannel
from kclient.channels.shared import StdInClient
from kclient.concurrency import log as logs
from kclient.concurrency.deadline import Timeout, as_deadline
from kclient.concurrency.log import DEBUG
from kclient.errors import InvalidState
from kclient.protocol import messages
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import Message

if TYPE_CHECKING:
    from kclient.protocol.session import Session

INBOX_MESSAGES_OF_STDIN: Final = 1_000
"""Input requests that wait in the inbox. If there are more, the oldest are dropped."""


class StdInChannel(MessageChannel):
    """The channel on which input requests arrive."""

    name = "stdin"

    def __init__(self, context: Any, session: Session, address: str | tuple[str, int]) -> None:
        super().__init__(context, session, address)
        self._client: StdInClient = self._shared.client
        self._inbox = Inbox(INBOX_MESSAGES_OF_STDIN, INBOX_BYTES)
        self._asked: Message | None = None

    def input(self, string: str) -> None:
        """Answer the latest input request; raises InvalidState if there was none."""
        self.check_running()
        self._line.drain()
        if self._asked is None:
            raise InvalidState("the kernel has not asked for input")
        self.answer(self._asked, string)

    def answer(self, request: Message, string: str) -> None:
        """Answer that input request."""
        reply = self._session.msg("input_reply", messages.input_reply(string), parent=request)
        self.check_running()
        self._check_failure()
        if logs.is_enabled(DEBUG):
            message_log.sending(self.name, reply)
        self._line.send(reply)
        if self._asked is request:
            self._asked = None

    def reopen(self) -> None:
        self._asked = None
        super().reopen()

    def reconnected(self) -> None:
        """The kernel is back after a cut."""
        self._client.reconnected()

    def is_awaited(self) -> bool:
        """True if input requests are answered here: a greenlet waits in `get_msg`, or `call_handlers` is overridden."""
        return self.is_alive() and (len(self._arrived) > 0 or self.handles)

    @property
    def inbox(self) -> Inbox:
        """Input requests that neither an execution nor the client answers."""
        return self._inbox

    def _route(self, message: Message) -> None:
        if message.header["msg_type"] == "input_request":
            self._asked = message
        if not self._client.claim_input(message):
            self.leave(message)

    def leave(self, message: Message) -> None:
        """Put `message` into the inbox."""
        self.inbox.append(message)
        self._arrived.wake()

    def _next_unclaimed(self) -> Message:
        return self.inbox.pop_oldest()

    def wait_for_peer(self, timeout: Timeout = None) -> bool:
        """Wait until the kernel can reach this channel; False if it could not within `timeout` seconds.

        A client's wait_for_ready calls it. A program that starts a channel without a client should call it before it
        runs code that asks for input: the kernel's ROUTER drops an input_request to an identity that has not connected
        yet. Then the code waits for ever.
        """
        self.check_running()
        is_connected = self._line.wait_until_connected(as_deadline(timeout))
        self._check_failure()
        return is_connected
