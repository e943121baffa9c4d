"""LentKernel: a pool's kernel in the hands of one user. A former user cannot reach the kernel of the next one."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final, Protocol

import attrs

from kclient.client.handover import hand_over
from kclient.concurrency.deadline import Deadline
from kclient.errors import DeadKernelError, ExecutionError, InvalidState, KClientError, KernelTimeout
from kclient.kernels.launch import Launch
from kclient.kernels.process.local import KernelProcess
from kclient.manager.kernel_manager import KernelManager
from kclient.manager.start import start_until_ready
from kclient.protocol.routing import Outputs

ANSWER_WAIT_S: Final = 2.0
"""Seconds that a kernel has after its use to answer a request that is no code, before it is killed."""

BEGIN_WAIT_S: Final = 0.05
"""Seconds for its status to say that it has begun with such a request."""


class Lender(Protocol):
    """The pool of a kernel, as the kernel sees it."""

    def give_back(self, kernel: LentKernel) -> bool:
        """End the use of a kernel; False if it had ended already."""

    def kernel_died(self, kernel: LentKernel) -> None:
        """The kernel has ended by itself."""


def _returned(msg_id: str | None) -> InvalidState:
    return InvalidState("the kernel was given back to its pool, or shut down by it; take another: pool.kernel()")


class LentKernel(KernelManager):
    """The KernelManager that one user of a pool's kernel has."""

    def __init__(
        self,
        lender: Lender,
        kernel_id: str,
        kernel_name: str,
        *,
        max_message_bytes: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(kernel_name, **options)
        self.session.max_message_bytes = self._max_message_bytes = max_message_bytes
        self.kernel_id = kernel_id
        self.is_returned = False
        self.lent_process: KernelProcess | None = None
        self._lender = lender
        self._is_lent = False
        self._was_signalled = False
        self._is_answering = False

    def __exit__(self, *exc_info: object) -> None:
        """Give the kernel back, at the end of ``with pool.acquire() as kernel``. End it if the pool was dropped."""
        if self._is_lent:
            self._lender.give_back(self)
        else:
            super().__exit__(*exc_info)

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

    def wants_private_tmp(self, is_wanted: bool) -> None:
        """Whether the process, when it starts, gets a TMPDIR of its own."""
        self._lifecycle.provisioner.private_tmp.is_wanted = is_wanted

    def lend(self) -> None:
        """The use begins. Remember the process, since the user may start another one. Drop older iopub messages."""
        self._is_lent = True
        self.lent_process = self.process
        with suppress(KClientError):  # it has died at this moment: its user will learn that
            self.kernel_connection.channels.iopub.get_msgs()

    def leave_pool(self) -> None:
        """The pool was dropped during the use. The user keeps the kernel. It ends when the user drops it, too."""
        self._is_lent = False

    @property
    def is_about_to_exit(self) -> bool:
        """True if the kernel has said that it exits: for its code, or for a shutdown_request."""
        connection = self._lifecycle.clients.connection
        return connection is not None and bool(connection.channels.peer.exit_reason)

    @property
    def is_clean(self) -> bool:
        """True if the process lives, is the one that was lent, owes no answer, and is not about to exit."""
        if self.process is None or self.process is not self.lent_process or not self.process.is_alive():
            return False
        connection = self.kernel_connection
        channels = connection.channels
        channels.drain()
        outputs = None if channels.failure is not None else channels.outputs
        is_idle = outputs is not None and not outputs.executing
        owes_nothing = not channels.pending.unanswered and not connection.watchdog.expects_status
        return is_idle and owes_nothing and not self.is_about_to_exit

    def end_use(self) -> None:
        """The use ends. Calls that wait for the kernel, and every later call, raise InvalidState."""
        if not self.is_returned:
            self._is_answering = self._owes_an_answer()
        self.is_returned = True
        self._lifecycle.retire(_returned)

    def let_it_answer(self) -> None:
        """After `end_use`: wait until the kernel has ended what it does, if that is no code, for a limited time.

        A kernel that is killed while it looks for completions may leave a broken file in a cache that all kernels of
        this user share. For jedi that means: no more completions of that module, in any of them.
        """
        outputs = self._outputs()
        if not self._is_answering or outputs is None:
            return
        deadline, begins_by = Deadline(ANSWER_WAIT_S), Deadline(BEGIN_WAIT_S)
        while self.is_alive() and not outputs.executing:
            is_busy = outputs.execution_state == "busy"
            if deadline.is_over or (begins_by.is_over and not is_busy):
                return
            self.kernel_connection.channels.iopub.changed.wait(deadline if is_busy else begins_by)

    def _owes_an_answer(self) -> bool:
        """True if the kernel is busy with a request that is no code, or will soon be."""
        outputs = self._outputs()
        if outputs is None or outputs.executing or not self.is_alive():
            return False
        return outputs.execution_state == "busy" or bool(self.kernel_connection.channels.pending.unanswered)

    def _outputs(self) -> Outputs | None:
        connection = self._lifecycle.clients.connection
        return None if connection is None else connection.channels.outputs

    def inherit(self, former: LentKernel) -> None:
        """Take the process of `former`, which has none from then on, and its connections if possible."""
        connection = former._lifecycle.clients.connection
        provisioner = former._lifecycle.give_away()
        self._lifecycle.take_over(provisioner)
        self.session.max_message_bytes = self._max_message_bytes
        # a process that was signalled may have been stopped: it has to show that it still answers
        if connection is not None and not former._was_signalled and hand_over(connection, self.kernel_connection):
            self._lifecycle.answered()
        former._lifecycle.drop_client()
        former._lifecycle.clients.fit(former._lifecycle.provisioner)  # its client leads to no kernel from here on

    def death(self) -> DeadKernelError:
        """The error that says how the process ended."""
        return self._lifecycle.clients.death_of(self._lifecycle.provisioner)

    def _refuse_if_returned(self) -> None:
        if self.is_returned:
            raise _returned(None)

    def _kernel_died(self) -> None:
        self._lender.kernel_died(self)


@attrs.frozen
class Recipe:
    """Makes the kernels of a pool. Raises InvalidArgument for arguments that no kernel can have.

    `options` are those of KernelManager, `launch` those of its start_kernel.
    """

    kernel_name: str
    options: dict[str, Any]
    launch: dict[str, Any]
    warm_up: str | None
    start_timeout: float
    private_tmp: bool = False
    max_message_bytes: int | None = None

    def __attrs_post_init__(self) -> None:
        KernelManager(self.kernel_name, **self.options)
        Launch(**self.launch)

    def make(self, kernel_id: str, lender: Lender) -> LentKernel:
        """Start a kernel, and warm it up; raises what `kclient.start_kernel` raises, and ExecutionError."""

        def new() -> LentKernel:
            kernel = self._new(lender, kernel_id)
            kernel.wants_private_tmp(self.private_tmp)
            return kernel

        deadline = Deadline(self.start_timeout)
        kernel = start_until_ready(new, self.launch, deadline)
        try:
            if self.warm_up is not None:
                self._warm_up(kernel, self.warm_up, deadline)
        except BaseException:
            kernel.shutdown_kernel(now=True)
            raise
        return kernel

    def renew(self, former: LentKernel, lender: Lender) -> LentKernel:
        """The same kernel for another user; raises KernelTimeout if it does not answer."""
        kernel = self._new(lender, former.kernel_id)
        try:
            kernel.inherit(former)
            if not kernel.channels_running:
                kernel.start_channels()
                kernel.wait_for_ready(Deadline(self.start_timeout))
        except BaseException:
            kernel.shutdown_kernel(now=True)
            raise
        return kernel

    def _new(self, lender: Lender, kernel_id: str) -> LentKernel:
        limit = self.max_message_bytes
        return LentKernel(lender, kernel_id, self.kernel_name, max_message_bytes=limit, **self.options)

    def _warm_up(self, kernel: LentKernel, code: str, deadline: Deadline) -> None:
        """Run it. Its errors name `warm_up`, since a caller of the pool may not know that code."""
        try:
            kernel.run(code, timeout=deadline.left(), check=True, silent=True, keep_outputs=False)
        except KernelTimeout as exc:
            hint = "start_timeout= is for the start of a kernel and its warm_up"
            raise KernelTimeout("end of warm_up", self.start_timeout, hint=hint) from exc
        except ExecutionError as exc:
            exc.args = (f"warm_up has failed: {exc}",)
            raise
        kernel.kernel_connection.channels.iopub.flush()
