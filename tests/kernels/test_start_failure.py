"""What the error says of a kernel that cannot be started, and where its program is looked for."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from fixtures import WAIT

import kclient
from kclient.concurrency.deadline import Deadline
from kclient.kernels.launch import Launch
from kclient.kernels.specs import search
from kclient.kernels.specs.program import bin_folder, with_program
from kclient.manager.start_words import words_of

ARGUMENTS = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Install a kernel "mine" in the environment `tmp_path`; returns its kernel.json."""
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))

    def install(*argv: str, **values: Any) -> Path:
        path = tmp_path / "share" / "jupyter" / "kernels" / "mine" / "kernel.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"argv": argv, "display_name": "Mine", **values}))
        return path

    return install


def program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    folder.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def error_of_start() -> str:
    with pytest.raises(kclient.LaunchError) as caught:
        kclient.start_kernel("mine", timeout=WAIT)
    return str(caught.value)


def test_error_names_the_spec_of_a_python_that_is_gone(install: Callable[..., Path]) -> None:
    path = install("/gone/bin/python", *ARGUMENTS)
    text = error_of_start()
    assert "'/gone/bin/python'" in text
    assert f"its kernel spec is {path}; the program is gone: install the kernel anew" in text


def test_error_says_how_to_install_ipykernel_in_the_python_that_lacks_it(install: Callable[..., Path]) -> None:
    path = install(sys.executable, "-I", "-S", *ARGUMENTS)
    text = error_of_start()
    assert f"install ipykernel in that Python: {sys.executable} -m pip install ipykernel" in text
    assert f"its kernel spec is {path}" in text


def test_error_says_how_to_get_a_python_kernel_if_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_native_spec", lambda: None)
    monkeypatch.setattr(search, "search_path", list)
    with pytest.raises(kclient.NoSuchKernel, match="python -m pip install ipykernel"):
        kclient.find_kernel_spec("python3")
    with pytest.raises(kclient.NoSuchKernel) as caught:
        kclient.find_kernel_spec("other")
    assert "pip" not in str(caught.value)


def test_program_beside_the_spec_is_found(
    install: Callable[..., Path], tmp_path: Path, start_kernel: Callable[..., kclient.KernelManager]
) -> None:
    install("my-kernel", "{connection_file}")
    mine = program(tmp_path / "bin", "my-kernel", f'#!/bin/sh\nexec {sys.executable} -m ipykernel_launcher -f "$1"\n')
    kernel = start_kernel("mine")
    assert kernel.run("6 * 7", timeout=WAIT).text == "42"
    assert kernel._lifecycle.provisioner.argv[0] == str(mine)


def test_program_on_path_comes_first(tmp_path: Path) -> None:
    spec = str(tmp_path / "share" / "jupyter" / "kernels" / "mine")
    beside, on_path = (program(tmp_path / name, "my-kernel", "") for name in ("bin", "path"))
    for path, expected in ((str(on_path.parent), "my-kernel"), ("", str(beside))):
        assert with_program(["my-kernel", "x"], spec, {"PATH": path}) == [expected, "x"]
    assert with_program(["./my-kernel"], spec, {"PATH": ""}) == ["./my-kernel"]


def test_error_says_where_the_program_was_looked_for(install: Callable[..., Path], tmp_path: Path) -> None:
    path = install("my-kernel", "{connection_file}")
    text = error_of_start()
    assert f"its kernel spec is {path}; my-kernel was looked for on PATH and in {tmp_path / 'bin'}" in text


@pytest.mark.parametrize("directory", ["", "/etc/kernels/x", "/opt/share/jupyter/x", "/opt/share/other/kernels/x"])
def test_spec_that_is_in_no_environment_has_no_such_folder(directory: str) -> None:
    assert bin_folder(directory) is None
    assert with_program(["my-kernel"], directory, {"PATH": ""}) == ["my-kernel"]


# The environment


SHOW = "import os; [os.environ.get(name) for name in ('SECRET', 'TOKEN', 'MINE')]"


def test_variables_are_left_out_and_added(
    start_kernel: Callable[..., kclient.KernelManager], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "s")
    monkeypatch.setenv("TOKEN", "t")
    kernel = start_kernel(env={"SECRET": None, "MINE": "m"})
    assert kernel.run(SHOW, timeout=WAIT).text == "[None, 't', 'm']"
    kernel.restart_kernel(timeout=WAIT, env={"MINE": "m"}, clean_env=True)
    assert kernel.run(SHOW, timeout=WAIT).text == "[None, None, 'm']"
    assert kernel.run("'PATH' in os.environ, 'HOME' in os.environ", timeout=WAIT).text == "(True, True)"


@pytest.mark.parametrize(
    "arguments", [{"env": {"A": 1}}, {"env": {None: "a"}}, {"env": [("A", "b")]}, {"clean_env": 1}]
)
def test_environment_that_cannot_be_used_is_refused(arguments: Mapping[str, Any]) -> None:
    with pytest.raises(kclient.InvalidArgument, match=next(iter(arguments))):
        Launch(**arguments)


def test_clean_environment_has_what_most_kernels_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"PATH": "/bin", "LC_ALL": "C", "AWS_SECRET": "s", "PYTHONPATH": "x"})
    assert Launch(clean_env=True).base_environment() == {"PATH": "/bin", "LC_ALL": "C"}
    assert Launch().base_environment() == os.environ


# The working directory, and startup files


def test_deleted_working_directory_is_named_before_anything_starts(run_script: Callable[..., str]) -> None:
    code = """
import os, tempfile, kclient
gone = tempfile.mkdtemp()
os.chdir(gone)
os.rmdir(gone)
for call in (kclient.start_kernel, lambda: kclient.connect("x.json")):
    try:
        call()
    except kclient.KClientError as exc:
        print(type(exc).__name__, "the working directory of this program is deleted" in str(exc))
with kclient.start_kernel(cwd="/") as kernel:
    print(kernel.run("6 * 7").text)
"""
    assert run_script(code).splitlines() == ["LaunchError True", "ConnectionFileError True", "42"]


@pytest.fixture
def startup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], object]:
    """Write a file that IPython runs before the kernel answers."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    folder = tmp_path / "profile_default" / "startup"
    folder.mkdir(parents=True)
    return (folder / "first.py").write_text


def test_error_shows_the_last_words_of_a_startup_file_that_exits(startup: Callable[[str], object]) -> None:
    startup("print('no licence found', flush=True)\nraise SystemExit(3)")
    with pytest.raises(kclient.LaunchError, match="(?s)it printed: .*no licence found") as caught:
        kclient.start_kernel(timeout=WAIT)
    assert caught.value.exit_code == 3


def test_error_shows_what_a_startup_file_printed_that_hangs(startup: Callable[[str], object], gate: Any) -> None:
    """The kernel waits at the gate; it answers when that opens. So the first wait times out, and a second one works."""
    startup(f"print('loading much data', flush=True)\n{gate.code}")
    with kclient.KernelManager() as manager:
        manager.start_kernel()
        manager.start_channels()
        deadline = Deadline(WAIT)
        while "loading much data" not in words_of(manager.kernel_connection.channels):
            assert not deadline.is_over
            with pytest.raises(kclient.KernelTimeout) as caught:
                manager.wait_for_ready(0.2)
        with pytest.raises(kclient.KernelTimeout) as caught:
            manager.wait_for_ready(0.2)
        assert "the end of its output: " in str(caught.value)
        assert "loading much data" in str(caught.value)
        gate.open()
        manager.wait_for_ready(WAIT)
        assert any("loading" in message.content.get("text", "") for message in manager.iopub_channel.get_msgs())
