"""The tests test the kclient of this clone, or none."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from clone import ROOT, refusal

PYTEST = [str(Path(sys.executable).parent / "pytest")]


def run_pytest(folder: Path, command: Sequence[str] = PYTEST, **env: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on this file, with the kclient in `folder` on the path; it only collects."""
    hidden = {"KCLIENT_TEST_INSTALLED", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER"}
    ours = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [*command, "--collect-only", "-q", "-p", "no:cacheprovider", __file__],
        cwd=ROOT,
        env={**ours, "PYTHONPATH": str(folder), **env},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("command", [PYTEST, [sys.executable, "-m", "pytest"]], ids=["pytest", "python -m pytest"])
def test_copy_of_kclient_is_refused_unless_tox_asks_for_it(tmp_path: Path, command: list[str]) -> None:
    shutil.copytree(ROOT / "kclient", tmp_path / "kclient", ignore=shutil.ignore_patterns("__pycache__"))
    refused = run_pytest(tmp_path, command)
    assert refused.returncode == 4
    assert refused.stdout == ""
    for words in (f"would import kclient from {tmp_path / 'kclient'}", "pip install -e '.[test]'", "tox"):
        assert words in refused.stderr
    taken = run_pytest(tmp_path, command, KCLIENT_TEST_INSTALLED="1")
    assert taken.returncode == 0, taken.stdout + taken.stderr


def test_old_copy_that_the_tests_cannot_even_import_is_refused_by_the_same_words(tmp_path: Path) -> None:
    (tmp_path / "kclient").mkdir()
    (tmp_path / "kclient" / "__init__.py").touch()
    refused = run_pytest(tmp_path)
    assert refused.returncode == 4
    assert "would import kclient from" in refused.stderr


def test_no_kclient_and_a_folder_of_that_name_are_refused() -> None:
    assert "not installed" in refusal(None, allows_installed=True)


def test_kclient_of_this_clone_is_tested() -> None:
    assert refusal(str(ROOT / "kclient" / "__init__.py"), allows_installed=False) == ""
