"""LentKernel: a kernel that goes from a pool to one user after the other, none of whom can reach the next one's."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import attrs

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.waiting import weakly
from kclient.errors import DeadKernelError, ExecutionError, InvalidState, KClientError, KernelTimeout
from kclient.kernels.process.local import KernelProcess
from kclient.kernels.provisioner import Launch
from kclient.manager.kernel_manager import KernelManager
from kclient.manager.start import start_until_ready
from kclient.protocol.connection import CHANNELS

if TYPE_CHECKING:
    from kclient.client.connection import KernelConnection


def _returned(msg_id: str | None) -> InvalidState:
    return InvalidState("the kernel was given back to its pool, or shut down with it; take another: pool.kernel()")


class LentKernel(KernelManager):
    """The KernelManager of one user of a pool's kernel; `on_death()` is called when the kernel dies by itself."""

    on_death: Callable[[], None] | None = None
    is_returned = False
    lent_process: KernelProcess | None = None
    _was_signalled = False
    _give_back: Callable[[LentKernel], object] | None = None

    def __exit__(self, *exc_info: object) -> None:
        """Give it back: ``with pool.acquire() as kernel`` does what one would expect."""
        if self._give_back is not None:
            self._give_back(self)

    def start_kernel(self, **launch: Any) -> None:
        self._refuse_if_returned()
        super().start_kernel(**launch)

    def start_channels(self, *wanted: bool, **by_name: bool) -> None:
        self._refuse_if_returned()
        super().start_channels(*wanted, **by_name)

    def restart_kernel(self, now: bool = False, **launch: Any) -> None:
        self._refuse_if_returned()
        super().restart_kernel(now, **launch)

    def signal_kernel(self, signum: int) -> None:
        self._refuse_if_returned()
        self._was_signalled = True
        super().signal_kernel(signum)

    def interrupt_kernel(self) -> None:
        self._refuse_if_returned()
        super().interrupt_kernel()

    def kill_kernel(self) -> None:
        self._refuse_if_returned()
        super().kill_kernel()

    def lend(self, give_back: Callable[[LentKernel], object]) -> None:
        """Remember which process it is: the user may start another in its place. Forget what it has published."""
        self._give_back = give_back
        self.lent_process = self.process
        with suppress(KClientError):  # it has died in this moment: in its user's hands, then
            self.iopub_channel.get_msgs()

    @property
    def is_clean(self) -> bool:
        """True if the process lives and has nothing left to do of what its user, or anybody, asked it for."""
        if self.process is None or self.process is not self.lent_process or not self.process.is_alive():
            return False
        link = self.link
        link.drain()
        outputs = None if link.failure is not None else link.outputs
        is_idle = outputs is not None and not outputs.executing
        return is_idle and not link.ledger.unanswered and not link.watchdog.expects_status

    def end_use(self) -> None:
        """The user is done: whoever waits for the kernel, and every call from here on, gets an InvalidState."""
        self.is_returned = True
        if self._client is not None:
            self._client.link.fail(_returned)

    def inherit(self, former: LentKernel) -> None:
        """Take the process over from its former user, who is left with none, and the connection to it if possible."""
        self.kernel_id = former.kernel_id
        self._kernel, former._kernel = former._kernel, self._kernel
        self._endpoint, former._endpoint = former._endpoint, self._endpoint
        self._session = self._endpoint.new_session()
        for manager in (self, former):
            manager._finalizer.detach()
            manager._finalizer = weakref.finalize(manager, manager._kernel.abandon)
        if former._client is not None:
            former._client.link.kernel = former._kernel
            # a process that was stopped, say, has to show that it still answers
            self._was_ready = not former._was_signalled and hand_over(former._client.link, self.link)
            former._client.connection = former._endpoint.info  # which leads nowhere
        former._drop_client()
        process = self._kernel.require()
        on_exit = weakly(self._on_exit_of)
        process.exited.rawlink(lambda exited: on_exit(process))

    def death(self) -> DeadKernelError:
        """How it died."""
        return self._kernel.death()

    def _refuse_if_returned(self) -> None:
        if self.is_returned:
            raise _returned(None)

    def _on_exit_of(self, process: KernelProcess) -> None:
        if self.process is process:  # else the user has started another in its place
            self._on_exit()

    def _on_exit(self) -> None:
        if self.is_returned:
            return
        super()._on_exit()
        if self.on_death is not None and self.process is not None and not self._expects_exit:
            self.on_death()

    def _fail_pending(self, death: DeadKernelError | None) -> None:
        if not self.is_returned:
            super()._fail_pending(death)

    def _drop_client(self) -> None:
        """Once given back, keep the client: it says why it does not work."""
        if self.is_returned:
            self.stop_channels()
            self.end_use()
        else:
            super()._drop_client()


def hand_over(former: KernelConnection, link: KernelConnection) -> bool:
    """Let `link` go on with the connections of `former`, which nothing more will come for, and which has none then.

    That takes a tenth of the time that five new, encrypted ones do. False if not all are known to be in order.
    """
    channels, outputs, peer = former.running(), former.outputs, former.peer
    if len(channels) < len(CHANNELS) or outputs is None or former.ledger.owed_idle:
        return False
    if not outputs.subscribed or peer.info is None or peer.info.speaks_version_4:
        return False
    link.peer.info = deepcopy(peer.info)
    link.prober.kernel_session = former.prober.kernel_session
    link.iopub.outputs.adopt(outputs)
    with link.owner.call():
        for channel in channels:
            link.channel(channel.name).adopt(channel)
    return True


@attrs.frozen
class Recipe:
    """How a pool's kernels are made; raises InvalidArgument for what is no good for any.

    `options` are those of KernelManager, `launch` those of its start_kernel.
    """

    kernel_name: str
    options: dict[str, Any]
    launch: dict[str, Any]
    warm_up: str | None
    start_timeout: float

    def __attrs_post_init__(self) -> None:
        self._new_manager()
        Launch(**self.launch)

    def make(self, kernel_id: str) -> LentKernel:
        """Start a kernel, and warm it up; raises what `kclient.start_kernel` raises, and ExecutionError."""

        def new() -> LentKernel:
            manager = self._new_manager()
            manager.kernel_id = kernel_id
            return manager

        deadline = Deadline(self.start_timeout)
        kernel = start_until_ready(new, self.launch, deadline)
        try:
            if self.warm_up is not None:
                self._warm_up(kernel, self.warm_up, deadline)
        except BaseException:
            kernel.shutdown_kernel(now=True)
            raise
        return kernel

    def renew(self, former: LentKernel) -> LentKernel:
        """The same kernel for another user; raises KernelTimeout if it does not answer."""
        kernel = self._new_manager()
        try:
            kernel.inherit(former)
            if not kernel.channels_running:
                kernel.start_channels()
                kernel.wait_for_ready(Deadline(self.start_timeout))
        except BaseException:
            kernel.shutdown_kernel(now=True)
            raise
        return kernel

    def _warm_up(self, kernel: LentKernel, code: str, deadline: Deadline) -> None:
        """Run it; what goes wrong is told to callers who have not written it."""
        try:
            kernel.run(code, timeout=deadline.left(), check=True, silent=True, keep_outputs=False)
        except KernelTimeout as exc:
            hint = "start_timeout= is for the start of a kernel and its warm_up"
            raise KernelTimeout("end of warm_up", self.start_timeout, hint=hint) from exc
        except ExecutionError as exc:
            exc.args = (f"warm_up has failed: {exc}",)
            raise
        kernel.iopub_channel.flush()

    def _new_manager(self) -> LentKernel:
        return LentKernel(self.kernel_name, **self.options)
