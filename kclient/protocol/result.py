"""The outcome of one execution, as a value."""

from __future__ import annotations

from reprlib import repr as short_repr
from typing import Any, Literal

import attrs

from kclient.errors import ExecutionAborted, ExecutionError, IncompleteOutput, InvalidArgument
from kclient.protocol.displays import Displays
from kclient.protocol.kept_outputs import error_fields
from kclient.protocol.messages import Message
from kclient.protocol.transcript import Transcript

Check = bool | Literal["reply"]
"""Whether an error of the code is raised; "reply": only if the reply says that the code failed."""


def valid_check(check: Any) -> Check:
    """`check`, which must be True, False or "reply"; else raises InvalidArgument."""
    if isinstance(check, bool) or check == "reply":
        return check  # type: ignore[no-any-return]
    raise InvalidArgument(f"check must be True, False or 'reply', not {check!r}")


@attrs.frozen
class ErrorInfo:
    """An error in user code, as the kernel reports it; `traceback` is a list of lines that may hold ANSI colours."""

    ename: str
    evalue: str
    traceback: list[str] = attrs.field(factory=list, repr=False)


@attrs.frozen(eq=False)
class Result:
    """The outcome of `run`; it never changes.

    `outputs` are in notebook format (nbformat 4); one with a display_id has that besides, in its `transient`, which
    `notebook_outputs` leaves out. `reply` is the execute_reply, None in a partial result.
    `complete` is False if outputs may be missing, because the kernel's idle status was lost. `truncated` is True if
    outputs beyond max_output_bytes were dropped; a text ends with a mark there.
    `widget_outputs` has, by the comm id of an Output widget, the outputs that went to the widget and not to the cell.
    """

    reply: Message | None
    outputs: list[dict[str, Any]]
    execution_count: int | None = None
    complete: bool = True
    truncated: bool = False
    widget_outputs: dict[str, list[dict[str, Any]]] = attrs.field(factory=dict)

    def __repr__(self) -> str:
        """The status, and the beginning and the end of each output and error."""
        error = self.error
        problem = f"{error.ename}: {error.evalue}" if error is not None else ""
        shown = {"text": self.text, "stdout": self.stdout, "stderr": self.stderr, "error": problem}
        words = [self.status, *(f"{name}={short_repr(value)}" for name, value in shown.items() if value)]
        flags = {"incomplete": not self.complete, "truncated": self.truncated}
        return f"<Result {' '.join(words + [name for name, is_set in flags.items() if is_set])}>"

    @classmethod
    def of(cls, transcript: Transcript) -> Result:
        """The result so far; final if the transcript is done."""
        return cls(
            reply=transcript.reply,
            outputs=transcript.outputs(),
            execution_count=transcript.execution_count,
            complete=transcript.complete and transcript.is_done,
            truncated=transcript.truncated,
            widget_outputs=transcript.widget_outputs(),
        )

    @property
    def status(self) -> str:
        """``"ok"``, ``"error"`` or ``"aborted"``, as the kernel replied; ``"unknown"`` without a reply."""
        content = self.reply.content if self.reply is not None else {}
        status = content.get("status")
        if status == "abort":  # from kernels of protocol 5.0
            return "aborted"
        if status is None and "ename" in content:  # from xeus-python, with --raw
            return "error"
        return status if isinstance(status, str) else "unknown"

    @property
    def ok(self) -> bool:
        """True if the code ran to its end without an error: the reply says ok, and `outputs` hold no error."""
        return self.status == "ok" and self.error is None

    @property
    def error(self) -> ErrorInfo | None:
        """The error that the code raised: from the reply, or from the outputs if the reply does not name it."""
        published = next((each for each in reversed(self.outputs) if each["output_type"] == "error"), None)
        if self.reply is not None and self.status == "error":
            replied = error_fields(self.reply.content)
            # No exception is a NoneType: IPython replies so after a failing __repr__.
            is_named = self.reply.content.get("ename") not in (None, "", "NoneType")
            if is_named or published is None:
                return ErrorInfo(**replied)
        if published is None:
            return None
        return ErrorInfo(published["ename"], published["evalue"], published["traceback"])

    @property
    def notebook_outputs(self) -> list[dict[str, Any]]:
        """A copy of `outputs` to write into a notebook: without `transient`, which a notebook may not hold."""
        return [{name: value for name, value in each.items() if name != "transient"} for each in self.outputs]

    def with_displays(self, displays: Displays) -> Result:
        """This result, with what its displays show now: later runs that had `displays`, too, may have changed it."""
        taken = {comm_id: displays.applied_to(outputs) for comm_id, outputs in self.widget_outputs.items()}
        return attrs.evolve(self, outputs=displays.applied_to(self.outputs), widget_outputs=taken)

    @property
    def stdout(self) -> str:
        """All that was written to standard output."""
        return self._stream("stdout")

    @property
    def stderr(self) -> str:
        """All that was written to standard error."""
        return self._stream("stderr")

    @property
    def data(self) -> dict[str, Any]:
        """The mime bundle of the execute_result, {} if there is none."""
        for output in reversed(self.outputs):
            if output["output_type"] == "execute_result":
                bundle: dict[str, Any] = output["data"]
                return bundle
        return {}

    @property
    def text(self) -> str | None:
        """The text/plain of the execute_result, None if there is none."""
        return self.data.get("text/plain")

    @property
    def payload(self) -> list[dict[str, Any]]:
        """Requests to the frontend: dicts whose `source` is page, set_next_input, edit_magic or ask_exit.

        The messaging spec deprecates them, but IPython's `?`, `%load`, `%edit` and `exit` still send them.
        """
        payload = self._replied("payload", list)
        return [entry for entry in payload if isinstance(entry, dict)]

    @property
    def user_expressions(self) -> dict[str, Any]:
        """By name, the mime bundle of each expression (`status` "ok" and `data`), or its error (`status` "error")."""
        expressions: dict[str, Any] = self._replied("user_expressions", dict)
        return expressions

    def raise_for_error(self, *, by_reply: bool = False) -> None:
        """Raise ExecutionError if the code raised, ExecutionAborted if the kernel skipped it.

        Nothing else than the reply counts if `by_reply`: an error that was only shown, and then survived, is none.
        Raise IncompleteOutput if the code did not fail, but the result is not `complete`.
        """
        if not (by_reply and self.status == "ok"):
            self._raise_failure()
        if not self.complete:
            raise IncompleteOutput(
                "the code has ended, but outputs may be missing: the kernel's idle status was lost; .result has those "
                "that came",
                result=self,
            )

    def _raise_failure(self) -> None:
        error = self.error
        if error is not None:
            raise ExecutionError(error.ename, error.evalue, error.traceback, result=self)
        if self.status == "aborted":
            why = self._replied("evalue", str) or "the kernel skipped it: earlier code failed or was interrupted"
            raise ExecutionAborted("Aborted", f"{why}; the code did not run", result=self)
        if not self.ok:
            raise ExecutionError("Error", f"the kernel replied with status {self.status!r}", result=self)

    def _replied(self, name: str, kind: type) -> Any:
        """That part of the reply; an empty one if the kernel left it out or sent another type."""
        value = self.reply.content.get(name) if self.reply is not None else None
        return value if isinstance(value, kind) else kind()

    def _stream(self, name: str) -> str:
        return "".join(
            output["text"] for output in self.outputs if output["output_type"] == "stream" and output["name"] == name
        )
