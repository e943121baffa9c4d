"""A kernel in a process of its own that shares no line with kclient, and that lacks what many kernels lack.

It echoes code, sends no iopub_welcome, knows no request but four, and writes no date into its headers.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import sys
from collections.abc import Collection
from typing import Any

import zmq

DELIMITER = b"<IDS|MSG>"


class OddKernel:
    """A kernel that never binds the channels of `lacks` and never reads those of `deaf`. It needs shell and iopub."""

    def __init__(self, connection_file: str, lacks: Collection[str] = (), deaf: Collection[str] = ()) -> None:
        with open(connection_file, encoding="utf-8") as file:
            self._info = json.load(file)
        self._key = self._info["key"].encode()
        self._deaf = deaf
        self._count = 0
        self._context = zmq.Context()
        kinds = {"shell": zmq.ROUTER, "control": zmq.ROUTER, "stdin": zmq.ROUTER, "iopub": zmq.PUB, "hb": zmq.REP}
        self._sockets = {name: self._bind(name, kind) for name, kind in kinds.items() if name not in lacks}

    def serve(self) -> None:
        """Answer until a shutdown_request."""
        poller = zmq.Poller()
        for name in self._sockets.keys() - {"iopub", *self._deaf}:
            poller.register(self._sockets[name], zmq.POLLIN)
        while True:
            for socket, _event in poller.poll():
                frames = socket.recv_multipart()
                if socket is self._sockets.get("hb"):
                    socket.send_multipart(frames)
                else:
                    self._answer(socket, frames)

    def _bind(self, name: str, kind: int) -> zmq.Socket[bytes]:
        socket = self._context.socket(kind)
        separator = "-" if self._info["transport"] == "ipc" else ":"
        socket.bind(f"{self._info['transport']}://{self._info['ip']}{separator}{self._info[name + '_port']}")
        return socket

    def _answer(self, socket: zmq.Socket[bytes], frames: list[bytes]) -> None:
        start = frames.index(DELIMITER)
        header, content = json.loads(frames[start + 2]), json.loads(frames[start + 5])
        self._publish(header, "status", {"execution_state": "busy"})
        kind = header["msg_type"].removesuffix("_request")
        reply: dict[str, Any] = {"status": "ok"}
        if kind == "kernel_info":
            reply |= {"protocol_version": "5.0", "language_info": {"name": "echo"}, "implementation": "odd"}
        elif kind == "execute":
            self._count += 1
            self._publish(header, "stream", {"name": "stdout", "text": content["code"]})
            reply["execution_count"] = self._count
        socket.send_multipart([*frames[:start], *self._message(header, f"{kind}_reply", reply)])
        self._publish(header, "status", {"execution_state": "idle"})
        if kind == "shutdown":
            self._context.destroy(linger=1000)
            sys.exit()

    def _publish(self, parent: dict[str, Any], msg_type: str, content: dict[str, Any]) -> None:
        self._sockets["iopub"].send_multipart(self._message(parent, msg_type, content))

    def _message(self, parent: dict[str, Any], msg_type: str, content: dict[str, Any]) -> list[bytes]:
        header = {
            "msg_id": os.urandom(8).hex(),
            "msg_type": msg_type,
            "session": "odd",
            "username": "",
            "version": "5.0",
        }
        parts = [json.dumps(part).encode() for part in (header, parent, {}, content)]
        signature = hmac.new(self._key, b"".join(parts), hashlib.sha256).hexdigest().encode()
        return [DELIMITER, signature, *parts]
