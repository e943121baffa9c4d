"""Directories of kernels for one test, in place of those where Jupyter looks."""

from __future__ import annotations

import json
import site
import sys
from pathlib import Path

import attrs
import pytest
from jupyter_core import paths


@attrs.frozen
class Places:
    """The directories of kernels that are installed for the user, the environment, all users, and on JUPYTER_PATH."""

    user: Path
    environment: Path
    system: Path
    path: Path


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """The directories, none of which exists yet. The order of the search is: path, environment, user, system."""
    environment = tmp_path / "prefix" / "share" / "jupyter"
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "prefix"))
    monkeypatch.setattr(paths, "ENV_JUPYTER_PATH", [str(environment)])
    monkeypatch.setattr(paths, "SYSTEM_JUPYTER_PATH", [str(tmp_path / "system")])
    monkeypatch.setattr(site, "ENABLE_USER_SITE", False)
    for name, value in {
        "JUPYTER_DATA_DIR": str(tmp_path / "user"),
        "JUPYTER_PATH": str(tmp_path / "path"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "KCLIENT_ALLOWED_KERNELS": "",
    }.items():
        monkeypatch.setenv(name, value)
    folders = (tmp_path / "user", environment, tmp_path / "system", tmp_path / "path")
    return Places(*(folder / "kernels" for folder in folders))


def write_spec(directory: Path, **values: object) -> Path:
    """Turn `directory` into that of a kernel; returns it."""
    directory.mkdir(parents=True)
    spec = {"argv": ["prog", "{connection_file}"], "display_name": "A Kernel", "language": "lang", **values}
    (directory / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return directory
