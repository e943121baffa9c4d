"""The request methods, written once over one abstract `request`.

Each blocks and returns its reply, and takes `timeout` seconds for the whole call, or None to wait until the
kernel answers or dies. Source: "Messages on the shell (ROUTER/DEALER) channel" in "Messaging in Jupyter".
All raise InvalidArgument before anything is sent, KernelTimeout, DeadKernelError, KernelRestarted,
ChannelClosed and NoReply. In a client they raise, before anything is sent, UnsupportedFeature for what the kernel by
its `KernelInfo` does not understand, and InvalidArgument for a subshell that it does not have; a channel on its own
sends whatever it is told to.
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
        """Ask the kernel to exit; `restart` tells it that another will follow."""
        return self.request("shutdown_request", messages.shutdown(restart), timeout=timeout)


class ShellRequests(Requests):
    """The requests of the shell channel."""

    @abstractmethod
    def answers_input(self) -> bool:
        """True if an input request of the code would be answered."""

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

        `allow_stdin` None lets the code ask for input if that would be answered.
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
        """Completions at `cursor_pos`, in code points; None is the end of the code."""
        return self.request("complete_request", messages.complete(code, cursor_pos), timeout=timeout)

    def inspect(
        self, code: str, cursor_pos: int | None = None, detail_level: int = 0, *, timeout: float | None = None
    ) -> Message:
        """What the kernel knows of the name at `cursor_pos`; `detail_level` 1 asks for the source as well."""
        content = messages.inspect(code, cursor_pos, detail_level)
        return self.request("inspect_request", content, timeout=timeout)

    def object_info(self, oname: str, detail_level: int = 0, *, timeout: float | None = None) -> Message:
        """What the kernel knows of the object `oname`: an inspect_request; an object_info_request in protocol 4."""
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
        """Whether `code` is complete, incomplete, invalid or unknown; kernels of protocol 4 do not know it."""
        return self.request("is_complete_request", messages.is_complete(code), timeout=timeout)

    def comm_info(self, target_name: str | None = None, *, timeout: float | None = None) -> Message:
        """The open comms, all or those of one target; kernels of protocol 4 do not know it."""
        return self.request("comm_info_request", messages.comm_info(target_name), timeout=timeout)


class ControlRequests(Requests):
    """The requests of the control channel, which a kernel answers while it runs code."""

    @abstractmethod
    def next_debug_seq(self) -> int:
        """The `seq` of the next request to the debugger: 1 for the first of a connection."""

    def interrupt(self, *, timeout: float | None = None) -> Message:
        """Ask the kernel to interrupt itself, as kernels with interrupt_mode "message" want it."""
        return self.request("interrupt_request", {}, timeout=timeout)

    def debug(
        self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float | None = None
    ) -> Message:
        """A request of the Debug Adapter Protocol, or one of Jupyter's additions to it: dumpCell, debugInfo and so on.

        The reply's content is the response as the debugger gives it, also where its `success` is False; a kernel whose
        debugger is not started (initialize, attach) may give an empty one. For events: `wait_for_debug_event`. Raises
        UnsupportedFeature for a kernel without a debugger.
        """
        content = messages.debug(command, arguments)
        content["seq"] = self.next_debug_seq()
        return self.request("debug_request", content, timeout=timeout)

    def create_subshell(self, *, timeout: float | None = None) -> Message:
        """Start a subshell; the reply's content has its `subshell_id`.

        Raises UnsupportedFeature, as all that has to do with subshells, for a kernel without "kernel subshells".
        """
        return self.request("create_subshell_request", {}, timeout=timeout)

    def delete_subshell(self, subshell_id: str, *, timeout: float | None = None) -> Message:
        """End a subshell; raises InvalidArgument if there is none of that id. What awaits it gets NoReply.

        ipykernel lets the code that runs there end first, and answers nothing on any shell until then.
        """
        return self.request("delete_subshell_request", messages.subshell(subshell_id), timeout=timeout)

    def list_subshells(self, *, timeout: float | None = None) -> Message:
        """The ids of the subshells, as a list under the key `subshell_id` of the reply's content."""
        return self.request("list_subshell_request", {}, timeout=timeout)
