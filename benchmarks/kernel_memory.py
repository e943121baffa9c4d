"""The memory of many kernels: each in a new process, or forked from one process, with which they then share memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack

import gevent

import kclient
from benchmarks.descendants import descendants, kib
from benchmarks.report import Options
from kclient.bench.progress import ProgressLine
from kclient.bench.results import Row
from kclient.bench.table import figure

KERNELS = 50

START_TIMEOUT_S = 300.0
"""Seconds for a kernel to start while all others start, too."""

KINDS = {
    "kclient": (False, ""),
    "kclient, fork server": (True, ""),
    "kclient, numpy": (False, "numpy"),
    "kclient, fork server, numpy": (True, "numpy"),
}
"""By name: whether the kernels are forked, and the module that they import. Forked kernels have it preloaded."""

COLUMNS = [
    figure("kernels", "n"),
    figure("KiB RssAnon", "anonymous_kib"),
    figure("KiB its own", "private_kib"),
    figure("KiB with its share", "share_kib"),
]


def kernel_memory(options: Options) -> list[Row]:
    """A row for each of `KINDS`, in KiB a kernel.

    | column             | memory that is shared by n processes counts |
    | ------------------ | ------------------------------------------- |
    | KiB RssAnon        | in full                                     |
    | KiB its own        | not at all                                  |
    | KiB with its share | as one nth (Pss)                            |

    The process from which kernels are forked is one of the n.
    """
    rows = []
    with ProgressLine("memory of kernels", len(KINDS)) as progress:
        for name, (is_forked, module) in KINDS.items():
            found = memory_of(options.pick(KERNELS, 1), module, is_forked=is_forked)
            rows.append(Row("scale", "", name, "memory of a kernel", options.pick(KERNELS, 1), extra=found))
            progress.advance()
    return rows


def memory_of(count: int, module: str, *, is_forked: bool) -> dict[str, float]:
    """The mean of `count` kernels that are ready and have imported `module`."""
    known = {*descendants(os.getpid())}
    kernels: list[kclient.KernelManager] = []
    with ExitStack() as stack:
        launcher = stack.enter_context(kclient.ForkServer([module] if module else [])) if is_forked else None

        def start() -> None:
            kernels.append(stack.enter_context(kclient.start_kernel(launcher=launcher, timeout=START_TIMEOUT_S)))
            kernels[-1].run(f"import {module}" if module else "None", timeout=START_TIMEOUT_S, check=True)

        gevent.joinall([gevent.spawn(start) for _ in range(count)], raise_error=True)
        pids = [kernel.process.pid for kernel in kernels if kernel.process is not None]
        found = {
            "anonymous_kib": total(pids, "status", "RssAnon:") / count,
            "private_kib": total(pids, "smaps_rollup", "Private_") / count,
            "share_kib": total({*descendants(os.getpid())} - known, "smaps_rollup", "Pss:") / count,
        }
        gevent.joinall([gevent.spawn(kernel.shutdown_kernel, now=True) for kernel in kernels], raise_error=True)
        return found


def total(pids: Iterable[int], file: str, field: str) -> int:
    return sum(kib(pid, file, field) for pid in pids)
