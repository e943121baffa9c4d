"""New folders that no other user can write to, whatever the umask."""

from __future__ import annotations

import errno
import os
from typing import Final

PRIVATE: Final = 0o700
"""Only this user can enter."""

READABLE_BY_ALL: Final = 0o755
"""For what is installed for all users."""


def make_folders(path: str, mode: int = PRIVATE) -> None:
    """Make a folder, and each missing one above it, with that mode, or less if the umask says so. Raises OSError.

    `os.makedirs` gives its mode to the last folder only. With the umask 0 it lets any user write to the others.
    """
    folder, missing = os.path.abspath(path), []
    while not os.path.isdir(folder) and folder != os.path.dirname(folder):
        missing.append(folder)
        folder = os.path.dirname(folder)
    for folder in reversed(missing):
        try:
            os.mkdir(folder, mode)
        except FileExistsError:
            if not os.path.isdir(folder):  # else another program has made it just now
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), folder) from None
