"""The reports of a pool: its state, its kernels, and its events."""

from __future__ import annotations

import attrs


@attrs.frozen
class PoolStats:
    """The state of a pool, and its counters since it was made.

    | attribute                                | it is                                                                |
    |------------------------------------------|----------------------------------------------------------------------|
    | `idle`, `busy`, `starting`               | the number of kernels in that state                                  |
    | `waiting`                                | the number of callers that wait for a kernel                         |
    | `checkouts`                              | how many kernels were handed out                                     |
    | `waits`                                  | how many callers had to wait                                         |
    | `timeouts`                               | how many of those got no kernel in time                              |
    | `starts`                                 | how many starts of a kernel began                                    |
    | `failures`                               | how many of those failed                                             |
    | `deaths`                                 | how many kernels ended by themselves                                 |
    | `recycled`                               | how many kernels were given back                                     |
    | `checkout_p50`, `checkout_p90`,          | seconds from call to kernel, of the latest 1000 check-outs; None     |
    | `checkout_p99`, `checkout_max`           | before the first                                                     |
    | `last_failure`                           | the text of the latest failed start, or latest death of an idle      |
    |                                          | kernel; None if there was none                                       |
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
    """A kernel of a pool. `state` is "starting", "idle", "busy" or "ending"; `age` is in seconds; `uses` counts users.

    `pid` is None until the kernel is ready.
    """

    kernel_id: str
    state: str
    pid: int | None
    uses: int
    age: float


@attrs.frozen
class PoolEvent:
    """An event in a pool, for metrics.

    | `kind`         | it happened that                                 | it has                                       |
    |----------------|--------------------------------------------------|----------------------------------------------|
    | "started"      | a kernel was started                             | `seconds` of the start                       |
    | "start_failed" | a start failed                                   | `seconds` of the start, `error`              |
    | "acquired"     | a caller got a kernel                            | `seconds` of the wait                        |
    | "released"     | a kernel was given back                          |                                              |
    | "recycled"     | a kernel is ready for its next user (`max_uses`) |                                              |
    | "ended"        | the pool ended a kernel                          |                                              |
    | "died"         | a kernel ended by itself                         | `exit_code`, negative for a signal, `error`  |
    | "timeout"      | a caller got no kernel in time                   | `seconds` of the wait; no `kernel_id`        |
    | "closed"       | the pool was closed                              | no `kernel_id`                               |
    """

    kind: str
    kernel_id: str | None = None
    seconds: float | None = None
    exit_code: int | None = None
    error: Exception | None = None
