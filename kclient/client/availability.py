"""Availability: may a call go to the kernel? It is usable, being restarted, about to be dead, or dead."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from gevent import getcurrent

from kclient.client.channel_set import ChannelSet
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.waiting import Parking, Timer
from kclient.errors import DeadKernelError, Failure, KernelTimeout, copies_of

READ_ON_S: Final = 0.02
"""Seconds for which kclient reads the channels of a dead kernel: its latest messages may still be under way."""


class Availability:
    """Lets calls through, lets them wait, or fails them.

    When the kernel has died, its latest messages are read. Then calls that wait fail. New calls fail as well, unless a
    restart is under way. `on_death()`, if given, is called if a call finds the kernel dead before the loop has told so.
    It must call `died`.
    """

    def __init__(self, channels: ChannelSet, on_death: Callable[[], None] | None = None) -> None:
        self.is_restarting = False
        self._channels = channels
        self._on_death = on_death
        self._why = ""
        self._admitted: object = None
        self._changed = Parking(channels.owner)
        self._death: Failure = copies_of(DeadKernelError())
        self._read_until: Deadline | None = None
        self._timer = Timer(channels.owner, self._end)

    @property
    def failure(self) -> Failure | None:
        """A function that makes the error that calls raise; None while the kernel is not known to be dead."""
        return self._channels.failure

    def __len__(self) -> int:
        """How many calls wait for the end of a restart."""
        return len(self._changed)

    def wait_until_usable(self, deadline: Deadline) -> None:
        """Return when no restart is under way; raises KernelTimeout, WrongThread, or the error of a dead kernel."""
        channels = self._channels
        channels.owner.check()
        if self._on_death is not None:
            self._notice_death()
        while self.is_restarting and channels.failure is None and getcurrent() is not self._admitted:
            if not self._changed.wait(deadline) and deadline.is_over:
                raise KernelTimeout("kernel after its restart", deadline.timeout, hint=self._why)
        if channels.failure is not None:
            raise channels.failure(None)

    # Restarts

    def begin_restart(self, why: str = "") -> None:
        """Let new calls wait until the restarted kernel is ready."""
        self.is_restarting = True
        self._why = why

    def admit(self, greenlet: object) -> None:
        """Let the calls of one greenlet through before the restart ends."""
        self._admitted = greenlet

    def end_restart(self) -> None:
        """Let every call through."""
        self.is_restarting = False
        self._admitted = None
        self._changed.wake()

    # The end of the kernel

    def died(self, failure: Failure) -> None:
        """The kernel is dead: read its latest messages, then fail calls."""
        self._death, self._read_until = failure, Deadline(READ_ON_S)
        self._timer.set(READ_ON_S)

    def look(self) -> None:
        """Notice, without a turn of the loop, that the kernel has died; fail calls if its messages were read."""
        self._notice_death()
        if self._read_until is not None and self._read_until.is_over:
            self._end()

    def fail(self, failure: Failure) -> None:
        """Wake every call that waits with an error, and refuse new ones."""
        self._channels.refuse(failure)
        self.break_off(failure)
        self._changed.wake()

    def break_off(self, failure: Failure) -> None:
        """Wake every call that waits for an answer with an error. New calls are let through, or wait."""
        self.forget_death()
        self._channels.break_off(failure)

    def forget_death(self) -> None:
        """Fail no calls for this death later: they were failed already, or another kernel is about to come."""
        self._timer.cancel()
        self._read_until = None

    def _notice_death(self) -> None:
        kernel = self._channels.kernel
        is_known = self._read_until is not None or self.is_restarting or self.failure is not None
        if kernel is None or is_known or kernel.is_alive():
            return
        if self._on_death is not None:
            self._on_death()
        else:
            self.died(copies_of(kernel.death(self._channels.peer.exit_reason)))

    def _end(self) -> None:
        (self.break_off if self.is_restarting else self.fail)(self._death)
