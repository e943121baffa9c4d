"""`start_kernel`: start a kernel, connect to it, and wait until it is ready."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from kclient.concurrency.deadline import Deadline
from kclient.concurrency.file_limits import KERNEL_DESCRIPTORS, check
from kclient.concurrency.owner import Owner
from kclient.errors import LaunchError

if TYPE_CHECKING:
    from kclient.kernels.process.local import Launcher
    from kclient.kernels.process.output import Output
    from kclient.manager.autorestart import AutoRestart
    from kclient.manager.kernel_manager import KernelManager

_Manager = TypeVar("_Manager", bound="KernelManager")

START_ATTEMPTS: Final = 3
"""Number of starts, each with new ports: another program may take a port before the kernel binds it."""


def start_kernel(
    kernel_name: str = "python3",
    *,
    timeout: float | None = 60,
    transport: str = "tcp",
    ip: str | None = None,
    connection_file: str | os.PathLike[str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    env: Mapping[str, str | None] | None = None,
    clean_env: bool = False,
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
    KernelTimeout, TooManyFiles before anything starts, and LaunchError if the kernel ends before it is ready, with its
    command, exit code and output. After an error nothing is left behind.

    | `encryption` (CurveZMQ, all five sockets) | a kernel whose spec declares encryption | other kernels          |
    |-------------------------------------------|-----------------------------------------|------------------------|
    | "auto"                                    | encrypted                               | not encrypted          |
    | "required"                                | encrypted                               | raises InvalidArgument |
    | "off"                                     | not encrypted                           | not encrypted          |

    | `handshake` | a kernel whose spec says protocol 5.6 or newer, over tcp          | other kernels             |
    |-------------|-------------------------------------------------------------------|---------------------------|
    | "auto"      | chooses and reports its ports, so no program can take them before | kclient chooses the ports |
    | "required"  | the same                                                          | raises InvalidArgument    |
    | "off"       | kclient chooses the ports                                         | kclient chooses the ports |

    Both raise InvalidArgument before anything starts.

    A kernel gets all variables of this program's environment, tokens and passwords too. `env` changes and adds some,
    and leaves out those whose value is None. (jupyter_client's `env` takes the place of the whole environment.) With
    `clean_env=True` it gets only those of its spec and of `env`, and what most kernels need: HOME, LANG, LANGUAGE,
    LC_*, LOGNAME, PATH, SHELL, TMPDIR, TZ and USER.

    A kernel ends with this program, with one exception: the program is killed (SIGKILL), and the kernel does not watch
    its parent (ipykernel does). For that case `orphan_guard=True` starts a small process, one for all kernels of the
    program. That process waits for the end of the program, then kills the kernels' process groups and removes their
    files. It raises LaunchError if the process cannot be started, and InvalidArgument if the `launcher` does not return
    a LocalProcess.

    With `restart=True`, or an AutoRestart, a kernel that dies after it was ready is restarted; AutoRestart says how. If
    it dies before that, this call raises LaunchError.
    """
    check(KERNEL_DESCRIPTORS, f"the kernel {kernel_name!r}")  # before the import, which takes descriptors, too
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

    launch = {
        "extra_arguments": extra_arguments,
        "cwd": cwd,
        "env": env,
        "clean_env": clean_env,
        "stdout": stdout,
        "stderr": stderr,
    }
    return start_until_ready(new, launch, deadline)


def start_until_ready(new: Callable[[], _Manager], launch: Mapping[str, Any], deadline: Deadline) -> _Manager:
    """Start a kernel with a manager that `new()` makes, connect and wait until it is ready. Retry if ports were taken.

    `launch` has the arguments of KernelManager.start_kernel. Raises as `start_kernel` does.
    """
    from kclient.kernels.connection.port_conflicts import were_taken

    for attempts_left in reversed(range(START_ATTEMPTS)):
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
