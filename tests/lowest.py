"""``python tests/lowest.py FILE``: write the lower bounds of setup.cfg to FILE, as pins that pip can read."""

from __future__ import annotations

import configparser
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

BOUND = re.compile(r"(?P<name>[\w.-]+)>=(?P<version>[\w.]+)")


def config(path: Path) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes="#")
    parser.read_string(path.read_text(encoding="utf-8"))
    return parser


def lowest(requirements: str) -> dict[str, str]:
    """The lowest version of each package in a list of requirements, one a line."""
    return {match["name"]: match["version"] for match in map(BOUND.match, requirements.split("\n")) if match}


def lowest_of_all(root: Path = ROOT) -> dict[str, str]:
    """The lowest version of everything that kclient needs, or that one of its extras needs."""
    setup = config(root / "setup.cfg")
    found = lowest(setup["options"]["install_requires"])
    for requirements in setup["options.extras_require"].values():
        found |= lowest(requirements)
    return found


def pins_of(versions: Mapping[str, str]) -> Iterable[str]:
    return (f"{name}=={version}\n" for name, version in sorted(versions.items()))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text("".join(pins_of(lowest_of_all())), encoding="utf-8")
