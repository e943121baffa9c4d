"""Installing and removing kernel specs, and those of jupyter_client beside ours."""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_core import paths
from places import Places, write_spec

from kclient import (
    InvalidArgument,
    KernelSpecError,
    KernelSpecExists,
    NoSuchKernel,
    find_kernel_spec,
    install_kernel_spec,
    list_kernel_specs,
    remove_kernel_spec,
)
from kclient.kernels.specs import install


@pytest.fixture
def source(places: Places, tmp_path: Path) -> Path:
    """A directory to install, with the files that such directories have."""
    source = write_spec(tmp_path / "source" / "Mine")
    (source / "logo-64x64.png").write_bytes(b"\x89PNG")
    (source / "static").mkdir()
    (source / "static" / "kernel.js").write_text("// code", encoding="utf-8")
    return source


def tree(folder: Path | str) -> dict[str, bytes | str]:
    """The content of a folder by name: the bytes of files, the targets of links, and directories."""
    found: dict[str, bytes | str] = {}
    for path in Path(folder).rglob("*"):
        name = str(path.relative_to(folder))
        found[name] = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "directory"
    return found


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


# Installing


def test_what_is_installed_is_found_and_is_a_whole_copy(places: Places, source: Path) -> None:
    path = install_kernel_spec(source, user=True)
    assert path == str(places.user / "mine")
    assert find_kernel_spec("mine").resource_dir == path
    assert tree(path) == tree(source)
    assert os.listdir(places.user) == ["mine"]


def test_place_is_that_of_the_user_the_environment_or_all_users(places: Places, source: Path, tmp_path: Path) -> None:
    assert install_kernel_spec(str(source) + "/", "A.b-c_1") == str(places.system / "a.b-c_1")
    assert install_kernel_spec(source, prefix=sys.prefix) == str(places.environment / "mine")
    assert find_kernel_spec("mine").resource_dir == str(places.environment / "mine")


def test_working_directory_has_a_name_too(places: Places, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source)
    assert install_kernel_spec(".", user=True) == str(places.user / "mine")


def test_kernel_that_will_not_be_found_is_told_of(
    places: Places, source: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = install_kernel_spec(source, prefix=tmp_path / "elsewhere")
    assert f"JUPYTER_PATH={tmp_path}/elsewhere/share/jupyter" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        first = install_kernel_spec(source, prefix=sys.prefix)
        assert caplog.text == ""
        path = install_kernel_spec(source, user=True)
    assert first in caplog.text
    assert path in caplog.text


@pytest.mark.parametrize("name", ["mine", "MINE"])
def test_kernel_that_is_there_is_replaced_only_on_request(places: Places, source: Path, name: str) -> None:
    old = write_spec(places.user / name, language="old")
    (old / "left.txt").touch()
    with pytest.raises(KernelSpecExists, match="replace") as caught:
        install_kernel_spec(source, user=True)
    assert caught.value.path == str(old)
    assert str(old) in str(caught.value)
    assert find_kernel_spec("mine").language == "old"
    assert install_kernel_spec(source, user=True, replace=True) == str(places.user / "mine")
    assert tree(places.user) == {"mine": "directory", **{f"mine/{name}": what for name, what in tree(source).items()}}


def test_link_in_the_place_of_a_kernel_is_replaced_and_not_followed(
    places: Places, source: Path, tmp_path: Path
) -> None:
    foreign = write_spec(tmp_path / "foreign")
    before = tree(foreign)
    places.user.mkdir(parents=True)
    (places.user / "mine").symlink_to(foreign)
    with pytest.raises(KernelSpecExists):
        install_kernel_spec(source, user=True)
    install_kernel_spec(source, user=True, replace=True)
    assert not (places.user / "mine").is_symlink()
    assert tree(foreign) == before
    assert os.listdir(places.user) == ["mine"]


def test_kernel_can_be_installed_over_itself(places: Places, source: Path) -> None:
    path = install_kernel_spec(source, user=True)
    assert install_kernel_spec(path, user=True, replace=True) == path
    assert tree(path) == tree(source)


def test_links_in_the_source_are_followed(places: Places, source: Path, tmp_path: Path) -> None:
    (tmp_path / "logo").write_bytes(b"logo")
    (source / "logo.svg").symlink_to(tmp_path / "logo")
    (source / "again").symlink_to("static")
    path = install_kernel_spec(source, user=True)
    assert {"logo.svg": b"logo", "again/kernel.js": b"// code"}.items() <= tree(path).items()


def test_modes_are_kept_as_far_as_the_umask_allows(places: Places, source: Path) -> None:
    for name, bits in {
        "kernel.json": 0o600,
        "logo-64x64.png": 0o4777,
        "static/kernel.js": 0o444,
        "static": 0o555,
    }.items():
        (source / name).chmod(bits)
    umask = os.umask(0o027)
    try:
        path = install_kernel_spec(source, user=True)
    finally:
        os.umask(umask)
        (source / "static").chmod(0o755)
    assert [mode(f"{path}/{name}") for name in ("kernel.json", "logo-64x64.png", "static/kernel.js", "static")] == [
        *(0o600, 0o750, 0o640, 0o750)
    ]


@pytest.mark.parametrize(("user", "expected"), [(True, 0o700), (False, 0o755)], ids=["user", "prefix"])
def test_no_other_user_may_write_to_what_is_installed_whatever_the_umask(
    places: Places, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user: bool, expected: int
) -> None:
    """Else another user could put a kernel.json there, and this user would run it."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "one" / "share" / "jupyter"))
    for path in (source, *source.rglob("*")):
        path.chmod(0o777)
    umask = os.umask(0)
    try:
        path = Path(install_kernel_spec(source, **({"user": True} if user else {"prefix": tmp_path / "one"})))
    finally:
        os.umask(umask)
    above = [folder for folder in path.parents if folder.is_relative_to(tmp_path / "one")]
    assert [mode(folder) for folder in above] == [expected] * 4
    assert {mode(found) for found in (path, *path.rglob("*"))} == {0o755}


@pytest.fixture
def swap(source: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[[Path], object]], None]:
    """Let another program put something in the place of that file, between two looks at it."""

    def swap(name: str, put: Callable[[Path], object]) -> None:
        look = os.stat
        path = source / name
        done: list[object] = []

        def swapped(looked_at: Any, **options: Any) -> os.stat_result:
            found = look(looked_at, **options)
            if str(looked_at).endswith(path.name) and not done:
                path.unlink()
                done.append(put(path))
            return found

        monkeypatch.setattr(os, "stat", swapped)

    return swap


def test_file_that_is_swapped_while_it_is_copied_has_the_mode_that_it_came_with(
    places: Places, source: Path, swap: Callable[[str, Callable[[Path], object]], None], tmp_path: Path
) -> None:
    private = tmp_path / "private"
    private.write_text("secret", encoding="utf-8")
    private.chmod(0o600)
    (source / "static" / "kernel.js").chmod(0o644)
    swap("static/kernel.js", lambda path: path.symlink_to(private))
    path = install_kernel_spec(source, user=True)
    copied = Path(path) / "static" / "kernel.js"
    assert (copied.read_text(encoding="utf-8"), mode(copied)) == ("secret", 0o600)


def test_pipe_in_the_place_of_a_file_is_refused_and_blocks_nothing(
    places: Places, source: Path, swap: Callable[[str, Callable[[Path], object]], None]
) -> None:
    swap("static/kernel.js", os.mkfifo)
    with pytest.raises(InvalidArgument, match="kernel.js' is neither a file nor a directory"):
        install_kernel_spec(source, user=True)
    assert os.listdir(places.user) == []


def test_spec_that_is_broken_while_it_is_copied_is_not_installed(
    places: Places, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = install._scratch_in
    monkeypatch.setattr(
        install, "_scratch_in", lambda directory: [(source / "kernel.json").write_text("{"), begin(directory)][1]
    )
    with pytest.raises(InvalidArgument, match=f"{str(source)!r} was changed while it was copied"):
        install_kernel_spec(source, user=True)
    assert os.listdir(places.user) == []


# Specs that cannot be installed


@pytest.mark.parametrize("name", ["", ".", "..", "../mine", "/mine", "a b", "a\n", "a\0", "é", 3])
def test_name_that_is_none_is_refused(places: Places, source: Path, name: Any) -> None:
    with pytest.raises(InvalidArgument, match="cannot be the name of a kernel"):
        install_kernel_spec(source, name, user=True)
    assert not places.user.exists()


def make_deep(folder: Path, depth: int) -> None:
    """Make `depth` directories in `folder`, each in the one before."""
    here = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)


BAD: dict[str, Callable[[Path], object]] = {
    "broken": lambda source: (source / "kernel.json").write_text("{"),
    "without argv": lambda source: (source / "kernel.json").write_text("{}"),
    "no spec": lambda source: (source / "kernel.json").unlink(),
    "a pipe for a spec": lambda source: [(source / "kernel.json").unlink(), os.mkfifo(source / "kernel.json")],
    "a pipe": lambda source: os.mkfifo(source / "pipe"),
    "a link to nowhere": lambda source: (source / "link").symlink_to("/nowhere/at/all"),
    "a link to itself": lambda source: (source / "link").symlink_to("link"),
    "very deep": lambda source: make_deep(source, 101),
}


@pytest.mark.parametrize("what", BAD)
def test_source_that_is_bad_is_refused_and_nothing_is_left(places: Places, source: Path, what: str) -> None:
    write_spec(places.user / "mine", language="old")
    before = tree(places.user)
    BAD[what](source)
    with pytest.raises(InvalidArgument, match=str(source)):
        install_kernel_spec(source, user=True, replace=True)
    assert tree(places.user) == before


def test_link_to_a_directory_in_which_it_lies_is_not_followed_round_and_round(places: Places, source: Path) -> None:
    (source / "static" / "up").symlink_to("..")
    with pytest.raises(InvalidArgument, match="/static/up' is a link to"):
        install_kernel_spec(source, user=True)
    assert os.listdir(places.user) == []


@pytest.mark.parametrize("path", ["", b"x", "a\0b", 3, "\ud800", "a/" * 3000])
def test_source_and_prefix_must_be_paths(places: Places, source: Path, path: Any) -> None:
    with pytest.raises(InvalidArgument, match="source_dir"):
        install_kernel_spec(path, "mine", user=True)
    with pytest.raises(InvalidArgument, match="prefix"):
        install_kernel_spec(source, prefix=path)


def test_current_directory_that_is_deleted_leads_nowhere(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(InvalidArgument, match="relative to the current directory, which is deleted"):
        install_kernel_spec("here", user=True)
    write_spec(places.path / "mine")
    monkeypatch.setenv("JUPYTER_PATH", f"here{os.pathsep}{places.path.parent}")
    assert find_kernel_spec("mine").resource_dir == str(places.path / "mine")


def test_ctrl_c_leaves_nothing_behind(places: Places, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_kernel_spec(source, user=True)
    interrupts, rmtree = iter([KeyboardInterrupt]), shutil.rmtree

    def strike(path: str, **options: Any) -> None:
        for interrupt in interrupts:
            raise interrupt
        rmtree(path, **options)

    monkeypatch.setattr(shutil, "rmtree", strike)
    with pytest.raises(KeyboardInterrupt):
        install_kernel_spec(source, user=True, replace=True)
    assert tree(places.user / "mine") == tree(source)
    assert os.listdir(places.user) == ["mine"]


def test_kernel_that_another_program_removes_at_once_was_installed(
    places: Places, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = os.path.samefile
    monkeypatch.setattr(os.path, "samefile", lambda path, place: [shutil.rmtree(path), same(path, place)][1])
    assert install_kernel_spec(source, user=True) == str(places.user / "mine")


def test_prefix_and_user_exclude_each_other(places: Places, source: Path) -> None:
    with pytest.raises(InvalidArgument, match="not both"):
        install_kernel_spec(source, user=True, prefix="x")
    with pytest.raises(InvalidArgument, match="prefix"):
        install_kernel_spec(source, prefix="")


def test_directory_is_not_copied_into_itself(places: Places, source: Path) -> None:
    before = tree(source)
    with pytest.raises(InvalidArgument, match="cannot be copied into its own subdirectory"):
        install_kernel_spec(source, prefix=source / "static")
    assert tree(source) == before


# Errors during an installation


@contextmanager
def disk_with(room: int) -> Iterator[None]:
    """Let no file get larger than `room` bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def refuse(number: int) -> Callable[..., None]:
    def refusing(*args: object, **kwargs: object) -> None:
        raise OSError(number, os.strerror(number))

    return refusing


def test_old_kernel_stays_if_the_new_one_cannot_be_written(places: Places, source: Path) -> None:
    write_spec(places.user / "mine", language="old")
    before = tree(places.user)
    (source / "large").write_bytes(bytes(100_000))
    with disk_with(10_000), pytest.raises(KernelSpecError, match="cannot install .*mine: File too large"):
        install_kernel_spec(source, user=True, replace=True)
    assert tree(places.user) == before


@pytest.mark.parametrize("fails", ["to the side", "into its place"])
def test_old_kernel_comes_back_if_the_new_one_cannot_take_its_place(
    places: Places, source: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    old = write_spec(places.user / "mine", language="old")
    before = tree(places.user)
    rename = os.rename

    def refusing(old_path: str, new_path: str) -> None:
        if (old_path == str(old)) if fails == "to the side" else old_path.endswith("/new"):
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        rename(old_path, new_path)

    monkeypatch.setattr(os, "rename", refusing)
    with pytest.raises(KernelSpecError, match="busy") as caught:
        install_kernel_spec(source, user=True, replace=True)
    assert caught.value.path == str(old)
    assert tree(places.user) == before


@pytest.mark.parametrize("replace", [False, True])
def test_kernel_that_another_program_installs_meanwhile_stays(
    places: Places, source: Path, monkeypatch: pytest.MonkeyPatch, replace: bool
) -> None:
    if replace:
        write_spec(places.user / "mine", language="old")
    rename = os.rename

    def race(old_path: str, new_path: str) -> None:
        if old_path.endswith("/new"):
            write_spec(places.user / "mine", language="theirs")
        rename(old_path, new_path)

    monkeypatch.setattr(os, "rename", race)
    with pytest.raises(KernelSpecExists):
        install_kernel_spec(source, user=True, replace=replace)
    assert find_kernel_spec("mine").language == "theirs"
    assert os.listdir(places.user) == ["mine"]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_directory_that_may_not_be_written_to_is_a_clear_error(
    places: Places, source: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "mkdir", refuse(number))  # root may write anywhere
    with pytest.raises(KernelSpecError, match=f"{os.strerror(number)}; install it for this user") as caught:
        install_kernel_spec(source)
    assert caught.value.path == str(places.system / "mine")
    assert not places.system.exists()


# Removing


def test_first_of_two_is_removed_and_then_the_other_is_found(places: Places, source: Path) -> None:
    later = install_kernel_spec(source)
    first = install_kernel_spec(source, prefix=sys.prefix)
    assert remove_kernel_spec("MINE") == first
    assert os.listdir(places.environment) == []
    assert find_kernel_spec("mine").resource_dir == later
    assert remove_kernel_spec("mine") == later
    with pytest.raises(NoSuchKernel):
        remove_kernel_spec("mine")


def test_link_is_removed_and_what_it_leads_to_stays(places: Places, source: Path, tmp_path: Path) -> None:
    before = tree(source)
    places.user.mkdir(parents=True)
    (places.user / "linked").symlink_to(source)
    held = install_kernel_spec(source, user=True)
    Path(held, "inner").symlink_to(source)
    for name in ("linked", "mine"):
        remove_kernel_spec(name)
    assert os.listdir(places.user) == []
    assert tree(source) == before


def test_broken_kernels_can_be_removed(places: Places) -> None:
    write_spec(places.user / "broken", argv="prog")
    (places.user / "nowhere").symlink_to("/nowhere/at/all")
    for name in ("broken", "nowhere"):
        assert remove_kernel_spec(name) == str(places.user / name)
    assert os.listdir(places.user) == []


def test_read_only_directories_of_a_kernel_are_no_hindrance(places: Places, source: Path) -> None:
    path = install_kernel_spec(source, user=True)
    for folder in (f"{path}/static", path):
        os.chmod(folder, 0o555)
    install_kernel_spec(source, user=True, replace=True)
    remove_kernel_spec("mine")
    assert os.listdir(places.user) == []


def test_kernel_that_may_not_be_removed_stays_whole(
    places: Places, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = install_kernel_spec(source, user=True)
    before = tree(path)
    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse(errno.EACCES))
        with pytest.raises(KernelSpecError, match=f"cannot remove .*{path}: Permission denied") as caught:
            remove_kernel_spec("mine")
    assert caught.value.path == path
    assert tree(path) == before


def test_what_of_a_kernel_cannot_be_deleted_is_named(
    places: Places, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_kernel_spec(source, user=True)
    monkeypatch.setattr(os, "rmdir", refuse(errno.EACCES))
    with pytest.raises(KernelSpecError, match="is removed") as caught:
        remove_kernel_spec("mine")
    assert caught.value.path is not None
    assert Path(caught.value.path).is_dir()
    assert "mine" not in list_kernel_specs()


def test_kernel_whose_directories_are_too_deep_to_delete_is_removed_all_the_same(
    places: Places, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """shutil.rmtree recurses, as it does before Python 3.13."""

    def rmtree(path: str, ignore_errors: bool) -> None:
        raise RecursionError

    make_deep(write_spec(places.user / "mine"), 1200)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", rmtree)
        with pytest.raises(KernelSpecError, match="is removed, but") as caught:
            remove_kernel_spec("mine")
    assert "mine" not in list_kernel_specs()
    subprocess.run(["rm", "-r", str(caught.value.path)], check=True)


def test_python_of_this_environment_has_nothing_to_remove(places: Places) -> None:
    assert "python3" in list_kernel_specs()
    with pytest.raises(KernelSpecError, match="ipykernel"):
        remove_kernel_spec("Python3")
    with pytest.raises(NoSuchKernel, match="'pyhton3'.*python3"):
        remove_kernel_spec("pyhton3")


# The kernel specs of jupyter_client


@pytest.fixture
def jupyter(places: Places, monkeypatch: pytest.MonkeyPatch) -> KernelSpecManager:
    monkeypatch.setattr("jupyter_client.kernelspec.SYSTEM_JUPYTER_PATH", paths.SYSTEM_JUPYTER_PATH)
    return KernelSpecManager()


WHERE: list[dict[str, Any]] = [{"user": True}, {"prefix": "prefix"}, {}]


@pytest.mark.parametrize("where", WHERE, ids=["user", "prefix", "system"])
def test_what_either_installs_the_other_finds_and_removes(
    places: Places, source: Path, jupyter: KernelSpecManager, where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(sys.prefix).parent)
    ours = install_kernel_spec(source, "Ours", **where)
    theirs = jupyter.install_kernel_spec(str(source), "Theirs", **where)
    assert os.path.dirname(ours) == os.path.dirname(theirs)
    assert jupyter.get_kernel_spec("OURS").resource_dir == ours
    assert find_kernel_spec("THEIRS").resource_dir == theirs
    specs = {
        name: {"resource_dir": spec.resource_dir, "spec": spec.to_dict()} for name, spec in list_kernel_specs().items()
    }
    assert specs.keys() == {"ours", "theirs", "python3"}
    known = json.loads(json.dumps(jupyter.get_all_specs()))
    # Releases of ipykernel name the encryption in one of two ways.
    assert known.pop("python3")["spec"]["argv"] == specs.pop("python3")["spec"]["argv"]
    assert known == specs
    assert remove_kernel_spec("theirs") == theirs
    assert jupyter.remove_kernel_spec("ours") == ours
    assert jupyter.find_kernel_specs().keys() == list_kernel_specs().keys() == {"python3"}


def test_both_let_the_same_directory_win(places: Places, jupyter: KernelSpecManager) -> None:
    for directory in (places.system, places.user, places.environment, places.path):
        path = write_spec(directory / "Twice")
        assert find_kernel_spec("twice").resource_dir == str(path)
        assert jupyter.get_kernel_spec("twice").resource_dir == str(path)


def test_both_make_the_same_of_the_environment(places: Places, jupyter: KernelSpecManager) -> None:
    from string import ascii_lowercase

    from jupyter_client.provisioning import LocalProvisioner

    values = ["${A}:x", "$A", "$$A", "${a}", "${NOT_THERE}", "$", "${", "${}", "${A", "$1", "é${É}", "a$${A}$$$A"]
    env = dict(zip(ascii_lowercase, values, strict=False))
    write_spec(places.path / "some", env=env)
    base = {"A": "1", "a": "2", "É": "3"}
    provisioner = LocalProvisioner(kernel_spec=jupyter.get_kernel_spec("some"))
    theirs = provisioner._KernelProvisionerBase__apply_env_substitutions(base)
    ours = find_kernel_spec("some").environment(base)
    assert {name: ours[name] for name in env} == theirs
