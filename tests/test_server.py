"""The service of `examples/server`, seen from outside: the answer to each request, and its end."""

from __future__ import annotations

import json
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures import WAIT, Gate
from serving import Run, Service, refusal_to_serve, serving, text_of

pytestmark = pytest.mark.kernel

MAX_CODE = 2000
MAX_OUTPUT = 20_000


@pytest.fixture(scope="module")
def service(session_folder: Path, warm: None) -> Iterator[Service]:
    limits = ["--max-code", str(MAX_CODE), "--max-output", str(MAX_OUTPUT), "--max-time", "1000"]
    with serving("--fork", "--size", "2", "--max-size", "2", "--queue-timeout", str(WAIT), *limits) as service:
        yield service


class LifeLine:
    """A pipe that `code` opens in a kernel. It ends when the kernel has ended or closed it."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.code = f"line = open({str(path)!r}, 'w');"

    def await_end(self) -> None:
        """Wait for the end; raises AssertionError if it does not come."""
        assert select.select([self._number], [], [], WAIT)[0], "the code goes on"
        assert os.read(self._number, 1) == b""

    def close(self) -> None:
        os.close(self._number)


@pytest.fixture
def line(folder: Path) -> Iterator[LifeLine]:
    line = LifeLine(folder / "line")
    yield line
    line.close()


# Running code


def test_output_comes_while_the_code_runs(service: Service, gate: Gate) -> None:
    with Run(service, f"print('before'); {gate.code} print('after'); 6 * 7") as run:
        assert run.output() == {"output_type": "stream", "name": "stdout", "text": "before\n"}
        gate.open()
        outputs, done = run.rest()
    assert text_of(outputs) == "after\n"
    assert outputs[-1]["output_type"] == "execute_result"
    assert outputs[-1]["data"] == {"text/plain": "42"}
    assert (done["status"], done["message"], done["execution_count"]) == ("ok", None, 1)


def test_requests_at_once_get_their_own_output(service: Service, make_gate: Callable[[], Gate]) -> None:
    gates = [make_gate(), make_gate()]
    codes = [f"print({n}); {gate.code} print({n} + 10)" for n, gate in enumerate(gates)]
    with Run(service, codes[0]) as first, Run(service, codes[1]) as second:
        assert first.kernel_id != second.kernel_id
        assert (first.output()["text"], second.output()["text"]) == ("0\n", "1\n")
        for gate in gates:
            gate.open()
        assert text_of(second.rest()[0]) == "11\n"
        assert text_of(first.rest()[0]) == "10\n"


def test_nothing_of_one_request_is_there_for_the_next(service: Service) -> None:
    connection = service.connect()  # one connection for both requests: it is kept alive
    with Run(service, "secret = 1", on=connection) as first:
        first_done = first.rest()[1]
        second = Run(service, "secret", on=connection)
        assert second.kernel_id != first.kernel_id
        assert first_done["status"] == "ok"
        assert second.rest()[1]["message"] == "NameError: name 'secret' is not defined"
    with Run(service, "get_ipython().history_manager.enabled") as third:  # this file is read by all kernels
        assert third.rest()[0][0]["data"]["text/plain"] == "False"


def test_what_a_kernel_publishes_comes_as_it_is(service: Service) -> None:
    code = """
from IPython.display import clear_output, display
shown = display({"text/plain": "1"}, raw=True, display_id="d")
shown.update({"text/plain": "2"}, raw=True)
clear_output(wait=True)
raise ValueError("no")
"""
    with Run(service, code) as run:
        outputs, done = run.rest()
    display, update, clear, error = outputs
    assert display["output_type"] == "display_data"
    assert display["transient"] == update["transient"] == {"display_id": "d"}
    assert (update["output_type"], update["data"]) == ("update_display_data", {"text/plain": "2"})
    assert clear == {"output_type": "clear_output", "wait": True}
    assert (error["output_type"], error["ename"], error["evalue"]) == ("error", "ValueError", "no")
    assert (done["status"], done["message"]) == ("error", "ValueError: no")


def test_input_is_an_error(service: Service) -> None:
    with Run(service, "input()") as run:
        assert run.rest()[1]["message"].startswith("StdinNotImplementedError")


# Limits


def test_code_is_stopped_when_its_time_is_up(service: Service, line: LifeLine) -> None:
    with Run(service, f"{line.code}\nwhile True: pass", timeout=0.1) as run:
        outputs, done = run.rest()
        line.await_end()
    assert outputs == []
    assert (done["status"], done["message"]) == ("timeout", "stopped after 0.1 s")


def test_code_that_writes_too_much_is_stopped(service: Service, line: LifeLine) -> None:
    with Run(service, f"{line.code}\nwhile True: print('x' * 1000, flush=True)") as run:
        outputs, done = run.rest()
        line.await_end()
    assert done["status"] == "too_much_output"
    assert MAX_OUTPUT / 2 < len(text_of(outputs)) <= MAX_OUTPUT


def test_death_of_the_kernel_is_told(service: Service) -> None:
    with Run(service, "import os; os._exit(7)") as run:
        done = run.rest()[1]
    assert done["status"] == "died"
    assert "exit code 7" in done["message"]


def test_code_ends_when_its_client_hangs_up(service: Service, line: LifeLine) -> None:
    with Run(service, f"{line.code}\nprint(1)\nwhile True: pass") as run:
        assert run.output()["text"] == "1\n"
        run.hang_up()
        line.await_end()


# Requests that are refused


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("", "is not JSON"),
        ("print(1)", "is not JSON"),
        (b"\xff", "is not JSON"),
        ("[" * 1900, "is not JSON"),
        ("[]", 'text "code"'),
        ("{}", 'text "code"'),
        ('{"code": 1}', 'text "code"'),
        ('{"code": "1", "timeout": "1"}', '"timeout" must be'),
        ('{"code": "1", "timeout": true}', '"timeout" must be'),
        ('{"code": "1", "timeout": 0}', '"timeout" must be'),
        ('{"code": "1", "timeout": -1}', '"timeout" must be'),
        ('{"code": "1", "timeout": NaN}', '"timeout" must be'),
    ],
)
def test_bad_body_is_refused(service: Service, body: str | bytes, says: str) -> None:
    answer = service.ask("POST", "/run", body)
    assert answer.status == 400
    assert says in answer.error


@pytest.mark.parametrize("timeout", ["null", "1e400", "1" + "0" * 400])
def test_any_timeout_is_cut_to_the_longest(service: Service, timeout: str) -> None:
    answer = service.ask("POST", "/run", f'{{"code": "", "timeout": {timeout}}}')
    assert b'"status":"ok"' in answer.body


def test_code_that_is_too_long_is_refused(service: Service) -> None:
    body = json.dumps({"code": "#" * MAX_CODE})
    answer = service.ask("POST", "/run", body)
    assert answer.status == 413
    assert f"{MAX_CODE} bytes at most" in answer.error
    assert b'"status":"ok"' in service.ask("POST", "/run", json.dumps({"code": "#" * (MAX_CODE - 12)})).body


@pytest.mark.parametrize(
    ("name", "value", "sent"),
    [
        ("Content-Length", str(10**12), b""),
        ("Transfer-Encoding", "chunked", b"%x\r\n%b\r\n" % (MAX_CODE + 1, b" " * (MAX_CODE + 1))),
    ],
)
def test_body_that_is_too_long_is_not_waited_for(service: Service, name: str, value: str, sent: bytes) -> None:
    connection = service.connect()
    connection.putrequest("POST", "/run")
    connection.putheader("Content-Type", "application/json")
    connection.putheader(name, value)
    connection.endheaders(sent)
    with connection.getresponse() as response:
        assert response.status == 413
    if value == "chunked":
        connection.send(b"0\r\n\r\n")  # else the unfinished request is a line in the log
    connection.close()


def test_body_in_chunks_is_taken(service: Service) -> None:
    answer = service.ask("POST", "/run", iter([b'{"code": ', b'"6 * 7"}']))
    assert b'{"text/plain":"42"}' in answer.body


@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "says"),
    [
        ("GET", "/nothing", {}, 404, "there are only"),
        ("GET", "/run", {}, 405, "POST only"),
        ("DELETE", "/stats", {}, 405, "GET only"),
        ("POST", "/run", {"Content_Type": "text/plain"}, 415, "application/json"),
        ("POST", "/run", {"Origin": "http://elsewhere.example"}, 403, "page of another site"),
        ("POST", "/run", {"Origin": "null"}, 403, "page of another site"),
        ("POST", "/run", {"Origin": "http://["}, 403, "page of another site"),
        ("POST", "/run", {"Host": "elsewhere.example"}, 403, "--allow-host"),
        ("GET", "/", {"Host": "elsewhere.example:80"}, 403, "--allow-host"),
        ("GET", "/", {"Host": "["}, 403, "--allow-host"),
    ],
)
def test_request_that_is_not_for_us_is_refused(
    service: Service, method: str, path: str, headers: dict[str, str], status: int, says: str
) -> None:
    answer = service.ask(method, path, '{"code": "1"}', **headers)
    assert answer.status == status
    assert says in answer.error
    assert answer.headers["Allow"] == (says.split()[0] if status == 405 else None)


# The other pages


def test_page_runs_its_own_script_only(service: Service) -> None:
    answer = service.ask("GET", "/", Origin=service.url.rstrip("/"))
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "default-src 'none'; script-src 'sha256-" in answer.headers["Content-Security-Policy"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(("path", "status"), [("/", 200), ("/stats", 200), ("/run", 405)])
def test_head_is_an_answer_without_a_body(service: Service, path: str, status: int) -> None:
    connection = service.connect()
    for _ in range(2):  # a body would be taken for the second answer
        connection.request("HEAD", path)
        with connection.getresponse() as response:
            assert (response.status, response.read()) == (status, b"")
    connection.close()


def test_stats_are_those_of_the_pool(service: Service, gate: Gate) -> None:
    with Run(service, gate.code) as run:
        stats = service.stats()
        assert stats["busy"] >= 1
        assert stats["checkouts"] >= 1
        assert stats["last_failure"] is None
        assert service.ask("GET", "/health").status == 200
        gate.open()
        assert run.rest()[1]["status"] == "ok"


# The whole service


def test_service_with_a_broken_kernel_says_why(install_kernel: Callable[..., str]) -> None:
    kernel = install_kernel("raise SystemExit('no license')")
    with serving("--kernel", kernel) as service:
        answer = service.ask("POST", "/run", '{"code": "1"}')
        assert answer.status == 503
        assert answer.headers["Retry-After"]
        assert "no license" in answer.error
        answer = service.ask("GET", "/health")
        assert answer.status == 503
        assert "no license" in answer.error
        service.script.process.terminate()
        _, stderr = service.script.process.communicate(timeout=WAIT)
        assert stderr.startswith("a kernel did not start: ")
        assert "no license" in stderr


def test_request_that_runs_may_end_before_the_service_does(gate: Gate) -> None:
    with serving("--size", "1", "--grace", str(WAIT)) as service:
        with Run(service, f"print(1, flush=True); {gate.code} print(2)") as run:
            assert run.output()["text"] == "1\n"
            service.script.process.send_signal(signal.SIGTERM)
            assert service.script.read_line() == "closing; 1 requests still run"
            with pytest.raises(ConnectionRefusedError):
                service.ask("GET", "/health")
            gate.open()
            outputs, done = run.rest()
        assert (text_of(outputs), done["status"]) == ("2\n", "ok")
        assert service.script.end() == ""


def test_request_that_runs_too_long_for_a_shutdown_is_told(line: LifeLine) -> None:
    with serving("--size", "1", "--grace", "0.001") as service:
        idle = service.connect()
        idle.connect()  # a connection without a request does not delay the end
        with Run(service, f"{line.code}\nprint(1)\nwhile True: pass") as run:
            assert run.output()["text"] == "1\n"
            assert service.end(signal.SIGINT) == "closing; 1 requests still run"
            assert run.rest()[1]["status"] == "failed"
            line.await_end()
        idle.close()


def test_preloaded_module_and_allowed_host_are_there() -> None:
    with serving("--size", "1", "--preload", "colorsys", "--allow-host", "service.example") as service:
        answer = service.ask("POST", "/run", '{"code": "colorsys.__name__"}', Host="service.example:80")
        assert b'"text/plain":"\'colorsys\'"' in answer.body


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--size", "-1"], "size"),
        (["--max-size", "2"], "max_size"),
        (["--port", "99999"], "cannot listen"),
        (["--max-time", "nan"], "--max-time: must be a number"),
    ],
)
def test_bad_options_are_a_clear_error(arguments: list[str], says: str) -> None:
    message = refusal_to_serve(*arguments)
    assert says in message
    assert "Traceback" not in message


def test_port_that_is_taken_is_a_clear_error(service: Service) -> None:
    message = refusal_to_serve("--port", str(service.port))
    assert "cannot listen: " in message
    assert "Address already in use" in message
