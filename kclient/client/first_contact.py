"""FirstContact: the same question on several channels, of which the first answer counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from kclient.channels.shell import RequestChannel
from kclient.client.channel_set import ChannelSet
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.waiting import Parking
from kclient.protocol.messages import Message
from kclient.protocol.routing import Outputs, Slot


class Forgettable(Protocol):
    """A probe, which takes in the statuses of its question."""

    def forget(self) -> None: ...


_Probe = TypeVar("_Probe", bound=Forgettable)


class FirstContact(Generic[_Probe]):
    """Asks kernel_info on one channel after the other. The caller must hold a Ctrl-C back."""

    def __init__(self, channels: ChannelSet) -> None:
        self._channels = channels
        self._parking = Parking(channels.owner)
        self._asked: list[tuple[RequestChannel, _Probe, Slot]] = []

    @property
    def msg_id(self) -> str:
        """The id of the first question."""
        return self._asked[0][2].msg_id

    def ask(self, channel: RequestChannel, new_probe: Callable[[Outputs | None, str], _Probe]) -> None:
        """Send the question. The probe that `new_probe` makes takes in its statuses."""
        message = self._channels.session.msg("kernel_info_request")
        probe = new_probe(self._channels.outputs, message.msg_id)
        try:
            self._asked.append((channel, probe, channel.post(message, self._parking.wake)))
        except BaseException:
            probe.forget()
            raise

    def wait(self, deadline: Deadline) -> bool:
        """Wait for an answer, or an error in its place; False after the deadline."""
        while not self._is_settled():
            if not self._parking.wait(deadline) and deadline.is_over:
                self._channels.look()
                return self._is_settled()
        return True

    def take(self) -> tuple[RequestChannel, _Probe, Message]:
        """The channel that was the first to answer, its probe and the reply; raises the error in its place."""
        channel, probe, slot = next(asked for asked in self._asked if asked[2].is_settled)
        return channel, probe, channel.requests.take(slot)

    def forget(self) -> None:
        """Let no probe take in statuses any more: the call has failed."""
        for _, probe, _ in self._asked:
            probe.forget()

    def end(self) -> None:
        """Discard the replies that were not taken. The probes go on: the statuses of a busy kernel come later."""
        for channel, _, slot in self._asked:
            if slot.is_pending():
                channel.requests.abandon(slot)

    def _is_settled(self) -> bool:
        return any(slot.is_settled for _, _, slot in self._asked)
