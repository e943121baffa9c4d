"""Outputs in notebook format (nbformat 4), as many as there is room for. A display_id is kept, in `transient`.

Streams of one name that come in a row are one output. clear_output and update_display_data are applied and are not
outputs themselves. A display whose display_id was used before also changes the earlier displays of that id, as in
JupyterLab and nbclient.
"""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

from kclient.protocol.displays import Shown, display_id_of, shown_by
from kclient.protocol.memory import SPARE_NBYTES, memory_of, memory_of_display
from kclient.protocol.messages import Message

OUTPUT_NBYTES: Final = 600
"""Memory that an output takes besides its content, here and in the Result. Measured: 500 (error) to 560 (stream)."""

CUT_MARK: Final = "\n[cut here: the output is longer than max_output_bytes]\n"

_ANSI: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""A control sequence, ECMA-48 section 5.4: colours, for the most part."""

_MERGED_AT: Final = 256
"""So many pieces of a text become one: a short piece takes some 57 bytes besides its characters."""

_DISPLAY: Final = "display"
"""The key of an output's _Display. All outputs of one display_id share one _Display, so that they change together."""


@attrs.define(eq=False)
class Room:
    """The bound on what one execution keeps: `max_bytes` of content (None: no bound), and little more of memory.

    `nbytes` of content are kept, as they came over the wire, or a text by its UTF-8. They take `overhead` bytes more
    in memory.
    """

    max_bytes: int | None
    nbytes: int = 0
    overhead: int = 0
    truncated: bool = False
    dropped: int = 0

    def take(self, nbytes: int, overhead: int) -> bool:
        """Count so much more; False if there is no room for it."""
        if self.max_bytes is not None and nbytes > self.left(overhead):
            return False
        self.nbytes += nbytes
        self.overhead += overhead
        return True

    def count(self, nbytes: int, overhead: int) -> None:
        """Count so much more, or less, whether there is room for it or not."""
        self.nbytes += nbytes
        self.overhead += overhead

    def left(self, overhead: int) -> int:
        """Bytes of content that fit, with `overhead`, into a room that has a bound."""
        left = (self.max_bytes or 0) - self.nbytes
        beyond = self.overhead + overhead - SPARE_NBYTES
        return left - beyond if beyond > 0 else left

    def drop(self) -> None:
        """A message, or a part of one, is not kept."""
        self.truncated = True
        self.dropped += 1


@attrs.define(eq=False)
class _Text:
    """A stream output: `pieces` that came one after the other. The first `merged` of them are long."""

    name: str
    pieces: list[str]
    merged: int = 0

    def append(self, text: str) -> None:
        pieces = self.pieces
        pieces.append(text)
        if len(pieces) - self.merged >= _MERGED_AT:
            pieces[self.merged :] = ["".join(pieces[self.merged :])]
            self.merged += 1


@attrs.define(eq=False)
class _Display:
    """The content that all `count` outputs of one display_id show, its size on the wire, and its overhead in memory."""

    shown: Shown
    nbytes: int
    overhead: int
    count: int = 0


class KeptOutputs:
    """The outputs of a cell, kept within `room`, which it may share with others."""

    def __init__(self, room: Room) -> None:
        self.room = room
        self._outputs: list[dict[str, Any] | _Text] = []
        self._nbytes = 0
        self._overhead = 0
        self._clear_next = False
        self._is_cut = False
        self._displays: dict[str, _Display] = {}

    def take(self, msg_type: str, message: Message) -> Message | None:
        """Keep an output; returns `message`, or one with the part that was kept, or None if nothing was."""
        if msg_type == "stream":
            return self._take_text(message)
        if msg_type == "clear_output":
            self._clear_next = bool(message.content.get("wait"))
            if not self._clear_next:
                self._clear()
            return message
        if msg_type == "update_display_data":
            return message if self.update_display(message) else None
        if self._clear_next:
            self._clear()
        take = self._take_error if msg_type == "error" else self._take_display
        return message if take(msg_type, message) else None

    def update_display(self, message: Message) -> bool:
        """Let all outputs of the display_id of `message` show its content; False if there is no room for it."""
        display = self._displays.get(display_id_of(message.content))
        return display is None or self._show(display, message)

    def outputs(self) -> list[dict[str, Any]]:
        """A copy of the outputs."""
        return list(map(_copy_of, self._outputs))

    def _take_text(self, message: Message) -> Message | None:
        """Keep the text of a stream message, or as much as fits and a mark. After that no text is kept."""
        if self._clear_next:
            self._clear()
        content = message.content
        name, text = str(content.get("name") or "stdout"), str(content.get("text") or "")
        last = self._outputs[-1] if self._outputs else None
        goes_on = type(last) is _Text and last.name == name
        overhead = 0 if goes_on else OUTPUT_NBYTES
        nbytes = len(text) if text.isascii() else _size_of(text)
        room = self.room
        if self._is_cut or not room.take(nbytes, overhead):
            room.drop()
            if self._is_cut or room.max_bytes == 0:
                return None
            self._is_cut = True
            text = cut_text(text, room.left(overhead))
            nbytes = _size_of(text)
            room.count(nbytes, overhead)
            text += CUT_MARK
            message = attrs.evolve(message, content={**content, "name": name, "text": text}, nbytes=_size_of(text))
        self._nbytes += nbytes
        self._overhead += overhead
        if goes_on:
            last.append(text)  # type: ignore[union-attr]  # a _Text
        else:
            self._outputs.append(_Text(name, [text]))
        return message

    def _take_error(self, msg_type: str, message: Message) -> bool:
        output = {"output_type": msg_type, **error_fields(message.content)}
        if not self._add(message.nbytes, OUTPUT_NBYTES + _overhead(memory_of(output), message)):
            return False
        self._outputs.append(output)
        return True

    def _take_display(self, msg_type: str, message: Message) -> bool:
        content = message.content
        display_id = display_id_of(content)
        display = self._displays.get(display_id) if display_id else None
        if display is None:
            shown = shown_by(content)
            overhead = _overhead(memory_of_display(**shown), message)
            if not self._add(message.nbytes, OUTPUT_NBYTES + overhead):
                return False
            display = _Display(shown, message.nbytes, overhead)
            if display_id:
                self._displays[display_id] = display
        elif not self._show(display, message, more=1):
            return False
        display.count += 1
        output: dict[str, Any] = {"output_type": msg_type, _DISPLAY: display}
        if display_id:
            output["transient"] = {"display_id": display_id}
        if msg_type == "execute_result":
            count = content.get("execution_count")
            output["execution_count"] = count if isinstance(count, int) else None
        self._outputs.append(output)
        return True

    def _show(self, display: _Display, message: Message, *, more: int = 0) -> bool:
        """Let the outputs of `display`, and `more` that will be added, show `message`; False if there is no room."""
        shown = shown_by(message.content)
        overhead = _overhead(memory_of_display(**shown), message)
        growth = display.count * (message.nbytes - display.nbytes) + more * message.nbytes
        if not self._add(growth, overhead - display.overhead + more * OUTPUT_NBYTES):
            return False
        display.shown, display.nbytes, display.overhead = shown, message.nbytes, overhead
        return True

    def _add(self, nbytes: int, overhead: int) -> bool:
        """Count so much more; False if there is no room for it."""
        if not self.room.take(nbytes, overhead):
            self.room.drop()
            return False
        self._nbytes += nbytes
        self._overhead += overhead
        return True

    def _clear(self) -> None:
        self._clear_next = self._is_cut = False
        self._outputs.clear()
        self._displays.clear()
        self.room.count(-self._nbytes, -self._overhead)
        self._nbytes = self._overhead = 0


def cut_text(text: str, nbytes: int) -> str:
    """The beginning of `text`, as many whole characters as fit into `nbytes` of UTF-8."""
    if text.isascii():
        return text[: max(0, nbytes)]
    encoded = text.encode("utf-8", "surrogatepass")
    end = max(0, min(nbytes, len(encoded)))
    while 0 < end < len(encoded) and encoded[end] & 0xC0 == 0x80:  # within a character
        end -= 1
    return encoded[:end].decode("utf-8", "surrogatepass")


def error_fields(content: dict[str, Any]) -> dict[str, Any]:
    """ename, evalue and traceback of an error. Some kernels leave some of them out, or send the traceback as one text.

    An error that says nothing but its traceback has the last line of that for its evalue.
    """
    traceback = content.get("traceback")
    lines = [str(line) for line in traceback] if isinstance(traceback, list) else []
    if isinstance(traceback, str) and traceback:
        lines = [traceback]
    ename, evalue = str(content.get("ename") or ""), str(content.get("evalue") or "")
    if not ename and not evalue:
        evalue = _last_line(lines)
    return {"ename": ename or "Error", "evalue": evalue, "traceback": lines}


def _last_line(traceback: list[str]) -> str:
    """The last line that is not empty, without colours; "" if there is none."""
    for text in reversed(traceback):
        for line in reversed(_ANSI.sub("", text).splitlines()):
            if line.strip():
                return line.strip()
    return ""


def _size_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _overhead(memory: int, message: Message) -> int:
    return max(0, memory - message.nbytes)


def _copy_of(output: dict[str, Any] | _Text) -> dict[str, Any]:
    if isinstance(output, _Text):
        return {"output_type": "stream", "name": output.name, "text": "".join(output.pieces)}
    own = dict(output)
    display = own.pop(_DISPLAY, None)
    if "transient" in own:
        own["transient"] = dict(own["transient"])
    return own if display is None else own | display.shown
