"""Many greenlets that wait for one kernel, each in a call of its own, and the moment when that kernel ended."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from time import perf_counter
from typing import Any

from fixtures import Background

import kclient

Client = kclient.KernelClient | kclient.KernelManager


def wait_in_shell(client: Client, number: int) -> Callable[[], Any]:
    """A call that a busy kernel does not answer yet. `number` chooses its kind; each has an answer of its own."""
    shell = client.shell_channel
    token = f"token {number}"
    kind = number % 8
    if kind == 0:
        return lambda: client.run(f"print({token!r})", on_abandon="leave").stdout
    if kind == 1:
        msg_id = shell.send("execute_request", said(token))
        return lambda: said_by(shell.get_reply(msg_id))
    if kind == 2:
        execution = client.submit(f"print({token!r})")
        return lambda: "".join(message.content["text"] for message in execution)
    if kind == 3:
        execution = client.submit(f"print({token!r})")
        return lambda: execution.result().stdout
    if kind == 4:
        return lambda: said_by(client.execute("None", user_expressions={"said": repr(token)}))
    if kind == 5:
        return lambda: client.kernel_info().content["status"]
    if kind == 6:
        seen: list[str] = []
        execution = client.submit(f"print({token!r})", on_output=lambda message: seen.append(message.content["text"]))
        return lambda: execution.result() and "".join(seen)
    return lambda: client.is_complete("if x:").content["status"]


def expected_of(number: int) -> str:
    """The value that the call `wait_in_shell(client, number)` returns in the end."""
    token = f"token {number}"
    return [f"{token}\n", token, f"{token}\n", f"{token}\n", token, "ok", f"{token}\n", "incomplete"][number % 8]


def said(token: str) -> dict[str, Any]:
    """The content of an execute_request whose reply repeats `token`."""
    return {"code": "None", "silent": False, "allow_stdin": False, "user_expressions": {"said": repr(token)}}


def said_by(reply: kclient.Message) -> str:
    """The token in the reply to a request with `said(token)`."""
    text: str = reply.content["user_expressions"]["said"]["data"]["text/plain"]
    return text.strip("'")


def wait_in_get_msg(client: Client, background: Callable[..., Background]) -> dict[str, Background]:
    """One greenlet in `get_msg` of each channel. The inboxes are empty."""
    client.iopub_channel.get_msgs()
    names = ("shell", "iopub", "stdin", "control")
    return {f"get_msg of {name}": background(getattr(client, f"{name}_channel").get_msg) for name in names}


class Exit:
    """The moment of a process's end, noted by a thread that waits for nothing else."""

    def __init__(self, pid: int) -> None:
        self._at = 0.0
        self._pidfd = os.pidfd_open(pid)
        self._thread = threading.Thread(target=self._wait)
        self._thread.start()

    @property
    def at(self) -> float:
        """The moment in `perf_counter` seconds; waits until the process has ended."""
        self._thread.join()
        return self._at

    def _wait(self) -> None:
        with open(self._pidfd):
            select.select([self._pidfd], [], [])
            self._at = perf_counter()
