"""The fake kernel itself: five sockets, and a greenlet each for shell and control."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar

import gevent
import zmq
from gevent.event import AsyncResult
from gevent.queue import Queue

from kclient.channels.wire import Wire, context
from kclient.errors import BadMessage, InvalidArgument, InvalidState
from kclient.hub import Owner
from kclient.kernels.encryption import new_keys
from kclient.kernels.files import PrivateFolder, new_ipc_folder
from kclient.log import log
from kclient.protocol.connection import CHANNELS, ConnectionInfo
from kclient.protocol.framing import DELIMITER
from kclient.protocol.messages import Message
from kclient.protocol.session import Session
from kclient.testing.script import DEFAULT_HANDLERS, Handler, Request, Step
from kclient.testing.thread import HubThread

_SOCKET_TYPES: Final = {
    "shell": zmq.ROUTER,
    "iopub": zmq.XPUB,
    "stdin": zmq.ROUTER,
    "control": zmq.ROUTER,
    "hb": zmq.ROUTER,
}

_Self = TypeVar("_Self", bound="FakeKernel")


class FakeKernel:
    """A kernel without a language, bound to free ports or a private ipc path while its `with` block runs.

    `script` maps code to what it publishes: steps made by `stream`, `result`, `display` and `error`, or a function that
    gets the Request. Other code publishes nothing and succeeds. `on(msg_type, handler)` answers any kind of request;
    a handler may block on `Request.ask`; what it raises is the error of its reply. `lose(channel, message)`, if set,
    returns True for messages that get lost. With `curve=True` it encrypts.

    It runs in the hub of its `with` block or, with `thread=True`, in a thread of its own, so that a client that blocks
    its whole thread can talk to it; handlers then run in that thread. `requests` is what was received, in order.
    """

    def __init__(
        self,
        script: Mapping[str, Sequence[Step] | Handler] | None = None,
        *,
        transport: str = "tcp",
        key: str | None = None,
        curve: bool = False,
        thread: bool = False,
        welcome: bool = True,
    ) -> None:
        if transport not in ("tcp", "ipc"):
            raise InvalidArgument(f"transport must be 'tcp' or 'ipc', not {transport!r}")
        self.script = dict(script or {})
        self.requests: list[Message] = []
        self.execution_count = 0
        self.lose: Callable[[str, Message], bool] | None = None
        self.was_shut_down = False
        self.session = Session(secrets.token_hex(16) if key is None else key, username="fake")
        self._transport = transport
        self._curve_keys = new_keys() if curve else (b"", b"")
        self._welcomes = welcome
        self._thread = HubThread(self.open, self.close) if thread else None
        self._handlers: dict[str, Handler] = dict(DEFAULT_HANDLERS)
        self._info: ConnectionInfo | None = None
        self._folder: PrivateFolder | None = None
        self._owner: Owner | None = None
        self._ports: dict[str, _Port] = {}
        self._answers: list[AsyncResult[str]] = []
        self._workers: list[gevent.Greenlet[..., Any]] = []

    @property
    def connection_info(self) -> ConnectionInfo:
        """Where it listens."""
        if self._info is None:
            raise InvalidState("a FakeKernel listens only in its `with` block")
        return self._info

    def __enter__(self: _Self) -> _Self:
        if self._thread is not None:
            self._thread.start()
        else:
            self.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._thread.stop()
        else:
            self.close()

    def on(self, msg_type: str, handler: Handler) -> None:
        """Let `handler(request)` answer requests of that type; a reply with status "ok" is sent if it sends none."""
        self._handlers[msg_type] = handler

    def publish(
        self,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        parent: Message | None = None,
        buffers: Sequence[bytes] = (),
    ) -> None:
        """Send a message over iopub."""
        message = self.session.msg(msg_type, content, parent=parent)
        message.buffers = list(buffers)
        self.send("iopub", message, [f"kernel.fake.{msg_type}".encode()])

    def send(self, channel: str, message: Message, identities: Sequence[bytes]) -> None:
        """Send a message to the client with those identities; on iopub they are its topic."""
        if self.lose is None or not self.lose(channel, message):
            self.send_frames(channel, [*identities, *self.session.serialize(message)])

    def send_frames(self, channel: str, frames: Sequence[bytes]) -> None:
        """Send just these frames, whatever they are; from any thread."""
        if self._owner is None:
            raise InvalidState("a FakeKernel sends only in its `with` block")
        self._owner.run_here(lambda: self._ports[channel].wire.send(list(frames)))

    def ask(self, request: Request, prompt: str, password: bool) -> str:
        """Send an input_request and wait, in a greenlet of the kernel's, for its answer."""
        answer: AsyncResult[str] = AsyncResult()
        self._answers.append(answer)
        content = {"prompt": prompt, "password": password}
        message = self.session.msg("input_request", content, parent=request.message)
        self.send("stdin", message, request.identities)
        return answer.get()  # type: ignore[return-value]

    def open(self) -> None:
        """Bind, in this hub."""
        self._owner = owner = Owner()
        self._folder = new_ipc_folder() if self._transport == "ipc" else None
        self._ports = {name: _Port(self, name, owner, self._curve_keys) for name in CHANNELS}
        ip = "127.0.0.1" if self._folder is None else self._folder.ip
        ports = [self._ports[name].bind(ip, number) for number, name in enumerate(CHANNELS, 1)]
        public, secret = self._curve_keys
        unbound = ConnectionInfo(
            self._transport,
            key=self.session.key,
            kernel_name="fake",
            curve_publickey=public,
            curve_secretkey=secret,
        )
        self._info = unbound.with_ports(ip, ports)
        self._workers = [gevent.spawn(self._work, self._ports[name].queue) for name in ("shell", "control")]

    def close(self) -> None:
        """Stop listening, as a kernel that dies would."""
        gevent.killall(self._workers)
        for port in self._ports.values():
            port.wire.close()
        if self._folder is not None:
            self._folder.remove()
        self._ports.clear()
        self._info = None

    def take(self, port: _Port, frames: list[bytes]) -> None:
        """Take in what arrived on a socket; never blocks."""
        if port.name == "hb":
            port.wire.send(frames)
        elif port.name == "iopub":
            if self._welcomes and frames[0][:1] == b"\x01":
                self.publish("iopub_welcome", {"subscription": frames[0][1:].decode()})
        elif port.name == "stdin":
            self._take_answer(self.session.deserialize(frames))
        else:
            message = self.session.deserialize(frames)
            self.requests.append(message)
            port.queue.put(Request(self, port.name, message, frames[: frames.index(DELIMITER)]))

    def _take_answer(self, message: Message) -> None:
        if self._answers:
            self._answers.pop(0).set(message.content.get("value"))

    def _work(self, queue: Queue[Request]) -> None:
        """Answer the requests of one channel, one after the other."""
        for request in queue:
            request.publish("status", {"execution_state": "busy"})
            handler = self._handlers.get(request.message.msg_type)
            if handler is not None:
                self._answer(request, handler)
            request.publish("status", {"execution_state": "idle"})

    def _answer(self, request: Request, handler: Handler) -> None:
        """Call the handler; what it raises is logged and, if it has not replied yet, is the reply."""
        error = {}
        try:
            handler(request)
        except Exception as exc:  # noqa: BLE001 - a user's function
            log().exception("the handler of %s failed", request.message.msg_type)
            error = {"status": "error", "ename": type(exc).__name__, "evalue": str(exc), "traceback": []}
        if not request.is_answered:
            request.reply(error)


class _Port:
    """One socket of the fake kernel."""

    def __init__(self, kernel: FakeKernel, name: str, owner: Owner, curve_keys: tuple[bytes, bytes]) -> None:
        self.name = name
        self.queue: Queue[Request] = Queue()
        self._kernel = kernel
        socket = context().socket(_SOCKET_TYPES[name])
        socket.linger = 0
        socket.rcvhwm = socket.sndhwm = 0
        if any(curve_keys):
            socket.curve_publickey, socket.curve_secretkey = curve_keys
            socket.curve_server = True
        if name == "iopub":
            socket.xpub_verbose = True
        self.wire = Wire(owner, socket, self)

    def bind(self, ip: str, number: int) -> int:
        """Listen; returns the port."""
        if ip.startswith("/"):
            self.wire.socket.bind(f"ipc://{ip}-{number}")
            return number
        return int(self.wire.socket.bind_to_random_port(f"tcp://{ip}"))

    def receive(self, frames: list[bytes]) -> None:
        try:
            self._kernel.take(self, frames)
        except BadMessage as exc:
            log().info("the fake kernel dropped a message on %s: %s", self.name, exc)

    def stop(self) -> None:
        """Somebody closed the context; the kernel is gone with it."""
