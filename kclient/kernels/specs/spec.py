"""KernelSpec: the values of a kernel.json, and the command and the environment with which its kernel starts.

The keys are those of the page "Making kernels for Jupyter" in jupyter_client's documentation.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Mapping
from string import Template
from typing import Any, Final

import attrs

from kclient.errors import InvalidArgument

SPEC_FILE: Final = "kernel.json"

HANDSHAKE: Final = (5, 6)
"""The protocol version since which a kernel can choose its own ports and report them."""

INTERRUPT_MODES: Final = ("signal", "message")

_INTERRUPT_MODE_RULE: Final = "interrupt_mode must be 'signal' or 'message'"
_ARGV_TEMPLATE = re.compile(r"\{(connection_file|resource_dir|prefix)\}")
_JSON_KINDS: Final = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "a number",
    float: "a number",
    bool: "true or false",
    type(None): "null",
}
_VERSION = re.compile(r"(\d{1,9})(?:\.(\d{1,9}))?(?:\.\d+)*", re.ASCII)
_BARE_PYTHON = frozenset({"python", "python3", "python{}.{}".format(*sys.version_info)})


def _check_interrupt_mode(spec: KernelSpec, attribute: attrs.Attribute[str], value: object) -> None:
    if value not in INTERRUPT_MODES:
        raise InvalidArgument(f"{_INTERRUPT_MODE_RULE}, not {value!r}")


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
    def handshakes(self) -> bool:
        """True if the kernel can choose its ports and report them: its protocol is 5.6 or newer."""
        version = _VERSION.fullmatch(self.kernel_protocol_version.strip())
        return version is not None and (int(version[1]), int(version[2] or 0)) >= HANDSHAKE

    def command(self, connection_file: str, extra_arguments: Iterable[str] = ()) -> list[str]:
        """The command line of the kernel, with `extra_arguments` at the end.

        The templates in `argv` are replaced by their values. A bare ``python`` becomes the path of this interpreter.
        """
        values = {"connection_file": connection_file, "resource_dir": self.resource_dir, "prefix": sys.prefix}
        # One pass, so that braces in a value are not replaced again.
        argv = [_ARGV_TEMPLATE.sub(lambda match: values[match[1]], argument) for argument in self.argv]
        if argv[0] in _BARE_PYTHON and sys.executable:
            argv[0] = sys.executable
        return argv + _check_arguments(extra_arguments)

    def environment(self, base: Mapping[str, str], extra: Mapping[str, str | None] | None = None) -> dict[str, str]:
        """`base`, updated with the variables of the spec, then with `extra`. None in `extra` leaves a variable out.

        ``${VAR}`` and ``$VAR`` in a value of the spec are replaced by the variable in `base`, if it has one. ``$$``
        stands for a dollar sign.
        """
        own = {name: Template(value).safe_substitute(base) for name, value in self.env.items()}
        merged: dict[str, str | None] = {**base, **own, **(extra or {})}
        return {name: value for name, value in merged.items() if value is not None}

    @property
    def supports_curve(self) -> bool:
        """True if the spec says that the kernel can encrypt its messages with CurveZMQ."""
        schemes = self.metadata.get("supported_encryption")
        if isinstance(schemes, str):
            schemes = [schemes]
        return isinstance(schemes, list) and "curve" in {str(scheme).strip().lower() for scheme in schemes}

    def to_dict(self) -> dict[str, Any]:
        """The values in the form of a kernel.json."""
        return attrs.asdict(self, filter=lambda attribute, _: attribute.name not in ("name", "resource_dir"))


def read_kernel_spec(name: str, resource_dir: str) -> KernelSpec:
    """Read the kernel.json in `resource_dir`. Raises InvalidArgument, which names the file, if it cannot be used.

    The error says what is wrong, and shows no value: a token may be in it.
    """
    path = os.path.join(resource_dir, SPEC_FILE)
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
        raise InvalidArgument(f"argv must be a list of strings, at least one; it is {_kind_of(argv)}")
    env = _value(values, "env", dict)
    for value in env.values():
        if not isinstance(value, str):
            raise InvalidArgument(f"env must map names to strings; it has {_kind_of(value)}")
    _check_startable(argv, env)
    interrupt_mode = _value(values, "interrupt_mode", str).lower() or "signal"
    if interrupt_mode not in INTERRUPT_MODES:
        raise InvalidArgument(_INTERRUPT_MODE_RULE)
    return KernelSpec(
        name=name,
        argv=argv,
        display_name=_value(values, "display_name", str) or name,
        language=_value(values, "language", str),
        resource_dir=resource_dir,
        env=env,
        interrupt_mode=interrupt_mode,
        metadata=_value(values, "metadata", dict),
        kernel_protocol_version=_value(values, "kernel_protocol_version", str),
    )


def can_be_given(text: str) -> bool:
    """True if the operating system accepts `text` as an argument or a path: no NUL, and it can be encoded."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:  # half of a surrogate pair
        return False


def _check_startable(argv: list[str], env: dict[str, str]) -> None:
    """Raise InvalidArgument for an argument or variable that the operating system does not accept."""
    for what, texts in (("argv", argv), ("env", [*env, *env.values()])):
        for text in texts:
            if not can_be_given(text):
                raise InvalidArgument(f"{what} has a string with a NUL or half of a surrogate pair; remove it")
    for name in env:
        if not name or "=" in name:
            raise InvalidArgument("env has a variable whose name is empty or contains '='")


def _value(values: dict[str, Any], key: str, kind: type) -> Any:
    """The value under `key`, or an empty one if it is missing or null."""
    value = values.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise InvalidArgument(f"{key} must be {_JSON_KINDS[kind]}; it is {_kind_of(value)}")
    return value


def _kind_of(value: object) -> str:
    """What `value`, of a JSON text, is there."""
    if isinstance(value, list):
        is_plain = all(isinstance(item, str) for item in value)
        return ("a list" if value else "an empty list") if is_plain else "a list with other values than strings"
    return _JSON_KINDS[type(value)]


def _check_arguments(arguments: Iterable[str]) -> list[str]:
    checked = [arguments] if isinstance(arguments, str) else list(arguments)
    if isinstance(arguments, str) or not all(isinstance(argument, str) for argument in checked):
        raise InvalidArgument(f"extra_arguments must be a sequence of strings, not {arguments!r}")
    return checked
