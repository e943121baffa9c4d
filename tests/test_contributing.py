"""CONTRIBUTING.md and SECURITY.md: their commands work, and the files that they name exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_readme import ROOT, SHELL, blocks, check_command, commands, simple_commands, tox_envs

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = ["CONTRIBUTING.md", "SECURITY.md"]

LINES = [line for block in blocks(TEXT) if block.language in SHELL for line in commands(block)]
PLACE = re.compile(r"`((?:kclient|tests|docs)/[\w./]*)(?:::\w+)?`")
LINK = re.compile(r"\]\((?!http)([^)#]+)")
ROW = re.compile(r"^\| `(\w+)` \|", re.MULTILINE)


@pytest.mark.parametrize("line", LINES)
def test_command_is_one_that_works(line: str, tmp_path: Path) -> None:
    for words in simple_commands(line):
        check_command(words, tmp_path)


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = [*PLACE.findall(text), *LINK.findall(text)]
    assert names
    assert [name for name in names if not (ROOT / name).exists()] == []


def test_every_room_is_in_the_table() -> None:
    rooms = {f"kclient/{path.parent.name}/" for path in (ROOT / "kclient").glob("*/__init__.py")}
    assert [room for room in rooms if room not in TEXT] == []


def test_every_environment_of_tox_is_in_the_table() -> None:
    assert {name for name in tox_envs() if not re.fullmatch(r"py3\d+", name)} == set(ROW.findall(TEXT))
