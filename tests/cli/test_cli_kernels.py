"""``kclient kernels``: list, install and remove, compared with ``jupyter kernelspec``."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from command_line import Done, Terminal, check_complaint, kclient_command
from places import Places, write_spec

from kclient import find_kernel_spec, list_kernel_specs
from kclient.cli.commands import run_command_line

HEAD = ["name", "display", "name", "language", "encrypted", "where"]


@pytest.fixture
def kernels(places: Places, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``kclient kernels`` in this process: no process has to be started."""

    def run(*arguments: str | Path) -> Done:
        monkeypatch.setattr(sys, "argv", ["kclient", "kernels", *map(str, arguments)])
        code = run_command_line()
        return Done(code, *capsys.readouterr())

    return run


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_spec(tmp_path / "source" / "mine")


# list


def test_kernels_are_listed_in_full_when_piped(tmp_path: Path) -> None:
    name = "kernel-" + "long-" * 30
    directory = tmp_path / "kernels"
    write_spec(directory / name, display_name="[red]Long :smile:", metadata={"supported_encryption": ["curve"]})
    write_spec(directory / "python3", display_name="Mine", language="python")
    for arguments in (["kernels"], ["kernels", "list"]):
        allowed = f"python3,{name}"  # so that other kernels of this machine do not matter
        done = kclient_command(*arguments, JUPYTER_PATH=str(tmp_path), KCLIENT_ALLOWED_KERNELS=allowed)
        head, *rows = done.out.splitlines()
        assert (done.code, done.err) == (0, "")
        assert head.split() == HEAD
        assert rows[0].split() == [name, "[red]Long", ":smile:", "lang", "yes", f"{directory}/{name}"]
        assert rows[1].split() == ["python3", "Mine", "python", "no", f"{directory}/python3"]


def test_list_has_a_line_for_each_kernel_whatever_its_name_has_in_it(
    kernels: Callable[..., Done], places: Places
) -> None:
    write_spec(places.path / "odd", display_name="a\nb\x1b[31m\r\x07\ud800é", language="\t")
    done = kernels()
    assert [line.split()[0] for line in done.out.splitlines()] == ["name", "odd", "python3"]
    assert "a�b�[31m���é" in done.out


def test_what_the_output_has_no_sign_for_is_escaped(
    kernels: Callable[..., Done], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spec(places.path / "k", display_name="é")
    with io.TextIOWrapper(io.BytesIO(), encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert kernels().code == 0
        out.seek(0)
        assert "k        \\xe9 " in out.read()


def test_no_line_of_the_list_is_longer_than_what_it_says(
    kernels: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as at a terminal that would wrap the spaces
    lines = kernels().out.splitlines()
    assert lines == [line.rstrip() for line in lines]


def test_what_is_skipped_is_told_beside_the_list(kernels: Callable[..., Done], places: Places) -> None:
    write_spec(places.path / "broken", argv=[])
    done = kernels("list")
    assert [line.split()[0] for line in done.out.splitlines()] == ["name", "python3"]
    check_complaint(attrs.evolve(done, out=""), 0, "skipped", str(places.path / "broken" / "kernel.json"), "argv")


def test_list_without_kernels_says_so(kernels: Callable[..., Done], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KCLIENT_ALLOWED_KERNELS", "nope")
    check_complaint(kernels(), 0, "none", "KCLIENT_ALLOWED_KERNELS")
    assert json.loads(kernels("list", "--json").out) == {"kernelspecs": {}}


def test_json_is_that_of_jupyter(kernels: Callable[..., Done], places: Places) -> None:
    write_spec(
        places.path / "All",
        display_name="é",
        env={"A": "${B}"},
        interrupt_mode="message",
        metadata={"x": [1.5, None]},
        kernel_protocol_version="5.6",
    )
    write_spec(places.path / "python3")
    done = kernels("list", "--json")
    jupyter = [sys.executable, "-m", "jupyter_client.kernelspecapp", "list", "--json"]
    theirs = json.loads(subprocess.run(jupyter, capture_output=True, timeout=40, check=True).stdout)["kernelspecs"]
    ours = json.loads(done.out)["kernelspecs"]
    assert (done.code, done.err) == (0, "")
    assert {name: theirs[name] for name in ("all", "python3")} == ours
    assert list(ours) == ["all", "python3"]


def test_json_is_valid_whatever_python_reads_in_a_spec(kernels: Callable[..., Done], places: Places) -> None:
    directory = write_spec(places.path / "odd")
    (directory / "kernel.json").write_text('{"argv": ["x"], "metadata": {"a": NaN, "b": [1e999, "\\ud800"]}}')
    out = kernels("list", "--json").out
    assert "NaN" not in out
    assert "Infinity" not in out
    assert json.loads(out)["kernelspecs"]["odd"]["spec"]["metadata"] == {"a": None, "b": [None, "\ud800"]}


# install


def test_kernel_is_installed_where_the_option_says(
    kernels: Callable[..., Done], places: Places, source: Path, tmp_path: Path
) -> None:
    for options, directory in {
        (): places.system,
        ("--user",): places.user,
        ("--sys-prefix",): places.environment,
        ("--prefix", str(tmp_path / "prefix"), "--name", "Other"): places.environment,
    }.items():
        path = directory / ("other" if "--name" in options else "mine")
        assert kernels("install", source, *options).out == f"installed {path}\n"
        assert path.is_dir()


def test_install_over_a_kernel_needs_replace(kernels: Callable[..., Done], places: Places, source: Path) -> None:
    old = write_spec(places.user / "mine", language="old")
    check_complaint(kernels("install", source, "--user"), 2, str(old), "--replace")
    assert find_kernel_spec("mine").language == "old"
    assert kernels("install", source, "--user", "--replace") == Done(0, f"installed {old}\n", "")
    assert find_kernel_spec("mine").language == "lang"


def test_kernel_that_cannot_be_installed_is_a_complaint(
    kernels: Callable[..., Done], places: Places, source: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    check_complaint(kernels("install", source, "--prefix", tmp_path / "file"), 2, "cannot install", "Not a directory")
    check_complaint(kernels("install", source, "--user", "--name", "a b"), 2, "'a b'", "ASCII")
    check_complaint(kernels("install", tmp_path, "--user"), 2, str(tmp_path), "kernel.json")


def test_kernel_that_is_installed_where_none_is_found_is_told_of(
    kernels: Callable[..., Done], source: Path, tmp_path: Path
) -> None:
    done = kernels("install", source, "--prefix", tmp_path / "elsewhere")
    assert done.out.startswith("installed ")
    check_complaint(attrs.evolve(done, out=""), 0, "JUPYTER_PATH=")


# remove


@pytest.mark.parametrize("option", ["-f", "-y", "--yes"])
def test_kernels_are_removed_and_what_is_found_instead_is_told(
    kernels: Callable[..., Done], places: Places, option: str
) -> None:
    for path in (places.user / "a", places.user / "b", places.system / "b"):
        write_spec(path)
    done = kernels("remove", "B", option, "a", "b")
    assert done.out == f"removed {places.user}/a\nremoved {places.user}/b\n"
    check_complaint(attrs.evolve(done, out=""), 0, "b", str(places.system / "b"))


def test_nothing_is_removed_if_one_of_the_names_is_none(kernels: Callable[..., Done], places: Places) -> None:
    write_spec(places.user / "a")
    check_complaint(kernels("remove", "--yes", "a", "x"), 2, "'x'", "a, python3")
    check_complaint(kernels("remove", "--yes", "a", "python3"), 2, "'python3'", "ipykernel")
    assert "a" in list_kernel_specs()


def test_nothing_is_removed_unasked_without_a_terminal(
    kernels: Callable[..., Done], places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_spec(places.user / "a")
    check_complaint(kernels("remove", "a"), 2, "--yes")
    monkeypatch.setattr(sys, "stdin", None)
    check_complaint(kernels("remove", "a"), 2, "--yes")
    assert "a" in list_kernel_specs()


@pytest.mark.parametrize(("key", "is_there"), [("y", False), ("", True)])
def test_removal_is_confirmed_at_a_terminal(places: Places, key: str, is_there: bool) -> None:
    path = write_spec(places.user / "a")
    with Terminal("kernels", "remove", "a") as terminal:
        terminal.wait_for(str(path))
        terminal.wait_for("Remove 1 kernel? [y/N]: ")
        terminal.type(f"{key}\n")
        assert terminal.end().code == 0
    assert path.exists() == is_there
