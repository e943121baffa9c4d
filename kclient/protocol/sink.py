"""Sink: an execution, or a question of kclient's own, as the routing of messages sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from kclient.protocol.messages import Message


class Sink(Protocol):
    """An execution, as the routing sees it: it takes in the messages that bear its id."""

    subshell_id: str | None
    may_ask: bool
    """True if the kernel was told that input requests are answered."""

    def feed(self, message: Message) -> None:
        """Take in an iopub message."""

    def take_input(self, message: Message) -> bool:
        """Take in an input_request; False if this execution leaves it to others."""

    def update_display(self, message: Message) -> object:
        """Take in a display of another execution, or an Output widget's state: it may change outputs of this one."""

    def fail(self, failure: Callable[[str | None], Exception]) -> None:
        """End without a result."""

    def awaits_idle(self) -> bool:
        """True while it waits for its idle status, and would end with `conclude` if that was lost."""

    def conclude(self) -> None:
        """End although the idle status never came."""

    def describe(self) -> str:
        """The code that it runs, for an error message; empty if it runs none."""


class OwnQuestion:
    """A request of kclient's own, as the routing sees it: it displays nothing and asks for nothing."""

    subshell_id: str | None = None
    may_ask = True

    def take_input(self, message: Message) -> bool:
        return False

    def update_display(self, message: Message) -> None:
        """It displays nothing."""

    def awaits_idle(self) -> bool:
        return False

    def conclude(self) -> None:
        """It ends by itself."""

    def describe(self) -> str:
        return ""
