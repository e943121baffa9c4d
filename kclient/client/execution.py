"""Execution: one run of code. It is like a future, and an iterator over its outputs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any, Final

import gevent
from gevent import getcurrent

from kclient.channels.base import last_look
from kclient.client.channel_set import ChannelSet
from kclient.client.giving_up import GivingUp, shown
from kclient.client.input_requests import InputRequests, OnInput
from kclient.concurrency.callbacks import call_back
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.log import log
from kclient.concurrency.waiting import Parking
from kclient.errors import DeadKernelError, Failure, InvalidState, KernelTimeout, NoReply
from kclient.protocol.inbox import Backlog
from kclient.protocol.messages import Message
from kclient.protocol.result import Check, Result, valid_check
from kclient.protocol.routing import Slot
from kclient.protocol.transcript import Times, Transcript

OnOutput = Callable[[Message], object]
CTRL_C_GRACE_S: Final = 5.0
"""Seconds for which a KeyboardInterrupt waits until the interrupted kernel is idle."""


class Execution:
    """A request to run code that was sent; `submit` makes it.

    Iterate it for its output messages as they arrive: stream, display_data, update_display_data,
    execute_result, error and clear_output. Each message comes out once.
    """

    def __init__(
        self,
        channels: ChannelSet,
        input_requests: InputRequests,
        answer_is_owed: Callable[[], None],
        transcript: Transcript,
        *,
        check: Check = False,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        keeps_messages: bool = True,
        keeps_alive: object = None,
    ) -> None:
        self.msg_id = ""
        self.subshell_id: str | None = None
        self.may_ask = False
        self._channels = channels
        self._answers = input_requests
        self._answer_is_owed = answer_is_owed
        self._owner = channels.owner
        self._transcript = transcript
        self._check = check if check is False else valid_check(check)
        self._on_output = on_output
        self._on_input = on_input
        self._keeps_messages = keeps_messages
        self._keeps_alive = keeps_alive  # the manager or the client whose `submit` made it: the kernel is theirs
        self._messages = Backlog(transcript.max_output_bytes)
        self._input_requests: deque[Message] = deque()
        self._changed = Parking(channels.owner)
        self._failure: Failure | None = None
        self._result: Result | None = None
        self._callback_error: BaseException | None = None
        self._follower: gevent.Greenlet[..., Any] | None = None
        self._request: Message | None = None
        self._on_abandon = "leave"
        self._given_up: GivingUp | None = None  # until it is interrupted or times out: most never do
        self._is_over = False
        self._spin_end: Deadline | None = None

    def __repr__(self) -> str:
        return f"<Execution {getattr(self, 'msg_id', '?')} {'done' if getattr(self, '_is_over', 0) else 'running'}>"

    def __iter__(self) -> Iterator[Message]:
        """The output messages as they arrive. Ends when the execution is done; raises if it fails."""
        if self._on_output is not None:
            raise InvalidState("the outputs of this execution go to its on_output; they cannot be iterated as well")
        while True:
            self._owner.check()
            while self._messages:
                yield self._messages.popleft()
            if self._is_over:
                self._raise_failure()
                return
            with self._owner.call():
                self._wait(Deadline(None), self._has_no_news)

    @property
    def times(self) -> Times:
        """When it was sent, and when the kernel was busy, replied and was idle: `perf_counter` seconds; 0: not yet."""
        return self._transcript.times

    @property
    def takes_input(self) -> bool:
        return self._on_input is not None

    def done(self) -> bool:
        """True if the execution has ended; takes in messages that have arrived, and does not wait."""
        self._owner.check()
        self._channels.look()
        self._let_follower_run()
        return self._is_over and self._follower is None

    def result(self, timeout: float | None = None) -> Result:
        """Wait for the end and return the Result. After a KernelTimeout the caller may ask again.

        Ctrl-C, in the main greenlet, interrupts the kernel and raises KeyboardInterrupt when it is idle.
        """
        deadline = Deadline(timeout)
        with self._owner.call():
            if self._follower is not None and getcurrent() is self._follower:
                raise InvalidState("a callback of this execution cannot wait for the end, which comes after it")
            self._or_interrupt(self._wait_for_end, deadline)
            if self._callback_error is not None:
                raise self._callback_error
            return self._final_result()

    def interrupt(self) -> None:
        """Interrupt this execution and no other, at once or as soon as it begins. In a subshell: UnsupportedFeature."""
        with self._owner.call():
            if not self._is_over:
                self._giving_up().interrupt()

    def run(self, deadline: Deadline, on_abandon: str) -> Result:
        """Run the callbacks in this greenlet until the end. If that raises, `on_abandon` applies."""
        self._on_abandon = on_abandon
        try:
            self._or_interrupt(self._follow, deadline)
            return self._final_result()
        except BaseException:
            if not self._is_over:
                if on_abandon != "leave":
                    self._give_up()
                self._stop_calling()
            raise

    def follow_in_background(self) -> None:
        """Run the callbacks of `submit` in a greenlet of this execution's own."""
        self._follower = gevent.spawn(self._follow_all)

    def sent(self, request: Message) -> None:
        """The request is about to be sent: take its id."""
        self.msg_id = request.msg_id
        self.subshell_id = request.header.get("subshell_id")
        self.may_ask = request.content["allow_stdin"]
        self._request = request
        self._transcript.note_sent(self.msg_id, perf_counter())

    @property
    def is_incomplete(self) -> bool:
        """True if it has ended, and its idle status will not come."""
        return not self._transcript.complete

    def describe(self) -> str:
        """The beginning of its code, and whether its call was given up, for an error message."""
        return "" if self._request is None else shown(self._request.content["code"], self._given_up)

    def is_running(self) -> bool:
        """True until the messages that end it have been taken in."""
        return not self._is_over

    awaits_idle = is_running

    def feed(self, message: Message) -> None:
        """Take in an iopub message that bears this execution's id."""
        transcript = self._transcript
        shown_message = transcript.take(message)
        if shown_message is not None and self._keeps_messages:
            self._keep(shown_message)
        if self._given_up is not None:
            self._given_up.look()
        if shown_message is None and transcript.is_done:
            self._finish()

    def take_input(self, message: Message) -> bool:
        """Take in an input_request, if this execution has an on_input of its own."""
        if self._on_input is None:
            return False
        self._input_requests.append(message)
        self._changed.wake()
        return True

    def update_display(self, message: Message) -> None:
        """Apply what another execution sent for a display of this one, or an Output widget that takes its output."""
        self._transcript.update_display(message)

    def on_settled(self, slot: Slot) -> None:
        """The reply has come, or there will be none."""
        if slot.error is not None:
            self.fail(slot.error)
        if slot.reply is None:
            return
        self._transcript.set_reply(slot.reply)
        if self._transcript.is_done:
            self._finish()
        else:
            self._answer_is_owed()

    def fail(self, failure: Failure) -> None:
        """End without a result."""
        if not self._is_over:
            self._failure = failure
            self._end()

    def conclude(self) -> None:
        """End without the idle status, which was lost; outputs may be missing."""
        if not self._is_over:
            self._transcript.complete = False
            log().warning("the idle status of %s was lost: its outputs may be incomplete", self.msg_id)
            self._end()

    def _keep(self, message: Message) -> None:
        if self._messages.append(message):
            self._changed.wake()
        else:
            self._transcript.note_drop()

    def _stop_calling(self) -> None:
        """Keep no more outputs, and leave prompts to stdin's inbox: no call of this execution takes them any more."""
        self._keeps_messages = False
        self._messages.clear()
        self._on_input = None
        while self._input_requests and self._channels.runs("stdin"):
            self._channels.stdin.leave(self._input_requests.popleft())

    def _finish(self) -> None:
        """Reply and idle status are in: end, unless the kernel has skipped the code and is asked once more."""
        request = self._request if self._transcript.was_skipped else None
        if request is None or not self._giving_up().try_again(request):
            self._end()

    def _end(self) -> None:
        self._is_over = True
        if self._given_up is not None:
            self._given_up.cancel()
        self._channels.forget(self)
        self._changed.wake()

    def _wait(self, deadline: Deadline, is_waiting: Callable[[], bool]) -> None:
        """Wait until something changes; raises KernelTimeout."""
        self._channels.refuse_if_answering(self.subshell_id)
        if self._channels.spin and is_waiting() and self._spin(is_waiting, deadline):
            return
        if not self._changed.wait(deadline) and deadline.is_over:
            last_look(self._channels.running(), deadline)
            self.done()
            self._check_deadline(deadline)

    def _spin(self, is_waiting: Callable[[], bool], deadline: Deadline) -> bool:
        """Spin until the wait is over (True) or the time to spin is (False). That time begins with the first wait."""
        if self._spin_end is None:
            self._spin_end = deadline.at_most(self._channels.spin)
        self._channels.spin_while(is_waiting, self._spin_end)
        return not is_waiting()

    def _has_no_news(self) -> bool:
        return not self._is_over and not self._messages and not self._input_requests

    def _check_deadline(self, deadline: Deadline) -> None:
        if deadline.is_over and not self._is_over:
            raise self._giving_up().timed_out(deadline, self._on_abandon)

    def _let_follower_run(self) -> None:
        """Give the callbacks a turn, in a script that only polls."""
        if self._follower is not None and getcurrent() not in (self._follower, self._owner.hub):
            gevent.sleep(0)

    def _wait_for_end(self, deadline: Deadline) -> None:
        while not self._is_over or self._follower is not None:
            if self._is_over and deadline.is_over:
                raise KernelTimeout("end of on_output", deadline.timeout, msg_id=self.msg_id, execution=self)
            self._wait(deadline, self.is_running)

    def _follow(self, deadline: Deadline) -> None:
        """Run the callbacks in order of arrival until the end. Output that was printed before a prompt comes first."""
        while True:
            try:
                self._call_on_output(deadline)
                if self._input_requests and self._on_input is not None:
                    self._channels.drain()
                    self._call_on_output(deadline)
                    self._answers.answer(self._input_requests.popleft(), self._on_input, self.is_running)
                    continue
            except Exception as exc:
                if not (isinstance(exc, KernelTimeout) and exc.execution is self):  # that of `run`: see on_abandon
                    self._give_up()
                raise
            if self._is_over:
                return
            self._wait(deadline, self._has_no_news)

    def _call_on_output(self, deadline: Deadline) -> None:
        while self._messages and self._on_output is not None:
            call_back(self._on_output, self._messages.popleft())
            last_look(self._channels.running(), deadline)
            self._check_deadline(deadline)

    def _follow_all(self) -> None:
        try:
            self._follow(Deadline(None))
        except BaseException as exc:  # a gevent.Timeout, too; `result` raises it
            self._callback_error = exc
            self._on_output = None
            self._give_up()
            self._stop_calling()
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise
        finally:
            self._follower = None
            self._changed.wake()

    def _giving_up(self) -> GivingUp:
        self._given_up = self._given_up or GivingUp(self, self._channels, self._transcript)
        return self._given_up

    def _give_up(self) -> None:
        """Interrupt it, unless that was done before."""
        with self._owner.call():
            self._giving_up().give_up()

    def _or_interrupt(self, wait: Callable[[Deadline], None], deadline: Deadline) -> None:
        """Call `wait`. A Ctrl-C interrupts the kernel, and is raised when that is idle, a second one at once."""
        try:
            wait(deadline)
        except KeyboardInterrupt:
            if not self._is_over:
                self._giving_up().interrupt_and_wait(self._changed, Deadline(CTRL_C_GRACE_S))
            raise

    def _final_result(self) -> Result:
        self._raise_failure()
        self._result = self._result or Result.of(self._transcript)
        if self._check:
            self._result.raise_for_error(by_reply=self._check == "reply")
        return self._result

    def _raise_failure(self) -> None:
        if self._failure is None:
            return
        if isinstance(error := self._failure(self.msg_id), (DeadKernelError, NoReply)):
            error.result = Result.of(self._transcript)
        raise error
