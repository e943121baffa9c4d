"""Install kernel specs where Jupyter looks for them, and remove them. Other programs see all of a change, or none."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from kclient.concurrency.log import log
from kclient.concurrency.unpatched import close
from kclient.errors import InvalidArgument, KernelSpecError, KernelSpecExists
from kclient.kernels.folders import PRIVATE, READABLE_BY_ALL, make_folders
from kclient.kernels.specs.search import NAME_RULE, is_valid_name, no_such_kernel, places_of
from kclient.kernels.specs.spec import SPEC_FILE, can_be_given, read_kernel_spec

MAX_DEPTH: Final = 100
"""Limit of nested directories, in a source or in a path: the functions that copy and delete recurse at each level."""

_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


def install_kernel_spec(
    source_dir: str | os.PathLike[str],
    name: str | None = None,
    *,
    user: bool = False,
    prefix: str | os.PathLike[str] | None = None,
    replace: bool = False,
) -> str:
    """Copy a directory with a kernel.json to where Jupyter finds it, and return the path of the copy.

    The kernel's name is `name`, or the name of the directory, in small letters. It is installed for this user if `user`
    is True, or in the environment `prefix` (``sys.prefix`` is that of this Python), or else for all users. Symbolic
    links are followed. The copy keeps the permissions of the source, but no other user may write to it.

    Raises InvalidArgument for a name or a source that cannot be used, KernelSpecExists if the name is taken and
    `replace` is False, and KernelSpecError if the copy cannot be written. Then nothing has changed.
    """
    source = _absolute(_check_path("source_dir", source_dir))
    name = _check_new_name(os.path.basename(source) if name is None else name)
    if not os.path.isfile(os.path.join(source, SPEC_FILE)):
        raise InvalidArgument(f"{source!r} is not a directory that contains a {SPEC_FILE}")
    read_kernel_spec(name, source)
    directory = _destination(user, prefix)
    if _is_within(directory, source):
        raise InvalidArgument(f"{source!r} cannot be copied into its own subdirectory {directory!r}")
    path = os.path.join(directory, name)
    hint = "" if user else "install it for this user, or in an environment in which you may write"
    with _changing("install", path, hint):
        make_folders(directory, PRIVATE if user else READABLE_BY_ALL)
        with _scratch_in(directory) as scratch:
            draft = os.path.join(scratch, "new")  # Jupyter does not look for a kernel.json at this depth
            _copy(source, draft)
            _check_copy(name, source, draft)
            _put(draft, path, replace=replace)
    _warn_unless_found(name, path)
    return path


def remove_kernel_spec(name: str) -> str:
    """Remove the spec that `find_kernel_spec(name)` finds, and return the path at which it was.

    Of a symbolic link only the link is removed. A broken spec can be removed, too. If a later directory of the search
    path has a spec of that name, that one is found from then on. Raises NoSuchKernel, and KernelSpecError if the spec
    cannot be removed.
    """
    path = place_to_remove(name)
    grave = os.path.join(os.path.dirname(path), _hidden_name())
    with _changing("remove", path):
        os.rename(path, grave)
    if not _delete(grave):
        raise KernelSpecError(
            f"the kernel spec {path} is removed, but its files in {grave} cannot be deleted; delete them yourself",
            path=grave,
        )
    return path


def place_to_remove(name: str) -> str:
    """The path that `remove_kernel_spec(name)` would remove.

    Raises NoSuchKernel, or KernelSpecError if the kernel exists without a spec file.
    """
    for path in [*places_of(name), *places_of(name, broken=True)]:
        return path
    error = no_such_kernel(name)
    if name.lower() not in error.available:
        raise error
    raise KernelSpecError(
        f"the kernel {name!r} has no spec to remove: it exists as long as ipykernel is installed in this environment"
    )


def _check_path(what: str, value: str | os.PathLike[str]) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str) or not path or not can_be_given(path):
        raise InvalidArgument(f"{what} must be the path of a directory, not {value!r}")
    if path.count(os.sep) > MAX_DEPTH:
        raise InvalidArgument(f"{what} is a path of more than {MAX_DEPTH} directories; choose a shorter one")
    return path


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as exc:
        raise InvalidArgument(f"{path!r} is relative to the current directory, which is deleted") from exc


def _check_new_name(name: str) -> str:
    if not isinstance(name, str) or not is_valid_name(name):
        raise InvalidArgument(f"{name!r} cannot be the name of a kernel: {NAME_RULE}")
    return name.lower()


def _destination(user: bool, prefix: str | os.PathLike[str] | None) -> str:
    """The ``kernels`` directory in which to install."""
    from jupyter_core import paths  # imported here, as in `search`

    if prefix is not None:
        if user:
            raise InvalidArgument("install a kernel spec for the user or in a prefix, not both")
        data = os.path.join(_check_path("prefix", prefix), "share", "jupyter")
    else:
        data = paths.jupyter_data_dir() if user else paths.SYSTEM_JUPYTER_PATH[0]
    return _absolute(os.path.join(data, "kernels"))


def _is_within(path: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), folder]) == folder


@contextmanager
def _changing(what: str, path: str, hint: str = "") -> Iterator[None]:
    """Turn an OSError into a KernelSpecError. `hint` says what to do if permission was refused."""
    try:
        yield
    except OSError as exc:
        if isinstance(exc, KernelSpecError):
            raise
        reason = exc.strerror or str(exc)
        if hint and exc.errno in _REFUSED:
            reason += f"; {hint}"
        raise KernelSpecError(f"cannot {what} the kernel spec {path}: {reason}", path=path) from exc


@contextmanager
def _scratch_in(directory: str) -> Iterator[str]:
    """A new temporary directory beside the kernels, whose name is not valid for a kernel; deleted at the end."""
    scratch = os.path.join(directory, _hidden_name())
    try:
        os.mkdir(scratch, 0o700)
        yield scratch
    finally:
        _delete(scratch)


def _hidden_name() -> str:
    """A new name that no kernel can have."""
    return f".kclient-{secrets.token_hex(8)}~"


def _copy(source: str, target: str) -> None:
    """Copy a directory with its content, and follow links.

    A file is opened once. Its type, mode and content are all read by that descriptor: another program may put another
    file in its place at any moment.
    """
    with _opened(source, source, None) as number:
        _copy_opened(number, source, target, [])


@contextmanager
def _opened(name: str, source: str, folder: int | None) -> Iterator[int]:
    """The descriptor of `name` in the directory that is open as `folder`; `source` is its path, for errors."""
    with _reading(source):
        _check_kind(os.stat(name, dir_fd=folder), source)  # to open a device or a pipe may change it
        # O_NONBLOCK: it may be a pipe by now, and to open that could block.
        number = os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY, dir_fd=folder)
    try:
        yield number
    finally:
        close(number)


def _check_kind(status: os.stat_result, source: str) -> None:
    if not stat.S_ISDIR(status.st_mode) and not stat.S_ISREG(status.st_mode):
        raise InvalidArgument(f"{source!r} is neither a file nor a directory")


def _copy_opened(number: int, source: str, target: str, above: list[tuple[int, int]]) -> None:
    """Copy what is open as `number`. `above` are device and inode of the directories that contain it."""
    status = os.fstat(number)
    _check_kind(status, source)
    mode = stat.S_IMODE(status.st_mode) & READABLE_BY_ALL
    if stat.S_ISREG(status.st_mode):
        copied = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode | stat.S_IRUSR | stat.S_IWUSR)
        with open(number, "rb", closefd=False) as reader, open(copied, "wb") as writer:
            shutil.copyfileobj(reader, writer)
        return
    if len(above) >= MAX_DEPTH:
        raise InvalidArgument(f"{source!r} lies deeper than {MAX_DEPTH} directories")
    if (status.st_dev, status.st_ino) in above:
        raise InvalidArgument(
            f"{source!r} is a link to {os.path.realpath(source)!r}, the directory that contains it; remove the link"
        )
    with _reading(source):
        entries = sorted(os.listdir(number))
    os.mkdir(target, mode | stat.S_IRWXU)
    for entry in entries:
        path = os.path.join(source, entry)
        with _opened(entry, path, number) as inner:
            _copy_opened(inner, path, os.path.join(target, entry), [*above, (status.st_dev, status.st_ino)])


def _check_copy(name: str, source: str, draft: str) -> None:
    """Raise InvalidArgument if the spec that was copied cannot be used: another program has changed it meanwhile."""
    try:
        read_kernel_spec(name, draft)
    except InvalidArgument as exc:
        raise InvalidArgument(
            f"{source!r} was changed while it was copied, and its {SPEC_FILE} cannot be used now; install it again"
        ) from exc


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Turn an OSError into an InvalidArgument: the source cannot be read, which is not a failure to write."""
    try:
        yield
    except OSError as exc:
        raise InvalidArgument(f"{source!r} cannot be read: {exc.strerror or exc}") from exc


def _put(draft: str, path: str, *, replace: bool) -> None:
    """Move `draft` to `path`, and delete the kernel that was there. If the move fails, the old kernel is put back.

    An old kernel is one whose name is the same in small letters.
    """
    directory, name = os.path.split(path)
    old = [os.path.join(directory, entry) for entry in os.listdir(directory) if entry.lower() == name]
    if old and not replace:
        raise _exists(old[0])
    aside = [(before, os.path.join(directory, _hidden_name())) for before in old]
    try:
        for before, after in aside:
            os.rename(before, after)
        os.rename(draft, path)
    except BaseException as exc:
        for before, after in aside:
            _put_back(before, after)
        if isinstance(exc, OSError) and exc.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another program was faster
            raise _exists(path) from exc
        raise
    for before, after in aside:
        if not _delete(after):
            log().warning("%s, the replaced kernel %s, cannot be deleted", after, before)


def _put_back(before: str, after: str) -> None:
    """Undo the move of `before` to `after`, if it happened. A file of another program that is now at `before` stays."""
    try:
        os.rename(after, before)
    except OSError:
        if os.path.lexists(before):
            _delete(after)


def _exists(path: str) -> KernelSpecExists:
    return KernelSpecExists(f"a kernel spec is already installed in {path}; pass replace=True to replace it", path=path)


def _delete(path: str) -> bool:
    """Delete a file, a directory, or a link (not its target). True if nothing is left. One Ctrl-C does not stop it."""
    try:
        _delete_now(path)
    except BaseException:
        _delete_now(path)
        raise
    return not os.path.lexists(path)


def _delete_now(path: str) -> None:
    if os.path.islink(path) or not os.path.isdir(path):
        with suppress(OSError):
            os.unlink(path)
    else:
        with suppress(RecursionError):  # deeper than anything that `install_kernel_spec` copies
            for inner, _, _ in os.walk(path):
                with suppress(OSError):  # the directory of another user
                    os.chmod(inner, stat.S_IRWXU)  # it may be read-only, like the source of the copy
            shutil.rmtree(path, ignore_errors=True)


def _warn_unless_found(name: str, path: str) -> None:
    """Log a warning if `find_kernel_spec(name)` would not find the spec at `path`."""
    places = places_of(name)
    if not any(_is_same(path, place) for place in places):
        data = os.path.dirname(os.path.dirname(path))
        log().warning("%s is not on the search path; set JUPYTER_PATH=%s to have it there", path, data)
    elif not _is_same(path, places[0]):
        log().warning("the kernel %s is still found in %s, which comes before %s", name, places[0], path)


def _is_same(path: str, place: str) -> bool:
    try:
        return os.path.samefile(path, place)
    except OSError:  # another program has removed one
        return False
