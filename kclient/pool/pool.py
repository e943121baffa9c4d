"""KernelPool: keeps kernels ready for callers, and ends each kernel after its use."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from kclient.concurrency.callbacks import check_callback
from kclient.concurrency.deadline import check_seconds
from kclient.concurrency.half_made import half_made_too
from kclient.errors import InvalidArgument, InvalidState
from kclient.kernels.forkserver.launcher import ForkServer
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
    """Hands out warm kernels in the order of calls. As a context manager it ends them all.

    The pool keeps `size` kernels, including those in use. While callers wait, it keeps up to `max_size` (default:
    `size`). A kernel beyond `size` ends after its use, or when it has been idle for 10 s. There are never more than
    `max_size` processes: kernels that are about to end count, too. No more
    kernels start at a time than there are processors.

    Each user gets a kernel of their own. After the use it is killed and another one is started. With `max_uses` above 1
    the next user may get the same process, with all variables, threads and files of the former user. The condition is
    that it is alive, that no code or request of the former user is left in it, and that it was not asked to exit, as
    ``exit()`` does. The next user gets it as another KernelManager; the calls of the former one raise InvalidState.
    Idle kernels older than `max_age` seconds are replaced: if `max_size` allows, the new one is started first, else
    they are replaced one at a time.

    Each new kernel runs the code `warm_up`, silently, before it is handed out. Its start and that code have
    `start_timeout` seconds together. While kernels fail to start, or die while idle, the pool tries more and more
    rarely, up to 30 s apart. After four failures in a row, callers get the error at once if no kernel is there.

    With `private_tmp` each kernel has a TMPDIR of its own, which is removed when the kernel has ended: kernels that are
    killed leave temporary files behind. It is the default unless `launcher` is one of your own, whose kernels may not
    see that folder. A TMPDIR in `env` has precedence.

    A message of a kernel with more than `max_message_bytes` is not parsed: JSON that is nested deeply takes seconds,
    and 30 times its size in memory. It is counted in `dropped` of its channel, under "size". An output of that kind
    makes its execution `truncated`; a reply becomes an error, MessageTooLarge. `session.max_message_bytes` is the same
    limit for a single kernel.

    `on_event` is called with each PoolEvent, in order, in a greenlet of its own. Its exceptions are logged. The other
    arguments are those of `kclient.start_kernel`. A pool belongs to the thread that made it, and not to a forked child.
    Raises InvalidArgument. If the kernel cannot be started, `acquire` raises, not the constructor.
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
        env: Mapping[str, str | None] | None = None,
        clean_env: bool = False,
        extra_arguments: Sequence[str] = (),
        orphan_guard: bool = False,
        handshake: str = "auto",
        spin: float = 0.0,
        private_tmp: bool | None = None,
        max_message_bytes: int | None = None,
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
            "env": dict(env)
            if isinstance(env, Mapping)
            else env,  # a copy, so that kernels that start later get the same
            "clean_env": clean_env,
            "extra_arguments": extra_arguments,
        }
        if warm_up is not None:
            check_code(warm_up, "warm_up")
        if private_tmp is None:
            private_tmp = launcher is None or isinstance(launcher, ForkServer)
        recipe = Recipe(
            kernel_name,
            options,
            launch,
            warm_up,
            check_seconds(start_timeout, "start_timeout"),
            bool(private_tmp),
            None if max_message_bytes is None else _check_count(max_message_bytes, "max_message_bytes"),
        )
        _check_count(size, "size")
        most = size if max_size is None else _check_count(max_size, "max_size", at_least=size)
        if max_age is not None and check_seconds(max_age, "max_age", alternative=", or None") == 0:
            raise InvalidArgument("max_age must be more than 0 s: each kernel would be replaced as soon as it is ready")
        scheduler = Scheduler(
            size, most, max_uses=_check_count(max_uses, "max_uses"), max_age=max_age, starters=_processors()
        )
        self._workers = Workers(scheduler, recipe, check_callback(on_event, "on_event"))
        self._finalizer = weakref.finalize(self, _abandon, self._workers)
        self._finalizer.atexit = False  # at exit, the finalizer of each manager ends its kernel
        self._workers.act()

    @half_made_too
    def __repr__(self) -> str:
        scheduler = self._workers.scheduler
        state = "closed" if scheduler.is_closed else f"{scheduler.count(IDLE)} idle, {scheduler.count(BUSY)} busy"
        return f"<KernelPool {self._workers.recipe.kernel_name!r} {state}>"

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self.close()
        except BaseException:  # for example Ctrl-C: the kernels must end nevertheless
            self.close()
            raise

    @contextmanager
    def kernel(self, timeout: float | None = None) -> Iterator[KernelManager]:
        """A kernel for a `with` block, which always gives it back at its end. Raises as `acquire` does."""
        kernel = self._workers.acquire(timeout)
        try:
            yield kernel
        finally:
            self._workers.give_back(kernel)

    def acquire(self, timeout: float | None = None) -> KernelManager:
        """A warm kernel, to `release` later. Callers wait in the order of calls, `timeout` seconds at most.

        Raises KernelTimeout if no kernel was free in time, and InvalidState after `close`. If starts keep failing and
        there is no kernel to wait for, raises the error of the latest start. ``timeout=0`` returns or raises at once.
        """
        return self._workers.acquire(timeout)

    def release(self, kernel: KernelManager) -> None:
        """Give back a kernel that `acquire` returned. Does not wait. Its calls raise InvalidState from here on.

        Raises InvalidArgument if it is no kernel of this pool, and InvalidState if it was given back already.
        """
        workers = self._workers
        workers.owner.check()
        if not workers.knows(kernel):
            raise InvalidArgument(f"not a kernel of this pool: {kernel!r}; release what acquire() returned")
        if not workers.give_back(kernel):
            raise InvalidState(f"the kernel {kernel.kernel_id} was given back already")

    def stats(self) -> PoolStats:
        """The state of the pool, and its counters."""
        return self._workers.stats()

    def kernels(self) -> list[PooledKernel]:
        """All kernels, including those that start or end."""
        return self._workers.kernels()

    def shutdown_kernel(self, kernel_id: str) -> None:
        """End the kernel of that id, in any state, and replace it. The calls of its user raise InvalidState.

        Returns when it has ended. Raises InvalidArgument if there is no such kernel.
        """
        self._workers.shut_down(kernel_id)

    def wait_until_warm(self, timeout: float | None = None) -> None:
        """Return when `size` kernels are idle.

        Raises KernelTimeout after `timeout` seconds, InvalidState after `close`, or the error of the latest start if
        starts keep failing.
        """
        self._workers.wait_until_warm(timeout)

    def close(self) -> None:
        """End every kernel, also those in use. Calls of their users, and callers that wait, raise InvalidState.

        Returns when all kernels have ended. Idempotent; does nothing in a forked child. If the thread of the pool has
        ended, any thread may call it: it kills the kernels.
        """
        if self._workers.owner.is_gone:
            _abandon(self._workers)
        else:
            self._workers.close()


def _abandon(workers: Workers) -> None:
    """The pool was dropped, or is closed after the end of its thread: kill the kernels."""
    if workers.owner.forked or not workers.owner.is_gone:
        workers.abandon()
        return
    for entry in workers.scheduler:
        if entry.kernel is not None:
            entry.kernel.shutdown_kernel(now=True)


def _check_count(number: int, name: str, *, at_least: int = 1) -> int:
    if not isinstance(number, int) or isinstance(number, bool) or number < at_least:
        raise InvalidArgument(f"{name} must be a whole number, {at_least} or more; not {number!r}")
    return number


def _processors() -> int:
    """The number of processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
