"""Which kernels are installed: the directories that Jupyter searches, and this environment's own Python kernel."""

from __future__ import annotations

import logging
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from kclient.errors import InvalidArgument, NoSuchKernel
from kclient.kernels.specs.spec import SPEC_FILE, KernelSpec, read_kernel_spec

log = logging.getLogger(__name__)

NATIVE_KERNEL: Final = "python3"
"""The kernel of this interpreter, which needs no spec file if ipykernel is installed."""

ALLOWED_KERNELS: Final = "KCLIENT_ALLOWED_KERNELS"
"""The environment variable that names, with commas between them, all kernels that may be used; empty, any may."""

NAME_RULE: Final = "a kernel's name consists of ASCII letters, digits and the characters . _ -"

_VALID_NAME = re.compile(r"(?!\.+$)[a-z0-9._-]+", re.IGNORECASE)

_TELLS_PROTOCOL = (7, 2)
_ENCRYPTS = (7, 3)
"""Versions of ipykernel since which its own spec says so."""


@attrs.frozen
class Installed:
    """A place on the search path where a kernel is installed, or seems to be: then `problem` says what is wrong."""

    name: str
    resource_dir: str
    problem: str = ""


def find_kernel_spec(name: str, *, allowed: Iterable[str] | None = None) -> KernelSpec:
    """The spec of that name, in any case of letters; the first directory of the search path that has it wins.

    With `allowed`, only kernels of these names are found; the same holds for the names in the environment variable
    KCLIENT_ALLOWED_KERNELS. Raises NoSuchKernel, or InvalidArgument for a spec file that cannot be used.
    """
    wanted = _check_name(name)
    allow_list = _allow_list(allowed)
    if allow_list is None or wanted in allow_list:
        for place in places_of(wanted):
            return read_kernel_spec(wanted, place)
        native = _native_spec()
        if native is not None and wanted == NATIVE_KERNEL:
            return native
    raise no_such_kernel(name, allow_list)


def list_kernel_specs(*, allowed: Iterable[str] | None = None) -> dict[str, KernelSpec]:
    """Every kernel that `find_kernel_spec` finds, by name; what cannot be read is skipped with a line in the log."""
    allow_list = _allow_list(allowed)
    specs: dict[str, KernelSpec | None] = {}
    for found in look_through(search_path()):
        if found.problem:
            log.warning("skipped: %s: %s", found.resource_dir, found.problem)
        elif found.name not in specs and (allow_list is None or found.name in allow_list):
            specs[found.name] = _read_or_skip(found)
    if allow_list is None or NATIVE_KERNEL in allow_list:
        specs.setdefault(NATIVE_KERNEL, _native_spec())
    return {name: spec for name, spec in specs.items() if spec is not None}


def places_of(name: str, *, broken: bool = False) -> list[str]:
    """The directories in which the kernel `name` is installed, the one that counts first; or those with a problem."""
    wanted = _check_name(name)
    places = look_through(search_path())
    return [found.resource_dir for found in places if found.name == wanted and bool(found.problem) is broken]


def no_such_kernel(name: str, allow_list: Iterable[str] | None = None) -> NoSuchKernel:
    """The error for a name that was not found; it tells which there are, of those that are allowed."""
    available = {found.name for found in look_through(search_path()) if not found.problem}
    if _native_spec() is not None:
        available.add(NATIVE_KERNEL)
    if allow_list is not None:
        available &= set(allow_list)
    return NoSuchKernel(name, available=sorted(available), searched=search_path(), allowed=allow_list)


def look_through(directories: Iterable[str]) -> Iterator[Installed]:
    """What is installed in these directories, in their order.

    Names come from listing the directories, never from the caller, so no name can lead out of them.
    """
    for directory in directories:
        try:
            entries = sorted(os.listdir(directory))
        except (FileNotFoundError, NotADirectoryError):  # most of the search path does not exist
            continue
        except OSError as exc:
            yield Installed("", directory, f"cannot be read: {exc.strerror or exc}")
            continue
        for entry in entries:
            resource_dir = os.path.join(directory, entry)
            problem = _problem(entry, resource_dir)
            if problem is not None:
                yield Installed(entry.lower(), resource_dir, problem)


def is_valid_name(name: str) -> bool:
    """True if a kernel can be called that."""
    return _VALID_NAME.fullmatch(name) is not None


def _check_name(name: str) -> str:
    if not isinstance(name, str):
        raise InvalidArgument(f"a kernel name is a string, not {name!r}")
    return name.lower()


def _allow_list(allowed: Iterable[str] | None) -> frozenset[str] | None:
    """The names that may be used, by the environment and by the caller; None if all may."""
    listed = {name.strip().lower() for name in os.environ.get(ALLOWED_KERNELS, "").split(",")} - {""}
    if allowed is None:
        return frozenset(listed) if listed else None
    if isinstance(allowed, str) or not isinstance(allowed, Iterable):  # the letters of a str would be taken for names
        raise InvalidArgument(f"allowed must be a collection of kernel names, not {allowed!r}")
    names = frozenset(_check_name(name) for name in allowed)
    return names & listed if listed else names


def _problem(entry: str, resource_dir: str) -> str | None:
    """Why the kernel there is not read, empty if it is; None if there is no sign of one."""
    path = os.path.join(resource_dir, SPEC_FILE)
    try:
        is_file = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        leads_nowhere = any(os.path.islink(link) and not os.path.exists(link) for link in (resource_dir, path))
        return "a symbolic link that leads nowhere" if leads_nowhere else None
    except OSError as exc:
        return f"cannot be read: {exc.strerror or exc}"
    if not is_file:
        return None
    return "" if is_valid_name(entry) else NAME_RULE


def search_path() -> list[str]:
    """The directories that are searched for kernels; of two kernels with one name the earlier directory's counts."""
    from jupyter_core.paths import jupyter_path  # imported here: it costs more than the rest of this module

    ipython = os.environ.get("IPYTHONDIR") or os.path.join("~", ".ipython")
    directories = [*jupyter_path("kernels"), os.path.join(os.path.expanduser(ipython), "kernels")]
    try:
        return [os.path.abspath(directory) for directory in directories]  # a kernel may start in another one than ours
    except FileNotFoundError:  # the current directory is deleted, and what is relative to it is nowhere
        return [directory for directory in directories if os.path.isabs(directory)]


def _read_or_skip(found: Installed) -> KernelSpec | None:
    try:
        return read_kernel_spec(found.name, found.resource_dir)
    except InvalidArgument as exc:
        log.warning("skipped: %s", exc)
        return None


def _native_spec() -> KernelSpec | None:
    """A spec for this interpreter if ipykernel can be imported in it; found without importing it."""
    from importlib.util import find_spec

    found = find_spec("ipykernel")
    if found is None or found.origin is None or not sys.executable:  # no origin: a folder of that name
        return None
    version = _ipykernel_version()
    metadata: dict[str, Any] = {"debugger": True}
    if version >= _ENCRYPTS:
        metadata["supported_encryption"] = ["curve"]
    return KernelSpec(
        name=NATIVE_KERNEL,
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3 (ipykernel)",
        language="python",
        resource_dir=os.path.join(os.path.dirname(found.origin), "resources"),
        metadata=metadata,
        kernel_protocol_version="5.5" if version >= _TELLS_PROTOCOL else "",
    )


def _ipykernel_version() -> tuple[int, ...]:
    """Its first two numbers; empty if they are not known."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return tuple(int(number) for number in version("ipykernel").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return ()
