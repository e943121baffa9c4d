"""KernelInterface: all requests to a kernel. KernelClient and KernelManager share it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Final

from kclient.channels.heartbeat import HBChannel
from kclient.channels.iopub import IOPubChannel
from kclient.channels.requests import ControlRequests, ShellRequests
from kclient.channels.shell import ControlChannel, RequestChannel, ShellChannel
from kclient.channels.stdin import StdInChannel
from kclient.channels.turns import Turn
from kclient.client.connection import KernelConnection
from kclient.client.execution import Execution, OnOutput
from kclient.client.input_requests import OnInput
from kclient.client.lingering import LingeringExecution
from kclient.concurrency.callbacks import check_callback
from kclient.concurrency.deadline import Deadline, check_seconds
from kclient.errors import InvalidArgument
from kclient.protocol import messages
from kclient.protocol.displays import Displays
from kclient.protocol.kernel_info import KernelInfo
from kclient.protocol.messages import Content, Message
from kclient.protocol.result import Check, Result
from kclient.protocol.transcript import MAX_OUTPUT_BYTES, Transcript

if TYPE_CHECKING:
    from kclient.client.comms import Comms

_ONLY_ON_CONTROL: Final = frozenset(
    ["debug_request", "create_subshell_request", "delete_subshell_request", "list_subshell_request"]
)
_RATHER_ON_CONTROL: Final = frozenset(["shutdown_request", "interrupt_request"])


class KernelInterface(ShellRequests, ControlRequests):
    """The five channels of a kernel, the requests that go over them, `run` and `submit`.

    A subclass may replace the classes of its channels.
    """

    shell_channel_class: type[ShellChannel] = ShellChannel
    control_channel_class: type[ControlChannel] = ControlChannel
    iopub_channel_class: type[IOPubChannel] = IOPubChannel
    stdin_channel_class: type[StdInChannel] = StdInChannel
    hb_channel_class: type[HBChannel] = HBChannel

    @property
    @abstractmethod
    def kernel_connection(self) -> KernelConnection:
        """The parts of the client."""

    @property
    def _handed_out(self) -> KernelConnection:
        """The parts of the client, for a caller who may hold one of them longer than this object."""
        return self.kernel_connection

    @property
    def info(self) -> KernelInfo:
        """The facts of the latest kernel_info reply; raises InvalidState before the first one.

        It sends no request. The clients of `connect` and `start_kernel` are ready, so they know.
        """
        return self.kernel_connection.channels.peer.known()

    @property
    def kernel(self) -> KernelInfo:
        """The old name of `info`, which goes on for one release."""
        return self.info

    @property
    def on_input(self) -> OnInput | None:
        """Called as `on_input(prompt, password)` to answer input requests of code that has no on_input of its own."""
        return self.kernel_connection.input_requests.on_input

    @on_input.setter
    def on_input(self, on_input: OnInput | None) -> None:
        self.kernel_connection.input_requests.on_input = check_callback(on_input, "on_input")

    @property
    def shell_channel(self) -> ShellChannel:
        return self._handed_out.channels.shell

    @property
    def control_channel(self) -> ControlChannel:
        return self._handed_out.channels.control

    @property
    def iopub_channel(self) -> IOPubChannel:
        return self._handed_out.channels.iopub

    @property
    def stdin_channel(self) -> StdInChannel:
        return self._handed_out.channels.stdin

    @property
    def hb_channel(self) -> HBChannel:
        return self._handed_out.channels.hb

    @property
    def comms(self) -> Comms:
        """The comms with the kernel: `open` one, or `register_target` for those that the kernel opens."""
        return self._handed_out.comms

    @property
    def channels_running(self) -> bool:
        """True if any channel runs."""
        return bool(self.kernel_connection.channels.running())

    def request(
        self,
        msg_type: str,
        content: Content | None = None,
        *,
        timeout: float | None = None,
        subshell_id: str | None = None,
    ) -> Message:
        """Send a request and return its reply: on control if it belongs there and control runs, else on shell."""
        deadline = Deadline(timeout)
        connection = self.kernel_connection
        channels = connection.channels
        connection.availability.wait_until_usable(deadline)
        messages.check_code(msg_type, "msg_type")
        if msg_type == "execute_request" and channels.runs("iopub"):
            connection.readiness.subscribe_in(deadline)
        channel: RequestChannel = channels.shell
        if msg_type in _ONLY_ON_CONTROL or (msg_type in _RATHER_ON_CONTROL and channels.runs("control")):
            channel = channels.control
        return channel.request(msg_type, content, timeout=deadline, subshell_id=subshell_id)

    def wait_for_debug_event(self, event: str | None = None, *, timeout: float | None = None) -> Message:
        """The next debug_event, or the next one named `event`; see `IOPubChannel.wait_for_debug_event`."""
        return self.kernel_connection.channels.iopub.wait_for_debug_event(event, timeout=timeout)

    def next_debug_seq(self) -> int:
        """The `seq` of the next request to the debugger: 1 for the first of a connection."""
        self.kernel_connection.owner.check()
        return self.kernel_connection.channels.control.next_debug_seq()

    def answers_input(self) -> bool:
        """True if an input request would be answered although its execution has no on_input of its own."""
        return self.kernel_connection.input_requests.are_answered()

    def input(self, string: str) -> None:
        """Answer the latest input request."""
        self.kernel_connection.channels.stdin.input(string)

    def run(
        self,
        code: str,
        *,
        timeout: float | None = None,
        check: Check = False,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
        stop_on_error: bool = False,
        subshell_id: str | None = None,
        on_abandon: str = "interrupt",
        max_output_bytes: int | None = MAX_OUTPUT_BYTES,
        keep_outputs: bool = True,
        displays: Displays | None = None,
        linger: float = 0.0,
    ) -> Result:
        """Run `code` and return its Result, when its reply and all of its outputs have come.

        An error in the code is `Result.error`; `check=True` raises ExecutionError, `check="reply"` does if the
        reply says so: not for an error that the code survived. Both raise IncompleteOutput if outputs may be missing.
        `on_output(message)` gets each output message as it arrives. `on_input(prompt, password)` returns the answer to
        an input request. Both run in the greenlet of the caller.

        A run that raises before its end (a KernelTimeout after `timeout` seconds, a KeyboardInterrupt or another error)
        interrupts its code. With `on_abandon="leave"` the code goes on. With `"restart"` the kernel is restarted if the
        code still runs 2 s after its interrupt; other calls wait for that. A run with a `timeout` is not sent before
        earlier code of this client has ended. If it raises before, its code never runs, unless `on_abandon` is "leave".

        Of more output than `max_output_bytes` (None: no bound) the rest is dropped: a text is cut there, with a mark,
        other outputs are left out. `keep_outputs=False` keeps no output. `displays` remembers what each display_id
        shows, over several runs: see `Displays`. `linger` seconds, within `timeout`, are waited for output that comes
        after the end: that of os.write(1, ...), of child processes and C libraries has no order with the end, and would
        go to the next run.

        Raises InvalidArgument for a `subshell_id` that is not there, UnsupportedFeature if the kernel has no subshells.
        """
        deadline = Deadline(timeout)
        if on_abandon not in ("interrupt", "leave", "restart"):
            raise InvalidArgument(f"on_abandon must be 'interrupt', 'leave' or 'restart', not {on_abandon!r}")
        if on_abandon == "restart" and not self._can_restart():
            raise InvalidArgument("on_abandon='restart' needs the KernelManager that has started the kernel")
        connection = self.kernel_connection
        connection.channels.refuse_if_answering(subshell_id)
        execution, content = self._prepare(
            connection,
            code,
            check=check,
            on_output=on_output,
            on_input=on_input,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
            stop_on_error=stop_on_error,
            max_output_bytes=max_output_bytes,
            keep_outputs=keep_outputs,
            displays=displays,
            linger=linger,
            keeps_messages=on_output is not None,
        )
        with connection.owner.call():
            turn = Turn.IN_ORDER if timeout is None or on_abandon == "leave" else Turn.WHEN_FREE
            connection.start(execution, content, subshell_id, deadline, turn)
            try:
                return execution.run(deadline, on_abandon)
            finally:
                if on_abandon == "restart" and execution.is_running():
                    self._restart_unless_it_ends(execution)

    def _can_restart(self) -> bool:
        """True if this object can restart the kernel."""
        return False

    def _restart_unless_it_ends(self, execution: Execution) -> None:
        """Restart the kernel, in the background, if it still runs that code after some time."""

    def submit(
        self,
        code: str,
        *,
        check: Check = False,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
        stop_on_error: bool = False,
        subshell_id: str | None = None,
        max_output_bytes: int | None = MAX_OUTPUT_BYTES,
        keep_outputs: bool = True,
        displays: Displays | None = None,
        linger: float = 0.0,
    ) -> Execution:
        """Send `code` to run and return its Execution at once.

        Callbacks run in a greenlet of the execution's own. `Execution.result` raises their exceptions.
        """
        connection = self.kernel_connection
        execution, content = self._prepare(
            connection,
            code,
            check=check,
            on_output=on_output,
            on_input=on_input,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
            stop_on_error=stop_on_error,
            max_output_bytes=max_output_bytes,
            keep_outputs=keep_outputs,
            displays=displays,
            linger=linger,
            keeps_messages=True,
        )
        with connection.owner.call():
            connection.start(execution, content, subshell_id, Deadline(None))
            if on_output is not None or execution.takes_input:
                execution.follow_in_background()
            return execution

    def _prepare(
        self,
        connection: KernelConnection,
        code: str,
        *,
        check: Check,
        on_output: OnOutput | None,
        on_input: OnInput | None,
        silent: bool,
        store_history: bool,
        user_expressions: Mapping[str, str] | None,
        stop_on_error: bool,
        max_output_bytes: int | None,
        keep_outputs: bool,
        displays: Displays | None,
        linger: float,
        keeps_messages: bool,
    ) -> tuple[Execution, Content]:
        """An execution that is not sent yet, and the content of its request; raises InvalidArgument."""
        channels, input_requests = connection.channels, connection.input_requests
        content = messages.execute(
            code,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
            allow_stdin=input_requests.are_answered() or (on_input is not None and channels.runs("stdin")),
            stop_on_error=stop_on_error,
        )
        make: Callable[..., Execution] = Execution
        if linger != 0.0:
            make = partial(LingeringExecution, linger=check_seconds(linger, "linger"))
        execution = make(
            channels,
            input_requests,
            connection.answer_is_owed,
            Transcript(max_output_bytes, keep_outputs=keep_outputs, displays=displays),
            check=check,
            on_output=None if on_output is None else check_callback(on_output, "on_output"),
            on_input=input_requests.on_input if on_input is None else check_callback(on_input, "on_input"),
            keeps_messages=keeps_messages,
            keeps_alive=self,
        )
        return execution, content
