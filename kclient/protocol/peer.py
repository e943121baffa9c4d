"""What a client knows of its kernel: which requests it supports, and which protocol it speaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from kclient.errors import InvalidState, UnsupportedFeature
from kclient.protocol.kernel_info import DEBUGGER, SUBSHELLS, KernelInfo
from kclient.protocol.messages import Message

if TYPE_CHECKING:
    from kclient.protocol.version4 import Version4

FEATURE_OF: Final = {
    "debug_request": DEBUGGER,
    "create_subshell_request": SUBSHELLS,
    "delete_subshell_request": SUBSHELLS,
    "list_subshell_request": SUBSHELLS,
}
"""The feature that a kernel needs to answer a request. Some kernels without it never reply."""

_UNKNOWN_TO_4: Final = {"is_complete_request": "5.0", "comm_info_request": "5.1", "interrupt_request": "5.3"}
"""Requests that kernels of protocol 4 do not know, and the version that brought them."""

OPTIONAL: Final = frozenset([*FEATURE_OF, *_UNKNOWN_TO_4])
"""Requests that not every kernel knows."""

ABORTED: Final = frozenset(["aborted", "abort"])
"""Statuses of a reply to a request that the kernel skipped."""

_ONE_AT_A_TIME: Final = frozenset(["irkernel", "tslab"])
"""Kernels, by their `implementation` in small letters, that spoil what is queued behind an error or an interrupt.

IRkernel 1.3.2 and tslab 1.0 skip it, whatever stop_on_error says. So do kernels that are made with xeus. Of these
xeus-python 0.19 runs it, and reports the error of the code before it.
"""


class Peer:
    """The kernel as its latest kernel_info reply describes it. The channels of a client share one Peer.

    `version_4` adapts messages if the kernel speaks protocol 4; else it is None. `subshells` are the ids of those that
    the kernel is known to have. `exit_reason` says why the kernel is about to exit; empty unless it is known to be.
    `one_at_a_time` is True for a kernel that spoils what is queued behind an error.
    Each of `observers` is called with every reply of its message type.
    """

    def __init__(self) -> None:
        self.info: KernelInfo | None = None
        self._told: object = None
        self.version_4: Version4 | None = None
        self.one_at_a_time = False
        self.subshells: set[str] = set()
        self.exit_reason = ""
        self.observers: dict[str, Callable[[Message], None]] = {
            "kernel_info_reply": self.meet,
            "create_subshell_reply": self._note_created,
            "list_subshell_reply": self._note_list,
            "delete_subshell_reply": lambda reply: self.forget_subshells(),
            "execute_reply": self._note_payload,
            "shutdown_reply": self.note_shutdown,
        }

    def meet(self, reply: Message) -> None:
        """Take in a kernel_info_reply, and give it the shape of protocol 5. A failed one replaces no known `info`."""
        if reply.content == self._told:
            return
        info = KernelInfo.of(reply.content)
        if info.status in ABORTED or (info.status == "error" and self.info is not None):
            return
        self.info = info
        implementation = info.implementation.lower()
        self.one_at_a_time = implementation in _ONE_AT_A_TIME or implementation.startswith("xeus")
        if not info.speaks_version_4:
            self.version_4, self._told = None, reply.content
            return
        from kclient.protocol.version4 import Version4  # imported late: few kernels need it

        self.version_4 = self.version_4 or Version4()
        reply.content = {
            "status": info.status,
            "implementation": info.implementation,
            "implementation_version": info.implementation_version,
            "banner": info.banner,
            "help_links": [],
            **info.content,
            "protocol_version": info.protocol_version,
            "language_info": info.language_info,
        }

    def note_skip(self) -> None:
        """The kernel has skipped a request although no request asked for that. ipykernel does so for other clients."""
        if self.info is None or self.info.implementation != "ipython":
            self.one_at_a_time = True

    def forget(self) -> None:
        """Forget the kernel, because another one takes its place."""
        self.info = self.version_4 = self._told = None
        self.exit_reason = ""
        self.one_at_a_time = False
        self.forget_subshells()

    def forget_subshells(self) -> None:
        """One of them was deleted, or another kernel has taken the place of this one."""
        self.subshells = set()

    def note_shutdown(self, message: Message) -> None:
        """The kernel has answered a shutdown_request, of this client or of another: it is about to exit."""
        self.exit_reason = self.exit_reason or "it was asked to shut down"

    def _note_payload(self, reply: Message) -> None:
        """Note if the code has asked to end the kernel, as ``exit()`` does. The kernel exits some time after the reply.

        Source: "Payloads" in "Messaging in Jupyter".
        """
        payload = reply.content.get("payload")
        if not payload or not isinstance(payload, list):
            return
        for item in payload:
            if isinstance(item, dict) and item.get("source") == "ask_exit" and not item.get("keepkernel"):
                self.exit_reason = "its code asked it to exit"

    def _note_created(self, reply: Message) -> None:
        subshell_id = reply.content.get("subshell_id")
        if isinstance(subshell_id, str):
            self.subshells.add(subshell_id)

    def _note_list(self, reply: Message) -> None:
        listed = listed_subshells(reply)
        if listed is not None:
            self.subshells = listed

    def known(self) -> KernelInfo:
        """The facts of the kernel; raises InvalidState before its first kernel_info reply."""
        if self.info is None:
            raise InvalidState("no kernel_info reply has come yet; call wait_for_ready() or kernel_info() first")
        return self.info

    def check(self, header: dict[str, Any]) -> None:
        """Raise UnsupportedFeature for a request that the kernel is known not to understand."""
        info, msg_type = self.info, header["msg_type"]
        if info is None:
            return
        feature = feature_of(header)
        if feature is not None and info.lacks(feature):
            raise UnsupportedFeature(
                f"the kernel ({info}) does not support {feature!r}: {info.why_it_lacks(feature)}",
                feature=feature,
            )
        if info.speaks_version_4 and msg_type in _UNKNOWN_TO_4:
            raise UnsupportedFeature(
                f"the kernel ({info}) speaks protocol {info.protocol_version}; "
                f"{msg_type} needs protocol {_UNKNOWN_TO_4[msg_type]}",
                feature=msg_type,
            )


def feature_of(header: dict[str, Any]) -> str | None:
    """The optional feature that a request with this header needs."""
    return SUBSHELLS if header.get("subshell_id") is not None else FEATURE_OF.get(header["msg_type"])


def listed_subshells(reply: Message) -> set[str] | None:
    """The subshells that a list_subshell_reply tells of; None if it tells nothing."""
    subshell_ids = reply.content.get("subshell_id")
    if not isinstance(subshell_ids, list):
        return None
    return {subshell_id for subshell_id in subshell_ids if isinstance(subshell_id, str)}
