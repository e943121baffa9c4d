"""`kclient.__version__` is the version of the package. It is looked up at the first access."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys

import pytest

import kclient

VERSION = importlib.metadata.version("kclient")


def test_version_is_that_of_the_installed_package() -> None:
    assert kclient.__version__ == VERSION
    assert "__version__" in dir(kclient)


def test_version_costs_nothing_until_it_is_asked_for() -> None:
    code = "import sys, kclient; print('importlib.metadata' in sys.modules, kclient.__version__)"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=40, check=True)
    assert done.stdout == f"False {VERSION}\n"


def test_version_of_source_files_that_were_not_installed_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", none)
    assert kclient._installed_version() == "unknown"
