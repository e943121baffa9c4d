"""The load generator of the benchmarks reports every wrong answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import aiohttp
import pytest

from benchmarks.load import KINDS, Answer, Request, ask, main

PRINT = Request("print", "print(4 ^ 1)", "5\n", "ok")


class StubResponse:
    """An answer in parts. The last part may be an error, or None for an answer that never ends."""

    def __init__(self, parts: list[bytes | BaseException | None], status: int, headers: dict[str, str]) -> None:
        self.status, self.headers = status, headers
        self.content_type = "text/event-stream"
        self.content = self
        self._parts = parts

    async def __aenter__(self) -> StubResponse:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def iter_any(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            if isinstance(part, BaseException):
                raise part
            if part is None:
                await asyncio.Event().wait()
            yield part or b""

    async def json(self) -> Any:
        return json.loads(await self.text())

    async def text(self) -> str:
        return b"".join(part for part in self._parts if isinstance(part, bytes)).decode()

    def close(self) -> None: ...


class StubSession:
    def __init__(self, *parts: bytes | BaseException | None, status: int = 200, **headers: str) -> None:
        self._answer = list(parts), status, {name.replace("_", "-"): value for name, value in headers.items()}

    def post(self, url: str, json: dict[str, Any]) -> StubResponse:
        return StubResponse(*self._answer)


def answer_of(session: StubSession, request: Request = PRINT) -> Answer:
    return asyncio.run(ask(session, "http://nowhere", request, patience=0.05))  # type: ignore[arg-type]


def event(name: str, /, **data: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


STARTED = event("started", kernel_id="k")
OUTPUT = event("output", output_type="stream", name="stdout", text="5\n")
OTHERS = event("output", output_type="stream", name="stdout", text="6\n")
DONE = event("done", status="ok", message=None, execution_count=1, seconds=0.1)


def ended(status: str, message: str | None = "the reason") -> bytes:
    return event("done", status=status, message=message, execution_count=None, seconds=0.1)


def test_answer_in_any_parts_is_taken() -> None:
    whole = STARTED + OUTPUT + DONE
    for size in (1, 7, len(whole)):
        answer = answer_of(StubSession(*(whole[at : at + size] for at in range(0, len(whole), size))))
        assert (answer.outcome, answer.output) == ("ok", "5\n")
        assert answer.first is not None
        assert answer.done is not None
        assert answer.first <= answer.done


@pytest.mark.parametrize("kind", KINDS)
def test_number_of_a_request_is_not_in_its_code(kind: str) -> None:
    request = Request.make(kind, Random(1), is_fresh=True)
    number = request.output.split()[-1]
    assert len(number) > 10
    assert number not in request.code
    assert Request.make(kind, Random(2), is_fresh=True).output != request.output


@pytest.mark.parametrize(
    "parts",
    [
        [STARTED, OTHERS, DONE],
        [STARTED, OUTPUT, OTHERS, DONE],
        [STARTED, OTHERS, ended("died")],
        [STARTED, DONE],
        [STARTED, OUTPUT],
        [STARTED, OUTPUT, DONE, DONE],
        [STARTED, DONE, OUTPUT],
        [OUTPUT, DONE],
        [STARTED, OUTPUT, event("bye"), DONE],
        [STARTED, OUTPUT, DONE[:-1]],
        [STARTED, b"data: {}\n\n", OUTPUT, DONE],
        [STARTED, b"event: output\ndata: {\n\n", DONE],
        [STARTED, ended("died", message=None)],
        [STARTED, event("output", output_type="stream"), DONE],
        [STARTED, event("output", output_type="execute_result", data=1), DONE],
        [STARTED, ended("error")],
        [],
    ],
)
def test_answer_that_is_none_is_wrong(parts: list[bytes]) -> None:
    assert answer_of(StubSession(*parts)).outcome == "wrong"


@pytest.mark.parametrize("status", ["died", "timeout", "failed"])
def test_clear_error_is_one_even_in_the_middle_of_the_output(status: str) -> None:
    assert answer_of(StubSession(STARTED, ended(status))).outcome == status
    assert answer_of(StubSession(STARTED, OUTPUT, ended(status))).outcome == status


def test_refusal_has_to_say_why_and_until_when() -> None:
    answer = answer_of(StubSession(b'{"error": "full"}', status=503, Retry_After="2"))
    assert (answer.outcome, answer.reason, answer.retry_after) == ("refused", "full", 2)
    assert answer_of(StubSession(b'{"error": "full"}', status=503)).outcome == "wrong"
    assert answer_of(StubSession(b'{"error": ""}', status=503, Retry_After="2")).outcome == "wrong"
    assert answer_of(StubSession(b"oops", status=500)).outcome == "wrong"


def test_connection_that_breaks_off_is_no_answer() -> None:
    assert answer_of(StubSession(STARTED, aiohttp.ClientPayloadError("gone"))).outcome == "broken"
    assert answer_of(StubSession(STARTED, ConnectionResetError("gone"))).outcome == "broken"


def test_answer_that_does_not_end_hangs() -> None:
    assert answer_of(StubSession(STARTED, OUTPUT, None)).outcome == "hung"


def test_request_that_leaves_must_have_had_its_output() -> None:
    request = Request("leave", "", "5\n", "ok")
    assert answer_of(StubSession(STARTED, OUTPUT, None), request).outcome == "left"
    assert answer_of(StubSession(STARTED, OTHERS, None), request).outcome == "wrong"


def test_code_that_is_to_die_may_do_so_before_its_time() -> None:
    request = Request("exit", "", "5\n", "died")
    assert answer_of(StubSession(STARTED, OUTPUT, ended("died")), request).outcome == "ok"
    assert answer_of(StubSession(STARTED, ended("died")), request).outcome == "died"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["127.0.0.1:8000"], "not a URL such as http://127.0.0.1:8000: 127.0.0.1:8000"),
        (["http://nowhere", "--concurrent", "0"], "must be 1 or more"),
        (["http://nowhere", "--kinds", "prnt"], "no such kind: prnt"),
        (["http://nowhere", "--kill", "1"], "--kill needs the --pid"),
    ],
)
def test_bad_options_are_a_clear_error(arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert says in capsys.readouterr().err
