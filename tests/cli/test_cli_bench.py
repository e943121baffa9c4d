"""``kclient bench``: its table, its files and its errors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Done, Running, Terminal, check_complaint, is_gone, kclient_command

import kclient
import kclient.bench.plot  # numpy starts a thread of its own; the leak check must not blame a test for it
from kclient.cli.commands import run_command_line
from kclient.testing import FakeKernel

CTRL_C = "\x03"

FEW = ["--calls", "7", "--warm-up", "1"]

KEYS = {
    *("benchmark", "transport", "client", "operation", "n", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"),
    *("per_s", "ratio_to_raw"),
}

existing = pytest.mark.parametrize("transport", ["tcp"], indirect=True)
"""The transport makes no difference to these tests of the shared kernel, so they run over one only."""


def lines_of(out: str) -> list[list[str]]:
    """The cells of those rows of the table that begin with an operation."""
    return [line.split() for line in out.splitlines() if line.startswith(("kernel_info", "run"))]


# Measurements


@pytest.mark.kernel
def test_table_has_each_operation_over_each_transport() -> None:
    done = kclient_command("bench", *FEW)
    assert (done.code, done.err) == (0, "")
    assert [row[:3] for row in lines_of(done.out)] == [
        [operation, transport, "7"] for operation in ("kernel_info", "run") for transport in ("ipc", "tcp")
    ]
    assert "libzmq" in done.out.splitlines()[-1]


def test_existing_kernel_is_measured_and_left_running(kernel: kclient.KernelManager, transport: str) -> None:
    done = kclient_command("bench", *FEW, "--existing", str(kernel.connection_file), "--spin", "0.0001")
    assert (done.code, done.err) == (0, "")
    assert [row[:2] for row in lines_of(done.out)] == [["kernel_info", transport], ["run", transport]]
    assert "spin 0.0001" in done.out
    assert kernel.run("1 + 1", timeout=30).text == "2"


@existing
def test_files_hold_the_figures_and_the_machine(kernel: kclient.KernelManager, tmp_path: Path) -> None:
    done = kclient_command(
        *("bench", *FEW, "--existing", str(kernel.connection_file), "--code", "print(1)"),
        *("--json", str(tmp_path / "figures.json"), "--plot", str(tmp_path / "plot.png")),
    )
    assert (done.code, done.err) == (0, "")
    values = json.loads((tmp_path / "figures.json").read_text())
    assert set(values) == {"machine", "results"}
    assert {"cpu", "cores", "os", "python", "libzmq", "pyzmq"} <= set(values["machine"])
    assert [row["operation"] for row in values["results"]] == ["kernel_info", "run"]
    for row in values["results"]:
        assert set(row) >= KEYS
        assert (row["n"], row["encrypted"]) == (7, "curve_publickey" in kernel.get_connection_info())
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"] <= row["p999_us"] <= row["max_us"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


PLOT = r"""
import sys
import matplotlib
from kclient.bench.plot import Line, Panel, write_plot
from kclient.bench.recorder import Recorder

recorder = Recorder()
recorder.record(range(1000, 100_000, 1000))
names = [r"$\bad_{$", "_hidden", "$x$ a_b"]
panel, foot = Panel(r"kernel $\bad_{$/1.json", [Line(name, recorder) for name in names]), r"cpu $\bad_{$"
write_plot(sys.argv[1] + ".png", [panel], columns=1, foot=foot)
with matplotlib.rc_context({"svg.fonttype": "none"}):
    write_plot(sys.argv[1] + ".svg", [panel], columns=1, foot=foot)
with open(sys.argv[1] + ".svg", encoding="utf-8") as file:
    drawn = file.read()
print([text for text in (*names, panel.title, foot) if text not in drawn])
"""


def test_plot_shows_names_as_they_are(run_script: Callable[..., str], tmp_path: Path) -> None:
    """Between dollar signs matplotlib reads formulas; it leaves names that begin with _ out of the legend."""
    assert run_script(PLOT, str(tmp_path / "plot")) == "[]"


@pytest.mark.kernel
def test_progress_is_for_terminals() -> None:
    with Terminal("bench", *FEW, "--transport", "ipc", "--encryption", "off") as terminal:
        done = terminal.end()
    assert done.code == 0
    assert "measuring" in done.out
    assert "kclient, kernel python3, not encrypted" in done.out


@pytest.mark.kernel
def test_kernel_without_ipc_is_told_of_and_measured_over_tcp(tmp_path: Path) -> None:
    code = (
        "import json, os, sys\n"
        "if json.load(open(sys.argv[1]))['transport'] == 'ipc': sys.exit('tcp only')\n"
        "os.execv(sys.executable, [sys.executable, '-m', 'ipykernel_launcher', '-f', sys.argv[1]])"
    )
    path = write_spec(tmp_path, "tcp-only", [sys.executable, "-c", code, "{connection_file}"])
    done = kclient_command("bench", *FEW, "--kernel", "tcp-only", JUPYTER_PATH=path)
    assert done.code == 0
    assert done.err.startswith("kclient: 'tcp-only' does not start over ipc: ")
    assert done.err.count("\n") == 1
    assert {row[1] for row in lines_of(done.out)} == {"tcp"}
    done = kclient_command("bench", *FEW, "--kernel", "tcp-only", "--transport", "ipc", JUPYTER_PATH=path)
    assert (done.code, done.out) == (2, "")


def write_spec(folder: Path, name: str, argv: list[str]) -> str:
    """Write a kernel spec; returns the JUPYTER_PATH that finds it."""
    directory = folder / "specs" / "kernels" / name
    directory.mkdir(parents=True)
    spec = {"argv": argv, "display_name": name, "language": "python"}
    (directory / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    return str(folder / "specs")


# Errors before anything is measured


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--existing k.json --kernel python3", ["--existing", "--kernel"]),
        ("--existing k.json --transport both", ["--existing", "--transport"]),
        ("--existing k.json --encryption auto", ["--existing", "--encryption"]),
        ("--encryption on", ["--encryption", "'auto'", "'required'", "'off'"]),
        ("--calls 0", ["--calls", "0"]),
        ("--calls many", ["--calls", "'many'"]),
        ("--warm-up -1", ["--warm-up", "-1"]),
        ("--spin -1", ["--spin", "-1"]),
        ("--spin nan", ["--spin", "nan"]),
        ("--timeout soon", ["--timeout", "'soon'"]),
        ("--transport udp", ["--transport", "'tcp'", "'both'"]),
        ("--plot missing/plot.png", ["'missing/plot.png'", "No such file"]),
        ("--plot .", ["'.'", "Is a directory"]),
        ("--plot plot.doc", ["'plot.doc'", ".png"]),
        ("--json missing/figures.json", ["'missing/figures.json'", "No such file"]),
        ("--kernel cobol", ["'cobol'", "python3"]),
        ("--existing missing.json", ["missing.json"]),
        ("--code \udcff", ["not UTF-8"]),
        ("--spin 60", ["spin", "at most"]),
        ("faster", ["faster"]),
    ],
)
def test_what_cannot_be_done_exits_2_with_one_line(
    arguments: str,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "getsignal", lambda signum: signal.SIG_IGN)  # else it handles the signals from here on
    monkeypatch.setattr(sys, "argv", ["kclient", "bench", *arguments.split()])
    code = run_command_line()
    check_complaint(Done(code, *capfd.readouterr()), 2, *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["hdrh", "matplotlib"])
def test_missing_extra_exits_2_and_names_the_remedy(missing: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['bench']; "
    code += "from kclient.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    check_complaint(Done(done.returncode, done.stdout, done.stderr), 2, missing, "pip install 'kclient[bench]'")


# Errors while it measures


@existing
def test_code_that_fails_exits_1(kernel: kclient.KernelManager) -> None:
    done = kclient_command("bench", *FEW, "--existing", str(kernel.connection_file), "--code", "1 / 0")
    check_complaint(done, 1, "ZeroDivisionError")


@existing
def test_timeout_exits_124(kernel: kclient.KernelManager) -> None:
    code = "import time; time.sleep(0.2)"
    done = kclient_command(
        "bench", "--existing", str(kernel.connection_file), "--code", code, "--timeout", "2", "--calls", "1000"
    )
    check_complaint(done, 124, "2 s")


@pytest.mark.kernel
def test_kernel_that_dies_exits_1(tmp_path: Path) -> None:
    flag = tmp_path / "calls"
    code = f"import os; open({str(flag)!r}, 'a').write('.'); os.path.getsize({str(flag)!r}) < 5 or os._exit(3)"
    done = kclient_command("bench", *FEW, "--transport", "ipc", "--code", code)
    check_complaint(done, 1, "died", "exit code 3")


@pytest.mark.kernel
def test_ctrl_c_ends_the_kernels_and_exits_130(tmp_path: Path, runtime_dir: Path) -> None:
    pids = tmp_path / "pids"
    os.mkfifo(pids)
    code = f"import os\nif 'told' not in globals(): told = open({str(pids)!r}, 'w').write(f'{{os.getpid()}}')"
    with Terminal("bench", "--transport", "tcp", "--calls", "1000000", "--code", code) as terminal:
        with pids.open() as reader:
            pid = reader.readline().strip()
            terminal.wait_for("measuring")
            terminal.type(CTRL_C)
            done = terminal.end()
    assert done.code == 130
    assert "Traceback" not in done.out
    assert done.out.endswith("kclient: ended by SIGINT\n")
    assert is_gone(pid)
    assert list(runtime_dir.iterdir()) == []


def test_signal_ends_it_while_calls_spin(tmp_path: Path) -> None:
    is_measuring = threading.Event()
    with FakeKernel({"code": lambda request: is_measuring.set()}, thread=True) as fake:
        path = tmp_path / "kernel-fake.json"
        path.write_text(json.dumps(fake.connection_info.to_dict()), encoding="utf-8")
        arguments = ["--calls", "1000000", "--spin", "0.01", "--existing", str(path), "--code", "code"]
        with Running("bench", *arguments) as running:
            assert is_measuring.wait(30)
            running.signal(signal.SIGTERM)
            done = running.end()
    check_complaint(done, 143, "SIGTERM")


@existing
def test_table_that_cannot_be_written_exits_2(kernel: kclient.KernelManager) -> None:
    command = [sys.executable, "-m", "kclient", "bench", *FEW, "--existing", str(kernel.connection_file)]
    with open("/dev/full", "wb") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    check_complaint(Done(done.returncode, "", done.stderr), 2, "No space left on device")


@existing
def test_disk_that_is_full_exits_2_after_the_table(kernel: kclient.KernelManager) -> None:
    done = kclient_command("bench", *FEW, "--existing", str(kernel.connection_file), "--json", "/dev/full")
    assert (done.code, done.err) == (2, "kclient: cannot write the figures: No space left on device\n")
    assert len(lines_of(done.out)) == 2
