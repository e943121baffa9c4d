"""A message, and the content of each request, checked before anything is sent.

Source: "Messaging in Jupyter", protocol 5.5. Every function here raises InvalidArgument for arguments that the
kernel could not understand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import attrs

from kclient.errors import InvalidArgument

PROTOCOL_VERSION: Final = "5.5"

Content = dict[str, Any]

_KEYS: Final = ("header", "msg_id", "msg_type", "parent_header", "metadata", "content", "buffers")


@attrs.define(eq=False, repr=False)
class Message:
    """One message of the protocol. Its parts are attributes; they can also be read by name, as from a dict.

    `received` is the `time.perf_counter()` of its arrival, 0 for a message built here; `nbytes` is the
    size of its content and buffers as they came over the wire. A buffer that arrived is bytes or, from 64 KiB on, a
    read-only memoryview of ZeroMQ's own memory. That is freed when neither the message nor the view is in use.
    """

    header: dict[str, Any]
    parent_header: dict[str, Any] = attrs.field(factory=dict)
    metadata: dict[str, Any] = attrs.field(factory=dict)
    content: dict[str, Any] = attrs.field(factory=dict)
    buffers: list[Any] = attrs.field(factory=list)
    received: float = 0.0
    nbytes: int = 0

    def __repr__(self) -> str:
        text = repr(self.content)
        return f"<Message {self.header.get('msg_type')} {text if len(text) <= 200 else text[:200] + '...'}>"

    def __reduce__(self) -> tuple[type[Message], tuple[Any, ...]]:
        """For pickle and copy: they cannot handle a memoryview, so a buffer becomes bytes."""
        buffers = [bytes(buffer) for buffer in self.buffers]
        parts = (self.header, self.parent_header, self.metadata, self.content, buffers, self.received, self.nbytes)
        return type(self), parts

    @property
    def msg_id(self) -> str:
        return self.header["msg_id"]  # type: ignore[no-any-return]

    @property
    def msg_type(self) -> str:
        return self.header["msg_type"]  # type: ignore[no-any-return]

    @property
    def parent_id(self) -> str | None:
        """The id of the request that this message answers or belongs to, if any."""
        parent_id = self.parent_header.get("msg_id")
        return parent_id if isinstance(parent_id, str) else None

    def __getitem__(self, name: str) -> Any:
        if name not in _KEYS:
            raise KeyError(name)
        return getattr(self, name)

    def __contains__(self, name: object) -> bool:
        return name in _KEYS

    def keys(self) -> tuple[str, ...]:
        return _KEYS

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in _KEYS else default


def check_message(message: Message) -> Message:
    """`message`, checked: the caller may have changed it since `session.msg` made it."""
    header = message.header
    if not isinstance(header, dict) or not all(isinstance(header.get(name), str) for name in ("msg_id", "msg_type")):
        raise InvalidArgument(f"the header of a message must hold a msg_id and a msg_type, two strings; not {header!r}")
    for name in ("parent_header", "metadata", "content"):
        if not isinstance(getattr(message, name), dict):
            raise InvalidArgument(f"the {name} of a message must be a dict, not {getattr(message, name)!r}")
    check_buffers(message.buffers)
    return message


def check_buffers(buffers: Any) -> list[Any]:
    if isinstance(buffers, (bytes, bytearray, memoryview, str)) or not isinstance(buffers, Sequence):
        raise InvalidArgument(f"buffers must be a list of bytes-like objects, not {type(buffers).__name__}")
    return list(buffers)


GETS_NO_REPLY: Final = frozenset(["comm_open", "comm_msg", "comm_close"])
"""Messages on shell that get no reply, by the spec."""


OUTPUT_TYPES: Final = frozenset(
    ["stream", "display_data", "update_display_data", "execute_result", "error", "clear_output"]
)
"""The iopub messages that make up the output of an execution."""

LEFT_OUT: Final = "kclient_left_out"
"""Stands for an output that exceeds `max_message_bytes`."""

DISPLAY_TYPES: Final = frozenset(["display_data", "update_display_data", "execute_result"])
"""Messages on iopub that may bear a display_id, and then change earlier displays of that id too, as in frontends."""


@lru_cache(maxsize=256)
def reply_type(msg_type: str) -> str | None:
    """The type of the reply to a request, by the spec's rule for names; None if the rule does not apply."""
    if msg_type.endswith("_request") and msg_type != "object_info_request":  # protocol 4; its reply is renamed
        return msg_type[: -len("_request")] + "_reply"
    return None


def check_code(code: object, name: str = "code") -> str:
    if type(code) is str and code.isascii():
        return code
    if not isinstance(code, str):
        raise InvalidArgument(f"{name} must be a string, not {type(code).__name__}")
    try:
        code.encode()
    except UnicodeEncodeError as exc:
        raise InvalidArgument(f"{name} cannot be sent as UTF-8: {exc}") from None
    return code


def execute(
    code: str,
    *,
    silent: bool = False,
    store_history: bool = True,
    user_expressions: Mapping[str, str] | None = None,
    allow_stdin: bool = False,
    stop_on_error: bool = False,
) -> Content:
    """Content of an execute_request."""
    return {
        "code": check_code(code),
        "silent": bool(silent),
        "store_history": bool(store_history),
        "user_expressions": {} if user_expressions is None else _check_expressions(user_expressions),
        "allow_stdin": bool(allow_stdin),
        "stop_on_error": bool(stop_on_error),
    }


def _check_expressions(expressions: Any) -> dict[str, str]:
    if not isinstance(expressions, (dict, Mapping)) or not all(
        isinstance(name, str) and isinstance(expression, str) for name, expression in expressions.items()
    ):
        raise InvalidArgument(f"user_expressions must be a dict of strings by name, not {expressions!r}")
    return dict(expressions)


def complete(code: str, cursor_pos: int | None = None) -> Content:
    """Content of a complete_request; `cursor_pos` counts code points, None is the end of the code."""
    return {"code": check_code(code), "cursor_pos": _cursor(code, cursor_pos)}


def inspect(code: str, cursor_pos: int | None = None, detail_level: int = 0) -> Content:
    """Content of an inspect_request; `detail_level` 1 asks for the source as well."""
    if isinstance(detail_level, bool) or detail_level not in (0, 1):
        raise InvalidArgument(f"detail_level must be 0 or 1, not {detail_level!r}")
    return {"code": check_code(code), "cursor_pos": _cursor(code, cursor_pos), "detail_level": detail_level}


_HISTORY: Final[dict[str, dict[str, Any]]] = {
    "range": {"session": 0, "start": 0, "stop": None},
    "tail": {"n": 10},
    "search": {"pattern": "*", "n": None, "unique": False},
}


def history(raw: bool = True, output: bool = False, hist_access_type: str = "range", **kwargs: Any) -> Content:
    """Content of a history_request.

    ``"range"`` takes session, start, stop; ``"tail"`` takes n; ``"search"`` takes pattern, n, unique.
    """
    if not isinstance(hist_access_type, str) or hist_access_type not in _HISTORY:
        raise InvalidArgument(f"hist_access_type must be one of {', '.join(_HISTORY)}, not {hist_access_type!r}")
    known = _HISTORY[hist_access_type]
    unknown = {name for name in kwargs if not any(name in names for names in _HISTORY.values())}
    if unknown:
        raise InvalidArgument(
            f"history of type {hist_access_type!r} takes {', '.join(known)}, not {', '.join(unknown)}"
        )
    for name in ("session", "start", "stop", "n"):
        value = kwargs.get(name)
        if isinstance(value, bool) or not isinstance(value, int | None):
            raise InvalidArgument(f"{name} must be a whole number, not {value!r}")
    check_code(kwargs.get("pattern", ""), "pattern")
    content: Content = {"raw": bool(raw), "output": bool(output), "hist_access_type": hist_access_type}
    chosen = {**known, **kwargs}
    return content | {name: value for name, value in chosen.items() if value is not None}


def is_complete(code: str) -> Content:
    """Content of an is_complete_request."""
    return {"code": check_code(code)}


def comm_info(target_name: str | None = None) -> Content:
    """Content of a comm_info_request; without a target name it asks for all comms."""
    return {} if target_name is None else {"target_name": check_code(target_name, "target_name")}


def shutdown(restart: bool = False) -> Content:
    """Content of a shutdown_request."""
    return {"restart": bool(restart)}


def debug(command: str, arguments: Mapping[str, Any] | None = None) -> Content:
    """Content of a debug_request: a request of the Debug Adapter Protocol, to which the sender adds its `seq`."""
    if not check_code(command, "command"):
        raise InvalidArgument("command must name a request of the Debug Adapter Protocol")
    if arguments is not None and not isinstance(arguments, Mapping):
        raise InvalidArgument(f"arguments must be a dict, not {type(arguments).__name__}")
    return {
        "type": "request",
        "command": command,
        "arguments": dict(arguments or {}),
    }


def is_debug_event(message: Message, event: str | None = None) -> bool:
    """True for an event of the debugger and, if `event` is given, of that name."""
    return message.header["msg_type"] == "debug_event" and event in (None, message.content.get("event"))


def subshell(subshell_id: str) -> Content:
    """Content of a delete_subshell_request."""
    return {"subshell_id": check_code(subshell_id, "subshell_id")}


def input_reply(string: str) -> Content:
    """Content of an input_reply."""
    return {"value": check_code(string, "the answer to an input request"), "status": "ok"}


def _cursor(code: str, cursor_pos: int | None) -> int:
    if cursor_pos is None:
        return len(code)
    if isinstance(cursor_pos, bool) or not isinstance(cursor_pos, int) or not 0 <= cursor_pos <= len(code):
        raise InvalidArgument(
            f"cursor_pos must be a position in the code, from 0 to {len(code)} code points, not {cursor_pos!r}"
        )
    return cursor_pos
