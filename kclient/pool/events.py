"""What a pool tells: how it is, what kernels it has, what has happened."""

from __future__ import annotations

import attrs


@attrs.frozen
class PoolStats:
    """How a pool is, and what has happened since it was made.

    `idle`, `busy` and `starting` are numbers of kernels, `waiting` of callers. Of the counters, `checkouts` are kernels
    handed out, `waits` callers that had to wait, `timeouts` those of them in vain, `starts` kernels begun, `failures`
    those that did not come up, `deaths` kernels that ended by themselves, `recycled` kernels that were given back.
    `checkout_p50` and so on are seconds from call to kernel, of the latest 1000 check-outs, None before the first.
    `last_failure` is what the latest start that failed, or the latest idle kernel that died, had to say.
    """

    idle: int
    busy: int
    starting: int
    waiting: int
    checkouts: int
    waits: int
    timeouts: int
    starts: int
    failures: int
    deaths: int
    recycled: int
    checkout_p50: float | None
    checkout_p90: float | None
    checkout_p99: float | None
    checkout_max: float | None
    last_failure: str | None


@attrs.frozen
class PooledKernel:
    """A kernel of a pool: its state is "starting", "idle", "busy" or "ending", its age in seconds; `uses` counts users.

    `pid` is None until it is ready.
    """

    kernel_id: str
    state: str
    pid: int | None
    uses: int
    age: float


@attrs.frozen
class PoolEvent:
    """What happened in a pool, for metrics.

    `kind` is "started", "start_failed" (`error`), "acquired", "released", "recycled" (a released kernel is ready again,
    with max_uses), "ended", "died" (`exit_code`, negative for a signal, and `error`), "timeout" (nobody got a kernel)
    or "closed". `seconds` is what a start, or a caller's wait, took.
    """

    kind: str
    kernel_id: str | None = None
    seconds: float | None = None
    exit_code: int | None = None
    error: Exception | None = None
