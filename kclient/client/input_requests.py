"""Input requests: code in the kernel asks for input, and an execution, the client or a person answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent
from gevent import getcurrent

from kclient.client.channel_set import ChannelSet
from kclient.client.interrupts import interrupt_asker
from kclient.concurrency.callbacks import call_back
from kclient.concurrency.log import log
from kclient.errors import ChannelClosed, DeadKernelError, InvalidState, RemoteProtocolError
from kclient.protocol.messages import Message
from kclient.protocol.sink import Sink

OnInput = Callable[[str, bool], str]
"""Called as ``on_input(prompt, password)``, it returns the answer to an input request."""


class InputRequests:
    """Gives an input request to the execution's `on_input`, else to `on_input` of the client, else to stdin's inbox."""

    def __init__(self, channels: ChannelSet) -> None:
        self.on_input: OnInput | None = None
        self._channels = channels
        self._answerers: set[gevent.Greenlet[..., Any]] = set()

    def are_answered(self) -> bool:
        """True if an input request would be answered although its execution has no on_input of its own."""
        return self._channels.runs("stdin") and (self.on_input is not None or self._channels.stdin.is_awaited())

    def answer(self, request: Message, on_input: OnInput, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Call `on_input` in this greenlet and send the string that it returns.

        The answer is not sent if the code that asked has ended by then, for example by an interrupt: the kernel would
        give it to the next code that asks, and it may be a password. Nor is it sent if `is_wanted()` is False: another
        kernel may run by then.
        """
        content = request.content
        self._channels.drain()
        was_asking = self._channels.is_busy_with(request.parent_id or "")
        answering = self._channels.shell.answering
        answering.add(getcurrent())
        try:
            answer = call_back(on_input, str(content.get("prompt", "")), bool(content.get("password", False)))
        finally:
            answering.discard(getcurrent())
        if not self._channels.runs("stdin"):
            raise ChannelClosed("stdin")
        self._channels.drain()
        has_ended = was_asking and not self._channels.is_busy_with(request.parent_id or "")
        if has_ended or not is_wanted():
            log().debug("the code that asked has ended; the answer is not sent")
            return
        try:
            self._channels.stdin.answer(request, answer)
        except InvalidState:  # the connection has ended; the death of the kernel may not be known yet
            kernel = self._channels.kernel
            if kernel is None or kernel.is_alive():
                raise
            raise kernel.death(self._channels.peer.exit_reason) from None

    def claim(self, message: Message) -> bool:
        """Give an input request to its execution or to the client's on_input; False leaves it in the inbox."""
        if message.msg_type != "input_request":
            return False
        outputs = self._channels.outputs
        execution = None if outputs is None else outputs.executions.get(message.parent_id or "")
        if execution is not None and execution.take_input(message):
            return True
        if self.on_input is None:
            if execution is not None and not execution.may_ask and not self._channels.stdin.is_awaited():
                self._refuse(execution, message)
            return False
        self._answerers.add(gevent.spawn(self._answer_in_background, message, self.on_input))
        return True

    def stop(self) -> None:
        """Answer nothing any more."""
        gevent.killall(list(self._answerers), block=False)

    def _refuse(self, execution: Sink, request: Message) -> None:
        """Interrupt code that asks although the request forbade it (R does): the kernel would wait for ever."""
        prompt = str(request.content.get("prompt", ""))
        execution.fail(
            lambda msg_id: RemoteProtocolError(
                f"the kernel asks for input ({prompt!r}), although the request said allow_stdin=False; the code is "
                "interrupted, unless it is in a subshell. Pass on_input to answer"
            )
        )
        interrupt_asker(self._channels, request)

    def _answer_in_background(self, request: Message, on_input: OnInput) -> None:
        try:
            self.answer(request, on_input)
        except (gevent.GreenletExit, ChannelClosed, DeadKernelError):
            log().debug("an input request is not answered: the channels are closed, or the kernel is dead")
        except BaseException as exc:
            log().exception("on_input failed; the code that waits for it is interrupted, unless it is in a subshell")
            interrupt_asker(self._channels, request)
            if isinstance(exc, (KeyboardInterrupt, SystemExit)):
                raise
        finally:
            self._answerers.discard(getcurrent())
