"""The machine that a figure was measured on."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from kclient.transport.zmq.context import libzmq_version

PACKAGES: Final = ("kclient", "pyzmq", "gevent", "orjson", "jupyter_client", "ipykernel")
"""Packages that a call goes through, in the client or in the kernel."""


def describe_machine(packages: Iterable[str] = PACKAGES) -> dict[str, str | int]:
    """Processor, cores, kernel, Python, libzmq, and the versions of those `packages` that are installed."""
    found: dict[str, str | int] = {
        "cpu": cpu_model(),
        "cores": usable_cores(),
        "os": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "libzmq": libzmq_version(),
    }
    for name in packages:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def machine_line(machine: dict[str, str | int]) -> str:
    """The machine in one line, for the foot of a table or a plot."""
    rest = {name: value for name, value in machine.items() if name not in ("cpu", "cores", "os", "python")}
    versions = ", ".join(f"{name} {value}" for name, value in rest.items())
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['os']}, {machine['python']}, {versions}"


def cpu_model() -> str:
    """The processor's name as Linux tells it, else its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return " ".join(value.split())
    return platform.processor() or platform.machine()


def usable_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
