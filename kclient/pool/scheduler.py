"""Scheduler: knows the state of a pool's kernels and the queue of its callers, and decides what to do next.

It acts on nothing itself: `Workers` report events to it, and carry out what `next_steps` returns.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator
from copy import copy
from math import ceil, inf
from typing import TYPE_CHECKING, Final

import attrs

from kclient.errors import InvalidState
from kclient.manager.backoff import Backoff
from kclient.pool.events import PoolStats

if TYPE_CHECKING:
    import gevent

    from kclient.pool.lent_kernel import LentKernel

STARTING, IDLE, BUSY, ENDING = STATES = ("starting", "idle", "busy", "ending")

EXTRA_IDLE_S: Final = 10.0
"""Seconds that a kernel beyond `size` may be idle: longer than a pause between bursts of callers, and than a start."""

FAILURES_BEFORE_REFUSAL: Final = 4
"""Failures in a row after which callers get the error. Fewer may be kills from outside. Their pauses take 0.3 s."""

MEASURED_CHECKOUTS: Final = 1000
"""Number of latest check-outs that the percentiles are taken from."""


@attrs.define(eq=False)
class PoolEntry:
    """A kernel of the pool. `Workers` set `kernel` and `starter`; the scheduler does not use them."""

    kernel_id: str
    began: float
    state: str = STARTING
    ready_at: float = inf
    idle_since: float = 0.0
    uses: int = 0
    kernel: LentKernel | None = None
    starter: gevent.Greenlet[..., None] | None = None


@attrs.define(eq=False)
class Checkout:
    """A caller's place in the queue. The scheduler sets `entry` or `error`; then the pool must call `wake`."""

    since: float
    wake: Callable[[], None]
    entry: PoolEntry | None = None
    error: Exception | None = None

    @property
    def is_settled(self) -> bool:
        return self.entry is not None or self.error is not None


@attrs.define
class Counters:
    """The counters of `PoolStats`."""

    checkouts: int = 0
    waits: int = 0
    timeouts: int = 0
    starts: int = 0
    failures: int = 0
    deaths: int = 0
    recycled: int = 0


@attrs.frozen
class Steps:
    """The next actions: kernels to start, to make ready for the next user and to end, callers to wake."""

    start: list[PoolEntry]
    renew: list[PoolEntry]
    end: list[PoolEntry]
    wake: list[Checkout]


class Scheduler:
    """Methods that report an event take the time `now`, in seconds. After an event the pool must call `next_steps`.

    At most `starters` kernels start at a time.
    """

    def __init__(
        self, size: int, max_size: int, *, max_uses: int = 1, max_age: float | None = None, starters: int = 1
    ) -> None:
        self.size = size
        self.max_size = max_size
        self.max_uses = max_uses
        self.max_age = inf if max_age is None else max_age
        self.starters = starters
        self.counters = Counters()
        self.checkout_seconds: deque[float] = deque(maxlen=MEASURED_CHECKOUTS)
        self.last_failure: Exception | None = None
        self.is_closed = False
        self._states: dict[str, dict[PoolEntry, None]] = {state: {} for state in STATES}
        self._queue: dict[Checkout, None] = {}
        self._backoff = Backoff(limit=None)
        self._retry_at = 0.0
        self._failed_at = -inf
        self._renewing: set[PoolEntry] = set()
        self._renew: list[PoolEntry] = []
        self._end: list[PoolEntry] = []

    def __iter__(self) -> Iterator[PoolEntry]:
        for entries in self._states.values():
            yield from entries

    def __len__(self) -> int:
        """The number of processes, including those that are about to end."""
        return sum(map(len, self._states.values()))

    def count(self, state: str) -> int:
        return len(self._states[state])

    @property
    def waiting(self) -> int:
        """The number of callers in the queue."""
        return len(self._queue)

    @property
    def is_failing(self) -> bool:
        """True if the latest start failed, or its kernel died while idle."""
        return self._backoff.failures > 0

    def find(self, kernel_id: object) -> PoolEntry | None:
        """The kernel of that id, unless it has ended."""
        return next((entry for entry in self if entry.kernel_id == kernel_id), None)

    # Callers

    def ask(self, now: float, wake: Callable[[], None]) -> Checkout:
        """Add a caller to the end of the queue."""
        checkout = Checkout(now, wake)
        self._queue[checkout] = None
        return checkout

    def offered(self) -> PoolEntry | None:
        """The kernel for the first caller in the queue. If it is alive, the pool then calls `lend`."""
        return next(iter(self._states[IDLE]), None) if self._queue else None

    def lend(self) -> Checkout:
        """Give the offered kernel to the first caller in the queue."""
        checkout = next(iter(self._queue))
        del self._queue[checkout]
        checkout.entry = next(iter(self._states[IDLE]))
        self._move(checkout.entry, BUSY)
        checkout.entry.uses += 1
        self._backoff.reset()
        self._retry_at = 0.0
        return checkout

    def checked_out(self, seconds: float) -> None:
        """A caller got its kernel, so many seconds after it asked."""
        self.counters.checkouts += 1
        self.checkout_seconds.append(seconds)

    def withdraw(self, checkout: Checkout) -> None:
        """The caller of `checkout` has given up. A kernel that it would have got is idle again, as if unused."""
        self._queue.pop(checkout, None)
        entry, checkout.entry = checkout.entry, None
        if entry is not None and entry.state == BUSY:
            entry.uses -= 1
            self._states[IDLE] = {entry: None, **self._states[IDLE]}
            del self._states[BUSY][entry]
            entry.state = IDLE

    def give_back(self, entry: PoolEntry, now: float, *, reusable: bool) -> None:
        """Its use has ended. `reusable`: it is alive, and no code or request of its user is left in it."""
        self.counters.recycled += 1
        if entry.state != BUSY:  # it was shut down meanwhile
            return
        again = reusable and entry.uses < self.max_uses and not self._is_old(entry, now)
        if again and (self._queue or len(self) - self.count(ENDING) <= self.size):
            self._move(entry, STARTING)
            self._renewing.add(entry)
            self._renew.append(entry)
        else:
            self.remove(entry)

    # Kernels

    def ready(self, entry: PoolEntry, now: float) -> None:
        """It can be lent."""
        if entry.state == STARTING:
            self._renewing.discard(entry)
            entry.ready_at = min(entry.ready_at, now)
            entry.idle_since = now
            self._move(entry, IDLE)

    def start_failed(self, entry: PoolEntry, error: Exception, now: float) -> None:
        """Its start failed, and there is no process."""
        if entry.state == STARTING:
            self.counters.failures += 1
            self.ended(entry)
            self._failed(entry, error, 0.0, now)

    def died(self, entry: PoolEntry, error: Exception, now: float) -> None:
        """Its process has ended by itself. If it was in use, that does not count as a failure."""
        if entry.state == ENDING:
            return
        self.counters.deaths += 1
        if entry.state == BUSY:
            return
        was_idle = entry.state == IDLE
        self.remove(entry)
        if was_idle:
            self._failed(entry, error, now - entry.ready_at, now)

    def remove(self, entry: PoolEntry) -> None:
        """End it, in any state."""
        if entry.state != ENDING:
            self._renewing.discard(entry)
            self._move(entry, ENDING)
            self._end.append(entry)

    def ended(self, entry: PoolEntry) -> None:
        """Its process has ended, and its files are removed."""
        self._renewing.discard(entry)
        self._states[entry.state].pop(entry, None)

    def close(self) -> None:
        """End every kernel, start none, and refuse every caller."""
        self.is_closed = True
        for entry in list(self):
            self.remove(entry)

    def stats(self) -> PoolStats:
        seconds = sorted(self.checkout_seconds)
        return PoolStats(
            idle=self.count(IDLE),
            busy=self.count(BUSY),
            starting=self.count(STARTING),
            waiting=self.waiting,
            **attrs.asdict(self.counters),
            checkout_p50=percentile(seconds, 50),
            checkout_p90=percentile(seconds, 90),
            checkout_p99=percentile(seconds, 99),
            checkout_max=percentile(seconds, 100),
            last_failure=None if self.last_failure is None else str(self.last_failure),
        )

    # Decisions

    def next_steps(self, now: float) -> Steps:
        """The actions that are due, each returned once. Ask again after each event, and after `next_look` seconds."""
        self._retire(now)
        start = [self._enlist(now) for _ in range(self._to_start(now))]
        wake = []
        refusal = self.refusal(now)
        if refusal is not None:
            wake, self._queue = list(self._queue), {}
            for checkout in wake:
                checkout.error = copy(refusal)
        renew, self._renew = [entry for entry in self._renew if entry.state == STARTING], []
        end, self._end = self._end, []
        return Steps(start, renew, end, wake)

    def next_look(self, now: float) -> float | None:
        """Seconds until an action may be due without an event; None if none will be."""
        if self.is_closed:
            return None
        times = [self._retry_at] if self._retry_at > now else []
        if self._states[IDLE]:
            times += [entry.ready_at + self.max_age for entry in self._states[IDLE] if self.max_age < inf]
            if self._extra() > 0:
                times += [entry.idle_since + EXTRA_IDLE_S for entry in self._states[IDLE]]
        return min((time - now for time in times if time > now), default=None)

    def refusal(self, now: float) -> Exception | None:
        """The error for all callers in the queue: the pool is closed, or starts keep failing and there is no kernel."""
        if self.is_closed:
            return InvalidState("the pool is closed; make a new KernelPool")
        return None if self._states[IDLE] or self._states[BUSY] else self._why_not(now)

    def obstacle(self, now: float) -> Exception | None:
        """The error that says why the pool does not get warm: as `refusal`, but also if there are some kernels."""
        return self.refusal(now) or self._why_not(now)

    def _why_not(self, now: float) -> Exception | None:
        """The latest failure, if there were many in a row and no new start is under way or due."""
        is_over = now >= self._retry_at or bool(self._states[STARTING])
        return None if is_over or self._backoff.failures < FAILURES_BEFORE_REFUSAL else self.last_failure

    def _to_start(self, now: float) -> int:
        if self.is_closed or now < self._retry_at:
            return 0
        young = sum(not self._is_old(entry, now) for entry in self._states[IDLE])
        coming = young + self.count(STARTING) + self.count(BUSY)
        wanted = max(self.size, self.count(BUSY) + len(self._queue))
        at_once = self.starters - (self.count(STARTING) - len(self._renewing))
        return max(0, min(wanted - coming, self.max_size - len(self), at_once))

    def _enlist(self, now: float) -> PoolEntry:
        entry = PoolEntry(str(uuid.uuid4()), now)
        self._states[STARTING][entry] = None
        self.counters.starts += 1
        return entry

    def _retire(self, now: float) -> None:
        """End idle kernels that are too many or too old. An old one ends when a new one has taken its place.

        If `max_size` leaves no room for the new one, one old kernel at a time ends first.
        """
        if self._queue or self.is_closed:
            return
        for entry in list(self._states[IDLE]):
            extra = self._extra()
            if self._is_old(entry, now):
                is_full = len(self) >= self.max_size and not self._states[STARTING] and not self._states[ENDING]
                if extra > 0 or is_full:
                    self.remove(entry)
            elif extra > 0 and now >= entry.idle_since + EXTRA_IDLE_S:
                self.remove(entry)

    def _extra(self) -> int:
        """How many kernels beyond `size` are idle or busy."""
        return self.count(IDLE) + self.count(BUSY) - self.size

    def _is_old(self, entry: PoolEntry, now: float) -> bool:
        return now >= entry.ready_at + self.max_age

    def _failed(self, entry: PoolEntry, error: Exception, lasted: float, now: float) -> None:
        """Wait longer before the next start. Kernels that were started before the latest failure count with it."""
        self.last_failure = error
        if entry.began >= self._failed_at:
            self._failed_at = now
            seconds = self._backoff.after(lasted)
            self._retry_at = now + seconds if seconds else 0.0

    def _move(self, entry: PoolEntry, state: str) -> None:
        del self._states[entry.state][entry]
        self._states[state][entry] = None
        entry.state = state


def percentile(values: list[float], percent: float) -> float | None:
    """The least of the sorted `values` that so many per cent of them do not exceed; None if there are none."""
    return values[max(0, ceil(len(values) * percent / 100) - 1)] if values else None
