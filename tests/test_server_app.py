"""The WSGI application of `examples/server`, and how it notices a hang-up, without a server."""

from __future__ import annotations

import importlib.util
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import ModuleType
from typing import Any

import attrs
import gevent
import gevent.select
import leaks
import pytest
from fixtures import WAIT, Background
from gevent import socket
from gevent.event import Event
from gevent.pywsgi import WSGIServer
from serving import SERVER

import kclient
from kclient import Session


@pytest.fixture(scope="module")
def app() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(SERVER))
        import app

        yield app
    for name in ("app", "hangup"):
        del sys.modules[name]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The socket of a server, and that of its client."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


class StubKernel:
    kernel_id = "k1"

    def __init__(self, run: Callable[..., Any]) -> None:
        self.run = run


class StubPool:
    """A pool that lends one kernel with the given `run`, or raises `error`."""

    def __init__(self, run: Callable[..., Any], error: Exception | None = None) -> None:
        self.kernel = StubKernel(run)
        self.error = error
        self.lent = 0

    def acquire(self, timeout: float) -> StubKernel:
        if self.error is not None:
            raise self.error
        self.lent += 1
        return self.kernel

    def release(self, kernel: StubKernel) -> None:
        assert kernel is self.kernel
        self.lent -= 1


@attrs.define
class Response:
    """The answer of the application: `start_response` gives its head, the returned value its body."""

    status: str = ""
    headers: dict[str, str] = attrs.field(factory=dict)
    body: bytes = b""

    def start(self, status: str, headers: list[tuple[str, str]]) -> Callable[[bytes], object]:
        self.status, self.headers = status, dict(headers)
        return self.write

    def write(self, data: bytes) -> None:
        self.body += data


def post(body: bytes = b'{"code": "1"}', **more: Any) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/run",
        "HTTP_HOST": "localhost:8899",
        "CONTENT_TYPE": "application/json; charset=utf-8",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body),
        **more,
    }


def wait_for_ever(*args: Any, **kwargs: Any) -> None:
    Event().wait()


def test_request_without_a_free_kernel_is_refused(app: ModuleType) -> None:
    pool = StubPool(wait_for_ever, kclient.KernelTimeout("free kernel", 1, hint="4 are busy"))
    response = Response()
    body = b"".join(app.Application(pool)(post(), response.start))
    assert response.status == "503 Service Unavailable"
    assert response.headers["Retry-After"]
    assert b"no free kernel within 1 s; 4 are busy" in body


def test_kernel_goes_back_when_the_client_hangs_up(
    app: ModuleType, pair: tuple[socket.socket, socket.socket], background: Callable[..., Background]
) -> None:
    ours, theirs = pair
    pool = StubPool(wait_for_ever)
    application = app.Application(pool)
    call = background(application, post(**{"gunicorn.socket": ours}), Response().start)
    assert (pool.lent, len(application.running)) == (1, 1)
    theirs.close()
    assert isinstance(call.error(), ConnectionResetError)
    assert (pool.lent, len(application.running)) == (0, 0)


def test_kernel_goes_back_when_the_client_does_not_read(
    app: ModuleType, background: Callable[..., Background], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "SEND_GRACE_S", 0.01)
    pool = StubPool(wait_for_ever)
    response = Response()
    monkeypatch.setattr(Response, "write", wait_for_ever)
    call = background(app.Application(pool), post(b'{"code": "1", "timeout": 0.01}'), response.start)
    assert isinstance(call.error(), ConnectionResetError)
    assert pool.lent == 0


def test_body_that_does_not_come_is_given_up(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_TIMEOUT_S", 0.01)
    slow = io.BytesIO()
    slow.read = wait_for_ever  # type: ignore[method-assign]
    response = Response()
    assert b"did not come" in b"".join(
        app.Application(StubPool(wait_for_ever))(post(**{"wsgi.input": slow}), response.start)
    )
    assert response.status.startswith("408")


def test_body_that_breaks_off_is_refused(app: ModuleType) -> None:
    class Broken(io.BytesIO):
        def read(self, *args: Any) -> bytes:
            raise OSError("unexpected end of file while reading request")

    response = Response()
    app.Application(StubPool(wait_for_ever))(post(**{"wsgi.input": Broken()}), response.start)
    assert response.status.startswith("400")
    assert response.headers["Connection"] == "close"


def test_output_that_is_not_read_in_time_is_too_much(app: ModuleType) -> None:
    def run(*args: Any, **kwargs: Any) -> kclient.Result:
        return kclient.Result(None, [], truncated=True)

    response = Response()
    app.Application(StubPool(run))(post(), response.start)
    assert b'"status":"too_much_output","message":"the output came faster' in response.body


def writing(msg_type: str, **content: Any) -> Callable[..., kclient.Result]:
    """A `run` that sends one message."""

    def run(*args: Any, on_output: Callable[[kclient.Message], object], **kwargs: Any) -> kclient.Result:
        on_output(Session("").msg(msg_type, content))
        return kclient.Result(None, [])

    return run


def test_of_too_long_a_text_the_beginning_is_sent(app: ModuleType) -> None:
    pool = StubPool(writing("stream", name="stdout", text="\U0001f600\ud800" * 10_000))
    response = Response()
    app.Application(pool, app.Limits(max_output=5000))(post(), response.start)
    assert b'"text": "\\ud83d' in response.body
    assert b'"status":"too_much_output","message":"more than 5000 bytes' in response.body
    assert 4000 < len(response.body) < 5500


def deep(levels: int) -> Any:
    value: Any = float("nan")
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "sent"),
    [
        (float("nan"), b"null"),
        (2**70, str(2**70).encode()),
        ("\ud800", b'"\\ud800"'),
        (
            deep(300),
            b'"status":"failed","message":"the code has written output that cannot be sent as JSON: Out of range',
        ),
        (
            deep(20_000),
            b'"status":"failed","message":"the code has written output that cannot be sent as JSON: maximum recursion',
        ),
    ],
    ids=["nan", "large", "surrogate", "deep nan", "deep"],
)
def test_odd_values_are_json_for_browsers_or_a_clear_error(app: ModuleType, value: Any, sent: bytes) -> None:
    response = Response()
    app.Application(StubPool(writing("display_data", data={"application/json": value})))(post(), response.start)
    assert sent in response.body
    assert b"event: done" in response.body


def test_client_that_sends_its_next_request_has_not_hung_up(
    app: ModuleType, pair: tuple[socket.socket, socket.socket], background: Callable[..., Background]
) -> None:
    ours, theirs = pair
    pool = StubPool(wait_for_ever)
    call = background(app.Application(pool), post(**{"kclient.socket": ours}), Response().start)
    theirs.sendall(b"POST /run")
    theirs.close()
    leaks.turn_loop()
    assert call.is_waiting
    assert ours.recv(100) == b"POST /run"
    call.greenlet.kill()
    assert pool.lent == 0


def test_end_of_the_block_ends_the_watch(app: ModuleType, pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    with app.raised_at_hang_up(ours):
        leaks.turn_loop()
    theirs.close()
    with gevent.Timeout(WAIT):
        assert ours.recv(1) == b""


# The server


@pytest.fixture
def serve(app: ModuleType) -> Iterator[tuple[ModuleType, int]]:
    """The module `__main__`, and the port of a server with its Handler. The application reads no body."""
    spec = importlib.util.spec_from_file_location("server_main", SERVER / "__main__.py")
    assert spec is not None
    assert spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    server = WSGIServer(("127.0.0.1", 0), answer, handler_class=main.Handler, log=None)
    server.start()
    yield main, server.server_port
    server.stop(timeout=0)


def drip(client: socket.socket) -> bytes:
    """Send byte after byte until the server closes the connection; returns what it has sent."""
    answer = b""
    with gevent.Timeout(WAIT), suppress(OSError):
        while True:
            client.sendall(b"a")
            if gevent.select.select([client], [], [], 0.01)[0]:
                answer += (more := client.recv(1000))
                if not more:
                    break
    return answer


@pytest.mark.parametrize("begin", [b"", b"GET / HTTP/1.1\r\nX-Name: "], ids=["first line", "headers"])
def test_client_that_sends_a_byte_now_and_then_holds_no_connection(
    serve: tuple[ModuleType, int], monkeypatch: pytest.MonkeyPatch, begin: bytes
) -> None:
    main, port = serve
    monkeypatch.setattr(main, "HEAD_TIMEOUT_S", 0.1)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(begin)
        assert drip(client) == b""


def test_rest_of_a_body_holds_no_connection(serve: tuple[ModuleType, int], monkeypatch: pytest.MonkeyPatch) -> None:
    main, port = serve
    monkeypatch.setattr(main, "REST_TIMEOUT_S", 0.1)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n")
        assert drip(client).startswith(b"HTTP/1.1 200 OK")


def test_requests_that_come_in_time_share_a_connection(serve: tuple[ModuleType, int]) -> None:
    _, port = serve
    with gevent.Timeout(WAIT), socket.create_connection(("127.0.0.1", port)) as client:
        for _ in range(2):
            client.sendall(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\nbody")
            answer = b""
            while not answer.endswith(b"ok"):
                answer += client.recv(1000)
