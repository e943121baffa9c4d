"""The lower bounds of setup.cfg: `tox -e mindeps` tests them, `tox -e audit` asks whether they have holes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from lowest import ROOT, config, lowest, lowest_of_all

FIXED = {"aiohttp": "3.14.3", "gevent": "23.9.0", "orjson": "3.11.6"}
"""Packages of which earlier versions have a hole that is known, and the first version without it."""


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_oldest_versions_that_are_tested_are_those_that_are_allowed() -> None:
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", config(ROOT / "tox.ini")["testenv:mindeps"]["deps"], re.MULTILINE))
    required = lowest(config(ROOT / "setup.cfg")["options"]["install_requires"])
    assert {name: tested.get(name) for name in required} == required


@pytest.mark.parametrize("package", FIXED)
def test_oldest_version_that_is_allowed_has_no_known_hole(package: str) -> None:
    assert numbers(lowest_of_all()[package]) >= numbers(FIXED[package])


def test_file_for_the_audit_pins_the_oldest_of_everything(tmp_path: Path) -> None:
    path = tmp_path / "lowest.txt"
    subprocess.run([sys.executable, ROOT / "tests" / "lowest.py", path], check=True, timeout=40)
    pins = dict(line.split("==") for line in path.read_text(encoding="utf-8").splitlines())
    assert pins == lowest_of_all()
    assert {"attrs", "pyzmq", "click", "gunicorn", "matplotlib", "bash_kernel"} <= pins.keys()
    assert "kclient[test]" not in pins
