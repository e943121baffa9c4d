"""``python tests/release.py``: setup.cfg and the newest heading of CHANGELOG.md name the same version, or exit 1."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

HEADING = re.compile(r"^## \[?(?P<version>[^\s\]]+)", re.MULTILINE)


def version_of_setup(text: str) -> str:
    """The version in the text of a setup.cfg."""
    parser = configparser.ConfigParser(interpolation=None)
    parser.read_string(text)
    return parser["metadata"]["version"]


def newest_version(changelog: str) -> str:
    """The version in the first heading of a changelog, which may be ``## 1.2.0 (unreleased)``; empty without one."""
    match = HEADING.search(changelog)
    return match["version"] if match else ""


def disagreement(root: Path) -> str:
    """The difference between the two files; empty if there is none."""
    ours = version_of_setup((root / "setup.cfg").read_text(encoding="utf-8"))
    newest = newest_version((root / "CHANGELOG.md").read_text(encoding="utf-8"))
    if ours == newest:
        return ""
    return f"setup.cfg says version {ours}, and the newest heading of CHANGELOG.md says {newest or 'none'}"


if __name__ == "__main__":
    sys.exit(disagreement(ROOT) or 0)
