"""Provisioner: starts the process of one kernel, signals and ends it, and removes its files."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import gevent

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.file_limits import (
    CLIENT_DESCRIPTORS,
    KERNEL_DESCRIPTORS,
    SPARE_DESCRIPTORS,
    FileDescriptorReservation,
)
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking, until_done
from kclient.errors import (
    DeadKernelError,
    InvalidArgument,
    InvalidState,
    KernelTimeout,
    LaunchError,
    RemoteProtocolError,
)
from kclient.kernels.connection.endpoint import Endpoint
from kclient.kernels.launch import Launch
from kclient.kernels.process.local import KernelProcess, Launcher, LocalProcess
from kclient.kernels.process.orphan_guard import GuardedKernel
from kclient.kernels.process.private_tmp import PrivateTmp
from kclient.kernels.specs.program import with_program
from kclient.kernels.specs.search import find_kernel_spec
from kclient.kernels.specs.spec import KernelSpec
from kclient.kernels.start_failure import StartFailure
from kclient.kernels.wrapper import interrupt_behind_wrapper

if TYPE_CHECKING:
    from kclient.kernels.connection.handshake import Registrar

TERM_WAIT_S: Final = 2.0
"""Seconds from SIGTERM to SIGKILL, for a kernel that did not end at its shutdown_request."""

KILL_WAIT_S: Final = 10.0
"""Seconds for the operating system to end a process after SIGKILL."""


DEATHS_BY_SIGINT: Final = (-signal.SIGINT, 128 + signal.SIGINT)
"""Exit codes of a program that SIGINT ended, the second if it was run by a shell."""

HANDSHAKES: Final = ("auto", "off", "required")
"""auto: the kernel chooses its ports if its spec says that it can. off: never. required: it must, or is not started."""


def _ignore() -> None:
    """No process was started whose end could be told."""


_NO_MARKS: Final[Mapping[str, str]] = {}


def _check_own_directory() -> None:
    """Raise LaunchError if the working directory of this program is deleted. Most kernels end there at once."""
    try:
        os.getcwd()
    except FileNotFoundError as exc:
        raise LaunchError(
            "cannot start the kernel: the working directory of this program is deleted, and the kernel would get it, "
            "too; pass cwd= with a directory that exists, or change to one"
        ) from exc


class Provisioner:
    """Starts and ends the process of one kernel, and of its successor after a restart."""

    def __init__(
        self,
        kernel_name: str,
        endpoint: Endpoint,
        launcher: Launcher,
        *,
        orphan_guard: bool = False,
        handshake: str = "auto",
    ) -> None:
        if handshake not in HANDSHAKES:
            raise InvalidArgument(f"handshake must be 'auto', 'off' or 'required', not {handshake!r}")
        if isinstance(launcher, type):
            raise InvalidArgument(f"launcher must be an object, not a class: {launcher.__name__}()")
        if not callable(getattr(launcher, "start", None)):
            raise InvalidArgument(f"launcher must have a method start(argv, ...); {launcher!r} has none")
        self.kernel_name = kernel_name
        self.endpoint = endpoint
        self.launcher = launcher
        self.process: KernelProcess | None = None
        self.launch: Launch | None = None
        self.argv: list[str] = []
        self.reservation = FileDescriptorReservation()
        self.private_tmp = PrivateTmp()
        self._owner = Owner()
        self._spec: KernelSpec | None = None
        self._wants_guard = orphan_guard
        self._handshake = handshake
        self._guarded: GuardedKernel | None = None
        self._last_pid: int | None = None
        self._was_interrupted = False
        self._on_exit: Callable[[], None] = _ignore

    @property
    def spec(self) -> KernelSpec:
        """The kernel spec, looked up when first needed; raises NoSuchKernel."""
        if self._spec is None:
            self._spec = find_kernel_spec(self.kernel_name)
        return self._spec

    def reserve_descriptors(self, *, spare: int = SPARE_DESCRIPTORS) -> None:
        """Reserve file descriptors for a start and its channels. Raises TooManyFiles before anything is started."""
        self.reservation.reserve(
            KERNEL_DESCRIPTORS, f"the kernel {self.kernel_name!r}", later=CLIENT_DESCRIPTORS, spare=spare
        )

    def start(self, launch: Launch, on_exit: Callable[[], None], deadline: Deadline) -> None:
        """Start the process. If the kernel chooses its ports, wait until it has reported them.

        `on_exit()` runs in the hub when the process ends, unless `forget` came first. Raises NoSuchKernel, LaunchError,
        InvalidArgument, InvalidState, ConnectionFileError, KernelTimeout, and RemoteProtocolError for unusable ports.
        """
        self.endpoint.encrypt(self.spec)
        if launch.cwd is None:
            _check_own_directory()
        try:
            if self._will_handshake():
                registrar = self.endpoint.expect_registration()
                self._start_process(launch, on_exit, registrar.path, deadline)
                self._await_registration(registrar, deadline)
            else:
                self._start_process(launch, on_exit, self.endpoint.prepare(self._last_pid), deadline)
        finally:
            self.endpoint.end_registration()

    def _start_process(self, launch: Launch, on_exit: Callable[[], None], path: str, deadline: Deadline) -> None:
        self.argv = self.spec.command(path, launch.extra_arguments)
        # Ctrl-C must not strike between the launch and `self.process = process`: it would leave an orphan
        with self._owner.call():
            tmp = self.private_tmp.make()
            if self._wants_guard:
                process = self._start_guarded(launch, deadline, GuardedKernel(self.endpoint.traces() + tmp))
            else:
                process = self._start(launch, deadline)
            self.process = process
            self._was_interrupted = False
            self.launch = launch
            self._on_exit = on_exit
            process.exited.rawlink(until_done(self._owner, partial(self._exited, process)))

    def _will_handshake(self) -> bool:
        """True if the kernel chooses its ports; raises InvalidArgument if that is required and impossible."""
        if self._handshake == "off":
            return False
        if not self.spec.handshakes:
            version = self.spec.kernel_protocol_version
            said = f"kernel_protocol_version {version!r}" if version else "no kernel_protocol_version"
            obstacle = f"its spec says {said}, and the handshake came with 5.6"
        elif self.endpoint.info.transport != "tcp":
            obstacle = "the protocol has the handshake for tcp only"
        elif self.endpoint.are_ports_given:
            obstacle = "its ports are given by a connection file"
        else:
            return True
        if self._handshake == "required":
            raise InvalidArgument(
                f"handshake='required', but the kernel {self.kernel_name!r} cannot choose its own ports: {obstacle}; "
                "pass handshake='auto' to start it with ports that kclient chooses"
            )
        return False

    def _await_registration(self, registrar: Registrar, deadline: Deadline) -> None:
        """Wait until the kernel has reported its ports. Kill it if it does not, or if they cannot be used."""
        try:
            self.endpoint.register(self._reported_ports(registrar, deadline))
        except BaseException:
            self.kill()
            raise

    def _reported_ports(self, registrar: Registrar, deadline: Deadline) -> list[int]:
        try:
            ports = registrar.wait(self.require(), deadline)
        except RemoteProtocolError as exc:
            raise RemoteProtocolError(f"the kernel {self.kernel_name!r} {exc}; {self._failure().story()}") from None
        if ports is not None:
            return ports
        clues = [*registrar.clues(), "its spec says that it chooses its ports; with handshake='off' kclient does"]
        if not self.is_alive():
            raise self.never_came_up(self.death(), *clues)
        raise self.never_answered(KernelTimeout("registration of the kernel's ports", deadline.timeout), *clues)

    def tell_of_exit(self, on_exit: Callable[[], None]) -> None:
        """Call `on_exit()`, and no longer the one that was given before, when the process ends."""
        self._on_exit = on_exit

    def _exited(self, process: KernelProcess) -> None:
        if self.process is not process:
            return
        if self._guarded is not None:
            self._guarded.ended()
        self._on_exit()

    def _start(self, launch: Launch, deadline: Deadline, marks: Mapping[str, str] = _NO_MARKS) -> KernelProcess:
        # ipykernel ends when the process with that number has ended
        environment = {**launch.base_environment(), "JPY_PARENT_PID": str(os.getpid()), **marks}
        environment = self.spec.environment(environment, launch.env)
        self.private_tmp.put_into(environment, {*self.spec.env, *(launch.env or ())})
        self.argv = with_program(self.argv, self.spec.resource_dir, environment)
        left = deadline.left()
        with gevent.Timeout(None if left == math.inf else left, False):  # type: ignore[arg-type]  # the stubs don't know it
            try:
                return self.launcher.start(
                    self.argv, env=environment, cwd=launch.cwd, stdout=launch.stdout, stderr=launch.stderr
                )
            except LaunchError as exc:
                self._failure().could_not_start(exc)
                raise
        raise KernelTimeout("process from the launcher", deadline.timeout, hint="a new fork server imports first")

    def _start_guarded(self, launch: Launch, deadline: Deadline, guarded: GuardedKernel) -> KernelProcess:
        process = None
        try:
            process = self._start(launch, deadline, guarded.environment)
            guarded.take(process)
        except BaseException:
            if process is not None:
                process.kill()
                process.close()
            guarded.release()
            raise
        if self._guarded is not None:  # the kernel before a restart
            self._guarded.release()
        self._guarded = guarded
        return process

    def require(self) -> KernelProcess:
        """The process; raises InvalidState, a RuntimeError, if none was started."""
        if self.process is None:
            raise InvalidState("no kernel was started; call start_kernel() first")
        return self.process

    def is_alive(self) -> bool:
        return self.process is not None and self.process.is_alive()

    def interrupt(self) -> bool:
        """Send SIGINT to the kernel and its children. False, and no signal, if its spec wants an interrupt_request."""
        if self.spec.interrupt_mode == "message":
            return False
        process = self.require()
        if self._owner.forked:
            return True
        self._was_interrupted = True
        if not (
            isinstance(process, LocalProcess)
            and process.is_alive()
            and interrupt_behind_wrapper(process.pid, self.endpoint.info)
        ):
            process.send_signal(signal.SIGINT)
        return True

    def wait_for_exit(self, deadline: Deadline) -> bool:
        """Wait until the process has ended (True) or until the deadline is over (False)."""
        process = self.require()
        parking = Parking(self._owner)
        wake = until_done(self._owner, parking.wake)
        process.exited.rawlink(wake)
        try:
            while not process.exited.is_set() and process.is_alive() and not deadline.is_over:
                parking.wait(deadline)
        finally:
            process.exited.unlink(wake)
        return not process.is_alive()

    def end(self, deadline: Deadline) -> None:
        """Send SIGTERM to the kernel and its children, then SIGKILL if it has not ended in time."""
        process = self.require()
        if process.is_alive():
            process.send_signal(signal.SIGTERM)
            if not self.wait_for_exit(deadline.at_most(TERM_WAIT_S)):
                self.kill()

    def kill(self) -> None:
        """Send SIGKILL to the kernel and its children, and wait until it has ended."""
        self.require().kill()
        self.wait_for_exit(Deadline(KILL_WAIT_S))

    def came_up(self) -> None:
        """The kernel has answered: it has bound its ports, and descriptors are open."""
        self.endpoint.let_go_of_ports()
        self.reservation.release()

    def forget(self) -> None:
        """Close the process object, and set `process` to None."""
        process, self.process = self.process, None
        if process is not None:
            self._last_pid = process.pid if isinstance(process, LocalProcess) else None
            process.close()

    def death(self, reason: str = "") -> DeadKernelError:
        """An error that says how the process ended, and for which reason, if one is known."""
        process = self.process
        if process is None:
            return DeadKernelError("the kernel was shut down; start_kernel() starts another")
        if not reason and self._was_interrupted and process.exit_code in DEATHS_BY_SIGINT:
            reason = (
                "the interrupt ended it; if its command is a program that runs the kernel as its child, such as conda "
                'run, set interrupt_mode to "message" in its kernel spec'
            )
        return DeadKernelError(
            f"the kernel {self.kernel_name!r} died{reason and ': '}{reason}",
            exit_code=process.exit_code,
            stderr=process.stderr_tail(),
        )

    def never_came_up(self, death: DeadKernelError, *clues: str, words: str = "") -> LaunchError:
        """The LaunchError for a kernel that died before it was ready. `words` are what it sent as output."""
        return self._failure().never_came_up(death, *clues, words=words)

    def never_answered(self, timeout: KernelTimeout, *clues: str, words: str = "") -> KernelTimeout:
        """`timeout`, with possible causes, the command of the kernel and the end of its output added."""
        return self._failure().never_answered(timeout, *clues, words=words)

    def _failure(self) -> StartFailure:
        return StartFailure(self.spec, self.endpoint, self.argv, self.process)

    def abandon(self, *_: Any) -> None:
        """Kill the process and remove the files, when its manager is garbage-collected or the program ends."""
        if self._owner.forked:
            return
        if self.process is not None:
            self.process.kill()
            self.forget()
        self.clean_up(may_turn=False)

    def clean_up(self, *, may_turn: bool = True) -> None:
        """Remove the files, end the reservation of file descriptors, and have the guard forget the kernel."""
        self.reservation.release()
        self.endpoint.remove()
        self.private_tmp.remove(may_turn=may_turn)
        if self._guarded is not None:
            self._guarded.release()
            self._guarded = None
