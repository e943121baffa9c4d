"""The record of one execution so far: its outputs, its reply, its states."""

from __future__ import annotations

from typing import Any, Final

import attrs

from kclient.errors import InvalidArgument
from kclient.protocol.comms import COMM_TYPES
from kclient.protocol.displays import Displays, check_displays
from kclient.protocol.kept_outputs import KeptOutputs, Room
from kclient.protocol.messages import DISPLAY_TYPES, LEFT_OUT, OUTPUT_TYPES, Message
from kclient.protocol.output_widgets import taken_request
from kclient.protocol.peer import ABORTED

MAX_OUTPUT_BYTES: Final = 256 * 2**20


@attrs.define
class Times:
    """When the request was sent, and when busy, reply and idle came: seconds of `time.perf_counter()`; 0: not yet."""

    sent: float = 0.0
    busy: float = 0.0
    reply: float = 0.0
    idle: float = 0.0


class Transcript:
    """The record of one execution; `is_done` once its reply and its idle status are both in.

    `version` counts the outputs that came. `input_at` is the time of execute_input, with which the
    kernel begins to run the code; 0: not yet.
    """

    def __init__(
        self,
        max_output_bytes: int | None = MAX_OUTPUT_BYTES,
        *,
        keep_outputs: bool = True,
        displays: Displays | None = None,
    ) -> None:
        if max_output_bytes is not MAX_OUTPUT_BYTES:
            _check_size(max_output_bytes)
        if displays is not None:
            check_displays(displays)
        self.max_output_bytes = max_output_bytes
        self.keep_outputs = keep_outputs
        self.reply: Message | None = None
        self.idle = False
        self.complete = True
        self.version = 0
        self.input_at = 0.0
        self.msg_id = ""
        self.times = Times()
        self.execution_count: int | None = None
        self._cell: KeptOutputs | None = None  # until the first output: most code has none
        self._widgets: dict[str, KeptOutputs] | None = None  # until a widget takes output
        self._taking: list[str] = []
        self._displays = displays

    @property
    def is_done(self) -> bool:
        return self.reply is not None and (self.idle or not self.complete)

    @property
    def truncated(self) -> bool:
        """True if an output, or a part of one, was dropped."""
        return self._cell is not None and self._cell.room.truncated

    @property
    def dropped(self) -> int:
        """The number of messages that were dropped or cut."""
        return 0 if self._cell is None else self._cell.room.dropped

    def note_drop(self) -> None:
        """A reader of the execution could not be given an output."""
        self._kept().room.drop()

    def note_sent(self, msg_id: str, now: float) -> None:
        """The request is about to be sent."""
        self.msg_id = msg_id
        self.times.sent = now

    def set_reply(self, reply: Message) -> None:
        self.reply = reply
        self.times.reply = reply.received
        self._count(reply)

    @property
    def was_skipped(self) -> bool:
        """True if the kernel replied that it has not run the code, and there is no sign that it has."""
        reply = self.reply
        return reply is not None and reply.content.get("status") in ABORTED and not (self.input_at or self.version)

    def begin_anew(self) -> Message | None:
        """The request is sent once more, because the kernel has skipped it. Returns the reply that said so."""
        reply, self.reply, self.idle = self.reply, None, False
        self.times = Times(sent=self.times.sent)
        return reply

    def take(self, message: Message) -> Message | None:
        """Record an iopub message; returns the output that a reader of the execution wants to see, if it is one."""
        msg_type = message.header["msg_type"]
        if msg_type in OUTPUT_TYPES:
            self.version += 1
            if self._displays is not None:
                self._displays.take(message)
            if not self.keep_outputs:
                return message
            if self._widgets is not None:
                return self._share(msg_type, message)
            return (self._cell or self._kept()).take(msg_type, message)
        if msg_type == "status":
            self._take_status(message)
        elif msg_type == "execute_input":
            self.input_at = message.received
            self._count(message)
        elif msg_type == LEFT_OUT:
            self.note_drop()
        return None

    def update_display(self, message: Message) -> bool:
        """Let all outputs of the display_id of `message` show its content; False if there is no room for it.

        If `message` is of a comm, note whether an Output widget takes the output of this execution.
        """
        if message.header["msg_type"] in COMM_TYPES:
            self._note_widget(message)
            return True
        if self._displays is not None:
            self._displays.take(message)
        fits = [kept.update_display(message) for kept in self._all_kept()]
        return all(fits)

    def outputs(self) -> list[dict[str, Any]]:
        """A copy of the outputs."""
        return [] if self._cell is None else self._cell.outputs()

    def widget_outputs(self) -> dict[str, list[dict[str, Any]]]:
        """A copy of the outputs that each Output widget took, by its comm id."""
        if self._widgets is None:
            return {}
        return {comm_id: kept.outputs() for comm_id, kept in self._widgets.items()}

    def _kept(self) -> KeptOutputs:
        """The outputs of the cell."""
        if self._cell is None:
            self._cell = KeptOutputs(Room(self.max_output_bytes))
        return self._cell

    def _all_kept(self) -> list[KeptOutputs]:
        return [self._kept(), *(self._widgets or {}).values()]

    def _share(self, msg_type: str, message: Message) -> Message | None:
        """Give an output to the widget that takes output, the latest if there are several, or to the cell."""
        taker = self._kept() if self._widgets is None or not self._taking else self._widgets[self._taking[-1]]
        if msg_type in DISPLAY_TYPES:
            for kept in self._all_kept():
                if kept is not taker:
                    kept.update_display(message)
        return taker.take(msg_type, message)

    def _note_widget(self, message: Message) -> None:
        """Note that a widget begins to take the output of this execution, or ends it."""
        noted = taken_request(message)
        if noted is None:
            return
        comm_id, msg_id = noted
        if msg_id != self.msg_id:
            if comm_id in self._taking:
                self._taking.remove(comm_id)
        elif comm_id not in self._taking:
            self._taking.append(comm_id)
            self._widgets = self._widgets or {}
            self._widgets.setdefault(comm_id, KeptOutputs(self._kept().room))

    def _take_status(self, message: Message) -> None:
        state = message.content.get("execution_state")
        if state == "busy":
            self.times.busy = message.received
        elif state == "idle":
            self.idle = True
            self.times.idle = message.received

    def _count(self, message: Message) -> None:
        count = message.content.get("execution_count")
        if isinstance(count, int):
            self.execution_count = count


def _check_size(size: int | None) -> None:
    """Raise InvalidArgument for a bound that is none."""
    if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
        raise InvalidArgument(f"max_output_bytes must be a whole number, 0 or more, or None; not {size!r}")
