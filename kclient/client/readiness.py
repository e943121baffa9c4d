"""Readiness: the client itself asks the kernel. Is it ready? Does its output arrive? Does it answer at all?"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from time import perf_counter
from typing import Final

from kclient.channels.shell import RequestChannel
from kclient.channels.turns import Turn
from kclient.client.channel_set import ChannelSet
from kclient.client.first_contact import FirstContact
from kclient.concurrency.deadline import Deadline
from kclient.errors import Failure, KernelTimeout, NoReply, UnsupportedFeature
from kclient.protocol import messages
from kclient.protocol.messages import Content, Message
from kclient.protocol.routing import Outputs
from kclient.protocol.sink import OwnQuestion

STDIN_WAIT_S: Final = 1.0
"""Seconds to wait for the stdin channel of a kernel that answers on shell: some kernels do not serve stdin."""

SUBSCRIBE_PAUSE_S: Final = 0.005
"""Seconds to wait for a first iopub message before kernel_info is asked again; doubled each time."""

SUBSCRIBE_WAIT_S: Final = 1.0
"""Seconds for which `run` and `submit` wait for a first iopub message, if the client is not known to be ready."""

ASK_AT_MOST: Final = 3
"""Number of questions without an answer after which a kernel counts as one that does not answer them at all."""

SHELL_ALONE_S: Final = 0.1
"""Seconds for which a kernel that this program did not start is asked on shell alone: an idle one answers at once."""

KEY_DOUBT_S: Final = 1.0
"""Seconds after which a kernel of which only messages with wrong signatures have come counts as one of another key."""

BUSY: Final = (
    "the kernel publishes its outputs and answers no request: it is busy with other code; wait longer, or interrupt it"
)

SILENCE_S: Final = 0.3
"""Seconds without a message on iopub after which it is quiet. That does not tell that nothing is on its way."""

KERNEL_INFO: Final[tuple[str, Content]] = ("kernel_info_request", {})

NOTHING: Final = ("execute_request", messages.execute("", silent=True, store_history=False))
"""Empty code: every kernel publishes statuses about this request."""


class Probe(OwnQuestion):
    """A request of kclient's own, mostly for kernel_info. It takes in the statuses of that request."""

    def __init__(self, outputs: Outputs | None, msg_id: str, older: Probe | None = None) -> None:
        self.is_idle = False
        self.kernel_session: object = None
        self.made = perf_counter()
        self._outputs = outputs
        self._msg_id = msg_id
        self._older = older
        if outputs is not None:
            outputs.executions[msg_id] = self

    def feed(self, message: Message) -> None:
        if message.content.get("execution_state") == "idle":
            self.is_idle = True
            if self._outputs is not None:
                self._outputs.pending.tells_idle = True
            self.forget()

    def fail(self, failure: Failure) -> None:
        self.forget()

    def forget(self) -> None:
        """Wait for no more statuses of this probe, nor of older ones."""
        probe: Probe | None = self
        while probe is not None:
            if probe._outputs is not None:
                probe._outputs.executions.pop(probe._msg_id, None)
            older, probe._older = probe._older, None
            probe = older

    def answered(self, reply: Message) -> None:
        """The reply has come. A flush need not wait for the idle status: it may have come before the subscription."""
        self.kernel_session = reply.header.get("session")
        if self._outputs is not None:
            self._outputs.pending.owed_idle.pop(self._msg_id, None)


class Readiness:
    """Asks kernel_info over `channels`. Only its probes see the statuses of these requests."""

    def __init__(self, channels: ChannelSet) -> None:
        self._channels = channels
        self.kernel_session: object = None
        self._is_reachable = False
        self._tried: Outputs | None = None
        self._latest = Probe(None, "")

    def check_reachable(self, deadline: Deadline) -> None:
        """Raise an error if the kernel cannot answer, as far as can be seen before anything is sent. Looks once."""
        channels = self._channels
        if channels.kernel is not None or self._is_reachable or self.kernel_session is not None:
            return
        obstacle = channels.transport.find_obstacle(deadline)
        if obstacle is not None:
            raise obstacle
        self._is_reachable = True

    def wait_for_ready(self, deadline: Deadline) -> None:
        """Wait until the channels that run are ready: kernel_info is answered, iopub has a message, stdin is connected.

        Raises KernelTimeout.
        """
        channels = self._channels
        self.check_reachable(deadline)
        channel: RequestChannel = channels.shell
        probe = None
        try:
            if channels.kernel is None and channels.runs("control"):
                channel, probe = self._first_answer(deadline)
            is_subscribed = self._subscribe(channel, deadline, probe)
        except KernelTimeout as exc:
            hint = self._why_silent()
            if not hint:
                raise
            raise KernelTimeout(exc.waiting_for, exc.timeout, msg_id=exc.msg_id, hint=hint) from None
        if not is_subscribed:
            raise KernelTimeout("message on iopub", deadline.timeout, hint="this kernel publishes nothing")
        self.meet(self._latest.kernel_session)
        if channels.runs("stdin"):
            channels.stdin.wait_for_peer(deadline.at_most(STDIN_WAIT_S))
        if channels.outputs is not None and not channels.outputs.subscribed:  # the stdin line has told of a cut
            self._subscribe(channels.shell, deadline)

    def subscribe_in(self, deadline: Deadline) -> None:
        """Before code is sent: make sure that its first output and input request will arrive."""
        channels = self._channels
        outputs = channels.iopub.outputs
        if outputs.subscribed or self._tried is outputs:
            return
        self._tried = outputs
        wait = deadline.half().at_most(SUBSCRIBE_WAIT_S)
        channel = (
            channels.control if channels.runs("control") else channels.shell
        )  # control answers while the kernel is busy
        with suppress(KernelTimeout, NoReply):
            self._subscribe(channel, wait)
        if channels.runs("stdin"):
            channels.stdin.wait_for_peer(wait)

    def reconnected(self) -> None:
        """The connection was cut and is back; that of iopub may not be back yet."""
        self._tried = None
        if self._channels.outputs is not None:
            self._channels.outputs.subscribed = False

    def ask(
        self,
        channel: RequestChannel,
        deadline: Deadline,
        *,
        subshell_id: str | None = None,
        older: Probe | None = None,
        question: tuple[str, Content] = KERNEL_INFO,
    ) -> Probe:
        """Ask kernel_info, or another `question`, and return when the reply has come."""
        channels = self._channels
        message = channels.session.msg(*question)
        if subshell_id is not None:
            message.header["subshell_id"] = subshell_id
        probe = Probe(channels.outputs, message.msg_id, older)
        try:
            with channels.owner.call():
                channel.refuse_if_answering(subshell_id)
                reply = channel.exchange(message, deadline, Turn.AT_ONCE)
        except BaseException:
            probe.forget()
            raise
        probe.answered(reply)
        if self.kernel_session is None:
            self.kernel_session = probe.kernel_session
        return probe

    def _ask_until_answered(self, channel: RequestChannel, deadline: Deadline) -> Probe:
        """Ask again if there is no reply: an interrupt that was meant for other code may end this request."""
        if self._channels.peer.version_4 is not None:
            channel = self._channels.shell
        question = self.question_on(channel)
        for _ in range(ASK_AT_MOST - 1):
            with suppress(NoReply):
                return self.ask(channel, deadline, older=self._latest, question=question)
        return self.ask(channel, deadline, older=self._latest, question=question)

    def question_on(self, channel: RequestChannel) -> tuple[str, Content]:
        """A question about which the kernel publishes statuses.

        A kernel of protocol 4 may publish none about kernel_info, so it is asked to run empty code instead.
        """
        is_old = self._channels.peer.version_4 is not None
        return NOTHING if is_old and channel.name == "shell" else KERNEL_INFO

    def take_in_idle(self, probe: Probe, deadline: Deadline) -> None:
        """Let the statuses of `probe` come, so that they do not go to the inbox; until iopub is quiet at most."""
        channels = self._channels
        while not probe.is_idle and channels.runs("iopub"):
            if not channels.iopub.changed.wait(deadline.at_most(SILENCE_S)):
                break
        probe.forget()

    def meet(self, kernel_session: object) -> bool:
        """The kernel of that session has answered. True if it is another than before, whose code is gone."""
        is_another = kernel_session != self.kernel_session
        if is_another:
            self._channels.peer.forget_subshells()
            if self._channels.outputs is not None:
                self._channels.outputs.executing.clear()
        self.kernel_session = kernel_session
        return is_another

    def nudge(self, deadline: Deadline) -> None:
        """Ask kernel_info over a new connection, and return when the reply has come.

        Does nothing over a transport that has no second connection.
        """
        with suppress(UnsupportedFeature), self._channels.temporary_channel("shell") as channel:
            probe = self.ask(channel, deadline)
            self.take_in_idle(probe, deadline)

    def _first_answer(self, deadline: Deadline) -> tuple[RequestChannel, Probe | None]:
        """Ask a kernel on shell, and soon on control as well: it answers there while it runs other code.

        Returns the channel that answered, and its probe; shell and None if a request was lost. Raises KernelTimeout,
        and the error of a kernel that has another key.
        """
        channels = self._channels
        with channels.owner.call():
            contact: FirstContact[Probe] = FirstContact(channels)
            try:
                contact.ask(channels.shell, partial(Probe, older=self._latest))
                is_answered = contact.wait(deadline.at_most(SHELL_ALONE_S))
                if not is_answered and not deadline.is_over:
                    contact.ask(channels.control, Probe)
                    channels.shell.watch_connection(True)
                    channels.shell.rejected(is_seen=False)  # if so, libzmq may have told of it before, once
                    is_answered = contact.wait(deadline.at_most(KEY_DOUBT_S))
                if not is_answered and channels.have_another_key():
                    raise channels.transport.another_key()
                if not is_answered and not contact.wait(deadline):
                    waited_for = "kernel_info_reply on the shell or the control channel"
                    raise KernelTimeout(waited_for, deadline.timeout, msg_id=contact.msg_id)
                channel, probe, reply = contact.take()
            except NoReply:
                contact.forget()
                return channels.shell, None
            except BaseException:
                contact.forget()
                raise
            finally:
                contact.end()
                channels.shell.watch_connection(False)
        probe.answered(reply)
        if self.kernel_session is None:
            self.kernel_session = probe.kernel_session
        return channel, probe

    def _why_silent(self) -> str:
        """Why no answer has come, and what to do; empty if the kernel has answered before and has not published."""
        channels = self._channels
        if channels.outputs is not None and channels.outputs.subscribed:
            at_work = channels.at_work()
            return f"{at_work}; interrupt it, or allow more time" if at_work else BUSY
        if channels.have_another_key():
            return str(channels.transport.another_key())
        return channels.transport.hint() if self.kernel_session is None else ""

    def _subscribe(self, channel: RequestChannel, deadline: Deadline, probe: Probe | None = None) -> bool:
        """Ask again and again until a message has come over iopub; False if none came within the deadline.

        `probe` has been answered already, if it is given.
        """
        iopub, pause = self._channels.iopub, SUBSCRIBE_PAUSE_S
        while True:
            self._latest, probe = probe or self._ask_until_answered(channel, deadline), None
            pause_end = deadline.at_most(pause)
            while iopub.is_alive() and not iopub.outputs.subscribed and not pause_end.is_over:
                iopub.changed.wait(pause_end)
            if not iopub.is_alive() or iopub.outputs.subscribed:
                return True
            if deadline.is_over:
                return False
            pause *= 2
            if channel is not self._channels.shell:
                self._ask_shell_too()

    def _ask_shell_too(self) -> None:
        """Ask on shell without waiting: not every kernel publishes a status about a request on control."""
        shell = self._channels.shell
        message = self._channels.session.msg(*self.question_on(shell))
        self._latest = Probe(self._channels.outputs, message.msg_id, self._latest)
        with self._channels.owner.call():
            shell.requests.abandon(shell.post(message, turn=Turn.AT_ONCE))
