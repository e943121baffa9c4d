"""Restarts while many greenlets call: each call gets its own reply or KernelRestarted, and failed code runs nowhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path
from time import perf_counter

import pytest
from crowd import said_by
from figures import Figures
from fixtures import WAIT, Background
from gevent.event import Event

import kclient

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(600)]

CODE = """
import os
_fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND)
_ = os.write(_fd, f"{token} {{os.getpid()}}\\n".encode())
os.close(_fd)
print({token!r})
{token!r}
"""
"""The code leaves a line that tells which process ran it."""


class Load:
    """Greenlets that call all the time, and the outcome of each call by its token."""

    def __init__(self, manager: kclient.KernelManager, path: Path) -> None:
        self.own_reply: set[str] = set()
        self.restarts = 0
        self.failed_at: dict[str, int] = {}
        self.wrong: list[str] = []
        self.kernel_infos = 0
        self.is_over = False
        self._replied = Event()
        self._manager = manager
        self._path = path
        self._numbers = count()
        path.touch()

    def call(self, kind: int) -> None:
        """Call until `is_over`, and note the outcome of each call."""
        while not self.is_over:
            token = f"t{next(self._numbers)}"
            try:
                found = self._ask(kind, token)
            except kclient.KernelRestarted:
                self.failed_at[token] = self.restarts
                continue
            if found != token:
                self.wrong.append(f"{token} got {found!r}")
            self.own_reply.add(token)
            self._replied.set()

    def wait_for_replies(self, number: int) -> None:
        """Return when `number` calls more than now have got their own reply."""
        until = len(self.own_reply) + number
        while len(self.own_reply) < until:
            self._replied.clear()
            assert self._replied.wait(WAIT)

    def _ask(self, kind: int, token: str) -> str | None:
        manager, code = self._manager, CODE.format(path=str(self._path), token=token)
        if kind == 0:
            result = manager.run(code, timeout=WAIT)
            return token if (result.stdout, result.text) == (f"{token}\n", f"'{token}'") else f"{result}"
        if kind == 1:
            return said_by(manager.execute(code, user_expressions={"said": repr(token)}, timeout=WAIT))
        if kind == 2:
            execution = manager.submit(code)
            seen = "".join(message.content.get("text", "") for message in execution).strip()
            return token if (seen, execution.result(WAIT).text) == (token, f"'{token}'") else seen
        if kind == 3:
            content = {"code": code, "silent": False, "allow_stdin": False, "user_expressions": {"said": repr(token)}}
            shell = manager.shell_channel
            return said_by(shell.get_reply(shell.send("execute_request", content), timeout=WAIT))
        assert manager.kernel_info(timeout=WAIT).content["status"] == "ok"
        self.kernel_infos += 1
        return token


def test_calls_during_restarts_get_their_own_reply_or_fail_and_do_not_run_later(
    kernel_manager: kclient.KernelManager,
    transport: str,
    background: Callable[..., Background],
    folder: Path,
    figures: Figures,
) -> None:
    manager, path = kernel_manager, folder / "ran"
    manager.shutdown_wait_time = WAIT
    load = Load(manager, path)
    callers = [background(load.call, number % 5) for number in range(figures.size(15, 50))]
    pids = []
    longest = 0.0
    for number in range(figures.size(2, 40)):
        assert manager.process is not None
        pids.append(manager.process.pid)
        load.wait_for_replies(len(callers))
        load.restarts += 1
        started = perf_counter()
        manager.restart_kernel(now=number % 2 == 0, timeout=WAIT)
        longest = max(longest, perf_counter() - started)
        first = manager.run("print('first')", timeout=WAIT)
        assert (first.stdout, first.complete) == ("first\n", True)
    assert manager.process is not None
    pids.append(manager.process.pid)
    load.is_over = True
    for caller in callers:
        caller.get()
    assert load.wrong == []
    ran = [line.split() for line in path.read_text().splitlines()]
    times = Counter(token for token, _ in ran)
    assert {token: n for token, n in times.items() if n != 1} == {}
    of_generation = {token: pids.index(int(pid)) for token, pid in ran}
    later = {token: n for token, n in load.failed_at.items() if of_generation.get(token, 0) >= n}
    assert later == {}, "failed with the restart of that number, and ran in a kernel started by it, or later"
    assert load.failed_at, "no restart came in between"
    never = [token for token in load.own_reply if token not in of_generation]
    assert len(never) == load.kernel_infos
    assert len(manager.shell_channel.requests) == 0
    assert manager.iopub_channel.outputs.executions == {}
    note = figures.note
    note(f"{transport}: calls answered", len(load.own_reply), "")
    note(f"{transport}: calls that failed with KernelRestarted", len(load.failed_at), "")
    note(f"{transport}: of these, begun before the kernel ended", sum(t in times for t in load.failed_at), "")
    note(f"{transport}: the longest restart", longest, "s")
