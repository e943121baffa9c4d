"""The request methods, written once over one abstract `request`.

Each blocks and returns its reply. `timeout` is in seconds, for the whole call; None waits until the kernel answers or
dies. Source: "Messages on the shell (ROUTER/DEALER) channel" in "Messaging in Jupyter".

| all of them raise                                                  | when                                           |
|--------------------------------------------------------------------|------------------------------------------------|
| InvalidArgument                                                    | before the request is sent                     |
| KernelTimeout, DeadKernelError, KernelRestarted, ChannelClosed,    | instead of returning the reply                 |
| NoReply                                                            |                                                |
| UnsupportedFeature                                                 | in a client, before the request is sent: by    |
|                                                                    | its `KernelInfo` the kernel does not know it   |
| InvalidArgument                                                    | in a client, before the request is sent: the   |
|                                                                    | kernel has no such subshell                    |

A channel that belongs to no client sends every valid request.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from kclient.protocol import messages
from kclient.protocol.messages import Content, Message


class Requests(ABC):
    """The requests that both the shell and the control channel take."""

    @abstractmethod
    def request(
        self,
        msg_type: str,
        content: Content | None = None,
        *,
        timeout: float | None = None,
        subshell_id: str | None = None,
    ) -> Message:
        """Send a request and return its reply."""

    def kernel_info(self, *, timeout: float | None = None) -> Message:
        """Language, protocol version and banner of the kernel."""
        return self.request("kernel_info_request", {}, timeout=timeout)

    def shutdown(self, restart: bool = False, *, timeout: float | None = None) -> Message:
        """Ask the kernel to exit; `restart` tells it that another kernel will follow."""
        return self.request("shutdown_request", messages.shutdown(restart), timeout=timeout)


class ShellRequests(Requests):
    """The requests of the shell channel."""

    @abstractmethod
    def answers_input(self) -> bool:
        """True if an input request of the code would get an answer."""

    def execute(
        self,
        code: str,
        silent: bool = False,
        store_history: bool = True,
        user_expressions: Mapping[str, str] | None = None,
        allow_stdin: bool | None = None,
        stop_on_error: bool = False,
        *,
        timeout: float | None = None,
        subshell_id: str | None = None,
    ) -> Message:
        """Run `code`; the outputs go to iopub's inbox.

        With `allow_stdin=None` the code may ask for input if `answers_input()`.
        """
        content = messages.execute(
            code,
            silent=silent,
            store_history=store_history,
            user_expressions=user_expressions,
            allow_stdin=self.answers_input() if allow_stdin is None else allow_stdin,
            stop_on_error=stop_on_error,
        )
        return self.request("execute_request", content, timeout=timeout, subshell_id=subshell_id)

    def complete(self, code: str, cursor_pos: int | None = None, *, timeout: float | None = None) -> Message:
        """Completions at `cursor_pos`, a position in code points; None is the end of the code."""
        return self.request("complete_request", messages.complete(code, cursor_pos), timeout=timeout)

    def inspect(
        self, code: str, cursor_pos: int | None = None, detail_level: int = 0, *, timeout: float | None = None
    ) -> Message:
        """Documentation of the name at `cursor_pos`; `detail_level` 1 asks for the source as well."""
        content = messages.inspect(code, cursor_pos, detail_level)
        return self.request("inspect_request", content, timeout=timeout)

    def object_info(self, oname: str, detail_level: int = 0, *, timeout: float | None = None) -> Message:
        """Documentation of the object `oname`, by an inspect_request; in protocol 4 by an object_info_request."""
        content = messages.inspect(messages.check_code(oname, "oname"), None, detail_level)
        return self.request("inspect_request", content, timeout=timeout)

    def history(
        self,
        raw: bool = True,
        output: bool = False,
        hist_access_type: str = "range",
        *,
        timeout: float | None = None,
        **kwargs: Any,
    ) -> Message:
        """Lines of history: ``"range"`` (session, start, stop), ``"tail"`` (n), ``"search"`` (pattern, n, unique).

        Session 0 is the present one, -1 the one before it. The reply's content has its `history`: a list of (session,
        line, input), with `output` of (session, line, (input, output)).
        """
        content = messages.history(raw, output, hist_access_type, **kwargs)
        return self.request("history_request", content, timeout=timeout)

    def is_complete(self, code: str, *, timeout: float | None = None) -> Message:
        """Whether `code` is complete, incomplete, invalid or unknown. Kernels of protocol 4 cannot tell."""
        return self.request("is_complete_request", messages.is_complete(code), timeout=timeout)

    def comm_info(self, target_name: str | None = None, *, timeout: float | None = None) -> Message:
        """The open comms, all or those of one target. Kernels of protocol 4 cannot tell."""
        return self.request("comm_info_request", messages.comm_info(target_name), timeout=timeout)


class ControlRequests(Requests):
    """The requests of the control channel, which a kernel answers while it runs code."""

    @abstractmethod
    def next_debug_seq(self) -> int:
        """The `seq` of the next request to the debugger: 1 for the first of a connection."""

    def interrupt(self, *, timeout: float | None = None) -> Message:
        """Ask the kernel to interrupt itself. Kernels with interrupt_mode "message" want this request."""
        return self.request("interrupt_request", {}, timeout=timeout)

    def debug(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Message:
        """A request of the Debug Adapter Protocol, or one of Jupyter's additions to it: dumpCell, debugInfo and so on.

        The reply's content is the debugger's response, also if its `success` is False. It may be empty if the debugger
        is not started (initialize, attach). For events see `wait_for_debug_event`. Raises UnsupportedFeature for a
        kernel without a debugger.
        """
        content = messages.debug(command, arguments)
        content["seq"] = self.next_debug_seq()
        return self.request("debug_request", content, timeout=timeout)

    def create_subshell(self, *, timeout: float | None = None) -> Message:
        """Start a subshell; the reply's content has its `subshell_id`.

        Raises UnsupportedFeature, as all requests about subshells do, for a kernel without "kernel subshells".
        """
        return self.request("create_subshell_request", {}, timeout=timeout)

    def delete_subshell(self, subshell_id: str, *, timeout: float | None = None) -> Message:
        """End a subshell. Calls that wait for it raise NoReply. Raises InvalidArgument if there is none of that id.

        ipykernel waits until the code that runs in it has ended, and answers on no shell until then.
        """
        return self.request("delete_subshell_request", messages.subshell(subshell_id), timeout=timeout)

    def list_subshells(self, *, timeout: float | None = None) -> Message:
        """The ids of the subshells, as a list under the key `subshell_id` of the reply's content."""
        return self.request("list_subshell_request", {}, timeout=timeout)
