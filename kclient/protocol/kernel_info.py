"""The facts of a kernel_info reply, read from every shape that kernels give it.

Source: "Kernel info" in "Messaging in Jupyter", protocol 5.5, and the same chapter of protocol 4.1.
"""

from __future__ import annotations

import re
from typing import Any, Final

import attrs

SUBSHELLS: Final = "kernel subshells"
"""The feature of kernels that run code in several shells at a time."""

DEBUGGER: Final = "debugger"
"""The feature of kernels that answer a debug_request."""

_IMPLEMENTERS: Final = ("ipython", "async-kernel", "ipymini", "xeus-", "fake")
"""The beginnings of the implementations whose claim to have subshells or a debugger is true; "fake" is kclient's own.

A kernel that is a subclass of ipykernel's Kernel (bash_kernel, the metakernel family) inherits the claim: from
ipykernel 7 on each says that it has both. The output and the exit codes of its subshells would cross, since it was not
made for them, and its debugger answers nothing.
"""

_NUMBER: Final = re.compile("[0-9]{1,9}")


@attrs.frozen
class KernelInfo:
    """The facts of a kernel_info reply. A text that the kernel left out is empty. `content` is the reply as it came.

    `protocol_version_info` is protocol_version as numbers, to compare: ``(5, 3)``, or ``()`` if the kernel gave none.
    `supported_features` also holds ``"debugger"`` if the kernel sets the older flag of that name. It leaves out the
    subshells and the debugger of kernels that are not known to have them: kernels built on ipykernel inherit the claim.
    """

    protocol_version: str
    protocol_version_info: tuple[int, ...]
    implementation: str
    implementation_version: str
    language: str
    language_version: str
    language_info: dict[str, Any] = attrs.field(repr=False, hash=False)
    banner: str = attrs.field(repr=False)
    help_links: tuple[dict[str, Any], ...] = attrs.field(repr=False, hash=False)
    supported_features: frozenset[str]
    status: str
    content: dict[str, Any] = attrs.field(repr=False, hash=False)

    @classmethod
    def of(cls, content: dict[str, Any]) -> KernelInfo:
        """The facts in `content`, that of a kernel_info_reply of protocol 4 or 5; never raises."""
        language_info = content.get("language_info")
        language = dict(language_info) if isinstance(language_info, dict) else {}
        language["name"] = _text(language.get("name")) or _text(content.get("language"))
        language["version"] = _version(language.get("version")) or _version(content.get("language_version"))
        implementation = _text(content.get("implementation"))
        implementation_version = _version(content.get("implementation_version"))
        if not implementation and "ipython_version" in content:  # protocol 4: at first only IPython spoke it
            implementation, implementation_version = "ipython", _version(content["ipython_version"])
        features = {name for name in _list(content.get("supported_features")) if isinstance(name, str)}
        if content.get("debugger") is True:
            features.add(DEBUGGER)
        if not implementation.startswith(_IMPLEMENTERS):
            features -= {SUBSHELLS, DEBUGGER}
        protocol_version = _version(content.get("protocol_version"))
        return cls(
            protocol_version=protocol_version,
            protocol_version_info=_numbers(protocol_version),
            implementation=implementation,
            implementation_version=implementation_version,
            language=language["name"],
            language_version=language["version"],
            language_info=language,
            banner=_text(content.get("banner")),
            help_links=tuple(link for link in _list(content.get("help_links")) if isinstance(link, dict)),
            supported_features=frozenset(features),
            status=_text(content.get("status")) or "ok",
            content=dict(content),
        )

    def __str__(self) -> str:
        """The implementation and its version, for people to read."""
        return " ".join(filter(None, (self.implementation or "unknown implementation", self.implementation_version)))

    @property
    def speaks_version_4(self) -> bool:
        """True if the kernel speaks protocol 4 or older."""
        return bool(self.protocol_version_info) and 0 < self.protocol_version_info[0] < 5

    def why_it_lacks(self, feature: str) -> str:
        """Why the kernel does not support the feature, for an error message."""
        if feature in _list(self.content.get("supported_features")) or self.content.get(feature) is True:
            return "it says so, but a kernel that is built on ipykernel inherits that claim and cannot keep it"
        return "it is not in its supported_features"

    def lacks(self, feature: str) -> bool:
        """True if the kernel lacks an optional feature: a kernel that has it lists it in its supported_features."""
        if feature in self.supported_features:
            return False
        # ipykernel 6 up to 6.29 has a debugger, but only its kernel spec says so.
        says_nothing = self.implementation == "ipython" and "supported_features" not in self.content
        return not (feature == DEBUGGER and says_nothing and not self.speaks_version_4)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _version(value: object) -> str:
    """A version as text, from text, a number, or the list of its parts that protocol 4 has."""
    parts = value if isinstance(value, list) else [value]
    known = (part for part in parts if isinstance(part, (str, int, float)) and not isinstance(part, bool))
    return ".".join(text for part in known if (text := str(part)))


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers at the beginning of each part of `version`, up to the first part without one."""
    numbers = []
    for part in version.split("."):
        number = _NUMBER.match(part)
        if number is None:
            break
        numbers.append(int(number[0]))
    return tuple(numbers)
