"""``kclient doctor``: a report of versions, limits and kernels, for a bug report; it names what stops kclient."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import tempfile
from time import monotonic
from typing import Any, Final

import attrs
import gevent

from kclient.bench.machine import describe_machine
from kclient.cli.anonymous import Anonymizer
from kclient.cli.run import ExitCode, Signals, Stopped, code_of_end, started
from kclient.cli.say import printable, warnings_shown
from kclient.cli.terminal import OutputLost, Screen
from kclient.concurrency.file_limits import CLIENT_DESCRIPTORS, KERNEL_DESCRIPTORS, SPARE_DESCRIPTORS, check
from kclient.concurrency.unpatched import close, is_patched
from kclient.errors import (
    ConnectionFileError,
    DeadKernelError,
    KClientError,
    KernelTimeout,
    LaunchError,
    TooManyFiles,
)
from kclient.kernels.connection.encryption import has_curve
from kclient.kernels.connection.files import (
    folders_made_for,
    new_connection_file,
    new_ipc_folder,
    remove_connection_file,
    write_private,
)
from kclient.kernels.process.exit_watcher import open_pidfd
from kclient.kernels.process.output import SHOWN_CHARACTERS
from kclient.kernels.specs.search import ALLOWED_KERNELS, list_kernel_specs, search_path
from kclient.kernels.specs.spec import KernelSpec
from kclient.protocol.connection import MAX_IPC_PATH_BYTES

PACKAGES: Final = ("kclient", "gevent", "pyzmq", "orjson", "attrs", "jupyter_core", "ipykernel")
"""Those that kclient is built on, and the kernel that most programs start."""

PATCHES: Final = {
    "_thread": "allocate_lock",
    "os": "fork",
    "select": "select",
    "socket": "socket",
    "subprocess": "Popen",
    "time": "sleep",
}
"""An object of each module, which gevent replaces if it patches that module."""

UNLIMITED: Final = "unlimited"

KERNELS_OWN_DESCRIPTORS: Final = 64
"""ipykernel 7.4 starts with so many file descriptors, and with 60 it does not."""


@attrs.define
class Report:
    """What was found. A problem stops kclient, or a kernel that was to be started; a hint is worth knowing."""

    versions: dict[str, Any] = attrs.field(factory=dict)
    limits: dict[str, Any] = attrs.field(factory=dict)
    kernels: dict[str, Any] = attrs.field(factory=dict)
    problems: list[str] = attrs.field(factory=list)
    hints: list[str] = attrs.field(factory=list)


def run_doctor(*, starts: bool, timeout: float, as_json: bool) -> int:
    """Look at everything, show the report, and return the exit code of the command.

    With `starts`, each kernel is started, within `timeout` seconds.
    """
    screen = Screen()
    try:
        report = Report()
        with warnings_shown(report.hints.append):
            report.versions = find_versions()
            report.limits = find_limits(report)
            report.kernels = find_kernels(report)
            if starts:
                Signals()
                for kernel in report.kernels["found"]:
                    try_start(kernel, report, screen, timeout)
        shown = Anonymizer.of_this_user().clean(attrs.asdict(report))
        screen.out.write_lines(json.dumps(shown, indent=2) if as_json else text_of(Report(**shown)))
    except (Stopped, OutputLost) as exc:
        return code_of_end(exc, screen)
    return ExitCode.FAILED if report.problems else ExitCode.OK


# What there is


def find_versions() -> dict[str, Any]:
    """The machine, and the versions of what is installed."""
    return {**dict.fromkeys(PACKAGES, "not installed"), **describe_machine(PACKAGES)}


def find_limits(report: Report) -> dict[str, Any]:
    """What may be too small, missing or forbidden on this machine."""
    loop = gevent.get_hub().loop
    patched = [module for module, name in PATCHES.items() if is_patched(module, name)]
    pidfd = open_pidfd(os.getpid())
    if pidfd is None:
        report.hints.append("there are no pidfds here: a thread watches each kernel instead")
    else:
        close(pidfd)
    if not has_curve():
        report.hints.append("libzmq was built without CurveZMQ: no kernel can be encrypted")
    return {
        **count_file_descriptors(report),
        **try_runtime_folder(report),
        **try_ipc_folder(report),
        "pidfd": pidfd is not None,
        "curve": has_curve(),
        "gevent_loop": f"{type(loop).__module__}.{type(loop).__name__} {getattr(loop, 'backend', '')}".rstrip(),
        "patched_modules": patched,
    }


def count_file_descriptors(report: Report) -> dict[str, Any]:
    """The limits, and the number of clients that the soft one leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        check(KERNEL_DESCRIPTORS, "a kernel")
    except TooManyFiles as exc:
        report.problems.append(str(exc))
    if soft != resource.RLIM_INFINITY and soft < KERNELS_OWN_DESCRIPTORS:
        report.hints.append(
            f"a kernel inherits the limit of {soft} file descriptors: ipykernel may not start with that"
        )
    clients = UNLIMITED if soft == resource.RLIM_INFINITY else max(0, soft - SPARE_DESCRIPTORS) // CLIENT_DESCRIPTORS
    return {
        "file_descriptors": UNLIMITED if soft == resource.RLIM_INFINITY else soft,
        "file_descriptors_hard": UNLIMITED if hard == resource.RLIM_INFINITY else hard,
        "clients_at_once": clients,
    }


def try_runtime_folder(report: Report) -> dict[str, Any]:
    """Write a connection file, without a key, to where those of kernels are written; then remove it."""
    try:
        path = new_connection_file()
        is_substitute = bool(folders_made_for(path))
        try:
            write_private({}, path)
        finally:
            remove_connection_file(path)
    except ConnectionFileError as exc:
        report.problems.append(str(exc))
        return {"runtime_folder": None}
    if is_substitute:
        report.hints.append(
            "Jupyter's runtime folder cannot be written to, or others may write to it, or it belongs to another user: "
            "a private temporary folder takes its place; `jupyter --runtime-dir` names it"
        )
    return {"runtime_folder": os.path.dirname(path), "runtime_folder_is_a_substitute": is_substitute}


def try_ipc_folder(report: Report) -> dict[str, Any]:
    """Make a folder for the sockets of a kernel over ipc; then remove it."""
    try:
        temporary = tempfile.gettempdir()
    except OSError as exc:
        report.problems.append(f"there is no temporary folder: {exc.strerror}")
        return {"temporary_folder": None}
    if os.environ.get("TMPDIR") and temporary != os.path.abspath(os.environ["TMPDIR"]):
        report.hints.append(f"TMPDIR names a folder that cannot be used: {temporary} takes its place")
    try:
        folder = new_ipc_folder()
    except ConnectionFileError as exc:
        report.problems.append(str(exc))
        return {"temporary_folder": temporary, "ipc_folder": None}
    folder.remove()
    parent = os.path.dirname(folder.path)
    if parent != temporary:
        report.hints.append(f"{temporary} is too long a path for ipc sockets: {parent} takes its place")
    return {
        "temporary_folder": temporary,
        "ipc_folder": parent,
        "ipc_path_bytes": len(os.fsencode(f"{folder.ip}-1")),
        "ipc_path_bytes_allowed": MAX_IPC_PATH_BYTES,
    }


def find_kernels(report: Report) -> dict[str, Any]:
    """Where kernels are searched and found; the log tells of those that cannot be read."""
    specs = sorted(list_kernel_specs().values(), key=lambda spec: spec.name)
    is_limited = bool(os.environ.get(ALLOWED_KERNELS))
    if not specs:
        lack = f"none of the kernels that {ALLOWED_KERNELS} allows is installed" if is_limited else "there is no kernel"
        report.problems.append(f"{lack}: pip install ipykernel")
    return {
        "searched": [{"path": path, "is_there": os.path.isdir(path)} for path in search_path()],
        f"{ALLOWED_KERNELS}_is_set": is_limited,
        "found": [describe_kernel(spec, report) for spec in specs],
    }


def describe_kernel(spec: KernelSpec, report: Report) -> dict[str, Any]:
    program = spec.command("")[0]
    if shutil.which(program, path=spec.environment(os.environ).get("PATH")) is None:
        lack = "its argv begins with a string that holds several words" if has_words(program) else program
        report.hints.append(f"the kernel {spec.name!r} cannot start: there is no such program: {lack}")
    return {"name": spec.name, "where": spec.resource_dir, "encrypted": spec.supports_curve}


def try_start(kernel: dict[str, Any], report: Report, screen: Screen, timeout: float) -> None:
    """Start the kernel, wait until it is ready, and shut it down; `kernel` gets the time, or the error."""
    name = kernel["name"]
    if screen.err.is_terminal:
        screen.err.write_lines(f"starting {printable(name)} ...")
    start = monotonic()
    try:
        with started(name, "tcp", "auto", timeout):
            kernel["started_in_s"] = round(monotonic() - start, 2)
    except KClientError as exc:
        kernel["error"] = first_line(exc)
        report.problems.append(f"the kernel {name!r}: {kernel['error']}")
        report.hints.append(f"what the kernel {name!r} printed is not shown here: `kclient run` shows it")


def has_words(program: str) -> bool:
    """True if `program` may be a whole command line, with what is secret in it."""
    return len(program.split()) > 1


def first_line(exc: KClientError) -> str:
    """The first line of `exc`, without what the kernel printed, and without its command: a key may be in both."""
    if isinstance(exc, KernelTimeout):  # its hint has the kernel's output
        return f"no {exc.waiting_for} within {exc.timeout:g} s"
    text = exc.headline if isinstance(exc, DeadKernelError) else str(exc)
    argv = exc.argv if isinstance(exc, LaunchError) else []
    if argv[1:] or has_words(" ".join(argv)):  # a program alone is no secret
        shown = [shlex.join(argv), repr(argv)[:SHOWN_CHARACTERS]]
        shown += [form for argument in argv if has_words(argument) for form in (repr(argument), argument)]
        for command in shown:
            text = text.replace(command, "...")
    return text.splitlines()[0]


# How it is shown


def text_of(report: Report) -> str:
    """The report as lines for a person."""
    kernels = report.kernels
    lines = [
        "versions",
        *rows(report.versions),
        "",
        "limits",
        *rows({name.replace("_", " "): value for name, value in report.limits.items()}),
        "",
        "kernels",
    ]
    searched = [f"{place['path']}{'' if place['is_there'] else '  (not there)'}" for place in kernels["searched"]]
    lines += ["  searched:", *(f"    {place}" for place in searched), "  found:"]
    width = max((len(kernel["name"]) for kernel in kernels["found"]), default=0)
    lines += [f"    {kernel['name']:{width}}  {kernel['where']}{outcome(kernel)}" for kernel in kernels["found"]]
    lines += ["", *(f"problem: {text}" for text in report.problems), *(f"hint: {text}" for text in report.hints)]
    if not report.problems:
        lines.append("Nothing was found that stops kclient.")
    return "\n".join(map(printable, lines))


def rows(values: dict[str, Any]) -> list[str]:
    width = max(map(len, values))
    return [f"  {name:{width}}  {word_for(value)}" for name, value in values.items()]


def word_for(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return "none" if value is None else str(value)


def outcome(kernel: dict[str, Any]) -> str:
    if "error" in kernel:
        return "  does not start, see below"
    return f"  started in {kernel['started_in_s']:g} s" if "started_in_s" in kernel else ""
