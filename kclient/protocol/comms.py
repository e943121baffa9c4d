"""Comms: the receiver of each comm message from the kernel, and the content of those that a client sends.

Source: "Custom Messages" in "Messaging in Jupyter". A kernel publishes its comm messages over iopub, so every client
gets all of them. A message for an unknown comm or target is left alone, because it may be for another client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Generic, Protocol, TypeVar

from kclient.errors import InvalidArgument
from kclient.protocol.messages import GETS_NO_REPLY, Content, Message, check_code

COMM_TYPES: Final = GETS_NO_REPLY

Data = Mapping[str, Any]


class Taker(Protocol):
    """A receiver of iopub messages: an execution, a comm, or the opener of comms."""

    def feed(self, message: Message) -> None: ...


class OpenComm(Taker, Protocol):
    """A comm, as the routing of its messages sees it."""

    def fail(self, failure: Callable[[str | None], Exception]) -> None: ...


_Comm = TypeVar("_Comm", bound=OpenComm)


class CommRoutes(Generic[_Comm]):
    """The open comms by id, and by name the targets that the kernel may open comms to.

    `session` is the session id of this client's requests. `opener` gets every comm_open that is for this client.
    """

    def __init__(self, session: str, opener: Taker) -> None:
        self.comms: dict[str, _Comm] = {}
        self.targets: dict[str, Callable[..., object] | None] = {}
        self._session = session
        self._opener = opener

    def route(self, message: Message) -> Taker | None:
        """The receiver of `message`; None if it is no comm message, or may be for another client.

        A comm_open to an unknown target also goes to the opener, which refuses it, if this client has targets and
        one of its requests led to the comm_open. Else another client may have the target.
        """
        msg_type, content = message.header["msg_type"], message.content
        comm_id = content.get("comm_id")
        if msg_type not in COMM_TYPES or not isinstance(comm_id, str):
            return None
        if msg_type != "comm_open":
            return self.comms.get(comm_id)
        target_name = content.get("target_name")
        if comm_id in self.comms or not isinstance(target_name, str) or not self.targets:
            return None
        is_of_ours = message.parent_header.get("session") == self._session
        return self._opener if is_of_ours or target_name in self.targets else None

    def add_target(self, target_name: str, callback: Callable[..., object] | None) -> None:
        """Let the kernel open comms to that target; raises InvalidArgument, also if it is registered already."""
        if check_name(target_name, "target_name") in self.targets:
            raise InvalidArgument(f"the target {target_name!r} is registered already; unregister_target() it first")
        self.targets[target_name] = callback

    def remove_target(self, target_name: str) -> None:
        """Undo `add_target`; raises InvalidArgument if there is no such target."""
        if not isinstance(target_name, str) or target_name not in self.targets:
            names = ", ".join(self.targets) or "none"
            raise InvalidArgument(f"no target {target_name!r} is registered; there are: {names}")
        del self.targets[target_name]

    def add(self, comm_id: str, comm: _Comm) -> None:
        """Route the messages of that id to `comm`; raises InvalidArgument if another open comm has the id."""
        if comm_id in self.comms:
            raise InvalidArgument(f"an open comm has the comm_id {comm_id!r}: {self.comms[comm_id]!r}; choose another")
        self.comms[comm_id] = comm

    def fail(self, failure: Callable[[str | None], Exception], comm_ids: Iterable[str] | None = None) -> None:
        """End all comms, or those of `comm_ids`, because their kernel is gone. The targets stay."""
        for comm_id in list(self.comms) if comm_ids is None else comm_ids:
            comm = self.comms.pop(comm_id, None)
            if comm is not None:
                comm.fail(failure)


def open_comm(comm_id: str, target_name: str, data: Data | None, target_module: str | None) -> Content:
    """Content of a comm_open."""
    content = {"comm_id": comm_id, "target_name": check_name(target_name, "target_name"), "data": check_data(data)}
    if target_module is not None:
        content["target_module"] = check_code(target_module, "target_module")
    return content


def comm_message(comm_id: str, data: Data | None) -> Content:
    """Content of a comm_msg or a comm_close."""
    return {"comm_id": comm_id, "data": check_data(data)}


def comms_of(comm_info: Content) -> dict[str, str]:
    """The target name of each comm, by its id, in the content of a comm_info_reply."""
    comms = comm_info.get("comms")
    found = {}
    for comm_id, info in comms.items() if isinstance(comms, dict) else ():
        target_name = info.get("target_name") if isinstance(info, dict) else None
        if comm_id:
            found[comm_id] = target_name if isinstance(target_name, str) else ""
    return found


def check_name(name: object, what: str) -> str:
    """`name`, which must be a non-empty string; else raises InvalidArgument."""
    if not check_code(name, what):
        raise InvalidArgument(f"{what} must not be empty")
    return str(name)


def check_data(data: Data | None) -> dict[str, Any]:
    """`data` as a dict, {} for None; raises InvalidArgument for anything but a mapping."""
    if data is None:
        return {}
    if not isinstance(data, Mapping):
        raise InvalidArgument(f"data must be a dict, not {type(data).__name__}")
    return dict(data)
