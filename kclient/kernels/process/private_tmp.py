"""A folder for the temporary files of one kernel. A kernel that is killed leaves such files behind."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection
from contextlib import suppress
from time import perf_counter
from typing import Final

import gevent

from kclient.concurrency.waiting import TURN_S

_PRIVATE: Final = 0o700

_TURN_AFTER_S: Final = 0.002
"""Seconds of removing files after which the loop gets a turn."""


class PrivateTmp:
    """The TMPDIR of one kernel, if `is_wanted`. `make` makes it before the start, `remove` removes it after the end."""

    def __init__(self) -> None:
        self.is_wanted = False
        self._path: str | None = None

    def make(self) -> list[str]:
        """Make the folder, which only this user can enter. If that fails, the kernel shares the TMPDIR of others.

        Returns it in the format that `orphan_guard_main` describes, in a list.
        """
        if self.is_wanted and self._path is None:
            with suppress(OSError):
                self._path = tempfile.mkdtemp(prefix="kclient-tmp-")
        return [] if self._path is None else [f"t{self._path}"]

    def put_into(self, environment: dict[str, str], given: Collection[str]) -> None:
        """Set TMPDIR in the environment of the kernel, unless it is among the variables that the kernel was given."""
        if self._path is not None and "TMPDIR" not in given:
            environment["TMPDIR"] = self._path

    def remove(self, *, may_turn: bool) -> None:
        """Remove the folder with all that is in it. If `may_turn`, the loop turns at times: there may be many files."""
        turn = _let_the_loop_turn if may_turn else _go_on
        if self._path is not None:
            remove_tree(self._path, turn)
            if os.path.lexists(self._path):  # a process that is about to end has made another file
                remove_tree(self._path, turn)
            self._path = None


def remove_tree(path: str, turn: Callable[[], object]) -> None:
    """Remove a folder with all that is in it. Follows no links. What cannot be removed stays. Calls `turn` at times."""
    folders, emptied = [path], []
    since = perf_counter()
    while folders:
        folder = folders.pop()
        emptied.append(folder)
        for entry in _entries(folder):
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            else:
                with suppress(OSError):
                    os.unlink(entry.path)
            if perf_counter() - since > _TURN_AFTER_S:
                turn()
                since = perf_counter()
    for folder in reversed(emptied):  # a folder comes after the one that it is in
        with suppress(OSError):
            os.rmdir(folder)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    with suppress(OSError):
        os.chmod(folder, _PRIVATE)  # code may have taken the right to look into it, or to change it
        with os.scandir(folder) as entries:
            return list(entries)
    return []


def _let_the_loop_turn() -> None:
    gevent.sleep(TURN_S)


def _go_on() -> None:
    """The program ends, or a finalizer runs: the loop cannot turn."""
