"""Input requests: code that runs in the kernel asks, and an execution, the client or a person answers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gevent
from gevent import getcurrent

from kclient.client.execution import Execution, OnInput
from kclient.concurrency.callbacks import call_back
from kclient.concurrency.log import log
from kclient.errors import ChannelClosed, DeadKernelError, InvalidState, KClientError, RemoteProtocolError
from kclient.protocol.messages import Message

if TYPE_CHECKING:
    from kclient.client.connection import KernelConnection


class InputRequests:
    """Who answers what the kernel asks: the execution's `on_input`, else the client's, set here, else the inbox."""

    def __init__(self, link: KernelConnection) -> None:
        self.on_input: OnInput | None = None
        self._link = link
        self._answerers: set[gevent.Greenlet[..., Any]] = set()

    def are_answered(self) -> bool:
        """True if someone would answer an input request of an execution without an on_input of its own."""
        return self._link.runs("stdin") and (self.on_input is not None or self._link.stdin.is_awaited())

    def answer(self, request: Message, on_input: OnInput, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Call `on_input` in this greenlet and send what it returns.

        Unless the code that asked has ended by then, interrupted say: the kernel would give its answer to whoever asks
        next, and that may be a password. Nor where it is not wanted any more, since the kernel is another.
        """
        content = request.content
        self._link.drain()
        was_asking = self._link.is_busy_with(request.parent_id or "")
        answering = self._link.shell.answering
        answering.add(getcurrent())
        try:
            answer = call_back(on_input, str(content.get("prompt", "")), bool(content.get("password", False)))
        finally:
            answering.discard(getcurrent())
        if not self._link.runs("stdin"):
            raise ChannelClosed("stdin")
        self._link.drain()
        has_ended = was_asking and not self._link.is_busy_with(request.parent_id or "")
        if has_ended or not is_wanted():
            log().debug("the code that asked has ended; the answer is not sent")
            return
        try:
            self._link.stdin.answer(request, answer)
        except InvalidState:  # the connection has ended, and before long we shall hear that the kernel has
            kernel = self._link.kernel
            if kernel is None or kernel.is_alive():
                raise
            raise kernel.death() from None

    def claim(self, message: Message) -> bool:
        """Give an input request to its execution or to the client's on_input; False leaves it in the inbox."""
        outputs = self._link.outputs
        execution = outputs.executions.get(message.parent_id or "") if outputs is not None else None
        if message.msg_type != "input_request":
            return False
        if isinstance(execution, Execution) and execution.takes_input:
            execution.feed_input(message)
            return True
        if self.on_input is None:
            if isinstance(execution, Execution) and not execution.may_ask and not self._link.stdin.is_awaited():
                self._refuse(execution, message)
            return False
        self._answerers.add(gevent.spawn(self._answer_in_background, message, self.on_input))
        return True

    def _refuse(self, execution: Execution, request: Message) -> None:
        """The kernel was told that nobody answers, and asks all the same, as R does: it would wait for ever."""
        prompt = str(request.content.get("prompt", ""))
        execution.fail(
            lambda msg_id: RemoteProtocolError(
                f"the kernel asks for input ({prompt!r}), although it was told that nobody answers; its code is "
                "interrupted. Pass on_input to answer it"
            )
        )
        with suppress(KClientError, OSError):
            self._link.interrupt_kernel()

    def stop(self) -> None:
        """Answer nothing any more."""
        gevent.killall(list(self._answerers), block=False)

    def _answer_in_background(self, request: Message, on_input: OnInput) -> None:
        try:
            self.answer(request, on_input)
        except (gevent.GreenletExit, ChannelClosed, DeadKernelError):
            log().debug("nobody answers the kernel any more, for the channels are closed or it is dead")
        except BaseException as exc:
            log().exception("on_input failed; the code that waits for it is interrupted")
            with suppress(KClientError):
                self._link.interrupt_kernel()
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise
        finally:
            self._answerers.discard(getcurrent())
