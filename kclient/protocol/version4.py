"""Messages of protocol 4 to protocol 5, and back. Kernels of the time of IPython 1 and 2 speak protocol 4.

Source: "Messaging in IPython", protocol 4.1. Other messages, and messages in the shape of protocol 5, pass unchanged.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

import attrs

from kclient.protocol.messages import Content, Message

MAX_COMPLETIONS: Final = 10_000
"""Completions whose cursor is remembered: as many as uncollected replies (routing.MAX_UNCOLLECTED_REPLIES)."""

_NEW_NAMES: Final = {
    "pyin": "execute_input",
    "pyout": "execute_result",
    "pyerr": "error",
    "object_info_reply": "inspect_reply",
    # Replies to aborted requests: IPython names them after the first word of the request's type.
    "object_reply": "inspect_reply",
    "kernel_reply": "kernel_info_reply",
}

_PARTS_OF_INFO: Final = (
    ("Type", ("type_name",)),
    ("String form", ("string_form",)),
    ("Signature", ("definition", "init_definition", "call_def")),
    ("File", ("file",)),
    ("Docstring", ("docstring", "init_docstring", "call_docstring")),
    ("Source", ("source",)),
)
"""The fields of an object_info_reply, in the order and with the titles of IPython's own inspection."""

_NAME: Final = re.compile(r"(?<!\w)[^\W\d]\w*(?:\.[^\W\d]\w*)*")


class Version4:
    """Adapts the messages of one kernel. It remembers facts of a request that a reply of protocol 4 lacks."""

    def __init__(self) -> None:
        self._cursors: OrderedDict[str, int] = OrderedDict()

    def outgoing(self, message: Message) -> Message:
        """The message to send in place of `message`, which is not changed."""
        msg_type, content = message.msg_type, message.content
        if msg_type == "complete_request":
            self._remember_cursor(message)
            content = _complete_request(content)
        elif msg_type == "inspect_request":
            msg_type, content = "object_info_request", _object_info_request(content)
        elif msg_type == "execute_request":
            content = {"user_variables": [], **content}
        elif msg_type == "history_request" and content.get("hist_access_type") == "range":
            content = {"stop": None, **content}
        else:
            return message
        return attrs.evolve(message, header={**message.header, "msg_type": msg_type}, content=content)

    def incoming(self, message: Message) -> None:
        """Give `message`, which has just come, the type and the shape of protocol 5; never raises."""
        header, content = message.header, message.content
        msg_type = header["msg_type"] = _NEW_NAMES.get(header["msg_type"], header["msg_type"])
        if msg_type == "complete_reply":
            self._add_cursors(message)
        elif msg_type == "inspect_reply" and "data" not in content:
            message.content = _inspect_reply(content)
        elif msg_type in _SHAPES:
            _SHAPES[msg_type](content)

    def _remember_cursor(self, message: Message) -> None:
        cursor = message.content.get("cursor_pos")
        if isinstance(cursor, int):
            self._cursors[message.msg_id] = cursor
        if len(self._cursors) > MAX_COMPLETIONS:
            self._cursors.popitem(last=False)

    def _add_cursors(self, message: Message) -> None:
        """Add cursor_start and cursor_end: the matches replace `matched_text`, which ends at the cursor."""
        content = message.content
        cursor = self._cursors.pop(message.parent_id or "", None)
        matched = content.pop("matched_text", None)
        if cursor is not None and isinstance(matched, str):
            content.setdefault("cursor_start", max(0, cursor - len(matched)))
            content.setdefault("cursor_end", cursor)
        content.setdefault("metadata", {})
        content.setdefault("status", "ok")


def name_at(code: str, cursor_pos: int) -> str:
    """The dotted name at the cursor, up to the part that the cursor is in.

    If there is none, the name of the function whose call the cursor is in; else ''.
    """
    names = list(_NAME.finditer(code))
    at_cursor = next((name for name in names if name.start() <= cursor_pos <= name.end()), None)
    if at_cursor is not None:
        end = code.find(".", cursor_pos, at_cursor.end())
        return code[at_cursor.start() : at_cursor.end() if end < 0 else end]
    bracket = _open_bracket(code, cursor_pos)
    return next((name[0] for name in names if name.end() == bracket), "")


def _open_bracket(code: str, cursor_pos: int) -> int:
    """The position of the innermost bracket that is open at the cursor; -1 if there is none."""
    depth = 0
    for position in range(cursor_pos - 1, -1, -1):
        if code[position] == ")":
            depth += 1
        elif code[position] == "(":
            if not depth:
                return position
            depth -= 1
    return -1


def _code_and_cursor(content: Content) -> tuple[str, int]:
    code, cursor = content.get("code"), content.get("cursor_pos")
    code = code if isinstance(code, str) else ""
    return code, min(max(0, cursor), len(code)) if isinstance(cursor, int) else len(code)


def _complete_request(content: Content) -> Content:
    """The line that the cursor is in; the kernel finds the word to complete."""
    code, cursor = _code_and_cursor(content)
    start = code.rfind("\n", 0, cursor) + 1
    end = code.find("\n", cursor)
    line = code[start : len(code) if end < 0 else end]
    return {"text": "", "line": line, "block": code, "cursor_pos": cursor - start}


def _object_info_request(content: Content) -> Content:
    code, cursor = _code_and_cursor(content)
    return {"oname": name_at(code, cursor), "detail_level": content.get("detail_level", 0)}


def _inspect_reply(content: Content) -> Content:
    """The fields of an object as one text."""
    if content.get("status", "ok") != "ok":
        return content
    lines = []
    for title, fields in _PARTS_OF_INFO:
        text = next((text for field in fields if isinstance(text := content.get(field), str) and text), None)
        if text is not None:
            lines.append(f"{title}:\n{text}" if "\n" in text else f"{title}: {text}")
    found = content.get("found") is True
    data = {"text/plain": "\n".join(lines)} if found else {}
    return {"status": "ok", "found": found, "data": data, "metadata": {}}


def _execute_reply(content: Content) -> None:
    variables, expressions = content.pop("user_variables", None), content.get("user_expressions")
    content["user_expressions"] = {
        **(variables if isinstance(variables, dict) else {}),
        **(expressions if isinstance(expressions, dict) else {}),
    }
    payload = content.setdefault("payload", [])
    for item in payload if isinstance(payload, list) else ():
        if isinstance(item, dict) and item.get("source") == "page" and "text" in item and "data" not in item:
            item["data"] = {"text/plain": item.pop("text")}


def _stream(content: Content) -> None:
    if "text" not in content and "data" in content:
        content["text"] = content.pop("data")


def _display_data(content: Content) -> None:
    """Parse application/json, which protocol 4 sends as a string."""
    content.pop("source", None)
    data: Any = content.get("data")
    text = data.get("application/json") if isinstance(data, dict) else None
    if isinstance(text, str):
        try:
            data["application/json"] = json.loads(text)
        except (ValueError, RecursionError):  # a plain string
            return


def _history_reply(content: Content) -> None:
    content.setdefault("status", "ok")


def _input_request(content: Content) -> None:
    content.setdefault("password", False)


_SHAPES: Final[dict[str, Callable[[Content], None]]] = {
    "execute_reply": _execute_reply,
    "history_reply": _history_reply,
    "stream": _stream,
    "display_data": _display_data,
    "execute_result": _display_data,
    "input_request": _input_request,
}
