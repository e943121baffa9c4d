"""KernelPool: kernels that are ready before somebody asks for one, and gone when that one is done."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from kclient.concurrency.callbacks import check_callback
from kclient.concurrency.deadline import check_seconds
from kclient.errors import InvalidArgument, InvalidState
from kclient.manager.kernel_manager import KernelManager
from kclient.pool.events import PooledKernel, PoolEvent, PoolStats
from kclient.pool.lent_kernel import Recipe
from kclient.pool.scheduler import BUSY, IDLE, Scheduler
from kclient.pool.workers import Workers
from kclient.protocol.messages import check_code

if TYPE_CHECKING:
    from kclient.kernels.process.local import Launcher

_Self = TypeVar("_Self", bound="KernelPool")


class KernelPool:
    """Hands out warm kernels, first come first served; a context manager, which ends them all.

    `size` kernels are kept, those that are in use among them; up to `max_size` (default: `size`) while callers wait. A
    kernel beyond `size` ends with its use, or when it was idle for 10 s. Kernels that are about to end count, since
    they still have their memory: there are never more than `max_size` processes. As many start at a time as there are
    processors.

    Each user gets a kernel of his own: when he is done it is killed, and another one started. With `max_uses` above 1
    the same process goes on to the next user, with all variables, threads and files of the one before, if it is alive
    and nothing of the former user still runs or waits in it; but through another KernelManager: that of the former user
    raises InvalidState. `max_age` is in seconds: idle kernels that are older are replaced, by a new one first if there
    is room below `max_size`, else one at a time.

    `warm_up` is code that each new kernel runs, silently, before it is handed out; to start and to warm up it has
    `start_timeout` seconds. While kernels fail to start, or die as soon as they are idle, the pool tries less and less
    often, every 30 s in the end; after four failures in a row callers get the reason at once if there is no kernel they
    could wait for.

    `on_event` is called with each PoolEvent, in order, in a greenlet of its own; what it raises is logged. The other
    arguments are those of `kclient.start_kernel`. A pool belongs to the thread that made it, and not to a forked child.
    Raises InvalidArgument; that the kernel cannot be started, callers learn.
    """

    def __init__(
        self,
        kernel_name: str = "python3",
        *,
        size: int = 4,
        max_size: int | None = None,
        max_uses: int = 1,
        max_age: float | None = None,
        warm_up: str | None = None,
        launcher: Launcher | None = None,
        start_timeout: float = 60.0,
        on_event: Callable[[PoolEvent], object] | None = None,
        transport: str = "tcp",
        encryption: str = "auto",
        cwd: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
        extra_arguments: Sequence[str] = (),
        orphan_guard: bool = False,
        handshake: str = "auto",
        spin: float = 0.0,
    ) -> None:
        options = {
            "transport": transport,
            "encryption": encryption,
            "launcher": launcher,
            "orphan_guard": orphan_guard,
            "handshake": handshake,
            "spin": spin,
        }
        launch = {
            "cwd": cwd,
            "env": dict(env) if isinstance(env, Mapping) else env,  # as it is now, for kernels that start later, too
            "extra_arguments": extra_arguments,
        }
        if warm_up is not None:
            check_code(warm_up, "warm_up")
        recipe = Recipe(kernel_name, options, launch, warm_up, check_seconds(start_timeout, "start_timeout"))
        _check_count(size, "size")
        most = size if max_size is None else _check_count(max_size, "max_size", at_least=size)
        if max_age is not None and check_seconds(max_age, "max_age", alternative=", or None") == 0:
            raise InvalidArgument("max_age must be more than 0 s: each kernel would be replaced as soon as it is ready")
        scheduler = Scheduler(
            size, most, max_uses=_check_count(max_uses, "max_uses"), max_age=max_age, starters=_processors()
        )
        self._workers = Workers(scheduler, recipe, check_callback(on_event, "on_event"))
        self._finalizer = weakref.finalize(self, self._workers.abandon)
        self._finalizer.atexit = False  # each manager has a finalizer of its own, for then
        self._workers.act()

    def __repr__(self) -> str:
        scheduler = self._workers.scheduler
        state = "closed" if scheduler.is_closed else f"{scheduler.count(IDLE)} idle, {scheduler.count(BUSY)} busy"
        return f"<KernelPool {self._workers.recipe.kernel_name!r} {state}>"

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.close()
        except BaseException:  # Ctrl-C, say; nobody else will wait for the end
            self.close()
            raise

    @contextmanager
    def kernel(self, timeout: float | None = None) -> Iterator[KernelManager]:
        """A kernel for a `with` block, which gives it back however the block ends; raises as `acquire` does."""
        kernel = self._workers.acquire(timeout)
        try:
            yield kernel
        finally:
            self._workers.give_back(kernel)

    def acquire(self, timeout: float | None = None) -> KernelManager:
        """A kernel, warm and ready, to `release` later; waits in the order of calls, `timeout` seconds at most.

        Raises KernelTimeout if none was free in time; what the kernel raises that cannot be started, if there is none
        to wait for; and InvalidState after `close`. ``timeout=0`` answers at once.
        """
        return self._workers.acquire(timeout)

    def release(self, kernel: KernelManager) -> None:
        """Give back what `acquire` returned, at once: its calls raise InvalidState from here on.

        Raises InvalidArgument for what is no kernel of this pool, and InvalidState for one that was given back already.
        """
        workers = self._workers
        workers.owner.check()
        if not workers.knows(kernel):
            raise InvalidArgument(f"not a kernel of this pool: {kernel!r}; release what acquire() returned")
        if not workers.give_back(kernel):
            raise InvalidState(f"the kernel {kernel.kernel_id} was given back already")

    def stats(self) -> PoolStats:
        """How the pool is now, and what has happened in it."""
        return self._workers.stats()

    def kernels(self) -> list[PooledKernel]:
        """Every kernel that there is, those that start and end, too."""
        return self._workers.kernels()

    def shutdown_kernel(self, kernel_id: str) -> None:
        """End the kernel of that id, whatever it is at, and replace it; its user's calls raise InvalidState.

        Returns when it has ended. Raises InvalidArgument if there is none.
        """
        self._workers.shut_down(kernel_id)

    def wait_until_warm(self, timeout: float | None = None) -> None:
        """Return when `size` kernels are idle; raises why they cannot be, KernelTimeout, or InvalidState after close.

        It waits `timeout` seconds at most.
        """
        self._workers.wait_until_warm(timeout)

    def close(self) -> None:
        """End every kernel, those in use, too, whose users' calls raise then; callers that wait get InvalidState.

        Returns when nothing is left of the pool. Once is enough; does nothing in a forked child.
        """
        self._workers.close()


def _check_count(number: int, name: str, *, at_least: int = 1) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < at_least:
        raise InvalidArgument(f"{name} must be a whole number, {at_least} or more; not {number!r}")
    return number


def _processors() -> int:
    """Those that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
