"""Kernel specs: which kernels are installed, and the command that starts each.

The keys and the search path are those of the page "Making kernels for Jupyter" in jupyter_client's documentation.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import attrs

from kclient.errors import InvalidArgument, NoSuchKernel

log = logging.getLogger(__name__)

NATIVE_KERNEL: Final = "python3"
"""The kernel of this interpreter, which needs no spec file if ipykernel is installed."""

CURVE_IN_IPYKERNEL: Final = (7, 3)
"""The first version of ipykernel that can encrypt."""

_SPEC_FILE = "kernel.json"
_VALID_NAME = re.compile(r"[a-z0-9._-]+", re.IGNORECASE)
_ARGV_TEMPLATE = re.compile(r"\{(connection_file|resource_dir|prefix)\}")
_ENV_TEMPLATE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_BARE_PYTHON = frozenset({"python", "python3", "python{}.{}".format(*sys.version_info)})


def _check_interrupt_mode(spec: KernelSpec, attribute: attrs.Attribute[str], value: object) -> None:
    if value not in ("signal", "message"):
        raise InvalidArgument(f"interrupt_mode must be 'signal' or 'message', not {value!r}")


@attrs.define
class KernelSpec:
    """How to start one kind of kernel: the values of a kernel.json, checked."""

    name: str
    argv: list[str]
    display_name: str = ""
    language: str = ""
    resource_dir: str = ""
    env: dict[str, str] = attrs.field(factory=dict)
    interrupt_mode: str = attrs.field(default="signal", validator=_check_interrupt_mode)
    metadata: dict[str, Any] = attrs.field(factory=dict)
    kernel_protocol_version: str = ""

    @property
    def supports_curve(self) -> bool:
        """True if `metadata.supported_encryption`, a name or a list of them, says that the kernel can do CurveZMQ."""
        schemes = self.metadata.get("supported_encryption")
        names = schemes if isinstance(schemes, list) else [schemes]
        return any(isinstance(name, str) and name.strip().lower() == "curve" for name in names)

    def command(self, connection_file: str, extra_arguments: Iterable[str] = ()) -> list[str]:
        """The command line: templates filled in, a bare ``python`` made this interpreter, the extra arguments last."""
        values = {"connection_file": connection_file, "resource_dir": self.resource_dir, "prefix": sys.prefix}
        # One pass, so that braces in a path are not taken for templates.
        argv = [_ARGV_TEMPLATE.sub(lambda match: values[match[1]], argument) for argument in self.argv]
        if argv[0] in _BARE_PYTHON and sys.executable:
            argv[0] = sys.executable
        return argv + _check_arguments(extra_arguments)

    def environment(self, base: Mapping[str, str], extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """`base` with the spec's variables over it, and `extra` over both.

        ``${VAR}`` in the spec is the value in `base`; one that is not there stays as it is.
        """
        own = {
            name: _ENV_TEMPLATE.sub(lambda match: base.get(match[1], match[0]), value)
            for name, value in self.env.items()
        }
        return {**base, **own, **(extra or {})}


def find_kernel_spec(name: str) -> KernelSpec:
    """The spec of that name, in any case of letters; the first directory of the search path that has it wins.

    Raises NoSuchKernel, or InvalidArgument for a spec file that cannot be used.
    """
    if not isinstance(name, str):
        raise InvalidArgument(f"a kernel name is a string, not {name!r}")
    wanted = name.lower()
    directories = _search_path()
    for found, resource_dir in _installed(directories):
        if found == wanted:
            return _read_spec(found, resource_dir)
    native = _native_spec()
    if native is not None and wanted == NATIVE_KERNEL:
        return native
    available = {found for found, _ in _installed(directories)}
    if native is not None:
        available.add(NATIVE_KERNEL)
    raise NoSuchKernel(name, available=sorted(available), searched=directories)


def list_kernel_specs() -> dict[str, KernelSpec]:
    """Every kernel that can be started, by name; a broken spec file is skipped with a line in the log."""
    specs: dict[str, KernelSpec] = {}
    for name, resource_dir in _installed(_search_path()):
        if name not in specs:
            try:
                specs[name] = _read_spec(name, resource_dir)
            except InvalidArgument as exc:
                log.warning("skipped: %s", exc)
    native = _native_spec()
    if native is not None:
        specs.setdefault(NATIVE_KERNEL, native)
    return specs


def _search_path() -> list[str]:
    from jupyter_core.paths import jupyter_path  # imported here: it costs more than the rest of this module

    ipython = os.environ.get("IPYTHONDIR") or os.path.join("~", ".ipython")
    return [*jupyter_path("kernels"), os.path.join(os.path.expanduser(ipython), "kernels")]


def _installed(directories: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Name and directory of each spec file, in the order of the search path.

    Names come from listing the directories, never from the caller, so no name can lead out of them.
    """
    for directory in directories:
        try:
            entries = sorted(os.listdir(directory))
        except OSError:  # most of the search path does not exist
            continue
        for entry in entries:
            resource_dir = os.path.join(directory, entry)
            if _VALID_NAME.fullmatch(entry) and os.path.isfile(os.path.join(resource_dir, _SPEC_FILE)):
                yield entry.lower(), resource_dir


def _read_spec(name: str, resource_dir: str) -> KernelSpec:
    path = os.path.join(resource_dir, _SPEC_FILE)
    try:
        with open(path, encoding="utf-8-sig") as file:
            values = json.load(file)
    except OSError as exc:
        raise InvalidArgument(f"kernel spec {path}: cannot be read: {exc.strerror or exc}") from exc
    except (ValueError, RecursionError) as exc:
        raise InvalidArgument(f"kernel spec {path}: not valid JSON: {exc}") from None
    try:
        return _make_spec(name, resource_dir, values)
    except InvalidArgument as exc:
        raise InvalidArgument(f"kernel spec {path}: {exc}") from None


def _make_spec(name: str, resource_dir: str, values: Any) -> KernelSpec:
    if not isinstance(values, dict):
        raise InvalidArgument(f"expected an object with argv, got {type(values).__name__}")
    if "argv" not in values:
        raise InvalidArgument("argv is missing")
    argv = values["argv"]
    if not isinstance(argv, list) or not argv or not all(isinstance(argument, str) for argument in argv):
        raise InvalidArgument(f"argv must be a list of strings, at least one, not {argv!r}")
    env = _value(values, "env", dict)
    if not all(isinstance(value, str) for value in env.values()):
        raise InvalidArgument(f"env must map names to strings, not {env!r}")
    return KernelSpec(
        name=name,
        argv=argv,
        display_name=_value(values, "display_name", str) or name,
        language=_value(values, "language", str),
        resource_dir=resource_dir,
        env=env,
        interrupt_mode=_value(values, "interrupt_mode", str).lower() or "signal",
        metadata=_value(values, "metadata", dict),
        kernel_protocol_version=_value(values, "kernel_protocol_version", str),
    )


def _value(values: dict[str, Any], key: str, kind: type) -> Any:
    """The value under `key`, or an empty one if it is missing or null."""
    value = values.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InvalidArgument(f"{key} must be a {kind.__name__}, not {value!r}")
    return value


def _native_spec() -> KernelSpec | None:
    """A spec for this interpreter if ipykernel can be imported in it; found without importing it."""
    from importlib.util import find_spec

    found = find_spec("ipykernel")
    if found is None or not sys.executable:
        return None
    return KernelSpec(
        name=NATIVE_KERNEL,
        argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        display_name="Python 3 (ipykernel)",
        language="python",
        resource_dir=os.path.join(os.path.dirname(found.origin or ""), "resources"),
        metadata={"debugger": True, **_encryption_of_ipykernel()},
    )


def _encryption_of_ipykernel() -> dict[str, Any]:
    """What the spec file that ipykernel installs says of encryption."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        numbers = version("ipykernel").split(".")
        has_curve = (int(numbers[0]), int(numbers[1])) >= CURVE_IN_IPYKERNEL
    except (PackageNotFoundError, ValueError, IndexError):  # a source tree, say
        return {}
    return {"supported_encryption": ["curve"]} if has_curve else {}


def _check_arguments(arguments: Iterable[str]) -> list[str]:
    checked = [arguments] if isinstance(arguments, str) else list(arguments)
    if isinstance(arguments, str) or not all(isinstance(argument, str) for argument in checked):
        raise InvalidArgument(f"extra_arguments must be a sequence of strings, not {arguments!r}")
    return checked
