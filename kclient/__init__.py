"""Talk to Jupyter kernels, synchronously: every request returns its reply, in scripts and in gevent servers."""

from importlib import import_module
from typing import TYPE_CHECKING

from kclient.channels.heartbeat import HBChannel
from kclient.channels.iopub import IOPubChannel
from kclient.channels.shell import ControlChannel, ShellChannel
from kclient.channels.stdin import StdInChannel
from kclient.client import KernelClient
from kclient.errors import (
    BadMessage,
    ChannelClosed,
    CommClosed,
    ConnectionFileError,
    DeadKernelError,
    ExecutionAborted,
    ExecutionError,
    ForkedProcess,
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
    UnsupportedFeature,
    WrongThread,
)
from kclient.execution import Execution
from kclient.protocol.connection import ConnectionInfo
from kclient.protocol.kernel_info import KernelInfo
from kclient.protocol.messages import Message
from kclient.result import ErrorInfo, Result
from kclient.start import connect, start_kernel

if TYPE_CHECKING:
    from kclient.comm import Comm
    from kclient.comms import Comms
    from kclient.kernels.forkserver import ForkServer
    from kclient.kernels.install import install_kernel_spec, remove_kernel_spec
    from kclient.kernels.search import find_kernel_spec, list_kernel_specs
    from kclient.kernels.spec import KernelSpec
    from kclient.manager import KernelManager
    from kclient.pool.pool import KernelPool
    from kclient.pool.records import PooledKernel, PoolEvent, PoolStats
    from kclient.protocol.session import Session

__all__ = [
    "BadMessage",
    "ChannelClosed",
    "Comm",
    "CommClosed",
    "Comms",
    "ConnectionFileError",
    "ConnectionInfo",
    "ControlChannel",
    "DeadKernelError",
    "ErrorInfo",
    "Execution",
    "ExecutionAborted",
    "ExecutionError",
    "ForkServer",
    "ForkedProcess",
    "HBChannel",
    "IOPubChannel",
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
    "Comm": "kclient.comm",
    "Comms": "kclient.comms",
    "ForkServer": "kclient.kernels.forkserver",
    "KernelManager": "kclient.manager",
    "KernelPool": "kclient.pool.pool",
    "KernelSpec": "kclient.kernels.spec",
    "PoolEvent": "kclient.pool.records",
    "PoolStats": "kclient.pool.records",
    "PooledKernel": "kclient.pool.records",
    "Session": "kclient.protocol.session",
    "find_kernel_spec": "kclient.kernels.search",
    "install_kernel_spec": "kclient.kernels.install",
    "list_kernel_specs": "kclient.kernels.search",
    "remove_kernel_spec": "kclient.kernels.install",
}
"""What is not needed until there is a kernel to talk to, or to start: imported when asked for."""


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
