"""The `kclient` command: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from command_line import Done, Running, check_complaint, environment, is_gone, kclient_command

import kclient
from kclient.cli.commands import main, run_command_line
from kclient.testing import FakeKernel, Request, Step, display, error, stream

TRACEBACK = "Traceback (most recent call last)"

existing = pytest.mark.parametrize("transport", ["tcp"], indirect=True)
"""The transport makes no difference to these tests of the shared kernel, so they run over one only."""


@pytest.fixture
def run_existing(kernel: kclient.KernelManager) -> Callable[..., Done]:
    """``kclient run`` in the shared kernel: no kernel has to be started."""
    return lambda *arguments, **options: kclient_command(
        "run", "--existing", str(kernel.connection_file), *arguments, **options
    )


@pytest.fixture
def run_fake(tmp_path: Path) -> Callable[..., Done]:
    """``kclient run`` in a kernel that answers the code ``code`` with those steps."""

    def run(
        *steps: Step,
        handler: Callable[[Request], object] | None = None,
        lose: Callable[[str, kclient.Message], bool] | None = None,
    ) -> Done:
        with FakeKernel({"code": handler or steps}, thread=True) as fake:
            fake.lose = lose
            path = write_connection_file(tmp_path, fake)
            return kclient_command("run", "--existing", path, "-c", "code")

    return run


def write_connection_file(folder: Path, fake: FakeKernel) -> str:
    path = folder / "kernel-fake.json"
    path.write_text(json.dumps(fake.connection_info.to_dict()), encoding="utf-8")
    return str(path)


def write_spec(folder: Path, name: str, argv: list[str], **values: object) -> str:
    """Write a kernel spec; returns the JUPYTER_PATH that finds it."""
    directory = folder / "specs" / "kernels" / name
    directory.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name.upper(), "language": "python", **values}
    (directory / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return str(folder / "specs")


# Output


@pytest.mark.kernel
def test_output_appears_as_it_is_produced(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with Running("run", "-c", f"print('one')\n_ = open({str(gate)!r}).read()\nprint('two')") as running:
        assert running.line() == "one"
        gate.write_text("")  # the kernel waits for this file
        assert running.end() == Done(0, "two\n", "")


@pytest.mark.kernel
def test_output_goes_where_it_belongs() -> None:
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay([1])\nprint('end', end='')\n6 * 7"
    assert kclient_command("run", "-c", code) == Done(0, "out\n[1]\nend\n42\n", "err\n")


@existing
def test_failed_code_exits_1_with_its_traceback_on_stderr(run_existing: Callable[..., Done]) -> None:
    done = run_existing("-c", "print('before')\n1 / 0")
    assert (done.code, done.out) == (1, "before\n")
    assert TRACEBACK in done.err
    assert done.err.endswith("ZeroDivisionError: division by zero\n")
    assert "\x1b" not in done.err


@pytest.mark.parametrize(("status", "code"), [("0", 0), ("", 0), ("3", 1), ("'no'", 1)])
@existing
def test_sys_exit_fails_unless_it_says_success(status: str, code: int, run_existing: Callable[..., Done]) -> None:
    done = run_existing("-c", f"import sys; sys.exit({status})")
    assert done.code == code
    assert ("SystemExit" in done.err) == bool(code)


@existing
def test_file_is_run(run_existing: Callable[..., Done], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_bytes("\ufeffif 1:\r\n    text = 'é'\r\nprint(text)\r\n".encode())
    assert run_existing(str(script)) == Done(0, "é\n", "")


@existing
def test_standard_input_is_run_and_cannot_answer(run_existing: Callable[..., Done]) -> None:
    done = run_existing("-", stdin="print('hello')\ninput()\n")
    assert (done.code, done.out) == (1, "hello\n")
    assert "StdinNotImplementedError" in done.err


@existing
def test_empty_code_succeeds(run_existing: Callable[..., Done]) -> None:
    assert run_existing("-c", "") == Done(0, "", "")


@pytest.mark.kernel
def test_transport_and_encryption_are_chosen() -> None:
    code = (
        "import json\nfile = get_ipython().kernel.parent.abs_connection_file\nvalues = json.load(open(file))\n"
        "print(values['transport'], 'curve_secretkey' in values)"
    )
    done = kclient_command("run", "-c", code, "--transport", "ipc", "--encryption", "off")
    assert done == Done(0, "ipc False\n", "")


def test_kernel_that_cannot_be_encrypted_is_not_started_where_that_is_required(tmp_path: Path) -> None:
    path = write_spec(tmp_path, "plain", ["false"])
    done = kclient_command("run", "--kernel", "plain", "--encryption", "required", "-c", "1", JUPYTER_PATH=path)
    check_complaint(done, 2, "'plain' cannot be encrypted")


@pytest.mark.kernel
def test_kernel_is_chosen(tmp_path: Path) -> None:
    argv = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    path = write_spec(tmp_path, "spiced", argv, env={"FLAVOUR": "pepper"})
    done = kclient_command("run", "--kernel", "Spiced", "-c", "import os; os.environ['FLAVOUR']", JUPYTER_PATH=path)
    assert done == Done(0, "'pepper'\n", "")


@existing
def test_existing_kernel_is_left_running_as_it_is(
    run_existing: Callable[..., Done], kernel: kclient.KernelManager
) -> None:
    assert run_existing("-c", "kept = 5").code == 0
    assert run_existing("-c", "kept") == Done(0, "5\n", "")
    assert kernel.run("kept", timeout=30).text == "5"


@pytest.mark.kernel
def test_output_of_child_processes_is_all_there() -> None:
    code = "import subprocess\nfor n in range(20): _ = subprocess.run(['echo', str(n)])"
    assert kclient_command("run", "-c", code).out.split() == [str(n) for n in range(20)]


def test_output_that_comes_late_is_shown(run_fake: Callable[..., Done]) -> None:
    def handler(request: Request) -> None:
        request.reply()
        request.publish("status", {"execution_state": "idle"})
        request.publish(*stream("late\n"))
        request.kernel.publish(*stream("another's\n"))

    assert run_fake(handler=handler) == Done(0, "late\n", "")


def test_error_that_only_the_reply_tells_is_shown(run_fake: Callable[..., Done]) -> None:
    def handler(request: Request) -> None:
        request.reply({"status": "error", "ename": "Oops", "evalue": "no traceback"})

    assert run_fake(handler=handler) == Done(1, "", "Oops: no traceback\n")


def test_code_that_the_kernel_skipped_has_failed(run_fake: Callable[..., Done]) -> None:
    check_complaint(run_fake(handler=lambda request: request.reply({"status": "aborted"})), 1, "'aborted'")


def test_outputs_that_may_be_missing_are_told_of(run_fake: Callable[..., Done]) -> None:
    lost: list[kclient.Message] = []

    def lose_idle_of_the_code(channel: str, message: kclient.Message) -> bool:
        is_last = message.content.get("execution_state") == "idle"
        if is_last and message.parent_header.get("msg_type") == "execute_request":
            lost.append(message)
        return message in lost

    done = run_fake(stream("some\n"), lose=lose_idle_of_the_code)
    assert (done.code, done.out) == (2, "some\n")
    assert "outputs may be missing" in done.err
    assert len(lost) == 1


def test_updates_are_shown_as_they_come(run_fake: Callable[..., Done]) -> None:
    update = ("update_display_data", {"data": {"text/plain": "100%"}, "transient": {"display_id": "bar"}})
    assert run_fake(display({"text/plain": "0%"}, "bar"), update) == Done(0, "0%\n100%\n", "")


def test_display_without_text_is_named(run_fake: Callable[..., Done]) -> None:
    assert run_fake(display({"image/png": "aGk=", "text/html": "<b>"}), display({})).out == "<image/png, text/html>\n"


@pytest.mark.parametrize("wait", [True, False])
def test_cleared_output_stays_in_a_file_on_its_own_line(run_fake: Callable[..., Done], wait: bool) -> None:
    clear = ("clear_output", {"wait": wait})
    assert run_fake(stream("1%"), clear, stream("2%"), clear, stream("done\n"), clear).out == "1%\n2%\ndone\n"


def test_colours_of_the_traceback_are_for_terminals(run_fake: Callable[..., Done]) -> None:
    assert run_fake(error("E", "", ["\x1b[31mE\x1b[39m", "\x1b[0;32mhere"])) == Done(1, "", "E\nhere\n")


@pytest.mark.parametrize(
    "escape",
    [
        "\x1b]0;title\x07",
        "\x1b]8;;http://x.example\x1b\\",
        "\x1b]52;c;aGk=\x9c",
        "\x9d0;title\x9c",
        "\x1bPq#0;2;0;0;0\x1b\\",
        "\x1b_payload\x1b\\",
        "\x1b[?25l",
        "\x9b31m",
        "\x1b(B",
        "\x1bc",
        "\x1b]",
    ],
)
def test_what_a_terminal_would_obey_is_not_in_a_traceback_that_goes_elsewhere(
    run_fake: Callable[..., Done], escape: str
) -> None:
    assert run_fake(error("E", "", [f"be{escape}fore", f"here{escape}"])) == Done(1, "", "before\nhere\n")


def test_what_a_terminal_would_obey_is_not_in_a_complaint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "import sys; sys.exit('\\x1b]0;title\\x07\\x1b[31mbroken\\r\\bkernel\\nits second line')"
    path = write_spec(tmp_path, "odd", [sys.executable, "-c", code, "{connection_file}"])
    done = kclient_command("run", "--kernel", "odd", "-c", "1", JUPYTER_PATH=path)
    assert (done.code, done.out) == (2, "")
    assert "broken\N{REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}kernel\nits second line" in done.err
    monkeypatch.setattr(sys, "argv", ["kclient", "kernels", "remove", "--\x1b[31mred\r"])
    assert run_command_line() == 2
    told = done.err + capsys.readouterr().err
    assert all(sign.isprintable() for sign in told.replace("\n", "")), repr(told)


# Errors before the code runs


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("run", ["FILE", "-c CODE", "kclient run --help"]),
        ("run script.py -c 1", ["FILE", "-c CODE"]),
        ("run one.py two.py", ["two.py"]),
        ("run missing.py", ["'missing.py'", "No such file"]),
        ("run /", ["'/'", "Is a directory"]),
        ("run loop.py", ["'loop.py'", "symbolic links"]),
        ("run latin1.py", ["'latin1.py'", "not UTF-8", "byte 8"]),
        ("run -c \udcff", ["not UTF-8"]),
        ("run -c 1 --timeout soon", ["--timeout", "'soon'"]),
        ("run -c 1 --timeout -1", ["--timeout", "-1"]),
        ("run -c 1 --timeout nan", ["--timeout", "nan"]),
        ("run -c 1 --transport udp", ["--transport", "'tcp'", "'ipc'"]),
        ("run -c 1 --existing k.json --kernel python3", ["--existing", "--kernel"]),
        ("run -c 1 --existing k.json --transport ipc", ["--existing", "--transport"]),
        ("run -c 1 --existing k.json --encryption off", ["--existing", "--encryption"]),
        ("run -c 1 --encryption on", ["--encryption", "'auto'", "'required'", "'off'"]),
        ("run -c 1 --faster", ["--faster"]),
        ("walk", ["'walk'"]),
        ("kernels paint", ["'paint'"]),
        ("kernels install", ["DIRECTORY"]),
        ("kernels install . --user --sys-prefix", ["only one", "--prefix"]),
        ("kernels install . --sys-prefix --prefix x", ["only one", "--prefix"]),
        ("kernels install . --user", ["kernel.json"]),
        ("kernels remove", ["NAME"]),
    ],
)
def test_wrong_command_line_exits_2_with_one_line(
    arguments: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop.py").symlink_to("loop.py")
    Path("latin1.py").write_bytes(b"name = '\xe9'")
    monkeypatch.setattr(sys, "argv", ["kclient", *arguments.split()])
    code = run_command_line()
    check_complaint(Done(code, *capsys.readouterr()), 2, *words)


def test_unknown_kernel_exits_2_with_those_that_exist() -> None:
    check_complaint(kclient_command("run", "--kernel", "cobol", "-c", "1"), 2, "'cobol'", "python3", "kernels")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["is the kernel running?"]),
        ("", ["empty"]),
        ('{"shell_port": 5', ["JSON"]),
        ('{"shell_port": "x"}', ["shell_port"]),
        ("[]", []),
    ],
)
def test_broken_connection_file_exits_2(text: str | None, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "kernel-5.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    check_complaint(kclient_command("run", "--existing", str(path), "-c", "1"), 2, str(path), *words)


def test_dead_existing_kernel_exits_2(tmp_path: Path) -> None:
    with FakeKernel() as fake:
        path = write_connection_file(tmp_path, fake)
    check_complaint(kclient_command("run", "--existing", path, "-c", "1"), 2, "no kernel listens")


def test_kernel_that_does_not_start_exits_2_with_the_end_of_its_output(tmp_path: Path) -> None:
    path = write_spec(tmp_path, "broken", [sys.executable, "-c", "raise SystemExit('no licence')"])
    done = kclient_command("run", "--kernel", "broken", "-c", "1", JUPYTER_PATH=path)
    assert (done.code, done.out) == (2, "")
    first, *rest = done.err.splitlines()
    assert "'broken'" in first
    assert "exit code 1" in first
    assert rest == ["no licence"]


def test_kernel_that_cannot_be_executed_exits_2(tmp_path: Path) -> None:
    path = write_spec(tmp_path, "broken", ["/no/such/program", "{connection_file}"])
    check_complaint(kclient_command("run", "--kernel", "broken", "-c", "1", JUPYTER_PATH=path), 2, "/no/such/program")


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_missing_extra_exits_2_and_names_the_remedy(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; from kclient.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    check_complaint(Done(done.returncode, done.stdout, done.stderr), 2, missing, "pip install 'kclient[cli]'")


# Errors while the code runs


@pytest.mark.kernel
def test_timeout_ends_the_kernel_and_exits_124() -> None:
    check_complaint(kclient_command("run", "--timeout", "3", "-c", "while True: pass"), 124, "within")


@existing
def test_timeout_interrupts_the_code_in_an_existing_kernel(
    run_existing: Callable[..., Done], kernel: kclient.KernelManager
) -> None:
    code = "import time\nstate = 'running'\ntry: time.sleep(1000)\nexcept KeyboardInterrupt: state = 'interrupted'"
    check_complaint(run_existing("--timeout", "3", "-c", code), 124, "no end of the code within 3 s")
    assert kernel.run("state", timeout=30).text == "'interrupted'"


def test_kernel_that_is_not_ready_in_time_exits_124_with_the_end_of_its_output(tmp_path: Path) -> None:
    path = write_spec(tmp_path, "slow", ["sh", "-c", "echo warming up; exec sleep 1000"])
    done = kclient_command("run", "--kernel", "slow", "--timeout", "1", "-c", "1", JUPYTER_PATH=path)
    assert (done.code, done.out) == (124, "")
    assert done.err.startswith("kclient: ")
    assert "warming up" in done.err
    assert TRACEBACK not in done.err


@pytest.mark.kernel
def test_kernel_that_dies_under_the_code_exits_1() -> None:
    with Running("run", "-c", "import os, time\nprint(os.getpid())\ntime.sleep(1000)") as running:
        os.kill(int(running.line()), signal.SIGKILL)
        done = running.end()
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("kclient: the kernel 'python3' died (killed by SIGKILL)")
    assert TRACEBACK not in done.err


@pytest.mark.kernel
def test_reader_that_leaves_ends_it_quietly() -> None:
    with Running("run", "-c", "import os\nprint(os.getpid())\nwhile True: print('y' * 1000)") as running:
        pid = running.line()
        running.out.close()
        assert running.process.wait(30) == 141
        assert running.err.read() == ""
    assert is_gone(pid)


@existing
def test_output_that_cannot_be_written_exits_2(kernel: kclient.KernelManager) -> None:
    command = [sys.executable, "-m", "kclient", "run", "--existing", str(kernel.connection_file), "-c", "1"]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment(), timeout=30, check=False
        )
    check_complaint(Done(done.returncode, "", done.stderr), 2, "No space left on device")


@existing
def test_streams_that_are_closed_are_no_error(kernel: kclient.KernelManager) -> None:
    command = '"$0" -m kclient run --existing "$1" -c "print(1); 1/0" <&- >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(kernel.connection_file)], env=environment(), timeout=30, check=False
    )
    assert done.returncode == 1


# kclient, kclient kernels


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["run", "--help"], ["kernels", "-h"], ["kernels", "install", "-h"]]
)
def test_help_is_on_stdout(arguments: list[str]) -> None:
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0
    assert done.stdout.startswith("Usage: ")


def test_help_of_run_tells_every_exit_code() -> None:
    text = CliRunner().invoke(main, ["run", "--help"]).stdout
    assert [code for code in ("0", "1", "2", "124", "130", "141", "143") if f" {code} " not in text] == []


def test_version() -> None:
    done = kclient_command("--version")
    assert done.code == 0
    assert done.out.startswith("kclient ")


@pytest.mark.parametrize("arguments", [["kernels"], ["--help"], ["run", "--help"]], ids=" ".join)
def test_text_that_cannot_be_written_is_a_complaint_and_no_traceback(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "kclient", *arguments]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "kclient: cannot write: No space left on device\n")
    closed, out = os.pipe()
    os.close(closed)
    try:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    finally:
        os.close(out)
    assert (done.returncode, done.stderr) == (141, "")
