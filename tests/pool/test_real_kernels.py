"""A pool of real kernels: in a program that measures, is interrupted, or just ends."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from figures import Figures
from fixtures import WAIT, Script

from kclient import DeadKernelError, KernelPool

pytestmark = pytest.mark.kernel

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
