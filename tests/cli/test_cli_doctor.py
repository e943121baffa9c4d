"""``kclient doctor``: its report, the problems that it names, and the secrets that it leaves out."""

from __future__ import annotations

import json
import os
import platform
import pwd
import resource
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from command_line import KCLIENT, Done, Running, check_complaint, environment, is_gone, kclient_command
from places import write_spec

import kclient
from kclient.cli.anonymous import Anonymizer
from kclient.cli.doctor import PACKAGES, first_line

TITLES = {"versions", "limits", "kernels"}

ALL_IS_WELL = "Nothing was found that stops kclient.\n"


def doctor(*arguments: str, **env: str) -> Done:
    """``kclient doctor`` with only the Python kernel allowed, so that other kernels of this machine do not matter."""
    return kclient_command("doctor", *arguments, **{"KCLIENT_ALLOWED_KERNELS": "python3", **env})


def report_of(done: Done) -> dict[str, Any]:
    assert done.err == ""
    report: dict[str, Any] = json.loads(done.out)
    return report


def shell_kernel(folder: Path, name: str, script: str) -> None:
    """Install a kernel that is a shell script; its first argument is its connection file."""
    write_spec(folder / "kernels" / name, argv=["sh", "-c", script, "sh", "{connection_file}"])


# The report


def test_report_is_for_a_person(tmp_path: Path) -> None:
    write_spec(tmp_path / "kernels" / "mine", argv=["true"])
    done = doctor(JUPYTER_PATH=str(tmp_path), KCLIENT_ALLOWED_KERNELS="mine")
    assert (done.code, done.err) == (0, "")
    lines = [line.split() for line in done.out.splitlines()]
    assert [line for line in lines if line and line[0] in TITLES] == [["versions"], ["limits"], ["kernels"]]
    assert ["pyzmq", version("pyzmq")] in lines
    assert ["pidfd", "yes"] in lines or ["pidfd", "no"] in lines
    assert ["patched", "modules", "none"] in lines
    assert any(line[0] == "mine" and line[1].endswith("/kernels/mine") for line in lines if len(line) == 2)
    assert done.out.endswith(ALL_IS_WELL)


def test_report_as_json_has_versions_limits_and_kernels(tmp_path: Path) -> None:
    done = doctor("--json", JUPYTER_PATH=str(tmp_path))
    report = report_of(done)
    assert done.code == 0
    assert list(report) == ["versions", "limits", "kernels", "problems", "hints"]
    assert {name: report["versions"][name] for name in PACKAGES} == {name: version(name) for name in PACKAGES}
    assert report["versions"]["python"] == f"{platform.python_implementation()} {platform.python_version()}"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limits = report["limits"]
    assert (limits["file_descriptors"], limits["file_descriptors_hard"]) == (soft, hard)
    assert limits["ipc_path_bytes"] <= limits["ipc_path_bytes_allowed"] == 107
    assert not limits["runtime_folder_is_a_substitute"]
    assert [kernel["name"] for kernel in report["kernels"]["found"]] == ["python3"]
    assert report["kernels"]["searched"][0]["is_there"] is False
    assert (report["problems"], report["hints"]) == ([], [])


def test_patched_program_is_reported() -> None:
    code = "import gevent.monkey; gevent.monkey.patch_all(); from kclient.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "doctor", "--json"], capture_output=True, env=environment(), timeout=40, check=True
    )
    assert json.loads(done.stdout)["limits"]["patched_modules"] == [
        *("_thread", "os", "select", "socket", "subprocess", "time"),
    ]


def test_nothing_stays_behind(runtime_dir: Path, folder: Path) -> None:
    assert doctor().code == 0
    assert [*runtime_dir.iterdir(), *(folder / "t").iterdir()] == []


# Started kernels


@pytest.mark.kernel
def test_kernel_that_starts_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    shell_kernel(tmp_path, "broken", "exit 3")
    env = {"JUPYTER_PATH": str(tmp_path), "KCLIENT_ALLOWED_KERNELS": "python3,broken"}
    done = doctor("--start", **env)
    assert (done.code, done.err) == (1, "")
    lines = done.out.splitlines()
    assert any(line.split()[0] == "python3" and " started in " in line for line in lines if line)
    assert any(line.split()[0] == "broken" and "does not start" in line for line in lines if line)
    [problem] = [line for line in lines if line.startswith("problem: ")]
    assert "'broken'" in problem
    assert "exit code 3" in problem


def test_kernel_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    shell_kernel(tmp_path, "silent", "sleep 100")
    env = {"JUPYTER_PATH": str(tmp_path), "KCLIENT_ALLOWED_KERNELS": "silent"}
    done = doctor("--json", "--start", "--timeout", "0.5", **env)
    [kernel] = report_of(done)["kernels"]["found"]
    assert (done.code, kernel["error"]) == (1, "no kernel_info_reply on the shell channel within 0.5 s")


def test_ctrl_c_ends_the_kernel_that_starts(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    shell_kernel(tmp_path, "silent", f"echo $$ > {gate}; exec sleep 100")
    env = {"JUPYTER_PATH": str(tmp_path), "KCLIENT_ALLOWED_KERNELS": "silent"}
    with Running("doctor", "--start", **env) as running:
        pid = gate.read_text(encoding="ascii")
        running.signal(signal.SIGINT)
        assert running.end() == Done(130, "", "kclient: ended by SIGINT\n")
    assert is_gone(pid)


# Problems


def test_too_few_file_descriptors_are_a_problem() -> None:
    command = ["sh", "-c", 'ulimit -n 32; exec "$@"', "sh", *KCLIENT, "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, env=environment(), timeout=40, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert (report["limits"]["file_descriptors"], report["limits"]["clients_at_once"]) == (32, 1)
    assert "file descriptors" in report["problems"][0]
    assert [hint for hint in report["hints"] if "inherits the limit of 32" in hint]


def test_no_kernel_is_a_problem() -> None:
    done = doctor("--json", KCLIENT_ALLOWED_KERNELS="nope")
    assert (done.code, report_of(done)["kernels"]["found"]) == (1, [])
    assert "KCLIENT_ALLOWED_KERNELS" in report_of(done)["problems"][0]


def test_what_kclient_makes_up_for_is_a_hint(tmp_path: Path, runtime_dir: Path) -> None:
    runtime_dir.chmod(0o777)
    long_folder = tmp_path / ("long-" * 20)
    long_folder.mkdir()
    (tmp_path / "kernels" / "odd").mkdir(parents=True)
    (tmp_path / "kernels" / "odd" / "kernel.json").write_text("{}")
    write_spec(tmp_path / "kernels" / "gone", argv=[str(tmp_path / "no-such-python")])
    env = {"JUPYTER_PATH": str(tmp_path), "KCLIENT_ALLOWED_KERNELS": "python3,gone,odd", "TMPDIR": str(long_folder)}
    done = doctor("--json", **env)
    report = report_of(done)
    assert (done.code, report["problems"]) == (0, [])
    for words in ("runtime folder", "too long a path for ipc", "argv is missing", "no-such-python"):
        assert [hint for hint in report["hints"] if words in hint], words
    assert report["limits"]["ipc_folder"] == "/tmp"
    missing = report_of(doctor("--json", TMPDIR=str(tmp_path / "missing")))
    assert [hint for hint in missing["hints"] if hint.startswith("TMPDIR ")]


@pytest.mark.parametrize("arguments", [["kernel"], ["--timeout", "3"], ["--start", "--timeout", "-1"]], ids=" ".join)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    check_complaint(doctor(*arguments), 2)


# Secrets


def test_key_of_a_kernel_is_not_told_though_the_kernel_prints_it(tmp_path: Path) -> None:
    copies = tmp_path / "copies"
    copies.mkdir()
    for name, end in (("ends", "exit 1"), ("stays", "sleep 100")):
        shell_kernel(tmp_path, name, f'cp "$1" {copies}/{name}; tr -d "\\n" < "$1" >&2; {end}')
    env = {"JUPYTER_PATH": str(tmp_path), "KCLIENT_ALLOWED_KERNELS": "ends,stays"}
    done = doctor("--start", "--timeout", "3", **env)
    assert done.code == 1
    keys = [json.loads(path.read_text(encoding="ascii"))["key"] for path in copies.iterdir()]
    assert len(keys) == 2
    assert [key for key in keys if key in done.out + done.err] == []


def test_command_of_a_kernel_is_not_told(tmp_path: Path) -> None:
    argv = [str(tmp_path / "missing"), "--token=s3cret"]
    write_spec(tmp_path / "kernels" / "remote", argv=argv)
    done = doctor("--start", JUPYTER_PATH=str(tmp_path), KCLIENT_ALLOWED_KERNELS="remote")
    assert done.code == 1
    assert "No such file" in done.out
    assert "s3cret" not in done.out
    error = kclient.LaunchError(
        f"it ended; its command was sh -c 's3cret\n{'x' * 2000}'", argv=["sh", "-c", "s3cret\n" + "x" * 2000]
    )
    assert first_line(error) == "it ended; its command was ..."


@pytest.mark.parametrize(
    "wrong",
    [
        {"argv": "python s3cret"},
        {"argv": ["python s3cret"]},
        {"argv": ["python", "s3cret\0"]},
        {"argv": ["python", ["s3cret"]]},
        {"env": ["s3cret"]},
        {"env": {"TOKEN": ["s3cret"]}},
        {"env": {"TOKEN=s3cret": ""}},
        {"env": {"TOKEN": "s3cret\0"}},
        {"metadata": "s3cret"},
        {"interrupt_mode": "s3cret"},
        {"display_name": ["s3cret"]},
    ],
    ids=str,
)
def test_wrong_value_in_a_spec_is_not_told(tmp_path: Path, wrong: dict[str, Any]) -> None:
    """A token may be in it. The hint names what is wrong."""
    write_spec(tmp_path / "kernels" / "remote", **{"argv": ["python3"], **wrong})
    done = doctor("--json", "--start", JUPYTER_PATH=str(tmp_path), KCLIENT_ALLOWED_KERNELS="remote")
    assert "s3cret" not in done.out + done.err
    assert [hint for hint in report_of(done)["hints"] if next(iter(wrong)) in hint]


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["text", "json"])
def test_names_of_the_user_and_the_machine_are_not_told(tmp_path: Path, form: list[str]) -> None:
    home, temporary = tmp_path / "home" / "ada", tmp_path / "of-Ada.tmp"
    for directory in (home, temporary):
        directory.mkdir(parents=True)
    write_spec(tmp_path / "adas" / "kernels" / "odd", argv=[])
    env = {"HOME": str(home), "LOGNAME": "ada", "TMPDIR": str(temporary), "JUPYTER_PATH": str(tmp_path / "adas")}
    env |= {"JUPYTER_DATA_DIR": str(home / "data"), "KCLIENT_ALLOWED_KERNELS": "python3,odd"}
    done = doctor(*form, **env)
    assert (done.code, done.err) == (0, "")
    assert "ada" not in done.out.lower()
    for shown in ("~/data/kernels", "/of-USER.tmp", "/USERs/kernels/odd/kernel.json"):
        assert shown in done.out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/ada/.venv/bin", "~/.venv/bin"),
        ("no file '/home/ada', or /home/ada/x", "no file '~', or ~/x"),
        ("/home/adalbert/x and /Users/grace/y", "/home/USER/x and /Users/USER/y"),
        ("/mnt/home/ada/x", "/mnt/home/USER/x"),
        ("/home1/grace/x", "/home1/USER/x"),
        ("/tmp/pytest-of-ADA/0", "/tmp/pytest-of-USER/0"),
        ("/net/box.example.org/x, box", "/net/HOST/x, HOST"),
        ("/usr/share/jupyter", "/usr/share/jupyter"),
    ],
)
def test_names_are_replaced(text: str, shown: str) -> None:
    anonymizer = Anonymizer(["/home/ada", "/"], ["ada", ""], "box.example.org")
    assert anonymizer.clean({"k": [text, 1, None]}) == {"k": [shown, 1, None]}


def test_names_are_those_of_the_system() -> None:
    names = [pwd.getpwuid(os.getuid()).pw_name, platform.node()]
    shown = Anonymizer.of_this_user().clean("/srv/{}/{}".format(*names))
    assert [name for name in names if name in shown] == []


def test_short_name_is_replaced_where_it_stands_alone() -> None:
    assert Anonymizer([], ["j"], "").clean("/srv/J/java/j_1") == "/srv/USER/java/USER_1"


def test_login_name_that_is_a_word_of_the_report_stays() -> None:
    text = "/usr/share/jupyter/kernels, CPython 3.11"
    assert Anonymizer([], ["jupyter", "Python"], "").clean(text) == text
