"""Pools: how long a caller waits for a kernel of its own, and how long until the pool has the next warm kernel.

| operation    | time                                                                      | kernels of the pool |
| ------------ | ------------------------------------------------------------------------- | ------------------- |
| `check-out`  | a caller waits for a kernel that is warm                                  | 1                   |
| `warm again` | from the release of a kernel until the pool has a warm one                | 1                   |
| `queue`      | a caller waits while others do; also the callers that are served a second | 4                   |

| client                | the kernel of the next caller                        |
| --------------------- | ---------------------------------------------------- |
| `kclient`             | a new process                                        |
| `kclient, fork server`| a process that is forked                             |
| `kclient, used again` | the same kernel (`max_uses`)                         |
| `jupyter_client`      | the same kernel, restarted: a MultiKernelManager has |
|                       | no pool, and its check-out is the start of a kernel  |
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from time import perf_counter, perf_counter_ns

import gevent
from jupyter_client.multikernelmanager import MultiKernelManager

import kclient
from benchmarks.report import Options, Report, parse, run_script
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.table import figure

START_TIMEOUT_S = 60.0
"""Seconds for a kernel to start while others start, too."""

EXECUTED, FORKED, AGAIN, JUPYTER = "kclient", "kclient, fork server", "kclient, used again", "jupyter_client"

USES = 10**9
"""The `max_uses` of a kernel that is never replaced."""

AT_A_TIME = {EXECUTED: 1, FORKED: 4, AGAIN: 20}
"""Check-outs in a round: more where the next kernel is warm sooner."""

JUPYTER_EVERY = 5
"""jupyter_client takes part in one of so many rounds, since its check-out takes a second and a half."""

CALLERS, KERNELS = 16, 4

Times = tuple[int, int]
"""Nanoseconds of a check-out, and from the release until there is a warm kernel again."""


@contextmanager
def pools(size: int) -> Iterator[dict[str, kclient.KernelPool]]:
    """A warm pool of each kind; without encryption, as jupyter_client."""
    with ExitStack() as stack:
        launcher = stack.enter_context(kclient.ForkServer())
        found = {
            EXECUTED: stack.enter_context(kclient.KernelPool(size=size, encryption="off")),
            FORKED: stack.enter_context(kclient.KernelPool(size=size, encryption="off", launcher=launcher)),
            AGAIN: stack.enter_context(kclient.KernelPool(size=size, encryption="off", max_uses=USES)),
        }
        for pool in found.values():
            pool.wait_until_warm(START_TIMEOUT_S)
        yield found


def turn(pool: kclient.KernelPool) -> Times:
    """Check out a kernel, run code, release it, and wait until the pool is warm again."""
    start = perf_counter_ns()
    kernel = pool.acquire(START_TIMEOUT_S)
    checked_out = perf_counter_ns() - start
    kernel.run("None", timeout=START_TIMEOUT_S)
    start = perf_counter_ns()
    pool.release(kernel)
    pool.wait_until_warm(START_TIMEOUT_S)
    return checked_out, perf_counter_ns() - start


def turn_of_jupyter_client(manager: MultiKernelManager) -> Times:
    """Start a kernel for one caller, and restart it for the next, which is faster than to start another."""
    start = perf_counter_ns()
    kernel_id = manager.start_kernel(kernel_name="python3", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        become_ready(manager, kernel_id)
        started = perf_counter_ns() - start
        start = perf_counter_ns()
        manager.restart_kernel(kernel_id, now=True)
        become_ready(manager, kernel_id)
        return started, perf_counter_ns() - start
    finally:
        manager.shutdown_kernel(kernel_id, now=True)


def become_ready(manager: MultiKernelManager, kernel_id: str) -> None:
    client = manager.get_kernel(kernel_id).client()
    client.start_channels()
    client.wait_for_ready(timeout=START_TIMEOUT_S)
    client.stop_channels()


def measure_turns(options: Options) -> tuple[dict[str, Recorder], dict[str, Recorder]]:
    """The latencies of check-outs and of `warm again`, by client. The clients take turns."""
    rounds = options.pick(100, 1)
    waits, replacements = ({name: Recorder() for name in [*AT_A_TIME, JUPYTER]} for _ in range(2))
    jupyter = MultiKernelManager()

    def note(name: str, times: Times) -> None:
        waits[name].record([times[0]])
        replacements[name].record([times[1]])

    with pools(1) as found, ProgressLine("check-out", rounds) as progress:
        for number in range(rounds):
            for name, pool in found.items():
                for _ in range(options.pick(AT_A_TIME[name], 1)):
                    note(name, turn(pool))
            if number % JUPYTER_EVERY == 0:
                note(JUPYTER, turn_of_jupyter_client(jupyter))
            progress.advance()
    return waits, replacements


def measure_queue(options: Options) -> tuple[dict[str, Recorder], dict[str, float]]:
    """The latencies of check-outs while callers queue, and the callers that are served a second, by client."""
    callers, kernels = options.pick(CALLERS, 2), options.pick(KERNELS, 1)
    rounds = options.pick(5, 1)
    waits = {name: Recorder() for name in AT_A_TIME}
    seconds = dict.fromkeys(AT_A_TIME, 0.0)
    with pools(kernels) as found, ProgressLine(f"{callers} callers", rounds * len(found)) as progress:
        for _ in range(rounds):
            for name, pool in found.items():
                start = perf_counter()
                jobs = [gevent.spawn(one_of_many, pool) for _ in range(callers)]
                gevent.joinall(jobs, raise_error=True)
                seconds[name] += perf_counter() - start
                waits[name].record(job.value for job in jobs)
                pool.wait_until_warm(START_TIMEOUT_S)
                progress.advance()
    return waits, {name: rounds * callers / spent for name, spent in seconds.items()}


def one_of_many(pool: kclient.KernelPool) -> int:
    start = perf_counter_ns()
    with pool.kernel(START_TIMEOUT_S) as kernel:
        waited = perf_counter_ns() - start
        kernel.run("6 * 7", timeout=START_TIMEOUT_S, check=True)
    return waited


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("pool", __doc__ or "", argv)
    report = Report("pool", options)
    waits, replacements = measure_turns(options)
    report.add_calls("", "check-out", waits)
    report.add_calls("", "warm again", replacements)
    waits, served = measure_queue(options)
    extra = {name: {"served_per_s": rate} for name, rate in served.items()}
    report.add_calls("", "queue", waits, extra=extra, columns=[figure("served per s", "served_per_s", 1)])
    report.say(f"queue: {CALLERS} callers come at once, for {KERNELS} kernels, and run one line each.")
    report.finish()


if __name__ == "__main__":
    run_script(main)
