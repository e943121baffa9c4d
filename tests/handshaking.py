"""Kernels that choose their own ports: one in a process of its own, and one that the test's hub plays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import zmq

from kclient.kernels.process.local import LocalLauncher, LocalProcess
from kclient.protocol.connection import CHANNELS
from kclient.protocol.registration import Registration
from kclient.testing import FakeKernel, result
from kclient.transport.zmq.context import context

KERNEL = """
import sys
from kclient.testing import FakeKernel, result
with FakeKernel({"6 * 7": [result("42")]}, registration_file=sys.argv[-1]) as fake:
    fake.serve()
"""
"""The program of a kernel that registers, and ends when it is told to."""

IDLE = {"argv": ["sh", "-c", "exec sleep 60", "{connection_file}"], "kernel_protocol_version": "5.6"}
"""The spec of a process that does nothing. The test does what the kernel would."""

PORTS = dict(zip([f"{channel}_port" for channel in CHANNELS], range(50001, 50006), strict=True))


class Stage(LocalLauncher):
    """Starts a process that does nothing, and calls `play(registration)`, which does a kernel's part, in a greenlet.

    `registrations` are those of each start, `files` what they were read from.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.play: Callable[[Registration], Any] = self.register
        self.registrations: list[Registration] = []
        self.files: list[Path] = []
        self.fakes: list[FakeKernel] = []
        self._processes: list[LocalProcess] = []
        self._stack = stack
        self._players: list[gevent.Greenlet[..., Any]] = []
        stack.callback(lambda: gevent.killall(self._players))

    def start(self, argv: Sequence[str], **where: Any) -> LocalProcess:
        self.files.append(Path(argv[-1]))
        self.registrations.append(Registration.from_dict(json.loads(self.files[-1].read_text())))
        self._processes.append(super().start(["sleep", "60"], **where))
        self._players.append(gevent.spawn(self.play, self.registrations[-1]))
        return self._processes[-1]

    def register(self, registration: Registration) -> None:
        """Play a whole kernel. It answers ``me`` with its kernel_id; its process ends when it is shut down."""
        script = {"6 * 7": [result("42")], "me": [result(registration.kernel_id)]}
        number = self.registrations.index(registration)
        fake = FakeKernel(script, registration_file=self.files[number])
        self.fakes.append(self._stack.enter_context(fake))
        fake.serve()
        self._processes[number].kill()

    def report(self, registration: Registration, *reports: Sequence[bytes]) -> None:
        """Send `reports`, each a list of frames, to the launcher."""
        socket = self._stack.enter_context(context().socket(zmq.DEALER))
        socket.linger = 0
        socket.connect(registration.address)
        for frames in reports:
            socket.send_multipart(frames)


def signed(registration: Registration, content: Any) -> list[bytes]:
    """A report with any content, signed with the key of the registration."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return registration._signed(text)
