"""A pool of real kernels: in a program that measures, is interrupted, or just ends."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from figures import Figures
from fixtures import WAIT, Script

import kclient
from kclient import DeadKernelError, KernelPool

pytestmark = pytest.mark.kernel

NO_HISTORY = ["--HistoryManager.enabled=False"]
"""It saves the start of a kernel some time."""

WARM_UP = "import threading; import time; x = 1; print('noise'); x"


def test_users_get_kernels_that_are_warm_and_as_new() -> None:
    with KernelPool(size=2, warm_up=WARM_UP) as pool:
        for _ in range(2):
            with pool.kernel(timeout=WAIT) as kernel:
                result = kernel.run("print(x); x += 1; x", timeout=WAIT)
                assert (result.stdout, result.text, result.execution_count) == ("1\n", "2", 1)
        with pool.kernel(timeout=WAIT) as kernel, pytest.raises(DeadKernelError):
            kernel.run("import os; os._exit(3)", timeout=WAIT)
        with pool.kernel(timeout=WAIT) as kernel:
            kernel.submit("while True: pass")
        pool.wait_until_warm(WAIT)
        pids = [listed.pid for listed in pool.kernels()]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)
    assert os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]) == []


@pytest.mark.parametrize("code", ["exit()", "quit", "get_ipython().ask_exit()"])
def test_code_that_asks_its_kernel_to_exit_takes_none_from_the_next_user(code: str) -> None:
    with KernelPool(size=1, max_uses=5, extra_arguments=NO_HISTORY) as pool:
        with pool.kernel(timeout=WAIT) as kernel:
            former = kernel.process
            kernel.run(code, timeout=WAIT)
        with pool.kernel(timeout=WAIT) as kernel:
            assert kernel.process is not former
            assert kernel.run("6 * 7", timeout=WAIT).text == "42"
        assert pool.stats().deaths == 0


def test_death_of_a_kernel_whose_code_asked_it_to_exit_says_so() -> None:
    with kclient.start_kernel(timeout=WAIT, extra_arguments=NO_HISTORY) as kernel:
        assert kernel.run("exit()", timeout=WAIT).ok
        assert kernel.process is not None
        assert kernel.process.exited.wait(WAIT)
        with pytest.raises(DeadKernelError) as caught:
            kernel.run("1", timeout=WAIT)
    assert caught.value.headline == "the kernel 'python3' died: its code asked it to exit (exit code 0)"
    assert caught.value.exit_code == 0


LOOK_FOR_TMP = """
import os, tempfile
print(os.environ["TMPDIR"], tempfile.gettempdir(), os.stat(tempfile.gettempdir()).st_mode & 0o777)
"""


@pytest.mark.parametrize("forks", [False, True], ids=["", "forked"])
def test_kernels_that_are_killed_leave_no_temporary_files(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forks: bool
) -> None:
    """IPython makes folders there if HOME cannot be written to, and tempfile makes files to try it."""
    shared = folder / "shared"
    shared.mkdir()
    monkeypatch.setenv("TMPDIR", str(shared))
    monkeypatch.setenv("HOME", "/dev/null/nowhere")
    monkeypatch.delenv("IPYTHONDIR", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    used = set()
    with ExitStack() as stack:
        launcher = stack.enter_context(kclient.ForkServer(["tempfile"])) if forks else None
        pool = stack.enter_context(KernelPool(size=1, launcher=launcher))
        for _ in range(2):
            with pool.kernel(timeout=WAIT) as kernel:
                path, found, mode = kernel.run(LOOK_FOR_TMP, timeout=WAIT).stdout.split()
                assert (path, int(mode)) == (found, 0o700)
                assert os.path.dirname(path) == str(shared)
                kernel.run("os.makedirs(tempfile.mkdtemp() + '/a/b'); os.symlink('/', tempfile.mktemp())", timeout=WAIT)
                used.add(path)
    assert len(used) == 2
    assert os.listdir(shared) == []


@pytest.mark.parametrize(
    ("options", "is_shared"), [({"private_tmp": False}, True), ({"env": {"TMPDIR": "/tmp"}}, False)]
)
def test_tmpdir_can_be_shared_or_chosen(options: dict[str, Any], is_shared: bool) -> None:
    with KernelPool(size=1, extra_arguments=NO_HISTORY, **options) as pool, pool.kernel(timeout=WAIT) as kernel:
        found = kernel.run("import os; print(os.environ.get('TMPDIR'))", timeout=WAIT).stdout.strip()
    assert found == (str(os.environ.get("TMPDIR")) if is_shared else "/tmp")


def test_warm_kernel_is_handed_out_within_a_millisecond(figures: Figures) -> None:
    with KernelPool(size=2, max_uses=10_000) as pool:
        for _ in range(figures.size(10, 1000)):
            pool.wait_until_warm(WAIT)
            with pool.kernel(timeout=0):
                pass
        stats = pool.stats()
    assert stats.starts == 2
    figures.note("check-out of a warm kernel, p99", stats.checkout_p99 * 1000, "ms", at_most=1.0)


def test_ctrl_c_ends_the_wait_for_a_kernel_and_then_the_pool(start_script: Callable[..., Script]) -> None:
    script = start_script(
        "import gevent, kclient\n"
        "with kclient.KernelPool(size=1) as pool, pool.kernel() as kernel:\n"
        "    gevent.spawn_later(0, print, kernel.process.pid, flush=True)\n"  # when the main greenlet waits
        "    try:\n"
        "        with pool.kernel():\n"
        "            print('a kernel')\n"
        "    except KeyboardInterrupt:\n"
        "        print(kernel.run('6 * 7').text, pool.stats().waiting)\n"
    )
    pid = script.read_line()
    script.interrupt()
    assert script.end() == "42 0"
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize("use", ["", "kernel = pool.acquire(30)"])
def test_program_that_just_ends_leaves_nothing(run_script: Callable[..., str], use: str) -> None:
    assert run_script(f"import kclient\npool = kclient.KernelPool(size=2)\n{use}\nprint('done')") == "done"
