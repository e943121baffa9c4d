"""Talk to Jupyter kernels, synchronously: every request returns its reply, in scripts and in gevent servers."""

from importlib import import_module as _import_module
from typing import TYPE_CHECKING

from kclient.channels.heartbeat import HBChannel
from kclient.channels.iopub import IOPubChannel
from kclient.channels.shell import ControlChannel, ShellChannel
from kclient.channels.stdin import StdInChannel
from kclient.client.connect import connect
from kclient.client.execution import Execution
from kclient.client.kernel_client import KernelClient
from kclient.errors import (
    BadMessage,
    ChannelClosed,
    CommClosed,
    ConnectionFileError,
    DeadKernelError,
    ExecutionAborted,
    ExecutionError,
    ForkedProcess,
    IncompleteOutput,
    InvalidArgument,
    InvalidPortNumber,
    InvalidState,
    KClientError,
    KernelRestarted,
    KernelSpecError,
    KernelSpecExists,
    KernelTimeout,
    LaunchError,
    LocalProtocolError,
    NoReply,
    NoSuchKernel,
    ProtocolError,
    RemoteProtocolError,
    TooManyFiles,
    UnsupportedFeature,
    WrongThread,
)
from kclient.manager.start import start_kernel
from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.displays import Displays
from kclient.protocol.kernel_info import KernelInfo
from kclient.protocol.messages import Message
from kclient.protocol.result import ErrorInfo, Result

if TYPE_CHECKING:
    from kclient.client.comm import Comm
    from kclient.client.comms import Comms
    from kclient.kernels.forkserver.launcher import ForkServer
    from kclient.kernels.specs.install import install_kernel_spec, remove_kernel_spec
    from kclient.kernels.specs.search import find_kernel_spec, list_kernel_specs
    from kclient.kernels.specs.spec import KernelSpec
    from kclient.manager.autorestart import AutoRestart
    from kclient.manager.kernel_manager import KernelManager
    from kclient.pool.events import PooledKernel, PoolEvent, PoolStats
    from kclient.pool.pool import KernelPool
    from kclient.protocol.session import Session

    __version__: str

__all__ = [
    "AutoRestart",
    "BadMessage",
    "ChannelClosed",
    "Comm",
    "CommClosed",
    "Comms",
    "ConnectionFileError",
    "ConnectionInfo",
    "ControlChannel",
    "DeadKernelError",
    "Displays",
    "ErrorInfo",
    "Execution",
    "ExecutionAborted",
    "ExecutionError",
    "ForkServer",
    "ForkedProcess",
    "HBChannel",
    "IOPubChannel",
    "IncompleteOutput",
    "InvalidArgument",
    "InvalidPortNumber",
    "InvalidState",
    "KClientError",
    "KernelClient",
    "KernelInfo",
    "KernelManager",
    "KernelPool",
    "KernelRestarted",
    "KernelSpec",
    "KernelSpecError",
    "KernelSpecExists",
    "KernelTimeout",
    "LaunchError",
    "LocalProtocolError",
    "Message",
    "NoReply",
    "NoSuchKernel",
    "PoolEvent",
    "PoolStats",
    "PooledKernel",
    "ProtocolError",
    "RemoteProtocolError",
    "Result",
    "Session",
    "ShellChannel",
    "StdInChannel",
    "TooManyFiles",
    "UnsupportedFeature",
    "WrongThread",
    "connect",
    "find_kernel_spec",
    "install_kernel_spec",
    "list_kernel_specs",
    "remove_kernel_spec",
    "start_kernel",
]

_MODULES = {
    "AutoRestart": "kclient.manager.autorestart",
    "Comm": "kclient.client.comm",
    "Comms": "kclient.client.comms",
    "ForkServer": "kclient.kernels.forkserver.launcher",
    "KernelManager": "kclient.manager.kernel_manager",
    "KernelPool": "kclient.pool.pool",
    "KernelSpec": "kclient.kernels.specs.spec",
    "PoolEvent": "kclient.pool.events",
    "PoolStats": "kclient.pool.events",
    "PooledKernel": "kclient.pool.events",
    "Session": "kclient.protocol.session",
    "find_kernel_spec": "kclient.kernels.specs.search",
    "install_kernel_spec": "kclient.kernels.specs.install",
    "list_kernel_specs": "kclient.kernels.specs.search",
    "remove_kernel_spec": "kclient.kernels.specs.install",
}
"""Names that are imported when they are first used: a program needs them late, or not at all."""


def __getattr__(name: str) -> object:
    if name == "__version__":
        value: object = _installed_version()
    elif name in _MODULES:
        value = getattr(_import_module(_MODULES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


def _installed_version() -> str:
    """The version of the installed package; "unknown" for source files that are not installed."""
    from importlib.metadata import PackageNotFoundError, version  # imported here: few programs need it

    try:
        return version("kclient")
    except PackageNotFoundError:
        return "unknown"
