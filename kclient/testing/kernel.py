"""The fake kernel: five sockets, and one greenlet each for shell and control."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar

import gevent
import zmq
from gevent.event import AsyncResult, Event
from gevent.queue import Queue

from kclient.concurrency.log import log
from kclient.concurrency.owner import Owner
from kclient.errors import BadMessage, InvalidArgument, InvalidState
from kclient.kernels.connection.encryption import new_keys
from kclient.kernels.connection.files import PrivateFolder, new_ipc_folder
from kclient.kernels.connection.ports import numeric_address
from kclient.protocol.connection import CHANNELS, ConnectionInfo
from kclient.protocol.framing import DELIMITER
from kclient.protocol.messages import GETS_NO_REPLY, Message, check_code
from kclient.protocol.session import Session
from kclient.testing import version4
from kclient.testing.registering import read_registration, register
from kclient.testing.script import DEFAULT_HANDLERS, Handler, Request, Step
from kclient.testing.thread import HubThread
from kclient.transport.zmq.context import context
from kclient.transport.zmq.stream import ZmqStream

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

    `script` maps code to its output: steps made by `stream`, `result`, `display` and `error`, or a function that gets
    the Request. Other code publishes nothing and succeeds. `on(msg_type, handler)` answers any kind of request. A
    handler may block on `Request.ask`; an exception that it raises becomes its reply. `lose(channel, message)`, if set,
    returns True for messages that are to be lost. With `curve=True` the kernel encrypts. `requests` holds the messages
    that it received, in order.

    `protocol_version` and `supported_features` go into its kernel_info reply. With protocol ``"4.1"`` its sockets and
    `requests` have messages of protocol 4.1, and its handlers have those of protocol 5.

    It runs in the hub of its `with` block. With `thread=True` it runs, and its handlers run, in a thread of its own, so
    that a client that blocks its whole thread can talk to it.

    With a `registration_file` it can be a kernel of protocol 5.6 in a process of its own: it takes its key from the
    file, registers its ports as soon as it listens, and `serve` waits for the shutdown. Raises InvalidArgument if the
    file is not a registration file, and KernelTimeout if the launcher sends no receipt.
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
        protocol_version: str = "5.5",
        supported_features: Sequence[str] = (),
        registration_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if transport not in ("tcp", "ipc"):
            raise InvalidArgument(f"transport must be 'tcp' or 'ipc', not {transport!r}")
        self.script = dict(script or {})
        self.requests: list[Message] = []
        self.execution_count = 0
        self.lose: Callable[[str, Message], bool] | None = None
        self._registration = None if registration_file is None else read_registration(registration_file)
        public, secret = new_keys() if curve else (b"", b"")
        self._unbound = ConnectionInfo(
            transport,
            key=secrets.token_hex(16).encode() if key is None else key.encode(),
            kernel_name="fake",
            curve_publickey=public,
            curve_secretkey=secret,
        )
        if self._registration is not None:
            self._unbound = self._registration.info
        self.session = Session(self._unbound.key, signature_scheme=self._unbound.signature_scheme, username="fake")
        self._shut_down = Event()
        self.protocol_version = check_code(protocol_version, "protocol_version")
        self.supported_features = list(supported_features)
        self._transport = transport
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
        """The addresses and keys of the kernel; raises InvalidState outside of the `with` block."""
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
        sent = version4.spoken(message) if self.protocol_version.startswith("4") else message
        if sent is not None and (self.lose is None or not self.lose(channel, sent)):
            self.send_frames(channel, [*identities, *self.session.serialize(sent)])

    def send_frames(self, channel: str, frames: Sequence[bytes]) -> None:
        """Send these frames, well formed or not. May be called from any thread."""
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
        """Bind the sockets, in this hub."""
        self._owner = owner = Owner()
        self._folder = new_ipc_folder() if self._transport == "ipc" else None
        self._ports = {name: _Port(self, name, owner, self._unbound) for name in CHANNELS}
        ip = self._unbound.ip if self._folder is None else self._folder.ip
        ports = [self._ports[name].bind(ip, number) for number, name in enumerate(CHANNELS, 1)]
        self._info = self._unbound.with_ports(ip, ports)
        self._workers = [gevent.spawn(self._work, self._ports[name].queue) for name in ("shell", "control")]
        if self._registration is not None:
            try:
                register(owner, self._registration, self._info)
            except BaseException:
                self.close()
                raise

    def shut_down(self) -> None:
        """Let `serve` return."""
        self._shut_down.set()

    @property
    def was_shut_down(self) -> bool:
        """True after a shutdown_request."""
        return self._shut_down.is_set()

    def serve(self) -> None:
        """Wait for a shutdown_request, for a process that does nothing else."""
        self._shut_down.wait()

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
        """Take in the frames of a message that arrived on a socket; never blocks."""
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
            understood = version4.understood(message) if self.protocol_version.startswith("4") else message
            if understood is not None:
                port.queue.put(Request(self, port.name, understood, frames[: frames.index(DELIMITER)]))

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
        """Call the handler. An exception is logged; if there is no reply yet, it becomes the reply."""
        error = {}
        try:
            handler(request)
        except Exception as exc:  # noqa: BLE001 - a user's function
            log().exception("the handler of %s failed", request.message.msg_type)
            error = {"status": "error", "ename": type(exc).__name__, "evalue": str(exc), "traceback": []}
        if not request.is_answered and request.message.msg_type not in GETS_NO_REPLY:
            request.reply(error)


class _Port:
    """One socket of the fake kernel."""

    def __init__(self, kernel: FakeKernel, name: str, owner: Owner, info: ConnectionInfo) -> None:
        self.name = name
        self.queue: Queue[Request] = Queue()
        self._kernel = kernel
        socket = context().socket(_SOCKET_TYPES[name])
        socket.linger = 0
        socket.rcvhwm = socket.sndhwm = 0
        if info.curve_publickey:
            socket.curve_publickey, socket.curve_secretkey = info.curve_publickey, info.curve_secretkey
            socket.curve_server = True
        if name == "iopub":
            socket.xpub_verbose = True
        self.wire = ZmqStream(owner, socket, self)

    def bind(self, ip: str, number: int) -> int:
        """Listen; returns the port."""
        if ip.startswith("/"):
            self.wire.socket.bind(f"ipc://{ip}-{number}")
            return number
        return int(self.wire.socket.bind_to_random_port(f"tcp://{numeric_address(ip)}"))

    def receive(self, frames: list[bytes]) -> None:
        try:
            self._kernel.take(self, frames)
        except BadMessage as exc:
            log().info("the fake kernel dropped a message on %s: %s", self.name, exc)

    def lost(self) -> None:
        """The context was closed, and the sockets of the kernel with it."""
