"""Launch: the arguments of start_kernel, checked, and kept for a restart."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs

from kclient.errors import InvalidArgument
from kclient.kernels.process.output import Output

KEPT: Final = frozenset({"HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "SHELL", "TMPDIR", "TZ", "USER"})
"""Variables that a kernel with a clean environment gets all the same, and so those whose names begin with LC_.

They say where its programs and files are, who runs it, and in which language and time zone.
"""


def _check_arguments(launch: object, attribute: Any, value: Any) -> None:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(word, str) for word in value):
        raise InvalidArgument(f"extra_arguments must be a list of strings, not {value!r}")


def _check_cwd(launch: object, attribute: Any, value: Any) -> None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise InvalidArgument(f"cwd must be the path of a directory, not {value!r}")


def _check_env(launch: object, attribute: Any, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and (text is None or isinstance(text, str)) for name, text in value.items()
    ):
        raise InvalidArgument("env must be a dict of strings by name; None in place of a string leaves a variable out")


def _check_clean_env(launch: object, attribute: Any, value: Any) -> None:
    if not isinstance(value, bool):
        raise InvalidArgument(f"clean_env must be True or False, not {value!r}")


def _check_output(launch: object, attribute: Any, value: Any) -> None:
    if value is not None and not isinstance(value, int) and not hasattr(value, "fileno"):
        raise InvalidArgument(f"{attribute.name} must be a file, a number as in subprocess, or None; not {value!r}")


@attrs.frozen
class Launch:
    """The arguments of start_kernel, kept for a restart; raises InvalidArgument."""

    extra_arguments: Sequence[str] = attrs.field(default=(), validator=_check_arguments)
    cwd: str | os.PathLike[str] | None = attrs.field(default=None, validator=_check_cwd)
    env: Mapping[str, str | None] | None = attrs.field(default=None, validator=_check_env)
    stdout: Output = attrs.field(default=None, validator=_check_output)
    stderr: Output = attrs.field(default=None, validator=_check_output)

    clean_env: bool = attrs.field(default=False, validator=_check_clean_env)

    def base_environment(self) -> dict[str, str]:
        """The environment to which the spec and `env` add: that of this program or, if clean, the least of it."""
        if not self.clean_env:
            return dict(os.environ)
        return {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("LC_")}

    def changed(self, arguments: Mapping[str, Any]) -> Launch:
        """A copy in which `arguments`, by the names that start_kernel has, take the place of the old ones."""
        try:
            return attrs.evolve(self, **arguments)
        except TypeError as exc:
            raise InvalidArgument(f"start_kernel takes no such argument: {exc}") from None
