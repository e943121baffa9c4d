"""The clients that are compared. Each does the same three things, and returns when the kernel's answer is complete.

- `kernel_info`: a request on shell, and its reply.
- `execute`: code without output, and its reply, while iopub brings the statuses that nobody waits for.
- `run`: code without output, until the reply and the idle status are in.
"""

from __future__ import annotations

from contextlib import suppress
from queue import Empty
from typing import Any, Protocol

import zmq
import zmq.green
from jupyter_client.blocking import BlockingKernelClient

import kclient
from benchmarks.codec import Codec, execute_content
from benchmarks.kernels import Connection, address

SNDMORE, RCVMORE, EVENTS, POLLIN = (int(number) for number in (zmq.SNDMORE, zmq.RCVMORE, zmq.EVENTS, zmq.POLLIN))

PATIENCE = 30
"""Seconds for a kernel to answer before anything is measured."""

CODE = "pass"

PREBUILT = 250
"""Requests that the floor has ready, more than one batch: a real kernel ignores a signature that it has seen."""

SPIN = 0.0003
"""Seconds; an echo kernel's whole round trip."""


class Client(Protocol):
    """One client of one kernel, connected. Without `iopub` it has no SUB, and `kernel_info` alone can be called."""

    def __init__(self, connection: Connection, *, iopub: bool) -> None: ...

    def kernel_info(self) -> object: ...

    def execute(self) -> object: ...

    def run(self) -> object: ...

    def tidy(self) -> None:
        """What is not timed, between two batches: forget what iopub brought to nobody, make requests."""

    def close(self) -> None: ...


class Raw:
    """Blocking pyzmq sockets and frames made beforehand: no JSON, no HMAC, nothing matched. The floor."""

    context: zmq.Context[Any] = zmq.Context()
    poller: type[zmq.Poller] = zmq.Poller

    def __init__(self, connection: Connection, *, iopub: bool) -> None:
        self.codec = Codec(connection["key"].encode())
        self.shell = self._connect(zmq.DEALER, address(connection, "shell"))
        self._kernel_infos: list[list[bytes]] = []
        self._executes: list[list[bytes]] = []
        self.tidy()
        if iopub:
            self.iopub = self._connect(zmq.SUB, address(connection, "iopub"))
            self._poller = self.poller()
            self._poller.register(self.shell, zmq.POLLIN)
            self._poller.register(self.iopub, zmq.POLLIN)
            self._wait_for_subscription()
        else:
            self.kernel_info()

    def kernel_info(self) -> object:
        self.send(self._kernel_infos.pop())
        return self.read_shell()

    def execute(self) -> object:
        self.send(self._executes.pop())
        reply = self.read_shell()
        while self.iopub.get(EVENTS) & POLLIN:
            self.read_iopub()
        return reply

    def run(self) -> None:
        self.send(self._executes.pop())
        is_answered = is_idle = False
        while not (is_answered and is_idle):
            for ready, _ in self._poller.poll():
                if ready is self.shell:
                    self.read_shell()
                    is_answered = True
                else:
                    is_idle = b'"idle"' in self.read_iopub()[6]

    def run_in_turn(self) -> None:
        """The same without a Poller: nothing says more than that the reply comes first."""
        self.send(self._executes.pop())
        self.read_shell()
        while b'"idle"' not in self.read_iopub()[6]:
            pass

    def tidy(self) -> None:
        """Make the requests of the next batch."""
        while len(self._kernel_infos) < PREBUILT:
            self._kernel_infos.append(self.codec.request("kernel_info_request", {}))
        while len(self._executes) < PREBUILT:
            self._executes.append(self.codec.request("execute_request", execute_content(CODE)))

    def close(self) -> None:
        for socket in (self.shell, getattr(self, "iopub", None)):
            if socket is not None:
                socket.close(0)

    def send(self, frames: list[bytes]) -> None:
        self.shell.send_multipart(frames)

    def read_shell(self) -> list[Any]:
        return self.shell.recv_multipart()

    def read_iopub(self) -> list[Any]:
        return self.iopub.recv_multipart()

    def _connect(self, socket_type: int, url: str) -> zmq.Socket[bytes]:
        socket = self.context.socket(socket_type)
        socket.linger = 0
        socket.rcvhwm = 0
        if socket_type == zmq.SUB:
            socket.subscribe(b"")
        socket.connect(url)
        return socket

    def _wait_for_subscription(self) -> None:
        """Ask until iopub brings an answer, then take in what is still under way."""
        is_subscribed = False
        while not is_subscribed:
            Raw.kernel_info(self)
            is_subscribed = bool(self.iopub.poll(50))
        while self.iopub.poll(50):
            self.read_iopub()


class RawInTurn(Raw):
    """The floor of `run` without a Poller."""

    def run(self) -> None:
        self.run_in_turn()


class RawUnrolled(Raw):
    """The floor frame by frame, without the checks of send_multipart and recv_multipart.

    RCVMORE, which costs more than a small frame, is asked once: a message has six frames, and a topic on iopub.
    """

    def send(self, frames: list[bytes]) -> None:
        send = self.shell.send
        for frame in frames[:-1]:
            send(frame, SNDMORE)
        send(frames[-1])

    def read_shell(self) -> list[Any]:
        recv = self.shell.recv
        frames = [recv(), recv(), recv(), recv(), recv(), recv()]
        while self.shell.get(RCVMORE):
            frames.append(recv())
        return frames

    def read_iopub(self) -> list[Any]:
        recv = self.iopub.recv
        frames = [recv(), recv(), recv(), recv(), recv(), recv(), recv()]
        while self.iopub.get(RCVMORE):
            frames.append(recv())
        return frames


class Green(Raw):
    """The floor's code on plain zmq.green sockets."""

    context = zmq.green.Context()
    poller = zmq.green.Poller


class RawCodec(Raw):
    """The floor that makes and signs each request, and verifies and parses each message: orjson and hashlib."""

    def kernel_info(self) -> object:
        self.send(self.codec.request("kernel_info_request", {}))
        return self.codec.read(self.read_shell())

    def execute(self) -> object:
        self.send(self.codec.request("execute_request", execute_content(CODE)))
        reply = self.codec.read(self.read_shell())
        while self.iopub.get(EVENTS) & POLLIN:
            self.codec.read(self.read_iopub())
        return reply

    def run(self) -> None:
        self.send(self.codec.request("execute_request", execute_content(CODE)))
        is_answered = is_idle = False
        while not (is_answered and is_idle):
            for ready, _ in self._poller.poll():
                if ready is self.shell:
                    self.codec.read(self.read_shell())
                    is_answered = True
                else:
                    is_idle = self.codec.read(self.read_iopub())[3].get("execution_state") == "idle"


class KClient:
    """kclient, by its public methods."""

    spin = 0.0

    def __init__(self, connection: Connection, *, iopub: bool) -> None:
        self.client = kclient.KernelClient(connection, spin=self.spin)
        self.client.start_channels(iopub=iopub, stdin=False, hb=False, control=False)
        self.client.wait_for_ready(PATIENCE)
        self._has_iopub = iopub

    def kernel_info(self) -> object:
        return self.client.kernel_info()

    def execute(self) -> object:
        return self.client.shell_channel.execute(CODE)

    def run(self) -> object:
        return self.client.run(CODE)

    def tidy(self) -> None:
        if self._has_iopub:
            self.client.iopub_channel.get_msgs()

    def close(self) -> None:
        self.client.close()


class KClientSpin(KClient):
    """kclient, allowed to poll for the length of a round trip before it waits."""

    spin = SPIN


class JupyterClient:
    """jupyter_client's BlockingKernelClient, by the calls that its documentation shows."""

    def __init__(self, connection: Connection, *, iopub: bool, client: BlockingKernelClient | None = None) -> None:
        self.client = client or BlockingKernelClient()
        self.client.load_connection_info(connection)
        self.client.start_channels(iopub=iopub, stdin=False, hb=False, control=False)
        self._has_iopub = iopub
        self.client.kernel_info(reply=True, timeout=PATIENCE)
        while iopub and not self._hears_iopub(0.05):
            self.client.kernel_info(reply=True, timeout=PATIENCE)
        while iopub and self._hears_iopub(0.05):
            pass

    def kernel_info(self) -> object:
        return self.client.kernel_info(reply=True)

    def execute(self) -> object:
        return self.client.execute(CODE, reply=True)

    def run(self) -> object:
        return self.client.execute_interactive(CODE, allow_stdin=False, output_hook=ignore)

    def tidy(self) -> None:
        while self._has_iopub and self._hears_iopub():
            pass

    def close(self) -> None:
        self.client.stop_channels()

    def _hears_iopub(self, timeout: float = 0) -> bool:
        with suppress(Empty):
            self.client.get_iopub_msg(timeout=timeout)
            return True
        return False


def ignore(message: dict[str, Any]) -> None:
    """An output_hook that has nothing to show."""


LATENCY: dict[str, type[Client]] = {
    "raw": Raw,
    "raw (again)": Raw,
    "raw (unrolled)": RawUnrolled,
    "raw + codec": RawCodec,
    "zmq.green": Green,
    "kclient": KClient,
    "kclient spin": KClientSpin,
    "jupyter_client": JupyterClient,
}
"""By the names in the tables. The first is the floor; a second measurement of it shows the noise of the run."""
