"""The echo kernel: a process that answers at once, so that a round trip consists of the client's work and ZeroMQ's.

``python -m benchmarks.echo`` prints one line of JSON, a list with the connection info of each kernel by transport. Then
it serves until its standard input ends, so it ends with its parent. Each kernel listens on tcp and ipc at once.

It verifies, parses and signs, as any kernel must. It runs no code, and answers "ok" to each request, except:

- ``say TEXT`` publishes TEXT as a stream, and the reply repeats it under ``said``;
- ``flood N`` publishes N stream messages. Each needs its own id and signature, so all are built first and then sent at
  once. ``burst_started`` in the reply is the time of the first send, by the clock that all processes share.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import threading
from hmac import compare_digest
from time import perf_counter
from typing import Any
from uuid import uuid4

import orjson
import zmq

from benchmarks.codec import DATE, DELIMITER, Signer

SNDMORE, DONTWAIT, RCVMORE, EVENTS, POLLIN = (
    int(number) for number in (zmq.SNDMORE, zmq.DONTWAIT, zmq.RCVMORE, zmq.EVENTS, zmq.POLLIN)
)

KERNEL_INFO = orjson.dumps(
    {
        "status": "ok",
        "protocol_version": "5.3",
        "implementation": "echo",
        "implementation_version": "1",
        "language_info": {"name": "none", "version": "1", "mimetype": "text/plain", "file_extension": ".txt"},
        "banner": "echo kernel",
        "help_links": [],
    }
)
EXECUTED = b'{"status":"ok","execution_count":1,"user_expressions":{},"payload":[]}'
BUSY = b'{"execution_state":"busy"}'
IDLE = b'{"execution_state":"idle"}'


class EchoKernel:
    """One kernel: it uses shell and iopub; stdin, control and the heartbeat are only bound."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], folder: str, number: int) -> None:
        self.key = uuid4().hex
        self.session = uuid4().hex
        self._signer = Signer(self.key.encode())
        self._count = 0
        self._stem = os.path.join(folder, str(number))
        self._ports: dict[str, int] = {}
        self._context = context
        self.shell = self._bind("shell", zmq.ROUTER, 1)
        self.iopub = self._bind("iopub", zmq.PUB, 2)
        self._idlers = [self._bind("stdin", zmq.ROUTER, 3), self._bind("control", zmq.ROUTER, 4)]
        self.heartbeat = self._bind("hb", zmq.ROUTER, 5)

    def _bind(self, name: str, socket_type: int, number: int) -> zmq.Socket[bytes]:
        made = self._context.socket(socket_type)
        made.linger = 0
        made.sndhwm = made.rcvhwm = 0
        self._ports[name] = made.bind_to_random_port("tcp://127.0.0.1")
        made.bind(f"ipc://{self._stem}-{number}")
        return made

    def connection_infos(self) -> dict[str, dict[str, Any]]:
        """The content of a connection file, for each transport."""
        common = {"key": self.key, "signature_scheme": "hmac-sha256", "kernel_name": "echo"}
        tcp = {f"{name}_port": port for name, port in self._ports.items()}
        ipc = {f"{name}_port": number for number, name in enumerate(self._ports, 1)}
        return {
            "tcp": {**common, **tcp, "transport": "tcp", "ip": "127.0.0.1"},
            "ipc": {**common, **ipc, "transport": "ipc", "ip": self._stem},
        }

    def serve(self) -> None:
        """Answer one request after the other, for ever."""
        recv, get = self.shell.recv, self.shell.get
        while True:
            frames = [recv()]
            while get(RCVMORE):
                frames.append(recv())
            self.answer(frames)

    def serve_what_is_there(self) -> None:
        """Answer until the socket is empty: only then does its descriptor become readable again."""
        while self.shell.get(EVENTS) & POLLIN:
            self.answer(self.shell.recv_multipart())

    def answer(self, frames: list[bytes]) -> None:
        identity, _, signature, *parts = frames
        if not compare_digest(signature, self._signer.sign(parts[:4])):
            raise SystemExit("echo: a request with a wrong signature")
        header = parts[0]
        msg_type = orjson.loads(header)["msg_type"]
        self._publish("status", header, BUSY)
        if msg_type == "execute_request":
            content = self._execute(header, orjson.loads(parts[3])["code"])
            self._reply(identity, "execute_reply", header, content)
        elif msg_type == "kernel_info_request":
            self._reply(identity, "kernel_info_reply", header, KERNEL_INFO)
        self._publish("status", header, IDLE)

    def _execute(self, parent: bytes, code: str) -> bytes:
        word, _, rest = code.partition(" ")
        if word == "say":
            self._publish("stream", parent, orjson.dumps({"name": "stdout", "text": rest}))
            return orjson.dumps({**orjson.loads(EXECUTED), "said": rest})
        if word == "flood":
            return orjson.dumps({**orjson.loads(EXECUTED), "burst_started": self._flood(parent, int(rest))})
        return EXECUTED

    def _flood(self, parent: bytes, count: int) -> float:
        send = self.iopub.send
        text = b'{"name":"stdout","text":"a line of output, as long as one is\\n"}'
        burst: list[tuple[bytes, int]] = []
        for _ in range(count):
            *head, last = [b"stream", *self._frames("stream", parent, text)]
            burst += [(frame, SNDMORE) for frame in head]
            burst.append((last, 0))
        started = perf_counter()
        for frame, flags in burst:
            send(frame, flags)
        return started

    def _frames(self, msg_type: str, parent: bytes, content: bytes) -> list[bytes]:
        self._count += 1
        header = (
            f'{{"msg_id":"{self.session}_{self._count}","msg_type":"{msg_type}","username":"echo",'
            f'"session":"{self.session}","date":"{DATE}","version":"5.3"}}'
        )
        parts = [header.encode(), parent, b"{}", content]
        return [DELIMITER, self._signer.sign(parts), *parts]

    def _publish(self, msg_type: str, parent: bytes, content: bytes) -> None:
        send(self.iopub, [msg_type.encode(), *self._frames(msg_type, parent, content)])

    def _reply(self, identity: bytes, msg_type: str, parent: bytes, content: bytes) -> None:
        send(self.shell, [identity, *self._frames(msg_type, parent, content)])


def send(target: zmq.Socket[bytes], frames: list[bytes]) -> None:
    """The same as send_multipart, without its checks."""
    for frame in frames[:-1]:
        target.send(frame, SNDMORE)
    target.send(frames[-1])


def serve_all(kernels: list[EchoKernel]) -> None:
    """Serve many kernels in one thread, with epoll: unlike zmq.Poller, its cost does not grow with their number."""
    by_descriptor = {int(kernel.shell.get(zmq.FD)): kernel for kernel in kernels}
    epoll = select.epoll()
    for descriptor in by_descriptor:
        epoll.register(descriptor, select.EPOLLIN)
    while True:
        for descriptor, _ in epoll.poll():
            by_descriptor[descriptor].serve_what_is_there()


def beat(heartbeat: zmq.Socket[bytes]) -> None:
    """Send each message back, in C and without Python's lock."""
    zmq.proxy(heartbeat, heartbeat)


def end_with_stdin(folder: str) -> None:
    sys.stdin.buffer.read()
    end(folder)


def end(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.echo", description="Serve echo kernels.")
    parser.add_argument("--kernels", type=int, default=1, help="how many to host [1]")
    count = parser.parse_args().kernels
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # 20 descriptors a kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the parent
    folder = tempfile.mkdtemp(prefix="echo-")
    context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, context.get(zmq.SOCKET_LIMIT))
    kernels = [EchoKernel(context, folder, number) for number in range(count)]
    try:
        sys.stdout.write(json.dumps([kernel.connection_infos() for kernel in kernels]) + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # the parent has ended
        end(folder)
    threading.Thread(target=end_with_stdin, args=[folder], daemon=True).start()
    if count == 1:
        threading.Thread(target=beat, args=[kernels[0].heartbeat], daemon=True).start()
        kernels[0].serve()
    else:
        serve_all(kernels)


if __name__ == "__main__":
    main()
