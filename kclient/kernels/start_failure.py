"""StartFailure: what an error says about a kernel that did not come up, and what to do about it."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Sequence
from typing import Final

import attrs

from kclient.errors import STDERR_SHOWN, DeadKernelError, KernelTimeout, LaunchError
from kclient.kernels.connection.endpoint import Endpoint
from kclient.kernels.connection.port_conflicts import describe, taken_ports
from kclient.kernels.process.local import KernelProcess, LocalProcess
from kclient.kernels.specs.program import bin_folder
from kclient.kernels.specs.spec import SPEC_FILE, KernelSpec

_LACKS_IPYKERNEL: Final = re.compile(r"No module named '?ipykernel")
"""What a Python without ipykernel prints."""


@attrs.frozen
class StartFailure:
    """One start that failed; `process` is None if there was none."""

    spec: KernelSpec
    endpoint: Endpoint
    argv: Sequence[str]
    process: KernelProcess | None = None

    def could_not_start(self, error: LaunchError) -> None:
        """Add to `error`, of a launcher, where the command comes from and, if its program is gone, what to do."""
        program = self.argv[0] if self.argv else ""
        clauses = self._source()
        if clauses and os.path.isabs(program) and not os.path.lexists(program):
            clauses.append("the program is gone: install the kernel anew, or remove that file's folder")
        elif clauses and program and not os.path.dirname(program):
            folder = bin_folder(self.spec.resource_dir)
            clauses.append(f"{program} was looked for on PATH" + (f" and in {folder}" if folder else ""))
        error.message = "; ".join([error.message, *clauses])
        error.args = (error.message,)

    def never_came_up(self, death: DeadKernelError, *clues: str, words: str = "") -> LaunchError:
        """The LaunchError for a kernel that died before it was ready. It names the ports that another program has.

        `words` are what the kernel has sent as output, which is not on its stderr.
        """
        info = self.endpoint.info
        taken = taken_ports(info)
        story = [describe(info, taken)] if taken else []
        if _LACKS_IPYKERNEL.search(death.stderr):
            story.append(f"install ipykernel in that Python: {shlex.quote(self.argv[0])} -m pip install ipykernel")
        story += [*clues, *self._lacks_address(), f"its command was {shlex.join(self.argv)}", *self._source()]
        if words:
            story.append(f"it printed: {words}")
        return LaunchError(
            f"the kernel {self.spec.name!r} ended before it was ready; {'; '.join(story)}",
            argv=self.argv,
            exit_code=death.exit_code,
            stderr=death.stderr,
            taken_ports=taken,
        )

    def never_answered(self, timeout: KernelTimeout, *clues: str, words: str = "") -> KernelTimeout:
        """`timeout`, with possible causes, the command of the kernel and the end of its output added."""
        info = self.endpoint.info
        story = [*clues, *self._lacks_address(), self.story(words)]
        if self.endpoint.is_encrypted:
            story.append("the connection is encrypted; if the kernel cannot do that, pass encryption='off'")
        if isinstance(self.process, LocalProcess) and (taken := taken_ports(info, self.process.pid)):
            story.insert(0, describe(info, taken))
        return KernelTimeout(timeout.waiting_for, timeout.timeout, msg_id=timeout.msg_id, hint="; ".join(story))

    def story(self, words: str = "") -> str:
        """The command of the kernel and the end of its output, with `words`, which it has sent."""
        output = self.process.stderr_tail().strip()[-STDERR_SHOWN:] if self.process is not None else ""
        if words:
            output = words if output in words else f"{output}\n{words}"
        clauses = [f"the command was {shlex.join(self.argv)}", *self._source()]
        return "; ".join([*clauses, f"the end of its output: {output or 'it printed none'}"])

    def _source(self) -> list[str]:
        """A clause that names the file of the kernel spec; none for the kernel that has no file."""
        path = os.path.join(self.spec.resource_dir, SPEC_FILE)
        return [f"its kernel spec is {path}"] if self.spec.resource_dir and os.path.isfile(path) else []

    def _lacks_address(self) -> list[str]:
        """A clause for an error message if the kernel has not bound all ipc addresses: half of all kernels lack ipc.

        Nearly all of them lack IPv6, for which libzmq has an option of its own.
        """
        ip = self.endpoint.info.ip
        if self.endpoint.info.transport == "tcp" and ":" in ip:
            return [f"its ip {ip!r} is an IPv6 address, and few kernels listen on one; pass '127.0.0.1'"]
        for path in self.endpoint.info.ipc_paths():
            if not os.path.lexists(path):
                return [f"it never listened at ipc://{path}; if it supports only tcp, pass transport='tcp'"]
        return []
