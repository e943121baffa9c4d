"""The record of one execution so far: its outputs in notebook format, its reply, its states.

Outputs follow nbformat 4. Streams of one name that come in a row are one output. clear_output and
update_display_data are applied and are not outputs themselves. A display whose display_id was used before also changes
the earlier displays of that id, as in JupyterLab and nbclient.
"""

from __future__ import annotations

from typing import Any, Final

import attrs

from kclient.errors import InvalidArgument
from kclient.protocol.messages import Message
from kclient.protocol.routing import OUTPUT_TYPES

MAX_OUTPUT_BYTES: Final = 256 * 2**20

_DISPLAY: Final = "display"
"""The key of an output's _Display. All outputs of one display_id share one _Display, so that they change together."""


@attrs.define
class Times:
    """When the request was sent, and when busy, reply and idle came: seconds of `time.perf_counter()`; 0: not yet."""

    sent: float = 0.0
    busy: float = 0.0
    reply: float = 0.0
    idle: float = 0.0


@attrs.define(eq=False)
class _Display:
    """The content that all `count` outputs of one display_id show, and its size on the wire."""

    shown: dict[str, Any]
    nbytes: int
    count: int = 0


class Transcript:
    """The record of one execution; `is_done` once its reply and its idle status are both in.

    `version` counts the outputs that came. `has_input` is True once the kernel has begun to run the code.
    """

    def __init__(self, max_output_bytes: int | None = MAX_OUTPUT_BYTES, *, keep_outputs: bool = True) -> None:
        self.max_output_bytes = _check_size(max_output_bytes)
        self.keep_outputs = keep_outputs
        self.reply: Message | None = None
        self.idle = False
        self.complete = True
        self.truncated = False
        self.dropped = 0
        self.version = 0
        self.has_input = False
        self.times = Times()
        self.execution_count: int | None = None
        self._outputs: list[dict[str, Any]] = []
        self._nbytes = 0
        self._clear_next = False
        self._is_cut = False
        self._displays: dict[str, _Display] = {}

    @property
    def is_done(self) -> bool:
        return self.reply is not None and (self.idle or not self.complete)

    def set_reply(self, reply: Message) -> None:
        self.reply = reply
        self.times.reply = reply.received
        self._count(reply)

    def take(self, message: Message) -> bool:
        """Record an iopub message; True if it is an output that a reader of the execution wants to see."""
        msg_type = message.header["msg_type"]
        if msg_type in OUTPUT_TYPES:
            self.version += 1
            return self._take_output(msg_type, message)
        if msg_type == "status":
            self._take_status(message)
        elif msg_type == "execute_input":
            self.has_input = True
            self._count(message)
        return False

    def update_display(self, message: Message) -> bool:
        """Let all outputs of the display_id of `message` show its content; False if there is no room for it."""
        if not self._has_room(self._nbytes + self._growth(message)):
            return False
        self._update_display(message)
        return True

    def outputs(self) -> list[dict[str, Any]]:
        """A copy of the outputs, in notebook format."""
        return list(map(_in_notebook_format, self._outputs))

    def _take_status(self, message: Message) -> None:
        state = message.content.get("execution_state")
        if state == "busy":
            self.times.busy = message.received
        elif state == "idle":
            self.idle = True
            self.times.idle = message.received

    def _take_output(self, msg_type: str, message: Message) -> bool:
        if not self.keep_outputs:
            return True
        if msg_type == "clear_output":
            self._clear_next = bool(message.content.get("wait"))
            if not self._clear_next:
                self._clear()
            return True
        if msg_type == "update_display_data":
            return self.update_display(message)
        growth = self._growth(message) if self._displays else 0
        if not self._has_room(message.nbytes + (0 if self._clear_next else self._nbytes + growth)):
            self._is_cut = True
            return False
        if msg_type == "stream" and self._is_cut and not self._clear_next:  # no text after a gap
            self.dropped += 1
            return False
        if self._clear_next:
            self._clear()
        self._nbytes += message.nbytes
        self._append(msg_type, message)
        return True

    def _growth(self, message: Message) -> int:
        """Bytes by which `message` makes the displays of its display_id grow."""
        display = self._displays.get(_display_id(message.content))
        return 0 if display is None else display.count * (message.nbytes - display.nbytes)

    def _update_display(self, message: Message) -> _Display | None:
        """Let all outputs of the display_id of `message` show its content; None if there is no such output yet."""
        display = self._displays.get(_display_id(message.content))
        if display is not None:
            self._nbytes += self._growth(message)
            display.nbytes = message.nbytes
            display.shown = _shown(message.content)
        return display

    def _has_room(self, nbytes: int) -> bool:
        if self.max_output_bytes is None or nbytes <= self.max_output_bytes:
            return True
        self.truncated = True
        self.dropped += 1
        return False

    def _append(self, msg_type: str, message: Message) -> None:
        content = message.content
        if msg_type == "stream":
            self._append_stream(str(content.get("name") or "stdout"), str(content.get("text") or ""))
        elif msg_type == "error":
            self._outputs.append({"output_type": "error", **error_fields(content)})
        else:
            self._append_display(msg_type, message)

    def _append_stream(self, name: str, text: str) -> None:
        last = self._outputs[-1] if self._outputs else None
        if last is not None and last["output_type"] == "stream" and last["name"] == name:
            last["text"].append(text)
        else:
            self._outputs.append({"output_type": "stream", "name": name, "text": [text]})

    def _append_display(self, msg_type: str, message: Message) -> None:
        content = message.content
        output: dict[str, Any] = {"output_type": msg_type}
        if msg_type == "execute_result":
            count = content.get("execution_count")
            output["execution_count"] = count if isinstance(count, int) else None
        display_id = _display_id(content)
        display = self._update_display(message) or _Display(_shown(content), message.nbytes)
        if display_id:
            self._displays[display_id] = display
        display.count += 1
        output[_DISPLAY] = display
        self._outputs.append(output)

    def _clear(self) -> None:
        self._clear_next = self._is_cut = False
        self._outputs.clear()
        self._displays.clear()
        self._nbytes = 0

    def _count(self, message: Message) -> None:
        count = message.content.get("execution_count")
        if isinstance(count, int):
            self.execution_count = count


def _in_notebook_format(output: dict[str, Any]) -> dict[str, Any]:
    own = dict(output)
    if own["output_type"] == "stream":
        own["text"] = "".join(own["text"])
    display = own.pop(_DISPLAY, None)
    return own if display is None else own | display.shown


def _check_size(size: int | None) -> int | None:
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise InvalidArgument(f"max_output_bytes must be a whole number, 0 or more, or None; not {size!r}")
    return size


def error_fields(content: dict[str, Any]) -> dict[str, Any]:
    """ename, evalue and traceback of an error. Some kernels leave some of them out."""
    traceback = content.get("traceback")
    return {
        "ename": str(content.get("ename") or "Error"),
        "evalue": str(content.get("evalue") or ""),
        "traceback": [str(line) for line in traceback] if isinstance(traceback, list) else [],
    }


def _shown(content: dict[str, Any]) -> dict[str, Any]:
    return {"data": _mapping(content, "data"), "metadata": _mapping(content, "metadata")}


def _mapping(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}


def _display_id(content: dict[str, Any]) -> str:
    display_id = _mapping(content, "transient").get("display_id")
    return display_id if isinstance(display_id, str) else ""
