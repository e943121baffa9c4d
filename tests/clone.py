"""Which kclient is tested: that of this clone. Importing this module raises pytest.UsageError if it is another one.

tests/conftest.py imports it before all that imports kclient. tox tests the wheel that it has built and installed, and
sets KCLIENT_TEST_INSTALLED.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def refusal(origin: str | None, *, allows_installed: bool) -> str:
    """Why the kclient whose `__init__.py` is `origin` is not to be tested, and what to do; empty if it is."""
    remedy = f"run pip install -e '.[test]' in {ROOT} with the pip of this Python, or run tox"
    if origin is None:
        return f"kclient is not installed: {remedy}"
    package = Path(origin).resolve().parent
    if allows_installed or package == ROOT / "kclient":
        return ""
    return f"the tests would import kclient from {package}, and not from this clone: {remedy}"


def refuse_another() -> None:
    spec = find_spec("kclient")
    allows_installed = bool(os.environ.get("KCLIENT_TEST_INSTALLED"))
    reason = refusal(spec.origin if spec is not None else None, allows_installed=allows_installed)
    if reason:
        raise pytest.UsageError(reason)


refuse_another()
