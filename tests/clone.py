"""Which kclient is tested: that of this clone. Importing this module raises pytest.UsageError if it is another one.

tests/conftest.py imports it before all that imports kclient. tox tests the wheel that it has built and installed, and
sets KCLIENT_TEST_INSTALLED.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def refusal(origin: str | None, *, allows_installed: bool) -> str:
    """The reason not to test the kclient whose `__init__.py` is `origin`, and the remedy; empty if it may be tested."""
    remedy = f"run pip install -e '.[test]' in {ROOT} with the pip of this Python, or run tox"
    if origin is None:
        return f"kclient is not installed: {remedy}"
    package = Path(origin).resolve().parent
    if allows_installed or package == ROOT / "kclient":
        return ""
    return f"tests, or programs that they start, would import kclient from {package}, not from this clone: {remedy}"


def origin_of_kclient() -> str | None:
    """The `__init__.py` of another kclient on the path, else that of this clone; None if there is none.

    ``python -m pytest`` puts this clone in front of the path, but not for the programs that tests start.
    """
    others = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
    spec = PathFinder.find_spec("kclient", others) or find_spec("kclient")
    return spec.origin if spec is not None else None


def refuse_another() -> None:
    reason = refusal(origin_of_kclient(), allows_installed=bool(os.environ.get("KCLIENT_TEST_INSTALLED")))
    if reason:
        raise pytest.UsageError(reason)


refuse_another()
