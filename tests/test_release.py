"""The check of a release: two files name the same version."""

from __future__ import annotations

from pathlib import Path

import pytest
from release import ROOT, disagreement, newest_version


@pytest.mark.parametrize(
    ("changelog", "version"),
    [
        ("# Changelog\n\nText ## 9\n\n## 0.2.0 (unreleased)\n\n### Added\n\n## 0.1.0\n", "0.2.0"),
        ("## [1.0.0rc1] - 2026-01-31\n", "1.0.0rc1"),
        ("## 1.0.0 (2026-01-31)\n", "1.0.0"),
        ("# Changelog\n### Added\n", ""),
    ],
)
def test_newest_version_is_that_of_the_first_heading(changelog: str, version: str) -> None:
    assert newest_version(changelog) == version


def test_versions_that_differ_are_named(tmp_path: Path) -> None:
    (tmp_path / "setup.cfg").write_text("[metadata]\nname = kclient\nversion = 0.2.0\n")
    (tmp_path / "CHANGELOG.md").write_text("## 0.1.0\n")
    assert "0.2.0" in disagreement(tmp_path)
    assert "0.1.0" in disagreement(tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("## 0.2.0\n## 0.1.0\n")
    assert disagreement(tmp_path) == ""


def test_versions_of_this_clone_agree() -> None:
    assert disagreement(ROOT) == ""
