"""The fixtures of every test: folders of its own, a check for leaks, an end if it hangs, and kernels."""

from __future__ import annotations

import clone  # noqa: F401  # before all others: it raises if kclient is not that of this clone

# isort: split
import gc
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import gevent
import greenlet
import hypothesis
import leaks
import pytest
import zmq
from _pytest.outcomes import Failed
from figures import Figures
from fixtures import (
    await_arrival,
    background,
    client,
    gate,
    install_kernel,
    make_gate,
    run_script,
    start_script,
)
from places import places
from queue_transport import QueueTransport

from kclient.client import kernel_client
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking
from kclient.transport.zmq.context import context

if TYPE_CHECKING:
    import kclient

__all__ = [
    "await_arrival",
    "background",
    "client",
    "gate",
    "install_kernel",
    "make_gate",
    "places",
    "run_script",
    "start_script",
]

sys.path.append(str(Path(__file__).resolve().parent.parent))
"""The folder that holds `benchmarks`, behind the installed packages: the kclient to test may be one of them."""

hypothesis.settings.register_profile("kclient", derandomize=True, deadline=None)
hypothesis.settings.load_profile("kclient")

REAL_KERNELS = {"shared_kernel", "kernel", "kernel_manager", "start_kernel", "real_kernel"}
"""Fixtures that start a kernel. A test that uses one gets the mark."""

START = 30
"""Seconds that a kernel may take to start, on a busy machine."""

HISTORY_IS_SAVED_LATER = "c = get_config()\nc.HistoryManager.db_cache_size = 10_000\n"
"""An interrupt can leave IPython with two lines of one number. IPython reports it when it saves them, in later code."""

CLEAN = """%reset -f
get_ipython().history_manager.writeout_cache()
get_ipython().execution_count = len(get_ipython().history_manager.input_hist_raw)
"""
"""Runs in the shared kernel after each test. After those two lines of one number, the last line counts aright again."""

HUNG_AGAIN = 15
"""Seconds after which a test that was already ended once is ended again, if its teardown hangs."""

_number = count(1)
_failed = pytest.StashKey[bool]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kclient")
    group.addoption("--long", action="store_true", help="faults at full size, with bounds on time, on an idle machine")
    group.addoption(
        "--figures", metavar="FILE", type=Path, help="append what was measured to FILE, a JSON object a line"
    )
    group.addoption("--require-kernels", action="store_true", help="drive every kernel of tests/interop; none may lack")
    group.addoption(
        "--kernels-report", metavar="FILE", type=Path, help="append what each kernel showed to FILE, as JSON"
    )
    group.addoption("--chaos-seconds", metavar="N", type=float, help="how long the chaos lasts: 20 s, --long 600")
    group.addoption("--chaos-seed", metavar="N", type=int, default=1, help="what all of its random choices come from")


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Options for the size of the tests and for the file of their figures."""
    config = request.config
    return Figures(config.getoption("--long"), request.node.nodeid, config.getoption("--figures"))


def pytest_configure() -> None:
    """Let a Ctrl-C reach the programs that tests start, also if a script started pytest with ``&``.

    Such a pytest ignores SIGINT, and so does each program that it starts. A signal that has a handler here has its
    default there.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that use a real kernel, before ``-m`` chooses."""
    for item in items:
        if REAL_KERNELS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.kernel)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.stash[_failed] = True
    return report


# A test that hangs


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """End a test that takes too long by an exception in its own greenlet, with the stacks of all others.

    pytest-timeout's methods fit no greenlets: "signal" raises in whichever greenlet runs, which may
    swallow it and so let the test pass; "thread" ends the whole run, and shows the hub's stack only.
    """
    main = greenlet.getcurrent()

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        current = greenlet.getcurrent()
        running = f"{current!r} in {leaks.lines(frame, 10)}"
        failure = Failed("\n".join([f"more than {settings.timeout:g} s", f"running: {running}", *leaks.everyone()]))
        if current is main:
            raise failure
        hub = gevent.get_hub()
        hub.loop.run_callback(main.throw, failure)
        if current is not hub:
            raise gevent.GreenletExit  # this greenlet may be in a loop that never lets the hub run

    old = signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, HUNG_AGAIN)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]  # pytest-timeout's own hook calls it
    return True


# Folders


@pytest.fixture(scope="session", autouse=True)
def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a short path for all files of this run. The user's own folders get none."""
    tmp_path_factory.getbasetemp()  # pytest's own, before TMPDIR points into this folder
    short = "/tmp" if Path("/tmp").is_dir() else None  # an ipc path may have 107 bytes
    base = Path(tempfile.mkdtemp(prefix="kc-", dir=short))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("JUPYTER_PATH", "JUPYTER_CONFIG_PATH", "JPY_PARENT_PID", "JPY_SESSION_NAME", "PYTHONSTARTUP"):
            patch.delenv(name, raising=False)
        for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "XDG_CONFIG_HOME"):
            patch.setenv(name, make(base / name.lower()))
        profile = Path(make(base / "ipythondir" / "profile_default"))
        (profile / "ipython_config.py").write_text(HISTORY_IS_SAVED_LATER, encoding="utf-8")
        use_folder(patch, base)
        yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(autouse=True)
def folder(session_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of one test. JUPYTER_RUNTIME_DIR and TMPDIR are in it."""
    base = session_folder / str(next(_number))
    use_folder(monkeypatch, base)
    yield base
    shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def runtime_dir(folder: Path) -> Path:
    """The folder of connection files."""
    return folder / "r"


def use_folder(patch: pytest.MonkeyPatch, base: Path) -> None:
    patch.setenv("JUPYTER_RUNTIME_DIR", make(base / "r"))
    patch.setenv("TMPDIR", make(base / "t"))
    patch.setattr(tempfile, "tempdir", str(base / "t"))


def make(path: Path) -> str:
    path.mkdir(parents=True, mode=0o700)
    return str(path)


# Leaks


@pytest.fixture(scope="session", autouse=True)
def warm() -> None:
    """Open what a process opens once and keeps: the descriptors of the hub and the threads of the ZeroMQ context."""
    hub = gevent.get_hub()
    hub.loop.run_callback_threadsafe(lambda: None)
    parking = Parking(Owner())
    hub.loop.run_callback(parking.wake)
    parking.wait(Deadline(None))  # makes the pipe by which a signal wakes the loop
    child = hub.loop.async_()
    child.start(lambda: None)
    leaks.turn_loop()
    child.stop()
    child.close()
    context().socket(zmq.PAIR).close(0)  # the first socket starts the threads
    leaks.turn_loop()


@pytest.fixture(scope="module", autouse=True)
def frozen(warm: None) -> None:
    """Freeze older objects, such as modules and reports: no collection looks through them again after a test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest, frozen: None, folder: Path) -> Iterator[None]:
    """Fail a test that passed and leaves a greenlet, descriptor, process, thread or file.

    What a fixture of wider scope holds, such as `shared_kernel`, was there before and does not count.
    """
    before = leaks.Snapshot(environment=str(folder / "r"), directories=[folder / "r", folder / "t"])
    yield
    if request.node.stash.get(_failed, False):
        return  # the traceback keeps the objects of the test
    if left := before.leaks():
        pytest.fail(f"{request.node.nodeid} left behind:\n" + "\n".join(left), pytrace=False)


# Kernels


@pytest.fixture(autouse=True)
def line_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line between a test's clients and their kernel: ZeroMQ or, if a file asks for it, queues in memory."""
    kind = getattr(request, "param", "zmq")
    if kind == "queues":
        monkeypatch.setattr(kernel_client, "new_transport", QueueTransport)
    return str(kind)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests of a file with ``BOTH_LINES`` over both kinds of line; a test marked `zmq_only` over one."""
    if getattr(metafunc.module, "BOTH_LINES", False) and not metafunc.definition.get_closest_marker("zmq_only"):
        metafunc.parametrize("line_kind", ["zmq", "queues"], indirect=True)


@pytest.fixture(scope="session", params=["tcp", "ipc"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both transports in turn. The fixture has session scope, so that `shared_kernel` starts once for each."""
    return str(request.param)


@pytest.fixture(scope="session")
def shared_kernel(transport: str, session_folder: Path, warm: None) -> Iterator[SharedKernel]:
    """One real kernel for all tests that leave it as they found it. Tests ask for `kernel`."""
    import kclient

    with kclient.start_kernel(transport=transport, timeout=START) as manager:
        manager.run("None", timeout=START)
        yield SharedKernel(manager)


@pytest.fixture
def kernel(shared_kernel: SharedKernel, request: pytest.FixtureRequest) -> Iterator[kclient.KernelManager]:
    """A ready kernel over each transport, whose user namespace is empty. Don't restart, kill or close it."""
    if shared_kernel.broken_by:
        shared_kernel.manager.restart_kernel(now=True, timeout=START)
    shared_kernel.broken_by = request.node.nodeid
    yield shared_kernel.manager
    assert shared_kernel.manager.run(CLEAN, silent=True, timeout=START).ok
    shared_kernel.manager.iopub_channel.flush()
    shared_kernel.join_watchers()
    shared_kernel.broken_by = None


class SharedKernel:
    def __init__(self, manager: kclient.KernelManager) -> None:
        self.manager = manager
        self.broken_by: str | None = None

    def join_watchers(self) -> None:
        """Wait for greenlets that still ask about answers of the test: on a busy machine, one may have come late."""
        watchers = self.manager.client.kernel_connection.watchdog._watchers
        gevent.joinall(list(watchers.values()), timeout=START)


@pytest.fixture
def start_kernel() -> Iterator[Callable[..., kclient.KernelManager]]:
    """`kclient.start_kernel`; its kernels are ended with the test."""
    import kclient

    with ExitStack() as stack:

        def start(*args: Any, **kwargs: Any) -> kclient.KernelManager:
            return stack.enter_context(kclient.start_kernel(*args, **{"timeout": START, **kwargs}))

        yield start


@pytest.fixture
def kernel_manager(start_kernel: Callable[..., kclient.KernelManager], transport: str) -> kclient.KernelManager:
    """A kernel of the test's own, over each transport, to restart, kill or close."""
    return start_kernel(transport=transport)
