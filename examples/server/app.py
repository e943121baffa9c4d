"""The service as a WSGI application: a request brings code, a kernel of the pool runs it, events carry its output.

It works in a server whose requests are greenlets: pywsgi (see `__main__.py`), or gunicorn's gevent worker.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import attrs
import gevent
import orjson
from gevent.pool import Group
from hangup import HungUp, raised_at_hang_up

import kclient

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Callable[[bytes], object]]

LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})

SEND_GRACE_S = 5.0
"""Seconds for the client to read the rest of the events after the time of its code is over."""

BODY_TIMEOUT_S = 10.0
"""Seconds for the client to send the body of its request."""

BACKLOG_BYTES = 64 * 2**20
"""Limit of the output in memory that the client has not read yet.

It is large, since ipykernel makes one message of all that a loop prints within 0.2 s.
"""

MAX_MESSAGE_BYTES = 8 * 2**20
"""A larger message of a kernel is not even parsed: if it is nested deeply, that takes long, and much memory."""

CHARACTER_BYTES = 12
"""The most that one character can take in JSON: two escapes of six bytes."""

RETRY_AFTER_S = "2"
"""Seconds after which a client may ask again for a kernel, as the header Retry-After has them."""

SOCKETS = ("kclient.socket", "gunicorn.socket", "gunicorn.sock")
"""The keys of the environment under which `__main__.Handler` or a worker of gunicorn puts the client's socket."""

CLOSE = ("Connection", "close")

NO_HISTORY = ("--HistoryManager.enabled=False",)
"""For kernels of IPython. Without it they write the code of all users into one file that every kernel can read."""

HEADERS = [
    ("Cache-Control", "no-store"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("X-Content-Type-Options", "nosniff"),
]

PAGE = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

_script = PAGE.partition("<script>")[2].partition("</script>")[0]
_script_hash = base64.b64encode(hashlib.sha256(_script.encode()).digest()).decode()

PAGE_POLICY = (
    f"default-src 'none'; script-src 'sha256-{_script_hash}'; style-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Only the page's own script runs, also if a kernel sends another one. Nothing is loaded from other sites."""


@attrs.frozen
class Limits:
    """The limits of a request: bytes of its body and its output, seconds to run and to wait for a kernel."""

    max_code: int = 64 * 1024
    max_output: int = 8 * 2**20
    max_time: float = 30.0
    queue_timeout: float = 10.0


class Refused(Exception):
    """A request that gets an error as its whole answer, with the HTTP status `status`."""

    def __init__(self, status: str, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers


class TooMuchOutput(Exception):
    """The code has written more than `Limits.max_output`."""


class Application:
    """The WSGI application. Each POST to /run has a kernel of `pool` to itself.

    `hosts` are the host names by which browsers may reach it. Other names are refused, so that a page of another site
    cannot run code here. `running` holds the greenlets of the requests that have a kernel, to wait for their end.
    """

    def __init__(
        self, pool: kclient.KernelPool, limits: Limits | None = None, hosts: Iterable[str] = LOCAL_HOSTS
    ) -> None:
        self.pool = pool
        self.limits = limits or Limits()
        self.hosts = frozenset(map(str.lower, hosts))
        self.running = Group()
        self._routes = {
            "/": ("GET", self._page),
            "/run": ("POST", self._run),
            "/stats": ("GET", self._stats),
            "/health": ("GET", self._health),
        }

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        try:
            body = self._answer(environ, start_response)
        except Refused as refusal:
            body = _respond(start_response, refusal.status, {"error": str(refusal)}, *refusal.headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else body

    def _answer(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._check_origin(environ)
        method, answer = self._routes.get(environ["PATH_INFO"], ("", None))
        if answer is None:
            raise Refused("404 Not Found", f"not found; there are only {', '.join(self._routes)}")
        asked = environ["REQUEST_METHOD"]
        if asked != method and (asked, method) != ("HEAD", "GET"):
            raise Refused("405 Method Not Allowed", f"this path takes {method} only", ("Allow", method))
        return answer(environ, start_response)

    def _page(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        policy = ("Content-Security-Policy", PAGE_POLICY)
        return _respond(start_response, "200 OK", PAGE.encode(), ("Content-Type", "text/html; charset=utf-8"), policy)

    def _stats(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        return _respond(start_response, "200 OK", attrs.asdict(self.pool.stats()))

    def _health(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        stats = self.pool.stats()
        if stats.idle + stats.busy == 0 and (stats.checkouts == 0 or stats.starting == 0):
            reason = stats.last_failure or "the first ones are starting"
            raise Refused("503 Service Unavailable", f"there is no kernel: {reason}", ("Retry-After", RETRY_AFTER_S))
        return _respond(start_response, "200 OK", {"status": "ok"})

    def _run(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        code, seconds = self._read_request(environ)
        client = next((environ[name] for name in SOCKETS if name in environ), None)
        with raised_at_hang_up(client), self._kernel() as kernel:
            # write() instead of a generator: so sending has a time limit, too, and an error of it ends the run.
            write = start_response(
                "200 OK", [("Content-Type", "text/event-stream"), ("X-Accel-Buffering", "no"), *HEADERS]
            )
            with gevent.Timeout(seconds + SEND_GRACE_S, HungUp("the client reads too slowly")):
                stream = EventStream(write, self.limits.max_output)
                stream.send("started", {"kernel_id": kernel.kernel_id})
                stream.send("done", _execute(kernel, code, seconds, stream))
        return []

    @contextmanager
    def _kernel(self) -> Iterator[kclient.KernelManager]:
        try:
            kernel = self.pool.acquire(timeout=self.limits.queue_timeout)
        except kclient.KClientError as exc:
            raise Refused("503 Service Unavailable", str(exc), ("Retry-After", RETRY_AFTER_S)) from exc
        me: Any = gevent.getcurrent()
        self.running.add(me)
        try:
            yield kernel
        finally:
            self.running.discard(me)
            self.pool.release(kernel)

    def _check_origin(self, environ: Environ) -> None:
        """Refuse a page of another site, by its Origin, and a host name that is not in `hosts`, by the Host."""
        host = environ.get("HTTP_HOST", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdecimal() else host
        if name.strip("[]").lower() not in self.hosts:
            raise Refused(
                "403 Forbidden",
                f"the host name {name!r} is not allowed; add it with --allow-host, or ALLOW_HOSTS under gunicorn",
            )
        if environ.get("HTTP_ORIGIN", f"//{host}").partition("//")[2] != host:
            raise Refused("403 Forbidden", "a page of another site may not run code here")

    def _read_request(self, environ: Environ) -> tuple[str, float]:
        """The code, and the seconds that it may run; raises Refused."""
        # A browser lets a page of another site post forms and plain text, but not this type without our consent.
        if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused("415 Unsupported Media Type", "the Content-Type must be application/json")
        try:
            request = json.loads(self._read_body(environ))
        except (ValueError, RecursionError) as exc:
            raise Refused("400 Bad Request", f"the body is not JSON: {exc}") from exc
        if not isinstance(request, dict) or not isinstance(request.get("code"), str):
            raise Refused("400 Bad Request", 'the body must be an object with the text "code"')
        timeout = request.get("timeout")
        if timeout is None:
            return request["code"], self.limits.max_time
        if isinstance(timeout, bool) or not isinstance(timeout, (int, float)) or not timeout > 0:
            raise Refused("400 Bad Request", '"timeout" must be a number of seconds, more than 0')
        return request["code"], min(timeout, self.limits.max_time)

    def _read_body(self, environ: Environ) -> bytes:
        most = self.limits.max_code
        length = int(environ.get("CONTENT_LENGTH") or 0)
        # After either error the connection is closed: the end of this body, and so the next request, is unknown.
        late = Refused("408 Request Timeout", f"the body did not come within {BODY_TIMEOUT_S:g} s", CLOSE)
        broken = Refused("400 Bad Request", "the body is incomplete, or its chunks are malformed", CLOSE)
        with gevent.Timeout(BODY_TIMEOUT_S, late):
            try:
                body: bytes = environ["wsgi.input"].read(most + 1) if length <= most else b""
            except OSError as exc:
                raise broken from exc
        if max(length, len(body)) > most:
            raise Refused("413 Content Too Large", f"the body of a request may have {most} bytes at most")
        return body


class EventStream:
    """Server-sent events to one client. Those with output may have `max_output` bytes together."""

    def __init__(self, write: Callable[[bytes], object], max_output: int) -> None:
        self._write = write
        self._max_output = max_output
        self._sent = 0

    def send(self, name: str, data: dict[str, Any]) -> None:
        self._write(_event(name, data))

    def send_output(self, message: kclient.Message) -> None:
        """Send an output. If it exceeds the limit, send the beginning of its text, and raise TooMuchOutput."""
        output = message.content | {"output_type": message.msg_type}
        event = _event("output", output)
        self._sent += len(event)
        if self._sent <= self._max_output:
            self._write(event)
            return
        if message.msg_type == "stream":
            room = self._max_output - self._sent + len(event)
            self.send("output", output | {"text": str(output.get("text"))[: room // CHARACTER_BYTES]})
        raise TooMuchOutput(f"more than {self._max_output} bytes of output; the code was stopped")


def _execute(kernel: kclient.KernelManager, code: str, seconds: float, stream: EventStream) -> dict[str, Any]:
    """Run the code, and send its output as it comes. Returns the data of the event "done"."""
    start = perf_counter()
    message = count = None
    try:
        result = kernel.run(
            code, timeout=seconds, on_output=stream.send_output, keep_outputs=False, max_output_bytes=BACKLOG_BYTES
        )
        count = result.execution_count
        status = "ok" if result.ok else "error"
        if result.error is not None:
            message = f"{result.error.ename}: {result.error.evalue}"
        if result.truncated:
            status, message = "too_much_output", "the output came faster than it was read; some of it was dropped"
    except TooMuchOutput as exc:
        status, message = "too_much_output", str(exc)
    except kclient.KernelTimeout:
        status, message = "timeout", f"stopped after {seconds:g} s"
    except kclient.DeadKernelError as exc:
        status, message = "died", str(exc)
    except kclient.KClientError as exc:
        status, message = "failed", str(exc)
    except (ValueError, RecursionError) as exc:
        status, message = "failed", f"the code has written output that cannot be sent as JSON: {exc}"
    spent = round(perf_counter() - start, 6)
    return {"status": status, "message": message, "execution_count": count, "seconds": spent}


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _json(data))


def _json(data: Any) -> bytes:
    """JSON on one line, with null for NaN, which is no JSON. Raises ValueError and RecursionError."""
    try:
        return orjson.dumps(data)
    except TypeError:  # half of a surrogate pair, a very large number, or deeply nested lists
        return json.dumps(data, allow_nan=False).encode()


def _respond(
    start_response: StartResponse, status: str, body: bytes | dict[str, Any], *headers: tuple[str, str]
) -> list[bytes]:
    """A complete response. A dict is sent as JSON."""
    if isinstance(body, dict):
        body = _json(body)
        headers = (("Content-Type", "application/json"), *headers)
    start_response(status, [("Content-Length", str(len(body))), *headers, *HEADERS])
    return [body]
