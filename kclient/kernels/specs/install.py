"""Install kernel specs where Jupyter looks for them, and remove them: each change shows at once, or not at all."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from kclient.errors import InvalidArgument, KernelSpecError, KernelSpecExists
from kclient.kernels.specs.search import NAME_RULE, is_valid_name, no_such_kernel, places_of
from kclient.kernels.specs.spec import SPEC_FILE, can_be_given, read_kernel_spec

log = logging.getLogger(__name__)

MAX_DEPTH: Final = 100
"""Directories within one another, in a source or in a path: those who copy and delete call themselves for each."""

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

    The kernel is called `name`, or as the directory is, in small letters. It is installed for this `user`, in the
    environment `prefix` (``sys.prefix`` is that of this Python), or else for all users. Links are followed; what
    others may not read in the source, they may not read in the copy. Raises InvalidArgument for a name or a source
    that cannot be used, KernelSpecExists unless `replace` allows it, and KernelSpecError if it cannot be written;
    nothing has changed then.
    """
    source = _absolute(_check_path("source_dir", source_dir))
    name = _check_new_name(os.path.basename(source) if name is None else name)
    if not os.path.isfile(os.path.join(source, SPEC_FILE)):
        raise InvalidArgument(f"{source!r} is no directory with a {SPEC_FILE}")
    read_kernel_spec(name, source)
    directory = _destination(user, prefix)
    if _is_within(directory, source):
        raise InvalidArgument(f"{source!r} cannot be copied to {directory!r}, which is a part of it")
    path = os.path.join(directory, name)
    hint = "" if user else "install it for this user, or in an environment that you may write to"
    with _changing("install", path, hint):
        os.makedirs(directory, exist_ok=True)
        with _scratch_in(directory) as scratch:
            draft = os.path.join(scratch, "new")  # a kernel.json deeper down is no kernel's to anybody
            _copy(source, draft, [])
            _put(draft, path, replace=replace)
    _warn_unless_found(name, path)
    return path


def remove_kernel_spec(name: str) -> str:
    """Remove the spec that `find_kernel_spec(name)` finds, and return where it was; of a link, the link alone.

    One that is broken can be removed, too. Another one of that name, in a later directory of the search path, is found
    from then on. Raises NoSuchKernel, and KernelSpecError if it cannot be removed.
    """
    path = place_to_remove(name)
    grave = os.path.join(os.path.dirname(path), _hidden_name())
    with _changing("remove", path):
        os.rename(path, grave)
    if not _delete(grave):
        raise KernelSpecError(
            f"the kernel spec {path} is removed, but what is in {grave} cannot be deleted", path=grave
        )
    return path


def place_to_remove(name: str) -> str:
    """What `remove_kernel_spec(name)` would remove; raises NoSuchKernel, or KernelSpecError if there is no spec."""
    for path in [*places_of(name), *places_of(name, broken=True)]:
        return path
    error = no_such_kernel(name)
    if name.lower() not in error.available:
        raise error
    raise KernelSpecError(f"the kernel {name!r} has no spec to remove: it is there as long as ipykernel is installed")


def _check_path(what: str, value: str | os.PathLike[str]) -> str:
    path = os.fspath(value) if isinstance(value, (str, os.PathLike)) else value
    if not isinstance(path, str) or not path or not can_be_given(path):
        raise InvalidArgument(f"{what} must be the path of a directory, not {value!r}")
    if path.count(os.sep) > MAX_DEPTH:
        raise InvalidArgument(f"{what} is a path of more than {MAX_DEPTH} directories")
    return path


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except FileNotFoundError as exc:
        raise InvalidArgument(f"{path!r} is relative to a directory that is deleted: the current one") from exc


def _check_new_name(name: str) -> str:
    if not isinstance(name, str) or not is_valid_name(name):
        raise InvalidArgument(f"a kernel cannot be called {name!r}: {NAME_RULE}")
    return name.lower()


def _destination(user: bool, prefix: str | os.PathLike[str] | None) -> str:
    """The directory of kernels to install in."""
    from jupyter_core import paths  # imported here, as in `search`

    if prefix is not None:
        if user:
            raise InvalidArgument("a kernel spec is installed for the user or in a prefix, not both")
        data = os.path.join(_check_path("prefix", prefix), "share", "jupyter")
    else:
        data = paths.jupyter_data_dir() if user else paths.SYSTEM_JUPYTER_PATH[0]
    return _absolute(os.path.join(data, "kernels"))


def _is_within(path: str, folder: str) -> bool:
    folder = os.path.realpath(folder)
    return os.path.commonpath([os.path.realpath(path), folder]) == folder


@contextmanager
def _changing(what: str, path: str, hint: str = "") -> Iterator[None]:
    """Make a KernelSpecError of an OSError; `hint` is what to do if it was not permitted."""
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
    """A new directory beside the kernels, none itself, that is gone afterwards with all that is in it."""
    scratch = os.path.join(directory, _hidden_name())
    try:
        os.mkdir(scratch, 0o700)
        yield scratch
    finally:
        _delete(scratch)


def _hidden_name() -> str:
    """A new name that no kernel can have."""
    return f".kclient-{secrets.token_hex(8)}~"


def _copy(source: str, target: str, above: list[str]) -> None:
    """Copy a file, or a directory with all that is in it, and follow links; `above` are the directories it lies in."""
    with _reading(source):
        status = os.stat(source)
    mode = stat.S_IMODE(status.st_mode) & 0o777
    if stat.S_ISDIR(status.st_mode):
        if len(above) >= MAX_DEPTH:
            raise InvalidArgument(f"{source!r} lies deeper than {MAX_DEPTH} directories")
        real = os.path.realpath(source)
        if real in above:
            raise InvalidArgument(f"{source!r} leads back to {real!r}, in which it lies")
        with _reading(source):
            entries = sorted(os.listdir(source))
        os.mkdir(target, mode | stat.S_IRWXU)
        for entry in entries:
            _copy(os.path.join(source, entry), os.path.join(target, entry), [*above, real])
    elif stat.S_ISREG(status.st_mode):
        with _reading(source):
            reader = open(source, "rb")  # noqa: SIM115
        with reader:
            number = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode | stat.S_IRUSR | stat.S_IWUSR)
            with open(number, "wb") as writer:
                shutil.copyfileobj(reader, writer)
    else:
        raise InvalidArgument(f"{source!r} is neither a file nor a directory")


@contextmanager
def _reading(source: str) -> Iterator[None]:
    """Make an InvalidArgument of an OSError: the source is at fault, not the place to install in."""
    try:
        yield
    except OSError as exc:
        raise InvalidArgument(f"{source!r} cannot be read: {exc.strerror or exc}") from exc


def _put(draft: str, path: str, *, replace: bool) -> None:
    """Give the draft its place; what was there, in any case of letters, is deleted then, or stays if that fails."""
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
        if isinstance(exc, OSError) and exc.errno in (errno.ENOTEMPTY, errno.EEXIST):  # another was faster
            raise _exists(path) from exc
        raise
    for before, after in aside:
        if not _delete(after):
            log.warning("%s, which was %s, cannot be deleted", after, before)


def _put_back(before: str, after: str) -> None:
    """Undo the move of `before` to `after`, if there was one; what another program has put there meanwhile stays."""
    try:
        os.rename(after, before)
    except OSError:
        if os.path.lexists(before):
            _delete(after)


def _exists(path: str) -> KernelSpecExists:
    return KernelSpecExists(f"a kernel spec is installed already in {path}; replace=True would replace it", path=path)


def _delete(path: str) -> bool:
    """Delete what is there, of a link the link alone; True if all of it could be. One Ctrl-C does not stop it."""
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
        with suppress(RecursionError):  # deeper than anything that was installed here
            for inner, _, _ in os.walk(path):
                with suppress(OSError):  # another user's
                    os.chmod(inner, stat.S_IRWXU)  # it may be read-only, as the place was that it was copied from
            shutil.rmtree(path, ignore_errors=True)


def _warn_unless_found(name: str, path: str) -> None:
    """Another program may remove it meanwhile, or what comes before it."""
    places = places_of(name)
    if not any(_is_same(path, place) for place in places):
        data = os.path.dirname(os.path.dirname(path))
        log.warning("%s is nowhere on the search path; it would be with JUPYTER_PATH=%s", path, data)
    elif not _is_same(path, places[0]):
        log.warning("the kernel %s is still found in %s, which comes before %s", name, places[0], path)


def _is_same(path: str, place: str) -> bool:
    try:
        return os.path.samefile(path, place)
    except OSError:  # gone
        return False
