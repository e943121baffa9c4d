"""Kernels to measure: processes with echo kernels, and real kernels that are started without any client."""

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

END_WAIT_S = 10.0
"""Seconds for a process to end after SIGKILL."""

CHANNELS = ("shell", "iopub", "stdin", "control", "hb")

Connection = dict[str, Any]
"""The content of a connection file."""


def address(connection: Connection, channel: str) -> str:
    """The ZeroMQ URL of a channel."""
    separator = ":" if connection["transport"] == "tcp" else "-"
    return f"{connection['transport']}://{connection['ip']}{separator}{connection[f'{channel}_port']}"


@contextmanager
def echo_kernels(count: int = 1) -> Iterator[list[dict[str, Connection]]]:
    """A process that hosts `count` echo kernels. Yields the connections of each kernel, by transport."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.echo", "--kernels", str(count)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:  # at the end: closes its standard input, which ends the process, and waits
        if process.stdout is None:
            raise RuntimeError("no pipe from the echo kernel")
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the echo kernel did not start; its error is printed above")
        yield json.loads(line)


@contextmanager
def echo_kernel_each(names: list[str]) -> Iterator[dict[str, dict[str, Connection]]]:
    """An echo kernel in its own process for each client, so that no client's subscriptions slow down another."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(echo_kernels())[0] for name in names}


@attrs.define
class BareKernel:
    """The process of a real kernel with its connection file, and no client yet."""

    connection: Connection
    process: subprocess.Popen[bytes]
    path: str


@contextmanager
def bare_kernel(transport: str, name: str = "python3") -> Iterator[BareKernel]:
    """Start a kernel of that name with the command, environment and files with which kclient would start it."""
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
        process.wait(END_WAIT_S)
        shutil.rmtree(folder, ignore_errors=True)
        for port in held:
            port.close()


def new_connection(transport: str, folder: str, held: list[socket.socket]) -> Connection:
    """A connection with new tcp ports, or with ipc paths in `folder`.

    The tcp ports stay reserved for a kernel while the sockets that are added to `held` are open.
    """
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
