"""The answers of a fake kernel: the steps of a script, and the default handlers of requests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import attrs

from kclient.protocol.messages import Message, reply_type
from kclient.protocol.session import Session

Step = tuple[str, dict[str, Any]]
"""One message that code publishes: its type on iopub and its content."""

Handler = Callable[["Request"], object]


def stream(text: str, name: str = "stdout") -> Step:
    """Text on a stream, as `print` publishes it."""
    return "stream", {"name": name, "text": text}


def result(text: str, **mime_bundle: Any) -> Step:
    """The value of the last expression; `mime_bundle` adds further representations."""
    return "execute_result", {"data": {"text/plain": text, **mime_bundle}, "metadata": {}}


def display(data: Mapping[str, Any], display_id: str | None = None) -> Step:
    """A display_data of that mime bundle."""
    transient = {} if display_id is None else {"display_id": display_id}
    return "display_data", {"data": dict(data), "metadata": {}, "transient": transient}


def error(ename: str, evalue: str = "", traceback: Sequence[str] = ()) -> Step:
    """An exception: the reply has the status "error", too."""
    return "error", {"ename": ename, "evalue": evalue, "traceback": list(traceback)}


class ScriptedKernel(Protocol):
    """The FakeKernel, as a request and its handler see it."""

    script: dict[str, Sequence[Step] | Handler]
    session: Session
    execution_count: int
    protocol_version: str
    supported_features: list[str]

    def publish(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        parent: Message | None = None,
        buffers: Sequence[bytes] = (),
    ) -> None: ...

    def send(self, channel: str, message: Message, identities: Sequence[bytes]) -> None: ...

    def ask(self, request: Request, prompt: str, password: bool) -> str: ...

    def shut_down(self) -> None: ...


@attrs.define(eq=False)
class Request:
    """A request that the fake kernel has received, with methods to answer it."""

    kernel: ScriptedKernel
    channel: str
    message: Message
    identities: list[bytes]
    is_answered: bool = False

    @property
    def content(self) -> dict[str, Any]:
        return self.message.content

    def publish(self, msg_type: str, content: Mapping[str, Any], buffers: Sequence[bytes] = ()) -> None:
        """Send a message of this request over iopub."""
        self.kernel.publish(msg_type, content, parent=self.message, buffers=buffers)

    def reply(self, content: Mapping[str, Any] | None = None, msg_type: str | None = None) -> None:
        """Answer; the status is "ok" unless `content` has another. A second call sends a second reply."""
        self.is_answered = True
        kind = msg_type or reply_type(self.message.msg_type) or "reply"
        message = self.kernel.session.msg(kind, {"status": "ok", **(content or {})}, parent=self.message)
        self.kernel.send(self.channel, message, self.identities)

    def ask(self, prompt: str = "", password: bool = False) -> str:
        """Send an input_request to the client and wait for its answer."""
        return self.kernel.ask(self, prompt, password)


def _execute(request: Request) -> None:
    kernel, content = request.kernel, request.content
    code = content["code"]
    if content.get("store_history", True) and not content.get("silent"):
        kernel.execution_count += 1
    count = {"execution_count": kernel.execution_count}
    request.publish("execute_input", {"code": code, **count})
    steps = kernel.script.get(code, ())
    if callable(steps):
        steps(request)
        steps = ()
    for msg_type, step in steps:
        request.publish(msg_type, {**step, **count} if msg_type == "execute_result" else step)
        if msg_type == "error":
            request.reply({**step, "status": "error", **count})
    if not request.is_answered:
        request.reply({**count, "user_expressions": {}, "payload": []})


def _kernel_info(request: Request) -> None:
    kernel = request.kernel
    language = {"name": "none", "version": "0", "mimetype": "text/plain", "file_extension": ".txt"}
    request.reply(
        {
            "protocol_version": kernel.protocol_version,
            "implementation": "fake",
            "implementation_version": "0",
            "language_info": language,
            "banner": "a fake kernel",
            "help_links": [],
            "supported_features": kernel.supported_features,
        }
    )


def _complete(request: Request) -> None:
    cursor = request.content["cursor_pos"]
    request.reply({"matches": [], "cursor_start": cursor, "cursor_end": cursor, "metadata": {}})


def _shutdown(request: Request) -> None:
    content = {"restart": request.content.get("restart", False)}
    request.reply(content)
    request.publish("shutdown_reply", {"status": "ok", **content})
    request.kernel.shut_down()


DEFAULT_HANDLERS: Final[dict[str, Handler]] = {
    "execute_request": _execute,
    "kernel_info_request": _kernel_info,
    "complete_request": _complete,
    "inspect_request": lambda request: request.reply({"found": False, "data": {}, "metadata": {}}),
    "is_complete_request": lambda request: request.reply({"status": "complete"}),
    "history_request": lambda request: request.reply({"history": []}),
    "comm_open": lambda request: request.publish("comm_close", {"comm_id": request.content["comm_id"], "data": {}}),
    "comm_info_request": lambda request: request.reply({"comms": {}}),
    "interrupt_request": lambda request: request.reply(),
    "shutdown_request": _shutdown,
}
