"""`start_kernel`: start a kernel, connect to it, and wait until it is ready."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.file_limits import KERNEL, check
from kclient.concurrency.owner import Owner
from kclient.errors import LaunchError

if TYPE_CHECKING:
    from kclient.kernels.process.local import Launcher
    from kclient.kernels.process.output import Output
    from kclient.manager.autorestart import AutoRestart
    from kclient.manager.kernel_manager import KernelManager

_Manager = TypeVar("_Manager", bound="KernelManager")

ATTEMPTS: Final = 3
"""Starts with fresh ports, when another program took one between the choice and the kernel's bind."""


def start_kernel(
    kernel_name: str = "python3",
    *,
    timeout: float | None = 60,
    transport: str = "tcp",
    ip: str | None = None,
    connection_file: str | os.PathLike[str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str] | None = None,
    extra_arguments: Sequence[str] = (),
    encryption: str = "auto",
    stdout: Output = None,
    stderr: Output = None,
    launcher: Launcher | None = None,
    spin: float = 0.0,
    orphan_guard: bool = False,
    handshake: str = "auto",
    restart: bool | AutoRestart = False,
) -> KernelManager:
    """Start a kernel, connect to it, and return its manager when it is ready, within `timeout` seconds.

    Use it in a `with` statement, which shuts the kernel down. `spin` is that of `connect`. Raises NoSuchKernel,
    LaunchError with the command, exit code and output of a kernel that did not come up, TooManyFiles before anything
    starts, and KernelTimeout; then nothing is left behind.

    `encryption` (CurveZMQ, of all five sockets) is "auto", for kernels whose spec declares that they can, "required",
    which refuses others by an InvalidArgument before anything starts, or "off".

    With `handshake="auto"` a kernel whose spec says protocol 5.6 or newer chooses its tcp ports itself, so that nobody
    can take them first, and reports them; others, and all with ``"off"``, are given theirs. ``"required"`` refuses
    those others, with InvalidArgument, before anything starts.

    A kernel ends with the program that started it, unless this is killed (SIGKILL) and the kernel does not watch its
    parent, as ipykernel does. `orphan_guard=True` is for those: a small process of its own, one for all kernels of the
    program, waits for its end, then kills their process groups and removes their files. It raises LaunchError if there
    is no room for that process, and InvalidArgument if the `launcher` does not return a LocalProcess.

    With `restart=True`, or an AutoRestart, a kernel that dies once it is ready is restarted: see there what its calls
    do. One that dies before is the LaunchError of this call.
    """
    check(KERNEL, f"the kernel {kernel_name!r}")  # or not even the next line could be sure to work
    from kclient.manager.kernel_manager import KernelManager

    deadline = Deadline(timeout)

    def new() -> KernelManager:
        return KernelManager(
            kernel_name,
            transport=transport,
            ip=ip,
            connection_file=connection_file,
            encryption=encryption,
            launcher=launcher,
            spin=spin,
            orphan_guard=orphan_guard,
            handshake=handshake,
            restart=restart,
        )

    launch = {"extra_arguments": extra_arguments, "cwd": cwd, "env": env, "stdout": stdout, "stderr": stderr}
    return start_until_ready(new, launch, deadline)


def start_until_ready(new: Callable[[], _Manager], launch: Mapping[str, Any], deadline: Deadline) -> _Manager:
    """Start a kernel of a `new` manager, connect and wait until it is ready; again if its ports were taken meanwhile.

    `launch` has the arguments of KernelManager.start_kernel. Raises as `start_kernel` does.
    """
    from kclient.kernels.connection.port_conflicts import were_taken

    for attempts_left in reversed(range(ATTEMPTS)):
        manager = new()
        try:
            with Owner().call():
                manager.start_kernel(**launch, timeout=deadline)
                manager.start_channels()
                manager.wait_for_ready(deadline)
            return manager
        except LaunchError as exc:
            manager.shutdown_kernel(now=True)
            if not attempts_left or not were_taken(exc):
                raise
        except BaseException:
            manager.shutdown_kernel(now=True)
            raise
    raise AssertionError("the last attempt returns or raises")
