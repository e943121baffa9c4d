"""The service under gunicorn's gevent workers: each worker has a pool, which starts and ends with it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import gevent
import leaks
import pytest
from endings import ending
from fixtures import WAIT, Gate
from gevent import socket
from gevent.event import Event
from serving import SERVER, read_event

import kclient
from benchmarks.descendants import descendants

pytest.importorskip("gunicorn")

if not (leaks.PROC and hasattr(os, "pidfd_open")):
    pytest.skip("nothing tells here of the processes of others", allow_module_level=True)

CONFIGURATION = ["-c", str(SERVER / "gunicorn_conf.py")]

PARENT = "import os; print(os.getppid(), end='')"


class Gunicorn:
    """gunicorn in a process of its own, which listens on a socket in `folder`."""

    def __init__(self, folder: Path, *arguments: str, kernels: int = 1, preload: str = "") -> None:
        self._path = str(folder / "gunicorn")
        environment = {
            "PYTHONPATH": f"{Path(kclient.__file__).parents[1]}{os.pathsep}{folder}",
            "JUPYTER_RUNTIME_DIR": str(folder / "r"),
            "TMPDIR": str(folder / "t"),
            "POOL_SIZE": str(kernels),
            "POOL_PRELOAD": preload,
            "ALLOW_HOSTS": "service.example",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gunicorn", "--bind", f"unix:{self._path}", *arguments],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env=os.environ | environment,
        )
        self._log: list[str] = []
        self.await_log("Listening at")

    def await_log(self, pattern: str) -> str:
        """Wait for a log line with `pattern`; returns its last group, or the match."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._log.append(line)
            if match := re.search(pattern, line):
                return match[match.lastindex or 0]
        raise AssertionError("".join(self._log))

    def await_worker(self) -> int:
        """The process number of the next worker."""
        return int(self.await_log(r"Booting worker with pid: (\d+)"))

    @contextmanager
    def request(self, path: str, body: bytes = b"", host: str = "localhost") -> Iterator[BinaryIO]:
        """The answer, as a file to read as it comes."""
        head = f"{'POST' if body else 'GET'} {path} HTTP/1.0\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        with closing(socket.socket(socket.AF_UNIX)) as client:
            client.connect(self._path)
            client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            with client.makefile("rb") as answer:
                yield answer

    def read(self, path: str) -> Any:
        """The JSON at that path."""
        with self.request(path) as answer:
            return json.loads(answer.read().partition(b"\r\n\r\n")[2])

    def run(self, code: str, on_output: Callable[[], object] = bool) -> str:
        """Run the code; returns its output. `on_output` is called after each output."""
        printed = ""
        with self.request("/run", json.dumps({"code": code}).encode()) as answer:
            while answer.readline().strip():
                pass
            for name, data in iter(lambda: read_event(answer), None):
                if name == "output":
                    printed += data["text"]
                    on_output()
        assert (name, data["status"]) == ("done", "ok"), data
        return printed

    def end(self) -> None:
        """Ask the server to end, and wait until it has ended."""
        self.process.terminate()
        self.await_end()

    def await_end(self) -> None:
        _, rest = self.process.communicate(timeout=WAIT)
        assert self.process.returncode == 0, "".join(self._log) + rest


@pytest.fixture
def start_gunicorn(folder: Path) -> Iterator[Callable[..., Gunicorn]]:
    """Start gunicorn. A server that still runs at the end of the test is killed."""
    started: list[Gunicorn] = []

    def start(*arguments: str, **pool: str) -> Gunicorn:
        started.append(Gunicorn(folder, *arguments, **pool))
        return started[-1]

    yield start
    for server in started:
        with server.process:
            server.process.kill()


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class Service(Gunicorn):
    """The service, in two workers, each with two kernels."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, *CONFIGURATION, kernels=2)
        self.workers: list[int] = []

    def await_workers(self) -> None:
        """Await two new workers that serve. Before that a worker does not notice that it is told to end."""
        self.workers = [self.await_worker(), self.await_worker()]
        for worker in self.workers:
            assert self.run_in(worker, PARENT) == str(worker)

    def run_in(self, worker: int, code: str) -> str:
        """Run code in a kernel of `worker`, while the other worker stands still; returns the output."""
        (other,) = set(self.workers) - {worker}
        with stopped(other):
            return self.run(code)


@pytest.fixture(scope="module")
def service(session_folder: Path, warm: None) -> Iterator[Service]:
    folder = session_folder / "gunicorn"
    folders = [folder / "r", folder / "t"]
    for path in folders:
        path.mkdir(parents=True, mode=0o700)
    before = leaks.Snapshot(environment=str(folder), directories=folders)
    service = Service(folder)
    with service.process:
        try:
            service.await_workers()
            yield service
            service.end()
        finally:
            service.process.kill()
    assert leaks.settled(lambda: [*before.new_processes(), *before.new_files()]) == []


@pytest.mark.kernel
def test_each_worker_has_kernels_of_its_own(service: Service) -> None:
    kernels = [service.run_in(worker, PARENT) for worker in service.workers]
    assert kernels == [str(worker) for worker in service.workers]


@pytest.mark.kernel
@pytest.mark.parametrize(("host", "status"), [("service.example", b" 200 "), ("elsewhere.example", b" 403 ")])
def test_it_is_served_under_the_names_that_are_allowed(service: Service, host: str, status: bytes) -> None:
    with service.request("/health", host=host) as answer:
        assert status in answer.readline()


@pytest.mark.kernel
def test_requests_run_side_by_side(service: Service, folder: Path) -> None:
    path = str(folder / "pipe")
    os.mkfifo(path)
    reader = gevent.spawn(service.run, f"print(open({path!r}).read())")
    writer = gevent.spawn(service.run, f"open({path!r}, 'w').write('from the other'); print('written')")
    assert writer.get(timeout=WAIT) == "written\n"
    assert reader.get(timeout=WAIT) == "from the other\n"


@pytest.mark.kernel
def test_worker_that_is_killed_takes_its_kernels_along_and_is_replaced(service: Service) -> None:
    killed, other = service.workers
    with ending(descendants(killed)):
        os.kill(killed, signal.SIGKILL)
    service.workers = [other, service.await_worker()]
    assert service.run_in(service.workers[1], PARENT) == str(service.workers[1])


@pytest.mark.kernel
def test_reload_replaces_workers_and_kernels(service: Service) -> None:
    former = set(service.workers)
    with ending(former.union(*map(descendants, former))):
        service.process.send_signal(signal.SIGHUP)
    service.await_workers()
    assert former.isdisjoint(service.workers)


@pytest.mark.kernel
def test_end_lets_a_request_end_and_leaves_nothing(start_gunicorn: Callable[..., Gunicorn], gate: Gate) -> None:
    server = start_gunicorn(*CONFIGURATION, "--workers", "1", preload="colorsys")
    begun = Event()
    request = gevent.spawn(server.run, f"print('begun', flush=True); {gate.code} print('done')", begun.set)
    assert begun.wait(WAIT)
    there = descendants(server.process.pid)
    assert len(there) == 4  # a worker, the orphan guard, the fork server, a kernel
    with ending(there):
        server.process.terminate()
        server.await_log("Handling signal: term")
        gate.open()
        assert request.get(timeout=WAIT) == "begun\ndone\n"
    server.await_end()


PRELOADED = """
import gevent, json, kclient, os
from kclient.kernels.process.local import LocalLauncher

class Noting(LocalLauncher):
    def start(self, argv, **where):
        starts.append(os.getpid())
        return super().start(argv, **where)

starts = []
pool = kclient.KernelPool(size=1, launcher=Noting())
pool.wait_until_warm(30)
lent = pool.acquire()
late = kclient.KernelPool(size=1, launcher=Noting())  # its kernel starts when the hub has a turn: after the fork

def application(environ, start_response):
    refused = []
    for call in (
        late.acquire, late.stats, late.wait_until_warm, pool.acquire, pool.kernel().__enter__, pool.stats, pool.kernels,
        pool.wait_until_warm, lambda: pool.release(lent), lambda: pool.shutdown_kernel(lent.kernel_id),
        lambda: lent.run("1"),
    ):
        try:
            refused.append(f"no, it returned {call()!r}")
        except kclient.ForkedProcess as exc:
            refused.append("yes")
    pool.close()
    late.close()
    gevent.sleep(1e-3)
    start_response("200 OK", [])
    return [json.dumps({"kernel": lent.process.pid, "starts": starts, "refused": refused}).encode()]
"""


@pytest.mark.kernel
def test_pool_of_the_master_is_refused_in_a_worker_and_outlives_it(
    start_gunicorn: Callable[..., Gunicorn], folder: Path
) -> None:
    (folder / "preloaded.py").write_text(PRELOADED)
    server = start_gunicorn("-k", "gevent", "--preload", "preloaded:application")
    master, worker = server.process.pid, server.await_worker()
    answer = server.read("/")
    kernel = answer["kernel"]
    assert answer == {"kernel": kernel, "starts": [master], "refused": ["yes"] * 11}
    with ending({worker}):
        os.kill(worker, signal.SIGINT)
    assert server.read("/") == answer  # by the next worker
    assert descendants(master)[kernel] == master
    with ending({kernel}):
        server.process.send_signal(signal.SIGINT)
        server.await_end()
