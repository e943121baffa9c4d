"""Files between a client and a kernel: connection files, and folders for ipc sockets.

The key in a connection file lets its reader run any code as the file's owner. So the file is created with mode 0600,
and each directory that is made for it with mode 0700.
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from kclient.concurrency.unpatched import close
from kclient.errors import ConnectionFileError
from kclient.kernels.folders import make_folders
from kclient.protocol.connection import MAX_IPC_PATH_BYTES, ConnectionInfo

_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_ROOT: Final = 0
_PREFIX: Final = "kclient-"
_SOCKET_STEM: Final = "k"
_LAST_IPC_PORT: Final = 5
"""An ipc port is only a suffix of the path. The five of a kernel are 1 to 5."""


class PrivateFolder:
    """A new directory that only this user can enter. `remove` deletes it with all its files."""

    __slots__ = ("_pid", "path")

    def __init__(self, parent: str) -> None:
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=os.path.abspath(parent))
        self._pid = os.getpid()

    @property
    def ip(self) -> str:
        """The `ip` of a `ConnectionInfo` for an ipc kernel in this folder: its sockets are `ip`-1 to `ip`-5."""
        return os.path.join(self.path, _SOCKET_STEM)

    def remove(self) -> None:
        """Remove the folder with the files in it; does nothing the second time, or in a forked child."""
        if self._pid != os.getpid():
            return
        with suppress(OSError):  # already removed, or a directory was put into it
            for name in os.listdir(self.path):
                with suppress(OSError):  # a kernel that ends removes its socket files itself, perhaps just now
                    os.unlink(os.path.join(self.path, name))
            os.rmdir(self.path)


_folders: dict[str, PrivateFolder] = {}
"""The folders that `new_connection_file` made, by path. `remove_connection_file` removes these and no others."""


def new_connection_file(stem: str = "kernel") -> str:
    """A fresh path ``kernel-<uuid>.json`` in Jupyter's runtime directory; nothing is written yet.

    If that directory cannot be used, or other users may write to it, a private temporary one takes its place.
    Raises ConnectionFileError if that cannot be made either.
    """
    directory = _runtime_dir()
    if not _make_private_dir(directory):
        folder = _new_folder("a connection file", [tempfile.gettempdir], fits=lambda folder: True)
        directory = folder.path
        _folders[directory] = folder
    return os.path.join(directory, f"{stem}-{uuid.uuid4()}.json")


def remove_connection_file(path: str) -> None:
    """Remove the file, if it exists, and its directory if `new_connection_file` made one for this file alone."""
    with suppress(OSError):
        os.unlink(path)
    folder = _folders.pop(os.path.dirname(path), None)
    if folder is not None:
        folder.remove()


def folders_made_for(path: str) -> list[str]:
    """The folder that `new_connection_file` made for this file alone, in a list; an empty list if it made none."""
    folder = os.path.dirname(path)
    return [folder] if folder in _folders else []


def write_connection_file(info: ConnectionInfo, path: str) -> None:
    """Write `info` to `path` as `write_private` does."""
    write_private(info.to_dict(), path)


def write_private(values: Mapping[str, Any], path: str) -> None:
    """Write `values` to `path` with mode 0600. A reader sees all of them or none.

    Missing directories are made, with mode 0700. Raises ConnectionFileError, which names `path`.
    """
    text = json.dumps(values, indent=2) + "\n"
    with _explained("written", path):
        directory, name = os.path.split(os.path.abspath(path))
        make_folders(directory)
        number, draft = tempfile.mkstemp(prefix=f".{name}.", dir=directory)  # its mode is 0600
        try:
            with open(number, "w", encoding="ascii") as file:
                file.write(text)
            os.replace(draft, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(draft)
            raise


def check_replaceable(path: str) -> None:
    """Raise ConnectionFileError if `path` must not be overwritten.

    That is so if it is no connection file: then a user may need it. It is also so if other users may write to it:
    then it may be their file. A missing or empty file may be overwritten.
    """
    if not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path)):
        return
    try:
        read_connection_file(path)
    except ConnectionFileError as exc:
        raise ConnectionFileError(
            f"connection file {path}: this file exists and is no connection file, or other users may write to it; "
            "remove it or choose another path",
            path=path,
        ) from exc


def read_connection_file(path: str) -> ConnectionInfo:
    """Parse and check a connection file; raises ConnectionFileError, which says what is wrong and what to do.

    The file must belong to this user or to root, and no other user may write to it. A user who can write to it could
    put the address of a kernel of his own into it, and would receive the code that is run.

    Only the file is checked, not its directory. A user who can write to the directory can replace the file by one of
    his own, which is refused, or by another file of this user.
    """
    with _explained("read", path, hint="; is the kernel running, and is it yours?"):
        # The file is opened once, and checked and read by its descriptor. O_NONBLOCK: to open a pipe could block.
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            complaint = _complaint(os.fstat(number))
            if complaint:
                raise ConnectionFileError(f"connection file {path}: {complaint}", path=path)
            with open(number, "rb", closefd=False) as file:
                data = file.read()
        finally:
            close(number)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ConnectionFileError(
            f"connection file {path}: not UTF-8 text ({exc.reason} at byte {exc.start}); is it the right file?",
            path=path,
        ) from None
    return ConnectionInfo.from_json(text, path=path)


def _complaint(found: os.stat_result) -> str:
    """Why a file with this status must not be read, and what to do; empty if it may be read."""
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file; pass the path of a kernel-<id>.json"
    if found.st_uid not in (os.geteuid(), _ROOT):
        return (
            f"it belongs to another user (number {found.st_uid}), and so could connect you to any kernel; "
            "if you trust it, make a copy of your own with mode 600"
        )
    if found.st_mode & _OTHERS_WRITE:
        return (
            f"others may write to it (its mode is {stat.S_IMODE(found.st_mode):o}), and so could connect you to any "
            "kernel; if you trust it: chmod 600"
        )
    return ""


def find_connection_file(name_or_path: str | os.PathLike[str]) -> str:
    """The path of an existing connection file.

    `name_or_path` is a path, or the name of a file in Jupyter's runtime directory, or a kernel id: ``"1234"`` stands
    for ``kernel-1234.json`` there. Raises ConnectionFileError, which names the paths that were tried.
    """
    name = os.fspath(name_or_path)
    candidates = [name]
    if name and not os.path.dirname(name):
        runtime_dir = _runtime_dir()
        candidates += [os.path.join(runtime_dir, name), os.path.join(runtime_dir, f"kernel-{name}.json")]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    if os.path.exists(name):  # for example a directory: `read_connection_file` will say so
        return name
    check_no_text(name)
    try:
        looked = ", ".join(os.path.abspath(candidate) for candidate in candidates)
    except FileNotFoundError:
        looked = ", ".join(candidates) + ", and the working directory of this program is deleted"
    raise ConnectionFileError(f"no connection file {name!r}; looked for {looked}; is the kernel running?", path=name)


def check_no_text(path: str) -> None:
    """Raise ConnectionFileError if `path` is the text of a connection file. That has a key, so the error hides it."""
    if path.lstrip().startswith("{") or '"key"' in path:
        raise ConnectionFileError(
            f"this is no path of a connection file but the text of one ({len(path)} characters); pass the path, or the "
            "values: json.loads(text)"
        )


def new_ipc_folder() -> PrivateFolder:
    """A new private folder whose path is short enough for socket files. Its `ip` is absolute.

    Raises ConnectionFileError if it can be made neither in the temporary directory nor in /tmp.
    """

    def fits(folder: str) -> bool:
        return len(os.fsencode(os.path.join(folder, f"{_SOCKET_STEM}-{_LAST_IPC_PORT}"))) <= MAX_IPC_PATH_BYTES

    return _new_folder("ipc sockets", [tempfile.gettempdir, lambda: "/tmp"], fits)


def remove_ipc_files(info: ConnectionInfo) -> None:
    """Remove the socket files of an ipc kernel. A file of such a name that is no socket stays."""
    for path in info.ipc_paths():
        with suppress(OSError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)


def _runtime_dir() -> str:
    from jupyter_core.paths import jupyter_runtime_dir  # imported here, since few programs need it early

    return jupyter_runtime_dir()


def _make_private_dir(directory: str) -> bool:
    """Make `directory` if it is missing; True if this user can write to it and no other user can."""
    try:
        make_folders(directory)
        found = os.stat(directory)
    except (OSError, ValueError):
        return False
    others_write = found.st_uid != os.geteuid() or found.st_mode & _OTHERS_WRITE
    return not others_write and os.access(directory, os.W_OK | os.X_OK)


def _new_folder(purpose: str, parents: list[Callable[[], str]], fits: Callable[[str], bool]) -> PrivateFolder:
    failures = []
    for find_parent in parents:
        try:
            folder = PrivateFolder(find_parent())
        except OSError as exc:
            failures.append(str(exc))
            continue
        if fits(folder.path):
            return folder
        folder.remove()
        failures.append(f"{folder.path} is too long a path")
    raise ConnectionFileError(
        f"cannot make a private directory for {purpose}: {'; '.join(failures)}; set TMPDIR to a usable directory"
    )


@contextmanager
def _explained(verb: str, path: str, hint: str = "") -> Iterator[None]:
    """Turn errors of the operating system into ConnectionFileError."""
    where = f"connection file {path}"
    try:
        yield
    except ConnectionFileError:
        raise
    except OSError as exc:
        raise ConnectionFileError(f"{where}: cannot be {verb}: {exc.strerror or exc}{hint}", path=path) from exc
    except ValueError as exc:
        raise ConnectionFileError(f"connection file {path!r}: not a path: {exc}", path=path) from exc
