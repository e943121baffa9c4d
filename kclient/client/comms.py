"""Comms: conversations with objects in the kernel, opened by either side. Widgets use them.

Source: "Custom Messages" in "Messaging in Jupyter".
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from kclient.client.availability import Availability
from kclient.client.channel_set import ChannelSet
from kclient.client.comm import Comm
from kclient.concurrency.callbacks import CallbackQueue, check_callback
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.half_made import half_made_too
from kclient.concurrency.log import log
from kclient.protocol import messages
from kclient.protocol.comms import CommRoutes, Data, check_name, comms_of, open_comm
from kclient.protocol.messages import Content, Message

OnOpen = Callable[[Comm, Message], object]


class Comms(Mapping[str, Comm]):
    """The open comms of a client, by id, and the targets to which the kernel may open others.

    If the kernel opens a comm to a target that is not registered here, this client closes it under two conditions: a
    request of this client led to it, and the client has registered some target. Else it leaves the comm to other
    clients. Messages of comms that are not known here go to iopub's inbox.
    """

    def __init__(
        self,
        channels: ChannelSet,
        availability: Availability,
        routes: CommRoutes[Any],
        await_outputs: Callable[[Deadline], object],
        expect_status: Callable[[str], None],
    ) -> None:
        self.channels = channels
        self.availability = availability
        self.callbacks = CallbackQueue("a callback of a comm")
        self._routes: CommRoutes[Comm] = routes
        self._await_outputs = await_outputs
        self._expect_status = expect_status

    @half_made_too
    def __repr__(self) -> str:
        return f"<Comms {len(self)} open, targets: {', '.join(self._routes.targets) or 'none'}>"

    def __getitem__(self, comm_id: str) -> Comm:
        return self._routes.comms[comm_id]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._routes.comms))

    def __len__(self) -> int:
        return len(self._routes.comms)

    def open(
        self,
        target_name: str,
        data: Data | None = None,
        *,
        metadata: Data | None = None,
        buffers: Sequence[Any] | None = None,
        target_module: str | None = None,
        comm_id: str | None = None,
    ) -> Comm:
        """Open a comm to that target in the kernel, without waiting. The kernel closes it if it has no such target.

        Raises InvalidArgument for data that cannot be sent, and for the `comm_id` of another comm.
        """
        comm_id = uuid.uuid4().hex if comm_id is None else check_name(comm_id, "comm_id")
        content = open_comm(comm_id, target_name, data, target_module)
        comm = Comm(self, comm_id, target_name)
        with self.channels.owner.call():
            self._add(comm)
            try:
                self.post("comm_open", content, metadata=metadata, buffers=buffers)
            except BaseException:
                self._routes.comms.pop(comm.comm_id, None)
                raise
            return comm

    def attach(self, comm_id: str, target_name: str = "") -> Comm:
        """Take part in a comm that is open in the kernel already, and that this client does not know.

        This does not ask the kernel; `discover` does. Raises InvalidArgument if the comm is known here.
        """
        comm = Comm(self, check_name(comm_id, "comm_id"), messages.check_code(target_name, "target_name"))
        with self.channels.owner.call():
            self._add(comm)
            return comm

    def discover(self, target_name: str | None = None, *, timeout: float | None = None) -> list[Comm]:
        """Ask the kernel for its comms, all or those of one target, and attach to each that is not known here yet.

        Raises KernelTimeout after `timeout` seconds, and the other errors of a request.
        """
        deadline = Deadline(timeout)
        content = messages.comm_info(target_name)
        with self.channels.owner.call():
            self._await_outputs(deadline)
            reply = self.channels.shell.request("comm_info_request", content, timeout=deadline)
            found = comms_of(reply.content)
            return [self.get(comm_id) or self.attach(comm_id, name) for comm_id, name in found.items()]

    def register_target(self, target_name: str, callback: OnOpen | None = None) -> None:
        """Let the kernel open comms to that target. They are in this mapping, by id, from then on.

        `callback(comm, open_message)` is called for each. It may set `comm.on_message`. It should not block for long,
        since all callbacks of a client's comms run in one greenlet. If it raises, that is logged and the comm closed.
        Raises InvalidArgument if there is such a target already.
        """
        self._routes.add_target(target_name, check_callback(callback, "callback"))

    def unregister_target(self, target_name: str) -> None:
        """Undo `register_target`; its comms stay open. Raises InvalidArgument if there is no such target."""
        self._routes.remove_target(target_name)

    def stop(self) -> None:
        """Call no callbacks any more: the channels close."""
        self.callbacks.stop()

    def forget(self, comm_id: str) -> None:
        """Route nothing more to that comm."""
        self._routes.comms.pop(comm_id, None)

    def opened(self, message: Message) -> None:
        """Take in a comm_open to a target of this client."""
        comm = Comm(self, message.content["comm_id"], message.content["target_name"], message)
        self._routes.comms[comm.comm_id] = comm
        self.callbacks.add(self._welcome, comm, message)

    def post(self, msg_type: str, content: Content, **more: Any) -> str:
        """Send a comm message, which gets no reply; returns its msg_id."""
        msg_id = self.channels.shell.send(msg_type, content, **more)
        if more.get("subshell_id") is None:
            self._expect_status(msg_id)
        return msg_id

    def _add(self, comm: Comm) -> None:
        self._await_outputs(Deadline(None))
        self._routes.add(comm.comm_id, comm)

    def _welcome(self, comm: Comm, message: Message) -> None:
        """Hand a comm that the kernel has opened to its target, or refuse it."""
        if comm.target_name not in self._routes.targets:
            log().warning("closed a comm that the kernel opened to %r: no such target is registered", comm.target_name)
            comm.close()
            return
        callback = self._routes.targets[comm.target_name]
        try:
            if callback is not None:
                callback(comm, message)
        except BaseException:
            comm.close()
            raise
        finally:
            comm.welcomed()
