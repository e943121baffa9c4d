"""Where the program of a kernel spec is, if its command does not say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from typing import Final

_BESIDE: Final = ("share", "jupyter", "kernels")
"""The folders from an environment to the specs that are installed in it."""


def with_program(argv: Sequence[str], resource_dir: str, environment: Mapping[str, str]) -> list[str]:
    """`argv`, with the path of its program if that is not on PATH but in the environment that has the spec."""
    name = argv[0]
    if not name or os.path.dirname(name) or shutil.which(name, path=environment.get("PATH", os.defpath)):
        return list(argv)
    found = shutil.which(name, path=bin_folder(resource_dir) or os.devnull)
    return [found or name, *argv[1:]]


def bin_folder(resource_dir: str) -> str | None:
    """The folder for programs of the environment in which that spec is installed; None if it is in none."""
    path = os.path.dirname(resource_dir)
    for name in reversed(_BESIDE):
        path, last = os.path.split(path)
        if last != name:
            return None
    return os.path.join(path, "bin")
