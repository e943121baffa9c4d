"""Fixtures that start the kernels of the catalog: one of each for all features that leave it unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from catalog import ROWS, Row
from features import OF_ITS_OWN

import kclient

START = 60
"""Seconds that a kernel may take to start, on a busy machine."""


@attrs.frozen
class Driven:
    """A kernel to drive, over a transport."""

    row: Row
    transport: str
    ip: str | None = None

    def start(self, feature: str = "") -> kclient.KernelManager:
        """Start a kernel and wait until it is ready. Its ip is short enough for the socket paths of all kernels."""
        manager = kclient.KernelManager(self.row.name, transport=self.transport, ip=self.ip)
        if feature == "interrupt by message":
            manager.kernel_spec.interrupt_mode = "message"
        manager.start_kernel()
        try:
            manager.start_channels()
            manager.wait_for_ready(START)
            assert not self.row.prepare or manager.run(self.row.prepare, timeout=START).ok
        except BaseException:
            manager.shutdown_kernel(now=True)
            raise
        return manager


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """All kernels over all of their transports with `--require-kernels`, else those of the ordinary suite."""
    everything = metafunc.config.getoption("--require-kernels")
    driven = [(row, transport) for row in ROWS for transport in (row.transports if everything else row.ordinary)]
    if "refuser" in metafunc.fixturenames:
        rows = [row for row in ROWS if row.ipc_gap is not None and (everything or row.ordinary)]
        metafunc.parametrize("refuser", rows, ids=[row.name for row in rows])
    elif "driven" in metafunc.fixturenames:
        ids = [f"{row.name}-{transport}" for row, transport in driven]
        metafunc.parametrize("driven", driven, ids=ids, indirect=True, scope="module")


@pytest.fixture(scope="session")
def prepare(request: pytest.FixtureRequest, session_folder: Path) -> Iterator[Callable[[Row], None]]:
    """Make the spec of a kernel findable. The test of a kernel that is not installed is skipped, or fails."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JUPYTER_PATH", str(session_folder / "interop"))

        def prepare(row: Row) -> None:
            if row.version is not None:
                row.write_spec(session_folder / "interop")
                return
            missing = f"{row.package} is not installed: {row.install}"
            if request.config.getoption("--require-kernels"):
                pytest.fail(missing)
            pytest.skip(missing)

        yield prepare


@pytest.fixture(scope="module")
def driven(request: pytest.FixtureRequest, prepare: Callable[[Row], None], session_folder: Path) -> Driven:
    """The kernel to drive, and its transport."""
    row, transport = request.param
    prepare(row)
    return Driven(row, transport, str(session_folder / "i") if transport == "ipc" else None)


@pytest.fixture(scope="module")
def shared(driven: Driven, warm: None) -> Iterator[kclient.KernelManager]:
    """The kernel for all features that leave it unchanged."""
    with driven.start() as manager:
        yield manager


@pytest.fixture
def kernel(driven: Driven, feature: str, shared: kclient.KernelManager) -> Iterator[kclient.KernelManager]:
    """A ready kernel for `feature`."""
    if feature not in OF_ITS_OWN:
        yield shared
        return
    with driven.start(feature) as manager:
        yield manager


@pytest.fixture
def report(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Append an outcome to the file of `--kernels-report`, as a JSON object in a line."""
    path: Path | None = request.config.getoption("--kernels-report")

    def report(row: Row, transport: str, feature: str, seen: str, **facts: str) -> None:
        if path is not None:
            line = {"kernel": row.name, "version": row.version, "transport": transport, "feature": feature, **facts}
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**line, "seen": seen}) + "\n")

    return report
