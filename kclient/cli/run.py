"""``kclient run``: run code in a kernel, show its output as it comes, and return an exit code."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from types import FrameType
from typing import Final

import attrs
import gevent

import kclient
from kclient.cli.terminal import OutputLost, Prompter, Screen, is_success
from kclient.client.execution import Execution
from kclient.client.interface import KernelInterface
from kclient.concurrency.deadline import Deadline
from kclient.errors import KClientError, KernelTimeout
from kclient.manager.kernel_manager import KernelManager
from kclient.protocol.result import Result

READY_TIMEOUT_S: Final = 60.0
"""The time that a kernel has to get ready, if --timeout is not given."""

SHUTDOWN_WAIT_S: Final = 5.0
"""The time that a kernel has to end by itself; output that it sends meanwhile is shown."""

LATE_OUTPUT_S: Final = 0.1
"""How long output is still awaited after the end of the code, from a kernel that goes on. On a busy machine ipykernel 7
took up to 0.023 s for the output of a C library, of `os.write(1, ...)` or of a child process, 1,000 times tried."""

INTERRUPT_WAIT_S: Final = 1.0
"""The time that interrupted code in an existing kernel has to end."""


class ExitCode(IntEnum):
    """The exit codes of the commands; the help of ``kclient run`` explains them."""

    OK = 0
    FAILED = 1
    NOT_DONE = 2
    TIMED_OUT = 124  # that of timeout(1)
    SIGNAL = 128  # and the signal's number, as a shell reports it
    INTERRUPTED = SIGNAL + signal.SIGINT
    UNREAD = SIGNAL + signal.SIGPIPE


@attrs.frozen
class Job:
    """The code to run, and its kernel.

    `existing` is the connection file or the id of a running kernel. `may_ask`: the code may ask for input at the
    terminal.
    """

    code: str
    kernel: str
    transport: str
    encryption: str
    existing: str | None
    timeout: float | None
    may_ask: bool


def run_job(job: Job) -> int:
    """Run the code, show what it prints, and return the exit code of the command."""
    screen, signals = Screen(), Signals()
    is_ready = False
    try:
        deadline = Deadline(job.timeout)
        with opened(job) as kernel:
            is_ready = True
            return Run(job, kernel, screen, signals).exit_code(deadline)
    except (Stopped, OutputLost) as exc:
        return code_of_end(exc, screen)
    except KernelTimeout as exc:
        screen.complain(str(exc))
        return ExitCode.TIMED_OUT
    except KClientError as exc:
        screen.complain(str(exc))
        return signals.failure if is_ready else ExitCode.NOT_DONE


def code_of_end(exc: Stopped | OutputLost, screen: Screen) -> int:
    """The exit code after a signal, or after a failed write of the output; reports the reason."""
    if isinstance(exc, Stopped):
        screen.note_typing(at_line_start=False)  # ^C
        screen.complain(f"ended by {signal.Signals(exc.signum).name}")
        return ExitCode.SIGNAL + exc.signum
    if exc.errno == errno.EPIPE:  # the reader of a pipe has gone, `| head` say
        return ExitCode.UNREAD
    screen.complain(str(exc))
    return ExitCode.NOT_DONE


@contextmanager
def opened(job: Job) -> Iterator[KernelInterface]:
    """A kernel that is ready: a new one, which ends with the block, or the existing one, which goes on."""
    timeout = READY_TIMEOUT_S if job.timeout is None else job.timeout
    if job.existing is not None:
        with kclient.connect(job.existing, timeout=timeout) as client:
            yield client
        return
    with started(job.kernel, job.transport, job.encryption, timeout) as kernel:
        yield kernel


@contextmanager
def started(
    name: str, transport: str, encryption: str, timeout: float | None, spin: float = 0.0
) -> Iterator[KernelInterface]:
    """A new kernel that is ready. It is shut down after the block; if the block raises, it is killed at once."""
    kernel = kclient.start_kernel(name, timeout=timeout, transport=transport, encryption=encryption, spin=spin)
    try:
        yield kernel
        kernel.shutdown_kernel()
    finally:
        kernel.shutdown_kernel(now=True)  # unless it has ended


class Stopped(BaseException):
    """A signal ends the command."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


class Signals:
    """Handles signals, from now on to the end of the process.

    SIGINT interrupts the code. A second SIGINT, or one while no code runs, ends the command, as SIGTERM and SIGHUP do.
    No handler raises where the signal arrives. Stopped is thrown into a wait of this greenlet, so that output is
    written whole and the kernel is shut down.
    """

    def __init__(self) -> None:
        self._has_interrupted = False
        self._interrupt: Callable[[], None] | None = None
        self._main = gevent.getcurrent()
        self._loop = gevent.get_hub().loop
        self._is_stopping = False
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup and the & of a script set SIG_IGN
                signal.signal(signum, self._on_signal)

    @property
    def failure(self) -> int:
        """The exit code for code that failed: INTERRUPTED after a SIGINT, else FAILED."""
        return ExitCode.INTERRUPTED if self._has_interrupted else ExitCode.FAILED

    @contextmanager
    def interrupting(self, interrupt: Callable[[], None]) -> Iterator[None]:
        """Let the first SIGINT call `interrupt`, in a greenlet of its own, during the block."""
        self._interrupt = interrupt
        try:
            yield
        finally:
            self._interrupt = None

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        interrupt = self._interrupt
        if signum == signal.SIGINT and interrupt is not None:
            self._interrupt = None
            self._has_interrupted = True
            gevent.spawn(interrupt)
        elif not self._is_stopping:
            self._is_stopping = True
            self._loop.run_callback(self._main.throw, Stopped(signum))


class Run:
    """One run of the code in a kernel that is ready."""

    def __init__(self, job: Job, kernel: KernelInterface, screen: Screen, signals: Signals) -> None:
        self._job = job
        self._kernel = kernel
        self._screen = screen
        self._signals = signals

    def exit_code(self, deadline: Deadline) -> int:
        """Run the code to its end; raises KernelTimeout, DeadKernelError, Stopped and OutputLost."""
        with ExitStack() as stack:
            prompter = None
            if self._job.may_ask:
                prompter = stack.enter_context(Prompter(self._kernel.stdin_channel, self._screen))
            # No bound: all output is shown, and none of it is kept.
            linger = 0.0 if self._job.existing is None else LATE_OUTPUT_S
            execution = self._kernel.submit(self._job.code, max_output_bytes=None, keep_outputs=False, linger=linger)

            def interrupt() -> None:
                self._screen.note_typing(at_line_start=False)
                if prompter is not None:
                    prompter.cancel()
                execution.interrupt()

            stack.enter_context(self._signals.interrupting(interrupt))
            try:
                result = self._follow(execution, deadline)
            except BaseException:
                self._leave(execution)
                raise
        if isinstance(self._kernel, KernelManager):
            self._show_output_until_exit(self._kernel, execution)
        return self._judge(result)

    def _follow(self, execution: Execution, deadline: Deadline) -> Result:
        """Show the outputs as they arrive, to the end."""
        with gevent.Timeout(deadline.left(), False):  # type: ignore[arg-type]  # the stubs don't know it
            self._show(execution)
        if not execution.done() and not (execution.times.reply and execution.times.idle):
            raise KernelTimeout("end of the code", self._job.timeout)
        self._show(execution)  # outputs that came just before the timeout, or come late
        return execution.result()

    def _show(self, execution: Execution) -> None:
        for message in execution:
            self._screen.show(message)

    def _leave(self, execution: Execution) -> None:
        """Interrupt the code in an existing kernel, because this command stops following it."""
        if self._job.existing is not None:
            execution.interrupt()
            with suppress(KClientError):
                # The interrupt may be a message, and closing the channels now would drop it.
                execution.result(timeout=INTERRUPT_WAIT_S)

    def _show_output_until_exit(self, kernel: KernelManager, execution: Execution) -> None:
        """Shut the kernel down. Show output of the code that comes meanwhile, that of child processes for example."""
        with suppress(KClientError):  # a KernelTimeout, or the end of the kernel
            deadline = Deadline(SHUTDOWN_WAIT_S)
            kernel.shutdown_wait_time = 0.0  # the loop below waits instead
            kernel.shutdown(timeout=deadline.left())
            while not deadline.is_over:  # a thread of the code may print for ever
                message = kernel.iopub_channel.get_msg(timeout=deadline.left())
                if message.parent_id == execution.msg_id:
                    self._screen.show(message)

    def _judge(self, result: Result) -> int:
        error = result.error
        if result.ok or (error is not None and is_success(error)):
            if result.complete:
                return ExitCode.OK
            self._screen.complain("the code has ended, but outputs may be missing: the kernel's idle status was lost")
            return ExitCode.NOT_DONE
        if error is None:
            self._screen.complain(f"the kernel did not run the code: its reply is {result.status!r}")
        elif not self._screen.has_shown_error:  # some kernels put it only into the reply
            self._screen.show_error(error)
        return self._signals.failure
