"""docs/design.md names only modules, methods and paths that exist, and shows only imports that are allowed.

The constants that any page names exist, too.
"""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import attrs
import pytest
from test_architecture import MODULES, PACKAGE, ROOMS
from test_readme import ROOT, blocks

DOCS = ROOT / "docs"
TESTS = ROOT / "tests"
DESIGN = (DOCS / "design.md").read_text(encoding="utf-8")
PAGES = sorted([*DOCS.glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])

NODE = re.compile(r'^ +(\w+)\["([^"]+)"\]$', re.MULTILINE)
FLOOR = re.compile(r"^ +subgraph floor(\d+) .*?\n(.*?)^ +end$", re.MULTILINE | re.DOTALL)
ARROW = re.compile(r"^ +(\w+) --> (\w+)$", re.MULTILINE)
ROW = re.compile(r"^\| `(\w+)` \|[^|]*\| (nothing|`[^|]*`) \|$", re.MULTILINE)
MODULE = re.compile(r"\b(?:\w+/)*\w+\.py\b")
PART = re.compile(r"^\| `(\w+)` \| `((?:\w+/)+\w+\.py)` \|", re.MULTILINE)
CODE_PATH = re.compile(r"`((?:\w+/)*\w+\.py|(?:\w+/)+)`")
METHOD = re.compile(r"\b([A-Z]\w+)\.(\w+)")
CONSTANT = re.compile(r"`((?:[a-z_]\w*\.)+)(_?[A-Z][A-Z0-9_]+)`")


@attrs.frozen
class House:
    """The picture of the rooms: what it calls each, the floor of each, and its arrows."""

    labels: dict[str, str]
    floors: dict[str, int]
    arrows: list[tuple[str, str]]

    @classmethod
    def of(cls, picture: str) -> House:
        floors = {room: int(match[1]) for match in FLOOR.finditer(picture) for room, _ in NODE.findall(match[2])}
        return cls(dict(NODE.findall(picture)), floors, ARROW.findall(picture))

    def wrong_arrows(self) -> list[str]:
        """The imports that it shows and that tests/test_architecture.py does not allow."""
        return [f"{room} --> {other}" for room, other in self.arrows if other not in ROOMS.get(room, set())]

    def below(self, room: str) -> set[str]:
        """The rooms that arrows lead to from `room`, also by way of others."""
        found: set[str] = set()
        for start, other in self.arrows:
            if start == room:
                found |= {other} | self.below(other)
        return found


PICTURES = [block.code for block in blocks(DESIGN) if block.language == "mermaid"]
HOUSE = House.of(next((picture for picture in PICTURES if picture.startswith("flowchart")), ""))
WAY = next((picture for picture in PICTURES if picture.startswith("sequenceDiagram")), "")


def is_there(path: str) -> bool:
    """True if the clone has that path, or if kclient/ or tests/ have it, or a room has it by that name."""
    if any((base / path).exists() for base in (ROOT, PACKAGE, TESTS)):
        return True
    return "/" not in path and any(found for base in (PACKAGE, TESTS) for found in base.rglob(path))


def classes() -> dict[str, str]:
    """The module of each class of kclient."""
    return {node.name: module.name for module in MODULES for node in module.tree.body if isinstance(node, ast.ClassDef)}


CLASSES = classes()


def has_method(owner: str, name: str) -> bool:
    """True if kclient has a class `owner` with that method, perhaps inherited."""
    return owner in CLASSES and hasattr(getattr(importlib.import_module(CLASSES[owner]), owner), name)


def has_constant(dotted: str, name: str) -> bool:
    """True if the module ``a.b.``, below kclient, has a constant of that name."""
    found = [module for module in MODULES if f"{module.name}." == f"kclient.{dotted}"]
    return any(re.search(rf"^{name}\b.* = ", module.text, re.MULTILINE) for module in found)


def test_house_has_every_room_and_no_other() -> None:
    assert set(HOUSE.labels) == set(HOUSE.floors) == set(ROOMS)


def test_every_room_of_the_house_is_called_by_its_path() -> None:
    assert {room: label for room, label in HOUSE.labels.items() if not (PACKAGE / label).exists()} == {}


def test_every_arrow_of_the_house_is_an_import_that_is_allowed() -> None:
    assert HOUSE.arrows
    assert HOUSE.wrong_arrows() == []


def test_every_import_that_is_allowed_leads_down_the_arrows() -> None:
    hidden = {room: sorted(allowed - HOUSE.below(room)) for room, allowed in ROOMS.items()}
    assert {room: rooms for room, rooms in hidden.items() if rooms} == {}


def test_every_room_stands_on_the_floor_of_its_longest_way_down() -> None:
    floors: dict[str, int] = {}
    for room in ROOMS:
        floors[room] = 1 + max((floors[other] for start, other in HOUSE.arrows if start == room), default=0)
    assert floors == HOUSE.floors


def test_wrong_arrow_is_found() -> None:
    house = House.of("flowchart\n    errors --> pool\n    pool --> errors\n    cellar --> errors\n")
    assert house.wrong_arrows() == ["errors --> pool", "cellar --> errors"]


def test_table_of_the_rooms_is_that_of_the_code() -> None:
    found = {room: set(re.findall(r"`(\w+)`", cell)) for room, cell in ROW.findall(DESIGN)}
    assert list(found.items()) == list(ROOMS.items())


def test_every_module_on_the_way_of_a_message_exists() -> None:
    names = MODULE.findall(WAY)
    assert names
    assert [name for name in names if not (PACKAGE / name).is_file()] == []


def test_every_method_on_the_way_of_a_message_exists() -> None:
    names = METHOD.findall(WAY)
    assert names
    assert [f"{owner}.{name}" for owner, name in names if not has_method(owner, name)] == []


def test_every_part_that_a_table_names_is_in_its_module() -> None:
    parts = PART.findall(DESIGN)
    assert parts
    texts = {path: (PACKAGE / path).read_text(encoding="utf-8") for _, path in parts}
    assert [name for name, path in parts if not re.search(rf"^(class|def) {name}\b", texts[path], re.MULTILINE)] == []


def test_every_protocol_of_the_seam_is_in_the_table() -> None:
    seam = next(module for module in MODULES if module.name == "kclient.transport.base")
    names = [node.name for node in seam.tree.body if isinstance(node, ast.ClassDef)]
    assert [name for name in names if not re.search(rf"^\| `{name}` \|", DESIGN, re.MULTILINE)] == []


def test_method_that_does_not_exist_is_found() -> None:
    assert has_method("ShellChannel", "post")  # inherited
    assert not has_method("ShellChannel", "no_such")
    assert not has_method("NoSuch", "post")


def test_every_path_that_the_page_names_exists() -> None:
    names = CODE_PATH.findall(DESIGN)
    assert names
    assert [name for name in names if not is_there(name.rstrip("/"))] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_constant_that_a_page_names_exists(page: Path) -> None:
    names = CONSTANT.findall(page.read_text(encoding="utf-8"))
    assert [dotted + name for dotted, name in names if not has_constant(dotted, name)] == []


def test_constant_that_does_not_exist_is_found() -> None:
    assert has_constant("protocol.routing.", "MAX_UNCOLLECTED_REPLIES")
    assert not has_constant("protocol.routing.", "MAX_UNCOLLECTED_")
    assert not has_constant("no_such.", "MAX_UNCOLLECTED_REPLIES")
