"""The kernels that are driven: the code for each feature, and their gaps in the protocol, with the evidence."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import attrs

PYTHON = {
    "stream": "print('hi')",
    "order": "for i in range(500): print(i)",
    "result": "6 * 7",
    "error": "1 / 0",
    "complete": ("impor", "import"),
    "inspect": ("len", "number of items"),
    "is_complete": ("6 * 7", "for i in range(3):"),
    # Not one long sleep: a signal that comes just before it is not noticed until it ends.
    "sleep": "print('ready', flush=True); import time\nfor _ in range(600): time.sleep(0.1)",
    "stdin": "print('hello ' + input('name? '))",
}

WANTED = {
    "kernel_info": "complete",
    "stream": "hi",
    "order": "all before idle",
    "result": "42",
    "error": "its ename",
    "complete": "found",
    "inspect": "found",
    "history": "its last code",
    "is_complete": "complete, incomplete",
    "stdin": "name? hello Ada",
    "interrupt": "ended",
    "interrupt by message": "ended",
    "restart": "hi",
    "shutdown": "ended",
}
"""Every feature, and the outcome that is seen if all is well. `Row.wanted` has those that differ between kernels."""


@attrs.frozen
class Gap:
    """A gap: the outcome that is `seen` of a feature, and the reason `why` it is the kernel's fault.

    One that is not there `always` is a race within the kernel.
    """

    seen: str
    why: str
    always: bool = True


@attrs.frozen
class IpcGap:
    """A kernel that cannot listen over ipc, or not in so long a `folder`, `prints` this. `why` is the reason."""

    prints: str
    why: str
    folder: str = ""


@attrs.frozen
class Row:
    """One kernel. `code` holds the code to send for each feature; `prepare` is run before all else.

    `spec` returns the spec of a kernel whose package brings none, `ordinary` has its transports in the ordinary suite.
    """

    name: str
    package: str
    install: str
    code: dict[str, Any]
    ename: str
    gaps: dict[str, Gap] = attrs.field(factory=dict)
    ipc_gap: IpcGap | None = None
    prepare: str = ""
    ordinary: tuple[str, ...] = ()
    spec: Callable[[], dict[str, Any]] | None = None

    @property
    def transports(self) -> tuple[str, ...]:
        return ("tcp",) if self.ipc_gap is not None and not self.ipc_gap.folder else ("tcp", "ipc")

    def wanted(self, feature: str) -> str:
        """The outcome of a feature if all is well."""
        own = {"error": self.ename, "history": str([self.code["result"]])}
        return own.get(feature) or WANTED[feature]

    def accepted(self, feature: str) -> set[str]:
        """The outcomes of a feature that are accepted: the wanted one, or that of the gap."""
        gap = self.gaps.get(feature)
        if gap is None:
            return {self.wanted(feature)}
        return {gap.seen} if gap.always else {gap.seen, self.wanted(feature)}

    @property
    def version(self) -> str | None:
        """The version of the package; None if it is not installed."""
        try:
            return version(self.package)
        except PackageNotFoundError:
            return None

    def write_spec(self, directory: Path) -> None:
        """Install the spec into the `kernels` of a folder of JUPYTER_PATH, for a kernel whose package brings none."""
        if self.spec is not None:
            folder = directory / "kernels" / self.name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "kernel.json").write_text(json.dumps({"display_name": self.name, **self.spec()}))


def bash_spec() -> dict[str, Any]:
    argv = [sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"]
    return {"argv": argv, "language": "bash", "env": {"PS1": "$"}}


def deno_spec() -> dict[str, Any]:
    beside_python = Path(sys.executable).parent / "deno"
    deno = str(beside_python) if beside_python.exists() else shutil.which("deno") or "deno"
    return {"argv": [deno, "jupyter", "--kernel", "--conn", "{connection_file}"], "language": "typescript"}


LET_IT_OUT = "await new Promise((resolve) => setTimeout(resolve, 200))"
"""deno code prints late (see the gap `order`), unless the code takes a while."""

NO_INSPECTOR = "answers `found: false` whatever it is asked"
NO_HISTORY = "keeps none: always an empty list"

ROWS = [
    Row(
        "python3",
        package="ipykernel",
        install="pip install ipykernel",
        code=PYTHON,
        ename="ZeroDivisionError",
        prepare="%config Completer.use_jedi = False",  # the first completion with it takes seconds
        ordinary=("tcp",),
    ),
    Row(
        "xpython",
        package="xeus-python",
        install="pip install xeus-python",
        # Over ipc it loses messages that come too fast, see docs/kernels.md.
        code={**PYTHON, "order": "import time\nfor i in range(500): print(i); time.sleep(0.001)"},
        ename="ZeroDivisionError",
        ordinary=("ipc",),
        ipc_gap=IpcGap(
            "RuntimeError: Invalid argument",
            "an address of more than 31 characters, `ipc://` and the number among them, ends it at its start; those "
            "that kclient chooses in /tmp have 31, in a longer TMPDIR more: pass a short `ip`",
            folder="a-folder-with-a-long-name",
        ),
        gaps={
            "error": Gap(
                "<class 'ZeroDivisionError'>", "ename is the repr of the class, `<class 'ZeroDivisionError'>`"
            ),
            "interrupt": Gap(
                "died, exit code 0",
                "SIGINT, which its spec asks for by saying nothing else, ends the process, with exit code 0",
            ),
            "interrupt by message": Gap(
                "goes on", "answers the interrupt_request with `ok`, and the code runs on, a loop of short sleeps too"
            ),
        },
    ),
    Row(
        "bash",
        package="bash_kernel",
        install="pip install bash_kernel && python -m bash_kernel.install",
        spec=bash_spec,
        ename="Error",
        code={
            "stream": "echo hi",
            "order": "for ((i = 0; i < 500; i++)); do echo $i; done",
            "result": "echo 42",
            "error": "ls /nowhere",
            "complete": ("ech", "echo"),
            "inspect": ("echo", "echo"),
            "is_complete": ("echo hi", "for i in 1 2; do"),
            "sleep": "echo ready; sleep 60",
            "stdin": "read -t 0.1 -p 'name? ' name; echo hello $name",
        },
        gaps={
            "result": Gap("None", "a shell has no values: whatever a command writes is a stream"),
            "inspect": Gap("not found", NO_INSPECTOR),
            "history": Gap("[]", NO_HISTORY),
            "is_complete": Gap("unknown, unknown", "answers `unknown`, which leaves it to the client"),
            "stdin": Gap("not asked", "`read` reads from the kernel's own terminal: no input_request is sent"),
        },
    ),
    Row(
        "deno",
        package="deno",
        install="pip install deno && deno jupyter --install",
        spec=deno_spec,
        ipc_gap=IpcGap("invalid host", "takes the path for the name of a host, and ends at its start"),
        ename="TypeError",
        code={
            "stream": "console.log('hi'); " + LET_IT_OUT,
            "order": "for (let i = 0; i < 500; i++) console.log(i)",
            "result": "6 * 7",
            "error": "throw new TypeError('no')",
            "complete": ("Math.ab", "abs"),
            "inspect": ("Math.abs", "abs"),
            "is_complete": ("6 * 7", "for (const i of [1, 2]) {"),
            "sleep": "console.log('ready'); while (true) {}",
            "stdin": "console.log('hello ' + prompt('name? ')); " + LET_IT_OUT,
        },
        gaps={
            "order": Gap(
                "some after idle",
                "publishes what code prints after its idle status: it is in the inbox of iopub then",
                always=False,
            ),
            "inspect": Gap("not found", NO_INSPECTOR),
            "history": Gap("[]", NO_HISTORY),
            "interrupt": Gap(
                "died, exit code -2", "SIGINT, which its spec asks for by saying nothing else, kills the process"
            ),
        },
    ),
]
