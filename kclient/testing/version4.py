"""Messages of protocol 4.1 for a fake kernel, whose handlers and scripts are those of protocol 5."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Final

import attrs

from kclient.protocol.messages import Content, Message

_OLD_NAMES: Final = {
    "execute_input": "pyin",
    "execute_result": "pyout",
    "error": "pyerr",
    "inspect_reply": "object_info_reply",
}

_KNOWN: Final = {
    *("execute_request", "complete_request", "object_info_request", "history_request", "kernel_info_request"),
    *("connect_request", "shutdown_request", "comm_open", "comm_msg", "comm_close"),
}


def understood(message: Message) -> Message | None:
    """`message` as a request of protocol 5, for a handler; None for one that a kernel of protocol 4 ignores."""
    msg_type, content = message.msg_type, message.content
    if msg_type not in _KNOWN:
        return None
    if msg_type == "object_info_request":
        name = str(content.get("oname", ""))
        msg_type, content = "inspect_request", {**content, "code": name, "cursor_pos": len(name)}
    elif msg_type == "complete_request":
        line = str(content.get("line", ""))
        content = {"code": line, "cursor_pos": content.get("cursor_pos", len(line))}
    return attrs.evolve(message, header={**message.header, "msg_type": msg_type}, content=content)


def spoken(message: Message) -> Message | None:
    """The message to send in place of `message`; None if none is sent: only executions have status messages."""
    header, parent = message.header, message.parent_header
    msg_type = header["msg_type"]
    if msg_type == "iopub_welcome" or (msg_type == "status" and parent.get("msg_type") != "execute_request"):
        return None
    shape, is_error = _SHAPES.get(msg_type), message.content.get("status", "ok") != "ok"
    return attrs.evolve(
        message,
        header={**_without(header, "version"), "msg_type": _OLD_NAMES.get(msg_type, msg_type)},
        content=message.content if shape is None or is_error else shape(message.content),
    )


def _without(content: Content, *names: str) -> Content:
    return {name: value for name, value in content.items() if name not in names}


def _kernel_info(content: Content) -> Content:
    language = content.get("language_info", {})
    return {
        "protocol_version": str(content.get("protocol_version", "4.1")).split("."),
        "language": language.get("name", ""),
        "language_version": str(language.get("version", "")).split("."),
    }


def _complete(content: Content) -> Content:
    matches, length = content.get("matches", []), content.get("cursor_end", 0) - content.get("cursor_start", 0)
    return {"status": "ok", "matches": matches, "matched_text": matches[0][:length] if matches else ""}


def _object_info(content: Content) -> Content:
    found, data = content.get("found", False), content.get("data", {})
    return {"found": found, "name": "", "docstring": data.get("text/plain")}


def _execute(content: Content) -> Content:
    return {**content, "user_variables": {}}


def _stream(content: Content) -> Content:
    return {"name": content.get("name", "stdout"), "data": content.get("text", "")}


def _display(content: Content) -> Content:
    data: dict[str, Any] = dict(content.get("data", {}))
    if "application/json" in data:
        data["application/json"] = json.dumps(data["application/json"])
    return {**_without(content, "transient"), "source": "fake", "data": data}


_SHAPES: Final[dict[str, Callable[[Content], Content]]] = {
    "kernel_info_reply": _kernel_info,
    "complete_reply": _complete,
    "inspect_reply": _object_info,
    "history_reply": lambda content: _without(content, "status"),
    "execute_reply": _execute,
    "stream": _stream,
    "display_data": _display,
    "execute_result": _display,
    "input_request": lambda content: _without(content, "password"),
}
