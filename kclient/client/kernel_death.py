"""What becomes of a client's calls when the process of its kernel has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.waiting import Timer
from kclient.errors import DeadKernelError, Failure, copies_of

if TYPE_CHECKING:
    from kclient.client.connection import KernelConnection

LAST_WORDS: Final = 0.02
"""Seconds for which a dead kernel's sockets are read on, since its last messages may still be under way."""


class KernelDeath:
    """The kernel's last words are read, then whoever waits fails; new calls do unless a restart is under way.

    `on_death()`, if set, is told of an end which the loop has had no turn to tell, and may call `bury`.
    """

    def __init__(self, link: KernelConnection) -> None:
        self.on_death: Callable[[], None] | None = None
        self._link = link
        self._failure: Failure = copies_of(DeadKernelError())
        self._last_words: Deadline | None = None
        self._burial = Timer(link.owner, self._end)

    def bury(self, failure: Failure) -> None:
        """The kernel is dead: read its last words, then let calls fail."""
        self._failure, self._last_words = failure, Deadline(LAST_WORDS)
        self._burial.set(LAST_WORDS)

    def forget(self) -> None:
        """Whoever waited has been told, or another kernel is about to come."""
        self._burial.cancel()
        self._last_words = None

    def look(self) -> None:
        """Without the help of the loop: see whether the kernel has died, and whether its last words are in."""
        self.take_in()
        if self._last_words is not None and self._last_words.is_over:
            self._end()

    def take_in(self) -> None:
        """See whether the kernel has died."""
        link, kernel = self._link, self._link.kernel
        is_known = self._last_words is not None or link.is_restarting or link.failure is not None
        if kernel is None or is_known or kernel.is_alive():
            return
        if self.on_death is not None:
            self.on_death()
        else:
            self.bury(copies_of(kernel.death()))

    def _end(self) -> None:
        (self._link.break_off if self._link.is_restarting else self._link.fail)(self._failure)
