"""Every error that kclient raises on purpose.

::

    KClientError
    |- ProtocolError
    |   |- LocalProtocolError       the caller asked for something that is not possible
    |   |   |- InvalidArgument      (also ValueError)    a bad argument; nothing was sent
    |   |   |- InvalidState         (also RuntimeError)  not possible now: not started, stopped, inside on_input
    |   |   |- UnsupportedFeature   the kernel is known not to have it  .feature
    |   |- RemoteProtocolError      the kernel sent something that is not valid
    |       |- BadMessage           frames that are no message; counted and dropped  .reason
    |       |- NoReply              no reply came, and none will  .msg_id .result
    |       |- IncompleteOutput     outputs may be missing  .result; raised on request only
    |- ConnectionFileError          (also ValueError)    .path
    |- InvalidPortNumber            (also ValueError)
    |- NoSuchKernel                 (also KeyError)      .name .available .searched .allowed
    |- KernelSpecError              a kernel spec cannot be installed or removed  .path
    |   |- KernelSpecExists         (also FileExistsError)
    |- ChannelClosed                you closed it        .channel
    |- CommClosed                   the kernel or you closed it  .comm_id .target_name .data
    |- DeadKernelError              the kernel died      .exit_code .stderr .result
    |   |- LaunchError              it did not start     .argv .taken_ports
    |- KernelRestarted              .msg_id
    |- TooManyFiles                 (also OSError)       .needed .in_use .limit .hard_limit
    |- KernelTimeout                (also TimeoutError)  .waiting_for .timeout .msg_id .execution .result
    |- WrongThread, ForkedProcess
    |- ExecutionError               .ename .evalue .traceback .result; raised on request only
        |- ExecutionAborted         an earlier error made the kernel skip it
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from errno import EMFILE
from typing import Any, Protocol

STDERR_SHOWN = 2000
"""Characters of a dead kernel's stderr that its message shows; the attribute holds all that was kept."""


class PartialResult(Protocol):
    """The `Result` of an execution that did not end normally. Its `complete` is False."""

    @property
    def outputs(self) -> list[dict[str, Any]]: ...

    @property
    def stdout(self) -> str: ...


class UnfinishedExecution(Protocol):
    """An `Execution` whose caller stopped waiting. The caller may wait again, or interrupt it."""

    def interrupt(self) -> None: ...

    def result(self, timeout: float | None = None) -> PartialResult: ...


class KClientError(Exception):
    """Base of everything that kclient raises on purpose. Each can be copied and pickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, self._facts())

    def __copy__(self) -> KClientError:
        return _rebuild(type(self), self.args, vars(self))

    def _facts(self) -> dict[str, Any]:
        """The attributes that can travel to another process."""
        return dict(vars(self))


def _rebuild(kind: type[KClientError], args: tuple[Any, ...], facts: dict[str, Any]) -> KClientError:
    error = kind.__new__(kind)
    error.args = args
    vars(error).update(facts)
    return error


class ProtocolError(KClientError):
    """A rule of the messaging protocol was broken, by this program or by the kernel."""


class LocalProtocolError(ProtocolError):
    """The caller asked for something that the protocol or the state of the channel does not allow."""


class InvalidArgument(LocalProtocolError, ValueError):
    """An argument has the wrong type or is out of range. Nothing was sent."""


class InvalidState(LocalProtocolError, RuntimeError):
    """The call is not possible now, for example because the channels are not started, or are stopped already."""


class UnsupportedFeature(LocalProtocolError):
    """The kernel does not support the request, by its kernel_info reply; nothing was sent.

    `feature` is an entry of supported_features, or the type of a request that is newer than the kernel's protocol.
    """

    def __init__(self, message: str, *, feature: str) -> None:
        super().__init__(message)
        self.feature = feature


class RemoteProtocolError(ProtocolError):
    """The kernel sent something that the protocol does not allow."""


class BadMessage(RemoteProtocolError):
    """Frames that are no valid message; `reason` is layout, signature, replay, size or json. Only Session raises it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class NoReply(RemoteProtocolError):
    """No reply will come: the request or the reply was lost, or the kernel sent no reply."""

    def __init__(self, message: str, *, msg_id: str | None = None, result: PartialResult | None = None) -> None:
        super().__init__(message)
        self.msg_id = msg_id
        self.result = result


class IncompleteOutput(RemoteProtocolError):
    """The code did not fail, but outputs may be missing; `check=True` and `raise_for_error` raise it."""

    def __init__(self, message: str, *, result: PartialResult | None = None) -> None:
        super().__init__(message)
        self.result = result


class ConnectionFileError(KClientError, ValueError):
    """A connection file, or the values of one, cannot be used."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class InvalidPortNumber(KClientError, ValueError):
    """A port that no channel can connect to, such as 0."""


class NoSuchKernel(KClientError, KeyError):
    """No kernel spec has that name, or the name is not in `allowed` (None: every name is allowed)."""

    def __init__(
        self,
        name: str,
        *,
        available: Sequence[str] = (),
        searched: Sequence[str] = (),
        allowed: Iterable[str] | None = None,
    ) -> None:
        super().__init__(name)
        self.name = name
        self.available = tuple(available)
        self.searched = tuple(searched)
        self.allowed = None if allowed is None else tuple(sorted(allowed))

    def __str__(self) -> str:
        have, looked = ", ".join(self.available) or "none", ", ".join(self.searched) or "nowhere"
        if self.allowed is not None and self.name.lower() not in self.allowed:
            return (
                f"the kernel {self.name!r} is not allowed by KCLIENT_ALLOWED_KERNELS or by allowed=; "
                f"allowed and installed are: {have}"
            )
        hint = "; `python -m pip install ipykernel` gives this Python one" if self.name.lower() == "python3" else ""
        return f"no kernel named {self.name!r}{hint}; there are: {have}; looked in: {looked}"


class KernelSpecError(KClientError):
    """A kernel spec could not be installed or removed; `path` is its directory."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class KernelSpecExists(KernelSpecError, FileExistsError):
    """A kernel spec of that name is installed there already; `replace=True` replaces it."""


class ChannelClosed(KClientError):
    """This program stopped the channel, before or during the call."""

    def __init__(self, channel: str) -> None:
        super().__init__(f"the {channel} channel is closed; start_channels() opens new ones")
        self.channel = channel


class CommClosed(KClientError):
    """A comm was closed; `data` is that of the kernel's comm_close, None if this program closed the comm."""

    def __init__(self, message: str, *, comm_id: str, target_name: str, data: Any = None) -> None:
        super().__init__(message)
        self.comm_id = comm_id
        self.target_name = target_name
        self.data = data


class DeadKernelError(KClientError):
    """The kernel's process has ended, or its address refuses connections.

    `exit_code` is negative for a signal, and None if it is not known. `stderr` is the end of the kernel's output.
    `result` is the partial `Result` of the execution that the call waited for, None if it waited for something else.
    """

    def __init__(
        self,
        message: str = "the kernel died",
        *,
        exit_code: int | None = None,
        stderr: str = "",
        result: PartialResult | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = exit_code
        self.stderr = stderr
        self.result = result

    @property
    def headline(self) -> str:
        """The message and the exit code, without the kernel's output."""
        return self.message if self.exit_code is None else f"{self.message} ({describe_exit(self.exit_code)})"

    def __str__(self) -> str:
        text = self.headline
        if self.stderr.strip():
            text += "; the end of its output:\n" + self.stderr.strip()[-STDERR_SHOWN:]
        return text


class LaunchError(DeadKernelError):
    """The kernel did not start, or ended before it answered; another program was using its `taken_ports`."""

    def __init__(
        self,
        message: str,
        *,
        argv: Sequence[str] = (),
        exit_code: int | None = None,
        stderr: str = "",
        taken_ports: Sequence[int] = (),
    ) -> None:
        super().__init__(message, exit_code=exit_code, stderr=stderr)
        self.argv = list(argv)
        self.taken_ports = tuple(taken_ports)


class KernelRestarted(KClientError):
    """The kernel was restarted while the call waited. The old kernel may have run the request; the new one does not."""

    def __init__(self, msg_id: str | None = None) -> None:
        super().__init__("the kernel was restarted before it answered; send the request again")
        self.msg_id = msg_id


class KernelTimeout(KClientError, TimeoutError):
    """A blocking call did not end within its timeout."""

    def __init__(
        self,
        waiting_for: str,
        timeout: float | None,
        *,
        msg_id: str | None = None,
        execution: UnfinishedExecution | None = None,
        result: PartialResult | None = None,
        hint: str = "",
    ) -> None:
        budget = "" if timeout is None else f" within {timeout:g} s"
        super().__init__(f"no {waiting_for}{budget}" + (f"; {hint}" if hint else ""))
        self.waiting_for = waiting_for
        self.timeout = timeout
        self.msg_id = msg_id
        self.execution = execution
        self.result = result

    def _facts(self) -> dict[str, Any]:
        return super()._facts() | {"execution": None}  # an Execution works only in its own hub


class TooManyFiles(KClientError, OSError):
    """A client or a kernel needs `needed` more file descriptors, or ZeroMQ sockets, than are allowed.

    `in_use` of `limit` are in use. The limit can be raised to `hard_limit` (None: without bound).
    """

    errno = EMFILE

    def __init__(self, message: str, *, needed: int, in_use: int, limit: int, hard_limit: int | None) -> None:
        super().__init__(message)
        self.needed = needed
        self.in_use = in_use
        self.limit = limit
        self.hard_limit = hard_limit


class WrongThread(KClientError):
    """A call from a thread (a gevent hub) other than the one that owns the object."""


class ForkedProcess(KClientError):
    """A call in a forked child: sockets do not survive a fork; make a new client there."""


class ExecutionError(KClientError):
    """The code raised; only `check=True` and `Result.raise_for_error()` turn that into an exception."""

    def __init__(
        self, ename: str, evalue: str, traceback: Sequence[str] = (), *, result: PartialResult | None = None
    ) -> None:
        super().__init__(f"{ename}: {evalue}" if evalue else ename)
        self.ename = ename
        self.evalue = evalue
        self.traceback = list(traceback)
        self.result = result


class ExecutionAborted(ExecutionError):
    """The code did not run: the kernel skipped it because earlier code failed, or its call was given up before."""


Failure = Callable[[str | None], Exception]
"""Makes the error that a waiting call raises, given the id of its request."""


def copies_of(error: Exception) -> Failure:
    """A copy of `error` for each call that it ends."""
    return lambda msg_id: copy(error)


def describe_exit(exit_code: int) -> str:
    """``exit code 3``, or for a negative code the name of the signal, ``killed by SIGKILL``."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"killed by {signal.Signals(-exit_code).name}"
    except ValueError:
        return f"killed by signal {-exit_code}"
