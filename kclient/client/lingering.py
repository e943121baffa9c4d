"""LingeringExecution: one that ends a little later than its code, for output that comes late."""

from __future__ import annotations

from typing import Any

from kclient.client.execution import Execution
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.waiting import Timer
from kclient.errors import Failure
from kclient.protocol.result import Result


class LingeringExecution(Execution):
    """An execution that takes in output of its id for `linger` seconds after its reply and its idle status.

    =============  =============================  ==============================================
    state          event                          then
    =============  =============================  ==============================================
    running        reply and idle are in          lingers, until the timer fires
    running        a failure, or its idle lost    over
    lingers        an output                      it is kept, as one of the code
    lingers        the timer fires, a failure     over: the result is there, so this is no error
    lingers        the timeout of `run` is over   over, and no KernelTimeout
    =============  =============================  ==============================================
    """

    def __init__(self, *parts: Any, linger: float, **options: Any) -> None:
        super().__init__(*parts, **options)
        self._linger = linger
        self._lingers = False
        self._within: Deadline | None = None
        self._timer = Timer(self._owner, self._stop_lingering)

    def run(self, deadline: Deadline, on_abandon: str) -> Result:
        self._within = deadline
        return super().run(deadline, on_abandon)

    def awaits_idle(self) -> bool:
        return self.is_running() and not self._lingers

    def fail(self, failure: Failure) -> None:
        if self._lingers:
            self._stop_lingering()
        else:
            super().fail(failure)

    def _end(self) -> None:
        """End, or begin to linger. An output that comes meanwhile calls this, too."""
        if self._lingers:
            return
        if self._failure is not None or not self._transcript.complete:
            super()._end()
            return
        self._lingers = True
        within = Deadline(None) if self._within is None else self._within
        self._timer.set(within.at_most(self._linger).left() or 0.0)

    def _stop_lingering(self) -> None:
        self._timer.cancel()
        if self._lingers:
            self._lingers = False
            super()._end()

    def _check_deadline(self, deadline: Deadline) -> None:
        if self._lingers and deadline is self._within and deadline.is_over:
            self._stop_lingering()
        super()._check_deadline(deadline)
