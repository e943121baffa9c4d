"""The folder for the temporary files of a kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kclient.kernels.process import orphan_guard_main, private_tmp
from kclient.kernels.process.private_tmp import PrivateTmp, remove_tree


def fill(folder: Path) -> Path:
    """A folder with all that code may leave in it."""
    tree = folder / "tree"
    for name in ("a/b/c", "locked/inner"):
        (tree / name).mkdir(parents=True)
        (tree / name / "file").write_text("x")
    (folder / "precious").mkdir()
    (folder / "precious" / "file").write_text("x")
    (tree / "link").symlink_to(folder / "precious")
    (tree / "dangling").symlink_to("/nowhere")
    os.mkfifo(tree / "fifo")
    (tree / "locked").chmod(0)
    return tree


def test_tree_is_removed_and_links_are_not_followed(folder: Path) -> None:
    tree = fill(folder)
    remove_tree(str(tree), lambda: None)
    assert not os.path.lexists(tree)
    assert os.listdir(folder / "precious") == ["file"]


def test_orphan_guard_removes_a_tree_likewise(folder: Path) -> None:
    tree = fill(folder)
    orphan_guard_main.remove(b"t" + os.fsencode(tree))
    assert not os.path.lexists(tree)
    assert os.listdir(folder / "precious") == ["file"]
    orphan_guard_main.remove(b"t" + os.fsencode(tree))


def test_loop_turns_while_many_files_are_removed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_tmp, "_TURN_AFTER_S", 0.0)
    turns: list[str] = []
    tree = folder / "tree"
    remove_tree(str(tree), lambda: turns.append(""))
    assert turns == []
    tree.mkdir()
    for name in "abc":
        (tree / name).write_text("")
    remove_tree(str(tree), lambda: turns.append(""))
    assert len(turns) == 3


def test_kernel_without_room_for_a_folder_shares_that_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    tmp = PrivateTmp()
    tmp.is_wanted = True
    monkeypatch.setattr(private_tmp.tempfile, "mkdtemp", lambda prefix: os.mkdir("/dev/null/none"))
    assert tmp.make() == []
    environment = {"A": "1"}
    tmp.put_into(environment, [])
    assert environment == {"A": "1"}
    tmp.remove(may_turn=False)
