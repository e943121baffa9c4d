"""The service of examples/server with jupyter_client's AsyncKernelManager on aiohttp: the peer in benchmarks.service.

It does the same, as far as jupyter_client allows it:

- kernels are started ahead and replaced in the background (peer_pool.py);
- outputs are streamed as they come;
- time, output and code are limited;
- the code ends when its client hangs up;
- the exit of a kernel is noticed at once, by a pidfd;
- all kernels share one zmq context, iopub drops nothing, and no channel is opened that is not needed;
- messages are encrypted (by jupyter_client 8.10 and later).

It differs in this: it forks no kernels, has no page, does not check the origin of a request, and does not stop what one
user's code leaves running in a kernel before the next user gets it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from time import perf_counter
from typing import Any

from aiohttp import web

from benchmarks.peer_pool import KernelDied, NoKernel, Pool

SHUTDOWN_WAIT_S = 5.0
"""Seconds for open requests when the service ends."""


class TooMuchOutput(Exception):
    """The code has printed more than a request may print."""


class Service:
    """The handlers, the limits and the pool."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.pool = Pool(
            options.kernel,
            size=options.size,
            max_size=max(options.size, options.max_size or 0),
            max_uses=options.max_uses,
        )

    def application(self) -> web.Application:
        app = web.Application(client_max_size=8 * self.options.max_code + 1024)
        app.add_routes(
            [web.post("/run", self.run), web.get("/stats", self.stats), web.get("/health", self.health)],
        )
        app.cleanup_ctx.append(self.serve)
        return app

    async def serve(self, app: web.Application) -> AsyncIterator[None]:
        self.pool.open()
        yield
        await self.pool.close()

    async def stats(self, request: web.Request) -> web.Response:
        return web.json_response(self.pool.stats())

    async def health(self, request: web.Request) -> web.Response:
        is_well = self.pool.failure is None
        return web.json_response({"error": self.pool.failure}, status=200 if is_well else 503)

    async def run(self, request: web.Request) -> web.StreamResponse:
        try:
            code, timeout = self.wish_of(json.loads(await request.text()))
        except web.HTTPRequestEntityTooLarge:
            return refusal(413, "the request is too large")
        except ValueError as exc:
            return refusal(400, str(exc))
        if len(code.encode("utf-8", "surrogatepass")) > self.options.max_code:
            return refusal(413, f"code is more than {self.options.max_code} bytes")
        try:
            async with self.pool.kernel(self.options.queue_timeout) as kernel:
                events = Events(request, self.options.max_output)
                await events.begin(kernel.manager.kernel_id)
                start = perf_counter()
                ending: dict[str, Any] = {"status": "ok", "message": None, "execution_count": None}
                try:
                    reply = await kernel.run(code, events.add_output, timeout)
                except (KernelDied, TimeoutError, TooMuchOutput) as exc:
                    ending |= {"status": STATUS[type(exc)], "message": str(exc)}
                else:
                    ending["execution_count"] = reply.get("execution_count")
                    if reply["status"] != "ok":
                        ending |= {"status": "error", "message": f"{reply.get('ename')}: {reply.get('evalue')}"}
                await events.end({**ending, "seconds": perf_counter() - start})
                return events.response
        except NoKernel as exc:
            return refusal(503, str(exc), {"Retry-After": "1"})

    def wish_of(self, body: object) -> tuple[str, float]:
        """The code, and the seconds that it may run; raises ValueError."""
        if not isinstance(body, dict) or not isinstance(body.get("code"), str):
            raise ValueError('the body must be like {"code": "print(1)", "timeout": 10}')  # noqa: TRY004  (of a client)
        timeout = body.get("timeout", self.options.max_time)
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise ValueError(f"timeout must be a number of seconds, more than 0, not {timeout!r}")
        return body["code"], min(timeout, self.options.max_time)


STATUS = {KernelDied: "died", TimeoutError: "timeout", TooMuchOutput: "too_much_output"}


class Events:
    """One answer, as server-sent events."""

    def __init__(self, request: web.Request, max_output: int) -> None:
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store"}
        self.response = web.StreamResponse(headers=headers)
        self._request = request
        self._max_output = max_output
        self._left = max_output

    async def begin(self, kernel_id: str) -> None:
        await self.response.prepare(self._request)
        await self._send("started", json.dumps({"kernel_id": kernel_id}))

    async def add_output(self, output: dict[str, Any]) -> None:
        """Send an output. Raises TooMuchOutput, and sends nothing, if all outputs together are too long."""
        text = json.dumps(output)
        self._left -= len(text)
        if self._left < 0:
            raise TooMuchOutput(f"the output is more than {self._max_output} bytes")
        await self._send("output", text)

    async def end(self, ending: dict[str, Any]) -> None:
        await self._send("done", json.dumps(ending))
        await self.response.write_eof()

    async def _send(self, name: str, text: str) -> None:
        await self.response.write(f"event: {name}\ndata: {text}\n\n".encode())


def refusal(status: int, error: str, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response({"error": error}, status=status, headers=headers)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peer_service", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--host", default="127.0.0.1", help="[127.0.0.1]")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free [8000]")
    parser.add_argument("--kernel", default="python3", help="[python3]")
    parser.add_argument("--size", type=int, default=4, help="kernels kept warm [4]")
    parser.add_argument("--max-size", type=int, help="kernels at most [--size]")
    parser.add_argument("--max-uses", type=int, default=1, help="requests a kernel serves [1]")
    parser.add_argument("--queue-timeout", type=float, default=10, help="seconds to wait for a kernel [10]")
    parser.add_argument("--max-code", type=int, default=100_000, help="bytes [100000]")
    parser.add_argument("--max-output", type=int, default=1_000_000, help="bytes [1000000]")
    parser.add_argument("--max-time", type=float, default=30, help="seconds [30]")
    options = parser.parse_args(argv)
    listening = socket.create_server((options.host, options.port), backlog=1024)

    def say(_: str) -> None:
        sys.stdout.write(f"http://{options.host}:{listening.getsockname()[1]}/\n")
        sys.stdout.flush()

    web.run_app(
        Service(options).application(),
        sock=listening,
        print=say,
        access_log=None,
        handler_cancellation=True,
        shutdown_timeout=SHUTDOWN_WAIT_S,
        loop=asyncio.new_event_loop(),
    )


if __name__ == "__main__":
    main()
