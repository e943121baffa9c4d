"""Kernels to measure: echo kernels in processes of their own, and real ones that are started by hand."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import attrs

import kclient

ROOT = Path(__file__).resolve().parent.parent

PATIENCE = 10.0
"""Seconds for a process to end by itself."""

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")

Connection = dict[str, Any]
"""What a connection file holds."""


def address(connection: Connection, channel: str) -> str:
    """The ZeroMQ URL of a channel."""
    separator = ":" if connection["transport"] == "tcp" else "-"
    return f"{connection['transport']}://{connection['ip']}{separator}{connection[f'{channel}_port']}"


@contextmanager
def echo_kernels(count: int = 1) -> Iterator[list[dict[str, Connection]]]:
    """A process that hosts `count` echo kernels; yields the connection of each by transport."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.echo", "--kernels", str(count)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:  # closes its standard input, at which it ends, and waits
        if process.stdout is None:
            raise RuntimeError("no pipe from the echo kernel")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the echo kernel did not start; what it says stands above")
        yield json.loads(line)


@contextmanager
def echo_kernel_each(names: list[str]) -> Iterator[dict[str, dict[str, Connection]]]:
    """An echo kernel, in a process of its own, for each client: none pays for what another subscribes to."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(echo_kernels())[0] for name in names}


@attrs.define
class BareKernel:
    """A real kernel as its process alone: a connection file, a command, and nobody who talks to it yet."""

    connection: Connection
    process: subprocess.Popen[bytes]
    path: str


@contextmanager
def bare_kernel(transport: str, name: str = "python3") -> Iterator[BareKernel]:
    """Start a kernel of that name with the command, environment and files that kclient would give it."""
    spec = kclient.find_kernel_spec(name)
    folder = tempfile.mkdtemp(prefix="bare-")
    path = os.path.join(folder, "kernel.json")
    held: list[socket.socket] = []
    connection = new_connection(transport, folder, held)
    with open(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), "w", encoding="utf-8") as file:
        json.dump(connection, file)
    process = subprocess.Popen(
        spec.command(path),
        env=spec.environment({**os.environ, "JPY_PARENT_PID": str(os.getpid())}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield BareKernel(connection, process, path)
    finally:
        process.kill()
        process.wait(PATIENCE)
        shutil.rmtree(folder, ignore_errors=True)
        for port in held:
            port.close()


def new_connection(transport: str, folder: str, held: list[socket.socket]) -> Connection:
    """Ports that are free, which only a kernel can get while the sockets in `held` are open, or names in `folder`."""
    common = {"transport": transport, "key": uuid4().hex, "signature_scheme": "hmac-sha256", "kernel_name": "python3"}
    if transport == "ipc":
        ports = {f"{channel}_port": number for number, channel in enumerate(CHANNELS, 1)}
        return {**common, **ports, "ip": os.path.join(folder, "k")}
    ports = {}
    for channel in CHANNELS:
        held.append(socket.socket())
        held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held[-1].bind(("127.0.0.1", 0))
        ports[f"{channel}_port"] = held[-1].getsockname()[1]
    return {**common, **ports, "ip": "127.0.0.1"}
