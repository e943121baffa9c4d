"""Run the service on gevent's pywsgi: ``python examples/server --help``."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from socket import IPPROTO_TCP, TCP_NODELAY
from typing import Any

import gevent
from app import LOCAL_HOSTS, MAX_MESSAGE_BYTES, NO_HISTORY, Application, Limits
from gevent.event import Event
from gevent.pool import Pool
from gevent.pywsgi import WSGIHandler, WSGIServer
from hangup import HungUp

import kclient

IPYTHON = "python3"
"""The name of the kernel that runs ipykernel."""

MAX_CONNECTIONS = 500

CLIENT_TIMEOUT_S = 30.0
"""Seconds in which a client neither sends nor takes a byte that is due, after which its connection is closed."""

HEAD_TIMEOUT_S = 10.0
"""Seconds for a client to send the first line and the headers of its next request, byte by byte or at once."""

REST_TIMEOUT_S = 5.0
"""Seconds for the rest of a body that the application has not read. pywsgi reads it before the next request."""

FAREWELL_S = 1.0
"""Seconds for the requests that still run when the pool is closed to send their last event."""


class Handler(WSGIHandler):
    """Passes the client's socket to the application, and closes the connection of a client that does not answer.

    Each part of a request has a time limit of its own, since a client that sends a byte now and then is never silent.
    The application has one for the body.
    """

    _head: gevent.Timeout
    _rest: gevent.Timeout

    def handle(self) -> None:
        self.socket.settimeout(CLIENT_TIMEOUT_S)
        self.socket.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)  # else an event waits up to 40 ms for the last one's ACK
        self._head = self._rest = gevent.Timeout()
        try:
            super().handle()
        except gevent.Timeout as exc:
            if exc is not self._head:
                raise
        finally:
            self._head.close()
            self._rest.close()

    def read_requestline(self) -> str:
        self._head = gevent.Timeout.start_new(HEAD_TIMEOUT_S)
        return super().read_requestline()

    def read_request(self, raw_requestline: str) -> bool:
        is_valid = super().read_request(raw_requestline)
        self._head.close()
        return is_valid

    def run_application(self) -> None:
        try:
            super().run_application()
        finally:
            self._rest = gevent.Timeout.start_new(REST_TIMEOUT_S, HungUp("the rest of the body does not come"))

    def get_environ(self) -> dict[str, Any]:
        return {**super().get_environ(), "kclient.socket": self.socket}

    def handle_one_response(self) -> None:
        super().handle_one_response()
        is_late = not self._rest.pending
        self._rest.close()
        if is_late or self.server.closed:
            self.close_connection = True


class StartReport:
    """Prints on stderr why a kernel does not start, until one has started: likely the command line is wrong."""

    def __init__(self) -> None:
        self._came_up = False

    def __call__(self, event: kclient.PoolEvent) -> None:
        if event.kind == "started":
            self._came_up = True
        elif event.kind == "start_failed" and not self._came_up:
            print(f"a kernel did not start: {event.error}", file=sys.stderr, flush=True)


def serve(options: argparse.Namespace, pool: kclient.KernelPool, stop: Event) -> None:
    """Serve until `stop` is set. Then accept no more connections, and give running requests `grace` seconds to end."""
    limits = Limits(options.max_code, options.max_output, options.max_time, options.queue_timeout)
    application = Application(pool, limits, {*LOCAL_HOSTS, options.host, *options.allow_host})
    server = WSGIServer(
        (options.host, options.port), application, handler_class=Handler, spawn=Pool(MAX_CONNECTIONS), log=None
    )
    try:
        server.start()
    except (OSError, OverflowError) as exc:
        sys.exit(f"cannot listen: {exc}; choose another --host or --port")
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"http://{host}:{server.server_port}/", flush=True)
    stop.wait()
    server.close()
    print(f"closing; {len(application.running)} requests still run", flush=True)
    application.running.join(timeout=options.grace)
    pool.close()  # requests that still run code get an error, which they send to their clients
    application.running.join(timeout=FAREWELL_S)
    server.stop(timeout=0)  # only idle connections are left


def main() -> None:
    options = parse_arguments()
    stop = Event()
    loop = gevent.get_hub().loop
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: loop.run_callback_threadsafe(stop.set))
    try:
        with ExitStack() as stack:
            launcher = stack.enter_context(kclient.ForkServer(preload=options.preload)) if options.fork else None
            pool = kclient.KernelPool(
                options.kernel,
                size=options.size,
                max_size=options.max_size,
                max_uses=options.max_uses,
                warm_up="\n".join(f"import {module}" for module in options.preload) or None,
                launcher=launcher,
                extra_arguments=NO_HISTORY if options.kernel == IPYTHON else (),
                on_event=StartReport(),
                orphan_guard=not options.fork,
                max_message_bytes=MAX_MESSAGE_BYTES,
            )
            serve(options, stack.enter_context(pool), stop)
    except kclient.KClientError as exc:  # for example a size that is not allowed
        sys.exit(str(exc))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python examples/server",
        description="Run code that comes by HTTP, in kernels of a pool. Any client of the port can run code.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    limits = Limits()
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, default=8899, help="port to listen on; 0: any free port")
    add("--allow-host", action="append", default=[], metavar="NAME", help="a name by which browsers may reach this")
    add("--kernel", default=IPYTHON, metavar="NAME", help="kernel to run")
    add("--size", type=int, default=4, help="kernels that are kept warm")
    add("--max-size", type=int, default=None, help="kernels at most, including busy ones")
    add("--max-uses", type=int, default=1, help="runs of a kernel; each finds the variables and files of those before")
    add("--preload", action="append", default=[], metavar="MODULE", help="a module that kernels import before any code")
    add("--fork", action=argparse.BooleanOptionalAction, default=False, help="start kernels by forking")
    add("--queue-timeout", type=positive(float), default=limits.queue_timeout, metavar="S", help="wait for a kernel")
    add("--max-code", type=positive(int), default=limits.max_code, metavar="BYTES", help="size of a request")
    add("--max-output", type=positive(int), default=limits.max_output, metavar="BYTES", help="output of a request")
    add("--max-time", type=positive(float), default=limits.max_time, metavar="S", help="time that code may run")
    add("--grace", type=positive(float), default=10.0, metavar="S", help="time to end requests at shutdown")
    return parser.parse_args()


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    """A type for argparse: a number of that kind, more than 0."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if (number := kind(text)) > 0:
                return number
        raise argparse.ArgumentTypeError(f"must be a number, more than 0, not {text!r}")

    return parse


if __name__ == "__main__":
    main()
