"""Find the installed kernels: those in the directories that Jupyter searches, and the Python kernel of this process."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs

from kclient.concurrency.log import log
from kclient.errors import InvalidArgument, NoSuchKernel
from kclient.kernels.specs.spec import SPEC_FILE, KernelSpec, read_kernel_spec

NATIVE_KERNEL: Final = "python3"
"""The kernel that runs this interpreter. It needs no spec file if ipykernel is installed."""

ALLOWED_KERNELS: Final = "KCLIENT_ALLOWED_KERNELS"
"""The environment variable with the names of all kernels that may be used, separated by commas.

Any kernel may be used if it is not set, or empty. None may be used if it has no name in it, as "," has none.
"""

NAME_RULE: Final = "a kernel's name consists of ASCII letters, digits and the characters . _ -"

_VALID_NAME = re.compile(r"(?!\.+$)[a-z0-9._-]+", re.IGNORECASE)

_TELLS_PROTOCOL = (7, 2)
"""The version of ipykernel since which its own spec has a kernel_protocol_version."""

_ENCRYPTS = (7, 3)
"""The version of ipykernel since which its own spec declares encryption."""


@attrs.frozen
class Installed:
    """A directory on the search path with a kernel. If the kernel cannot be used, `problem` says why."""

    name: str
    resource_dir: str
    problem: str = ""


def find_kernel_spec(name: str, *, allowed: Iterable[str] | None = None) -> KernelSpec:
    """The spec of the kernel `name`. Large and small letters are the same.

    If several directories of the search path have a kernel of that name, the first one counts. With `allowed`, only
    kernels of these names are found. The environment variable KCLIENT_ALLOWED_KERNELS limits them in the same way.
    Raises NoSuchKernel, or InvalidArgument for a spec file that cannot be used.
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
    """Every kernel that `find_kernel_spec` finds, by name. A spec that cannot be read is skipped and logged."""
    allow_list = _allow_list(allowed)
    specs: dict[str, KernelSpec | None] = {}
    for found in look_through(search_path()):
        if found.problem:
            log().warning("skipped: %s: %s", found.resource_dir, found.problem)
        elif found.name not in specs and (allow_list is None or found.name in allow_list):
            specs[found.name] = _read_or_skip(found)
    if allow_list is None or NATIVE_KERNEL in allow_list:
        specs.setdefault(NATIVE_KERNEL, _native_spec())
    return {name: spec for name, spec in specs.items() if spec is not None}


def places_of(name: str, *, broken: bool = False) -> list[str]:
    """The directories in which the kernel `name` is installed. The first is the one that `find_kernel_spec` uses.

    With `broken`, only the directories in which the kernel has a problem; without, only the others.
    """
    wanted = _check_name(name)
    places = look_through(search_path())
    return [found.resource_dir for found in places if found.name == wanted and bool(found.problem) is broken]


def no_such_kernel(name: str, allow_list: Iterable[str] | None = None) -> NoSuchKernel:
    """The error for a name that was not found. It lists the kernels that exist and are allowed."""
    available = {found.name for found in look_through(search_path()) if not found.problem}
    if _native_spec() is not None:
        available.add(NATIVE_KERNEL)
    if allow_list is not None:
        available &= set(allow_list)
    return NoSuchKernel(name, available=sorted(available), searched=search_path(), allowed=allow_list)


def look_through(directories: Iterable[str]) -> Iterator[Installed]:
    """The kernels in these directories, in the order of the directories.

    A name is compared with the entries of the directories, and never used as a path. So no name leads out of them.
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
    """True if `name` can be the name of a kernel, by NAME_RULE."""
    return _VALID_NAME.fullmatch(name) is not None


def _check_name(name: str) -> str:
    if not isinstance(name, str):
        raise InvalidArgument(f"a kernel name is a string, not {name!r}")
    return name.lower()


def _allow_list(allowed: Iterable[str] | None) -> frozenset[str] | None:
    """The names that both the environment and the caller allow; None if they allow all."""
    text = os.environ.get(ALLOWED_KERNELS)
    listed = frozenset(name.strip().lower() for name in text.split(",")) - {""} if text else None
    if allowed is None:
        return listed
    if isinstance(allowed, str) or not isinstance(allowed, Iterable):  # a str would be iterated letter by letter
        raise InvalidArgument(f"allowed must be a collection of kernel names, not {allowed!r}")
    names = frozenset(_check_name(name) for name in allowed)
    return names if listed is None else names & listed


def _problem(entry: str, resource_dir: str) -> str | None:
    """Why the kernel in `resource_dir` cannot be used; empty if it can; None if there is no kernel."""
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
        return [os.path.abspath(directory) for directory in directories]  # absolute, since a kernel may get another cwd
    except FileNotFoundError:  # the current directory is deleted, so relative ones do not exist
        return [directory for directory in directories if os.path.isabs(directory)]


def _read_or_skip(found: Installed) -> KernelSpec | None:
    try:
        return read_kernel_spec(found.name, found.resource_dir)
    except InvalidArgument as exc:
        log().warning("skipped: %s", exc)
        return None


def _native_spec() -> KernelSpec | None:
    """A spec for this interpreter if it can import ipykernel, or None. ipykernel is not imported for that."""
    from importlib.util import find_spec

    found = find_spec("ipykernel")
    if found is None or found.origin is None or not sys.executable:  # no origin: only a folder of that name
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
    """The first two numbers of ipykernel's version; empty if they are not known."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return tuple(int(number) for number in version("ipykernel").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return ()
