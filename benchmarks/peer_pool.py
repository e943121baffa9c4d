"""The pool of the peer service: warm kernels of jupyter_client's AsyncKernelManager on asyncio."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import attrs
import zmq
import zmq.asyncio
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager

START_TIMEOUT_S = 60
"""Seconds for a kernel to start."""

PAUSES_S = 0.5, 30.0
"""Seconds between starts, from the second failed start in a row on: the first pause, and the limit. A pause doubles."""

IS_BROKEN = 3
"""Starts that fail in a row before callers get an error. One failure may be a kernel that was killed as it started."""

Emit = Callable[[dict[str, Any]], Awaitable[object]]
"""Takes one output, in notebook format."""


class NoKernel(Exception):
    """No kernel was free in time, or none can be started; the message says why."""


class KernelDied(Exception):
    """The kernel's process has ended."""


@attrs.define(eq=False)
class Kernel:
    """A kernel that is ready, and its client. `exited` is done when its process has ended."""

    manager: AsyncKernelManager
    client: AsyncKernelClient
    exited: asyncio.Future[None]
    uses: int = 0
    is_spoilt: bool = False

    @classmethod
    async def start(cls, kernel_name: str, context: zmq.asyncio.Context) -> Kernel:
        """Start a kernel, and wait until it is ready; raises the errors of jupyter_client."""
        options = (
            {"transport_encryption": "auto"} if AsyncKernelManager.class_traits().get("transport_encryption") else {}
        )
        manager = AsyncKernelManager(kernel_name=kernel_name, context=context, **options)
        client: AsyncKernelClient | None = None
        try:
            await manager.start_kernel(extra_arguments=["--HistoryManager.enabled=False"])  # as examples/server does
            exited = exit_of(manager.provisioner.pid)
            client = manager.client(context=context)
            client.start_channels(stdin=False, hb=False, control=False)
            await client.wait_for_ready(timeout=START_TIMEOUT_S)
        except BaseException:
            if client is not None:
                client.stop_channels()
            await manager.shutdown_kernel(now=True)
            raise
        return cls(manager, client, exited)

    async def run(self, code: str, emit: Emit, timeout: float) -> dict[str, Any]:
        """Run the code; returns the content of the reply. Raises KernelDied, TimeoutError and the errors of `emit`.

        The kernel is spoilt if its code has not ended when this returns.
        """
        running = asyncio.ensure_future(self._run(code, emit))
        try:
            await asyncio.wait({running, self.exited}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            if self.exited.done():
                # Messages that it sent before may still be on their way.
                with suppress(asyncio.TimeoutError):
                    return await asyncio.wait_for(running, 0.02)
                raise KernelDied(f"the kernel has died: {self.manager.provisioner.process.poll()}")
            raise TimeoutError(f"the code ran longer than {timeout:g} s")
        finally:
            if not running.done() or running.cancelled() or running.exception():
                self.is_spoilt = True
                running.cancel()

    async def _run(self, code: str, emit: Emit) -> dict[str, Any]:
        """Emit output until the idle status, then wait for the reply, which comes at about the same time."""
        msg_id = self.client.execute(code, allow_stdin=False, stop_on_error=False)
        while True:
            message = await self.client.get_iopub_msg()
            if message["parent_header"].get("msg_id") != msg_id:
                continue
            content, kind = message["content"], message["msg_type"]
            if kind == "status" and content["execution_state"] == "idle":
                break
            output = output_of(kind, content)
            if output is not None:
                await emit(output)
        while True:
            reply = await self.client.get_shell_msg()
            if reply["parent_header"].get("msg_id") == msg_id:
                return dict(reply["content"])

    async def end(self) -> None:
        """Kill the kernel."""
        self.client.stop_channels()
        await self.manager.shutdown_kernel(now=True)


def output_of(kind: str, content: dict[str, Any]) -> dict[str, Any] | None:
    """A message of iopub in notebook format, or None if it is no output."""
    if kind == "stream":
        return {"output_type": "stream", "name": content["name"], "text": content["text"]}
    if kind in ("display_data", "update_display_data", "execute_result", "error", "clear_output"):
        return {"output_type": kind, **{key: value for key, value in content.items() if key != "transient"}}
    return None


def exit_of(pid: int) -> asyncio.Future[None]:
    """A future that is done as soon as the process has ended. jupyter_client has only is_alive(), to be polled."""
    loop = asyncio.get_running_loop()
    exited: asyncio.Future[None] = loop.create_future()
    descriptor = os.pidfd_open(pid)

    def tell() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        if not exited.done():
            exited.set_result(None)

    loop.add_reader(descriptor, tell)
    return exited


class Pool:
    """A pool of kernels; callers are served in the order in which they come.

    It keeps `size` kernels warm, and has up to `max_size` while callers wait. A kernel is replaced after `max_uses`.
    """

    def __init__(self, kernel_name: str, *, size: int, max_size: int, max_uses: int) -> None:
        self.size, self.max_size, self.max_uses = size, max_size, max_uses
        self.idle: deque[Kernel] = deque()
        self.busy: set[Kernel] = set()
        self.starts = self.deaths = 0
        self.failure: str | None = None
        self._name = kernel_name
        self._waiting: deque[asyncio.Future[Kernel]] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._ending: set[asyncio.Task[None]] = set()
        self._is_closed = False
        # One for all kernels, since each context has its own thread. rcvhwm 0: no output of a fast kernel is dropped.
        self._context = zmq.asyncio.Context()
        self._context.set(zmq.MAX_SOCKETS, 16 * max_size + 1023)
        self._context.rcvhwm = 0
        self._context.linger = 0

    def open(self) -> None:
        """Start the first kernels, in the background."""
        self._refill()

    @asynccontextmanager
    async def kernel(self, timeout: float) -> AsyncIterator[Kernel]:
        """A kernel that is ready, for one caller; raises NoKernel."""
        kernel = await self._take(timeout)
        kernel.uses += 1
        try:
            yield kernel
        finally:
            self.busy.discard(kernel)
            if kernel.is_spoilt or kernel.exited.done() or kernel.uses >= self.max_uses:
                self._end(kernel)
                self._refill()
            else:
                self._hand_on(kernel)

    def stats(self) -> dict[str, Any]:
        return {
            "idle": len(self.idle),
            "busy": len(self.busy),
            "starting": len(self._starting),
            "waiting": len(self._waiting),
            "starts": self.starts,
            "deaths": self.deaths,
            "last_failure": self.failure,
        }

    async def close(self) -> None:
        """End all kernels."""
        self._is_closed = True
        for waiting in self._waiting:
            waiting.cancel()
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        for kernel in [*self.idle, *self.busy]:
            self._end(kernel)
        self.idle.clear()
        await asyncio.gather(*self._ending, return_exceptions=True)
        self._context.destroy(linger=0)

    async def _take(self, timeout: float) -> Kernel:
        if self.idle:
            kernel = self.idle.popleft()
            self.busy.add(kernel)
            return kernel
        if self._is_broken:
            raise self._reason()
        waiting: asyncio.Future[Kernel] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiting)
        self._refill()
        try:
            return await asyncio.wait_for(waiting, timeout)
        except asyncio.TimeoutError:
            raise NoKernel(f"no kernel was free within {timeout:g} s: {len(self.busy)} are busy") from None
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and waiting.exception() is None:
                self.busy.discard(waiting.result())  # the kernel came as the caller left
                self._hand_on(waiting.result())
            raise
        finally:
            with suppress(ValueError):
                self._waiting.remove(waiting)

    @property
    def _alive(self) -> int:
        return len(self.idle) + len(self.busy)

    @property
    def _is_broken(self) -> bool:
        return self._failures >= IS_BROKEN and not self._alive

    def _reason(self) -> NoKernel:
        return NoKernel(f"no kernel can be started: {self.failure}")

    def _refill(self) -> None:
        """Start as many kernels as are missing."""
        wanted = min(self.max_size, max(self.size, len(self.busy) + len(self._waiting)))
        while not self._is_closed and self._alive + len(self._starting) < wanted:
            task = asyncio.create_task(self._start())
            self._starting.add(task)
            task.add_done_callback(self._has_started)

    def _has_started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        self._refill()

    def _end(self, kernel: Kernel) -> None:
        """End a kernel in the background."""
        task = asyncio.create_task(kernel.end())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _start(self) -> None:
        """Start a kernel. If `IS_BROKEN` starts have failed in a row, waiting callers get an error; then pause."""
        try:
            kernel = await Kernel.start(self._name, self._context)
        except Exception as exc:  # noqa: BLE001  (jupyter_client raises a dozen classes)
            self.failure = f"{type(exc).__name__}: {exc}"
            self._failures += 1
            while self._is_broken and self._waiting:
                waiting = self._waiting.popleft()
                if not waiting.done():
                    waiting.set_exception(self._reason())
            if self._failures > 1:
                await asyncio.sleep(min(PAUSES_S[0] * 2 ** (self._failures - 2), PAUSES_S[1]))
        else:
            self.starts += 1
            self.failure, self._failures = None, 0
            kernel.exited.add_done_callback(lambda _: self._replace_dead(kernel))
            self._hand_on(kernel)

    def _hand_on(self, kernel: Kernel) -> None:
        """Give a kernel to the caller that has waited longest; without one it is idle."""
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                self.busy.add(kernel)
                waiting.set_result(kernel)
                return
        self.idle.append(kernel)

    def _replace_dead(self, kernel: Kernel) -> None:
        """Replace a kernel that died while it was idle. If it was busy, its caller gets KernelDied."""
        if kernel in self.idle:
            self.deaths += 1
            self.idle.remove(kernel)
            self._end(kernel)
            self._refill()
