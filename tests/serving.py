"""The service of `examples/server` in a process of its own, and a client of it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from fixtures import WAIT, Script

SERVER = Path(__file__).resolve().parent.parent / "examples" / "server"


class Service:
    """The running service at `url`."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.url = script.read_line()
        address = urlsplit(self.url)
        self.host, self.port = address.hostname, address.port

    def connect(self) -> HTTPConnection:
        assert self.host is not None
        return HTTPConnection(self.host, self.port, timeout=WAIT)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """The whole response. Names of headers are written with _ for -."""
        connection = self.connect()
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Content-Type": "application/json", **names})
        with connection.getresponse() as response:
            answer = Answer(response)
        connection.close()
        return answer

    def stats(self) -> dict[str, Any]:
        return dict(self.ask("GET", "/stats").json)

    def end(self, signum: int = signal.SIGTERM, may_say: str | None = None) -> str:
        """Stop the service; returns the output after its URL. `may_say` is the pattern of lines on stderr."""
        self.script.process.send_signal(signum)
        return self.script.end(may_say)


class Answer:
    def __init__(self, response: HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The text of the error."""
        return str(self.json["error"])


def read_event(answer: BinaryIO) -> tuple[str, Any] | None:
    """Name and data of the next event; None at the end."""
    lines = [answer.readline().decode() for _ in range(3)]
    if not any(lines):
        return None
    (event, name), (data, value) = (line.rstrip("\n").split(": ", 1) for line in lines[:2])
    assert (event, data, lines[2]) == ("event", "data", "\n"), lines
    return name, json.loads(value)


class Run:
    """A request to run code. It is an iterator of the events, as (name, data), as they arrive."""

    def __init__(self, service: Service, code: str, *, on: HTTPConnection | None = None, **more: Any) -> None:
        self._connection = on or service.connect()
        body = json.dumps({"code": code, **more})
        self._connection.request("POST", "/run", body, {"Content-Type": "application/json"})
        self.response = self._connection.getresponse()
        assert self.response.status == 200, self.response.read()
        name, data = next(self)
        assert name == "started"
        self.kernel_id = data["kernel_id"]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.hang_up()

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self

    def __next__(self) -> tuple[str, Any]:
        event = read_event(self.response)
        if event is None:
            raise StopIteration
        return event

    def output(self) -> dict[str, Any]:
        """The data of the next event, which is an output."""
        name, data = next(self)
        assert name == "output", data
        return dict(data)

    def rest(self) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The outputs that are still to come, and the data of the end."""
        *outputs, (last, done) = self
        assert last == "done"
        assert {name for name, _ in outputs} <= {"output"}
        return [data for _, data in outputs], done

    def hang_up(self) -> None:
        self.response.close()
        self._connection.close()


@contextmanager
def serving(*arguments: str) -> Iterator[Service]:
    """The service, on a free port. Its end must be good."""
    script = Script(SERVER, ("--port", "0", *arguments))
    with script.process:
        try:
            service = Service(script)
            yield service
            if script.process.poll() is None:
                service.end()
        finally:
            script.process.kill()


def text_of(outputs: list[dict[str, Any]]) -> str:
    """The text that was written to stdout."""
    return "".join(output["text"] for output in outputs if output.get("name") == "stdout")


def refusal_to_serve(*arguments: str) -> str:
    """The text that the service writes to stderr instead of running."""
    script = Script(SERVER, arguments)
    with script.process:
        _, stderr = script.process.communicate(timeout=WAIT)
    assert script.process.returncode != 0
    return stderr
