"""Displays: what each display_id shows now, over several runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from kclient.errors import InvalidArgument
from kclient.protocol.memory import memory_of_display
from kclient.protocol.messages import DISPLAY_TYPES, Message

MAX_DISPLAYS_BYTES: Final = 64 * 2**20

Shown = dict[str, dict[str, Any]]
"""The `data` and the `metadata` of a display."""


class Displays(Mapping[str, Shown]):
    """What each display_id shows now: a dict with `data` and `metadata`, by display_id.

    Hand one to several runs: `run(code, displays=displays)`. A Result never changes, but a later run may update what an
    earlier one displayed, or display it again: `Result.with_displays` gives the earlier one as it is now. `take` is for
    a message out of iopub's inbox, that of a thread for example.

    Of more than `max_bytes` the displays that have not changed for longest are forgotten, and counted as `dropped`.
    """

    def __init__(self, max_bytes: int = MAX_DISPLAYS_BYTES) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 0:
            raise InvalidArgument(f"max_bytes must be a whole number, 0 or more; not {max_bytes!r}")
        self.max_bytes = max_bytes
        self.nbytes = 0
        self.dropped = 0
        self._shown: OrderedDict[str, tuple[Shown, int]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Displays {len(self)}>"

    def __getitem__(self, display_id: str) -> Shown:
        return dict(self._shown[display_id][0])

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._shown))

    def __len__(self) -> int:
        return len(self._shown)

    def take(self, message: Message) -> bool:
        """Note what `message` displays; False if it is no display, or has no display_id."""
        display_id = display_id_of(message.content)
        if message.header["msg_type"] not in DISPLAY_TYPES or not display_id:
            return False
        shown = shown_by(message.content)
        nbytes = max(message.nbytes, memory_of_display(**shown))
        if display_id in self._shown:
            self.nbytes -= self._shown.pop(display_id)[1]
        self._shown[display_id] = shown, nbytes
        self.nbytes += nbytes
        while self.nbytes > self.max_bytes:
            self.nbytes -= self._shown.popitem(last=False)[1][1]
            self.dropped += 1
        return True

    def applied_to(self, outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """A copy of `outputs`, in which each display shows what its display_id shows now."""
        return [output | self._shown.get(display_id_of(output), _NOTHING)[0] for output in outputs]


_NOTHING: Final[tuple[Shown, int]] = {}, 0


def check_displays(displays: Any) -> None:
    """Raise InvalidArgument for what is none."""
    if not isinstance(displays, Displays):
        raise InvalidArgument(f"displays must be a kclient.Displays, or None; not {displays!r}")


def display_id_of(content: dict[str, Any]) -> str:
    """The display_id of a message's content or of an output; "" if it has none."""
    display_id = _mapping(content, "transient").get("display_id")
    return display_id if isinstance(display_id, str) else ""


def shown_by(content: dict[str, Any]) -> Shown:
    """What a message with this content displays; empty where the kernel left it out."""
    return {"data": _mapping(content, "data"), "metadata": _mapping(content, "metadata")}


def _mapping(content: dict[str, Any], name: str) -> dict[str, Any]:
    value = content.get(name)
    return value if isinstance(value, dict) else {}
