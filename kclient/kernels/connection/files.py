"""Files between a client and a kernel: connection files, and folders for ipc sockets.

A connection file holds the key to run any code as its owner, so it is private from its first byte,
and so is a directory that is made for it.
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
from kclient.protocol.connection import MAX_IPC_PATH, ConnectionInfo

_PRIVATE: Final = 0o700
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH
_ROOT: Final = 0
_PREFIX: Final = "kclient-"
_SOCKET_STEM: Final = "k"
_LAST_IPC_PORT: Final = 5
"""ipc ports are mere suffixes; a kernel's five are 1 to 5."""


class PrivateFolder:
    """A new directory that only this user can enter, and whose whole content is kclient's to remove."""

    __slots__ = ("_pid", "path")

    def __init__(self, parent: str) -> None:
        self.path = tempfile.mkdtemp(prefix=_PREFIX, dir=os.path.abspath(parent))
        self._pid = os.getpid()

    @property
    def ip(self) -> str:
        """What stands in a `ConnectionInfo` for an ipc kernel: its sockets are `ip`-1 to `ip`-5."""
        return os.path.join(self.path, _SOCKET_STEM)

    def remove(self) -> None:
        """Remove the folder with the files in it; does nothing the second time, or in a forked child."""
        if self._pid != os.getpid():
            return
        with suppress(OSError):  # gone already, or someone put a directory into it
            for name in os.listdir(self.path):
                with suppress(OSError):  # a kernel that ends removes its sockets itself, perhaps right now
                    os.unlink(os.path.join(self.path, name))
            os.rmdir(self.path)


_folders: dict[str, PrivateFolder] = {}
"""By path: what `new_connection_file` had to make, so that `remove_connection_file` can tell it from a user's."""


def new_connection_file(stem: str = "kernel") -> str:
    """A fresh path ``kernel-<uuid>.json`` in Jupyter's runtime directory; nothing is written yet.

    Where that directory cannot be used, or others may write to it, a private temporary one takes its place.
    Raises ConnectionFileError if there is none either.
    """
    directory = _runtime_dir()
    if not _make_private_dir(directory):
        folder = _new_folder("a connection file", [tempfile.gettempdir], fits=lambda folder: True)
        directory = folder.path
        _folders[directory] = folder
    return os.path.join(directory, f"{stem}-{uuid.uuid4()}.json")


def remove_connection_file(path: str) -> None:
    """Remove the file, if it is there, and its directory if `new_connection_file` made it for it alone."""
    with suppress(OSError):
        os.unlink(path)
    folder = _folders.pop(os.path.dirname(path), None)
    if folder is not None:
        folder.remove()


def folders_made_for(path: str) -> list[str]:
    """The folder that goes with this connection file, if `new_connection_file` made it."""
    folder = os.path.dirname(path)
    return [folder] if folder in _folders else []


def write_connection_file(info: ConnectionInfo, path: str) -> None:
    """Write `info` to `path` as `write_private` does."""
    write_private(info.to_dict(), path)


def write_private(values: Mapping[str, Any], path: str) -> None:
    """Write `values` to `path` so that readers see all of them or nothing, and nobody else may read them.

    A missing directory is made. Raises ConnectionFileError, which names `path`.
    """
    text = json.dumps(values, indent=2) + "\n"
    with _explained("written", path):
        directory, name = os.path.split(os.path.abspath(path))
        os.makedirs(directory, mode=_PRIVATE, exist_ok=True)
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
    """Raise ConnectionFileError if `path` holds something else than a connection file: it may be dear to someone.

    So it does if others may write to it: it may be theirs.
    """
    if not os.path.exists(path) or (os.path.isfile(path) and not os.path.getsize(path)):
        return
    try:
        read_connection_file(path)
    except ConnectionFileError as exc:
        raise ConnectionFileError(
            f"connection file {path}: something else stands there, or others may write to it; "
            "remove it or choose another path",
            path=path,
        ) from exc


def read_connection_file(path: str) -> ConnectionInfo:
    """Parse and check a connection file; raises ConnectionFileError, which says what is wrong and what to do.

    It has to be ours or root's, and nobody else may write to it: who can would lead us to a kernel of theirs, and get
    the code that we run. In a directory where others may write they can only put a file of theirs, or another of ours,
    in its place, so it is the file that is looked at.
    """
    with _explained("read", path, hint="; is the kernel running, and is it yours?"):
        # what is opened is what is looked at; a pipe could block for ever
        number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            complaint = _distrust(os.fstat(number))
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


def _distrust(found: os.stat_result) -> str:
    """Why a file with this status is not to be read, and what to do; empty if it is."""
    if not stat.S_ISREG(found.st_mode):
        return "not a regular file; pass the path of a kernel-<id>.json"
    if found.st_uid not in (os.geteuid(), _ROOT):
        return (
            f"it belongs to another user (number {found.st_uid}), who may lead you to any kernel; "
            "if you trust it, make a copy of your own with mode 600"
        )
    if found.st_mode & _OTHERS_WRITE:
        return (
            f"others may write to it (its mode is {stat.S_IMODE(found.st_mode):o}), and so lead you to any kernel; "
            "if you trust it: chmod 600"
        )
    return ""


def find_connection_file(name_or_path: str | os.PathLike[str]) -> str:
    """The path of an existing file: `name_or_path` itself, or that name, or kernel id, in the runtime directory.

    ``"1234"`` is ``kernel-1234.json``. Raises ConnectionFileError, which names where it looked.
    """
    name = os.fspath(name_or_path)
    candidates = [name]
    if name and not os.path.dirname(name):
        runtime_dir = _runtime_dir()
        candidates += [os.path.join(runtime_dir, name), os.path.join(runtime_dir, f"kernel-{name}.json")]
    for candidate in candidates:
        if os.path.isfile(candidate):
            return candidate
    if os.path.exists(name):  # a directory, say: reading it will tell
        return name
    looked = ", ".join(os.path.abspath(candidate) for candidate in candidates)
    raise ConnectionFileError(f"no connection file {name!r}; looked for {looked}; is the kernel running?", path=name)


def new_ipc_folder() -> PrivateFolder:
    """A fresh private folder, short enough for socket files; its `ip` is absolute, and so works from any cwd.

    Raises ConnectionFileError if neither the temporary directory nor /tmp can hold one.
    """

    def fits(folder: str) -> bool:
        return len(os.fsencode(os.path.join(folder, f"{_SOCKET_STEM}-{_LAST_IPC_PORT}"))) <= MAX_IPC_PATH

    return _new_folder("ipc sockets", [tempfile.gettempdir, lambda: "/tmp"], fits)


def remove_ipc_files(info: ConnectionInfo) -> None:
    """Remove the socket files of an ipc kernel; whatever else bears such a name is left alone."""
    for path in info.ipc_paths():
        with suppress(OSError):
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                os.unlink(path)


def _runtime_dir() -> str:
    from jupyter_core.paths import jupyter_runtime_dir  # imported here, since few programs need it early

    return jupyter_runtime_dir()


def _make_private_dir(directory: str) -> bool:
    """Make `directory` if it is missing; True if this user can write to it, and nobody else can."""
    try:
        os.makedirs(directory, mode=_PRIVATE, exist_ok=True)
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
    raise ConnectionFileError(f"no private directory for {purpose}: {'; '.join(failures)}; set TMPDIR to a usable one")


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
