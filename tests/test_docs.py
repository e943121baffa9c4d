"""The pages in docs name only tests and methods that exist, their code runs, and docs/protocol.md has every message.

Each python block is run with `kernel`, one that is ready, and `kclient`, unless the line before it is
``<!-- not run: why -->``. A text block right after it is what it prints.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from functools import cache, partial
from io import StringIO
from pathlib import Path
from textwrap import dedent

import attrs
import pytest
from test_readme import Block, blocks

import kclient

TESTS = Path(__file__).resolve().parent
DOCS = TESTS.parent / "docs"

SPEC = """
execute inspect complete history is_complete connect comm_info kernel_info shutdown interrupt debug
create_subshell delete_subshell list_subshell
"""
"""The messages that are asked with a _request and answered with a _reply."""

PUBLISHED = """
stream display_data update_display_data execute_input execute_result error status clear_output debug_event iopub_welcome
input_request input_reply comm_open comm_msg comm_close pyin pyout pyerr
"""
"""The other messages of "Messaging in Jupyter" 5.5, and what protocol 4 called three of them."""

TEST = re.compile(r"`([\w/]*\.py)?::(test_\w+)`")
METHOD = re.compile(r"`([A-Z]\w+)\.(\w+)`")
CODE = re.compile(r"`(\w+)`")
NOT_RUN = re.compile(r" *<!-- not run: .+ -->")


@attrs.frozen
class Row:
    subject: str
    by: str
    tests: str


def rows(text: str) -> list[Row]:
    """The rows of tables with three columns, without their heads."""
    lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    return [Row(*cells) for cells in lines if cells[2] not in (" shown by ", "---")]


PROTOCOL = rows((DOCS / "protocol.md").read_text(encoding="utf-8"))


@cache
def functions(path: str) -> set[str]:
    """The names of the tests in that file; none if there is no such file."""
    if not (TESTS / path).is_file():
        return set()
    tree = ast.parse((TESTS / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def missing_tests(text: str) -> list[str]:
    """The tests that `text` names and that do not exist. ``::name`` is in the file that was named last."""
    found, path = [], ""
    for match in TEST.finditer(text):
        path = match[1] or path
        if match[2] not in functions(path):
            found.append(f"{path}::{match[2]}")
    return found


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_every_test_that_a_page_names_exists(page: str) -> None:
    assert missing_tests((DOCS / page).read_text(encoding="utf-8")) == []


def test_test_that_does_not_exist_is_found() -> None:
    text = "`test_docs.py::test_no_such`, `::test_test_that_does_not_exist_is_found`, `no/such.py::test_a`"
    assert missing_tests(text) == ["test_docs.py::test_no_such", "no/such.py::test_a"]


def test_every_method_that_the_protocol_names_exists() -> None:
    names = [match.groups() for row in PROTOCOL for match in METHOD.finditer(row.by)]
    assert len(names) > len(PROTOCOL)
    assert [f"{owner}.{name}" for owner, name in names if not hasattr(getattr(kclient, owner, None), name)] == []


def test_every_message_of_the_spec_has_a_method_and_a_test() -> None:
    shown = {
        name
        for row in PROTOCOL
        if METHOD.search(row.by) and TEST.search(row.tests)
        for name in CODE.findall(row.subject)
    }
    asked = [f"{name}_{kind}" for name in SPEC.split() for kind in ("request", "reply")]
    assert [name for name in asked + PUBLISHED.split() if name not in shown] == []


def test_every_row_of_the_protocol_names_a_method_and_a_test() -> None:
    bare = [row for row in PROTOCOL if not (METHOD.search(row.by) and TEST.search(row.tests))]
    assert bare == []


def blocks_to_run(text: str) -> list[Block]:
    """The python blocks, without those that cannot be run."""
    lines = text.splitlines()
    found = [block for block in blocks(text) if block.language == "python"]
    return [block for block in found if not NOT_RUN.fullmatch(lines[block.line - 2])]


@pytest.mark.kernel
def test_python_blocks_run(start_kernel: Callable[..., kclient.KernelManager], tmp_path: Path) -> None:
    kernel = start_kernel(env={"TMPDIR": str(tmp_path)})  # the folder of debugged cells
    for page in sorted(DOCS.glob("*.md")):
        for block in blocks_to_run(page.read_text(encoding="utf-8")):
            code = compile("\n" * block.line + dedent(block.code), page, "exec")
            out = StringIO()  # one for each block: callbacks may print after its end
            exec(code, {"kernel": kernel, "kclient": kclient, "print": partial(print, file=out)})
            assert block.prints in (None, out.getvalue()), f"{page.name}, {block}"
    kernel.kill_kernel()  # else its debugger takes 2 s to end


def test_block_that_is_marked_is_not_run() -> None:
    text = "```python\na\n```\n<!-- not run: no such kernel -->\n```python\nb\n```\n```text\nc\n```\n"
    assert blocks_to_run(text) == [Block(1, "python", "a\n")]
