"""The benchmark suite runs, writes the files that it promises, and leaves nothing behind. No test looks at a speed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from subprocess import PIPE
from typing import Any

import leaks
import pytest

from benchmarks import readme
from benchmarks.__main__ import COMPARE_BUILDS
from benchmarks.bars import BARS
from benchmarks.builds import BEFORE, Build, Builds, ratios_to_before
from benchmarks.kernels import echo_kernels
from benchmarks.stress import stress
from kclient.bench.recorder import Recorder
from kclient.transport.zmq.stream import ZmqStream

ROOT = Path(__file__).resolve().parent.parent

KEYS = [
    *("benchmark", "transport", "client", "operation", "n", "p50_us", "p90_us", "p99_us", "p999_us", "max_us"),
    *("per_s", "ratio_to_raw"),
]

PERCENTILES = ["p50_us", "p90_us", "p99_us", "p999_us", "max_us"]

MODULES = ["latency", "iopub", "concurrency", "scale", "startup", "pool", "service", "stress"]

TIME = 50
"""Seconds for a quick run on a busy machine."""


def run(module: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=TIME,
        check=False,
    )


def results_of(module: str, folder: Path, *arguments: str | Path) -> list[dict[str, Any]]:
    """The checked rows of a quick run."""
    path = folder / "figures.json"
    done = run(f"benchmarks.{module}", "--quick", "--json", path, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert "libzmq" in done.stdout.splitlines()[-1]
    values = json.loads(path.read_text(encoding="utf-8"))
    assert set(values) == {"machine", "results"}
    for row in values["results"]:
        check_row(row, module)
    return list(values["results"])


def check_row(row: dict[str, Any], benchmark: str) -> None:
    assert list(row)[: len(KEYS)] == KEYS
    assert row["benchmark"] == benchmark
    assert row["n"] > 0
    figures = [row[key] for key in PERCENTILES if row[key] is not None]
    assert len(figures) in (0, len(PERCENTILES))
    assert figures == sorted(figures)
    assert all(figure > 0 for figure in figures)
    for key in ("per_s", "ratio_to_raw"):
        assert row[key] is None or row[key] > 0


def named(rows: list[dict[str, Any]], operation: str) -> set[str]:
    return {row["client"] for row in rows if row["operation"] == operation}


@pytest.mark.kernel
def test_latency_compares_all_clients_over_both_transports(folder: Path) -> None:
    plot = folder / "plot.png"
    rows = results_of("latency", folder, "--plot", plot)
    for operation in ("kernel_info", "execute", "run"):
        assert {"raw", "raw (again)", "raw + codec", "zmq.green", "kclient", "kclient spin", "jupyter_client"} <= named(
            rows, operation
        )
    assert {"raw", "kclient", "jupyter_client"} <= named(rows, "run, ipykernel")
    assert {row["transport"] for row in rows} == {"tcp", "ipc"}
    assert {row["ratio_to_raw"] for row in rows if row["client"] == "raw"} == {1.0}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_no_output_is_lost_in_a_flood(folder: Path) -> None:
    rows = results_of("iopub", folder, "--transport", "ipc", "--plot", folder / "plot.svg")
    assert {row["client"]: row["lost"] for row in rows if row["operation"] == "drain"} == dict.fromkeys(
        named(rows, "drain"), 0
    )
    assert {"kclient run", "kclient submit", "kclient get_msg", "raw + codec"} <= named(rows, "drain")
    assert named(rows, "ticker, flooded") == {"no flood", "kclient", "zmq.green + codec"}
    assert "<svg" in (folder / "plot.svg").read_text(encoding="utf-8")


def test_requests_are_pipelined_and_then_stressed(folder: Path) -> None:
    rows = results_of("concurrency", folder, "--transport", "tcp", "--stress", "500", "--plot", folder / "plot.png")
    assert {"raw + codec", "kclient", "zmq.green + codec"} <= named(rows, "pipelined")
    assert named(rows, "stress") == {"kclient"}


@pytest.mark.kernel
def test_many_clients_are_counted_in_time_and_memory(folder: Path) -> None:
    rows = results_of("scale", folder, "--transport", "ipc", "--plot", folder / "plot.png")
    memory = [row for row in rows if row["operation"] == "memory of one more client"]
    assert [row["client"] for row in memory] == ["kclient", "jupyter_client"]
    assert all(row["kib_at_all"] >= row["kib_at_one"] > 0 and row["descriptors"] > 0 for row in memory)
    kernels = {row["client"]: row["private_kib"] for row in rows if row["operation"] == "memory of a kernel"}
    assert 0 < kernels["kclient, fork server"] < kernels["kclient"]
    assert 0 < kernels["kclient, fork server, numpy"] < kernels["kclient, numpy"]


@pytest.mark.kernel
def test_startup_compares_beginnings_and_ends(folder: Path) -> None:
    rows = results_of("startup", folder, "--transport", "ipc", "--plot", folder / "plot.png")
    for operation in ("start", "shutdown", "wait_for_ready", "import"):
        assert {"raw", "kclient", "jupyter_client"} <= named(rows, operation)
    assert "kclient, fork server" in named(rows, "start")


@pytest.mark.kernel
def test_pool_is_compared_with_a_kernel_for_each_user(folder: Path) -> None:
    rows = results_of("pool", folder, "--plot", folder / "plot.png")
    pools = {"kclient", "kclient, fork server", "kclient, used again"}
    assert named(rows, "check-out") == named(rows, "warm again") == {*pools, "jupyter_client"}
    assert named(rows, "queue") == pools
    assert all(row["served_per_s"] > 0 for row in rows if row["operation"] == "queue")


@pytest.mark.kernel
def test_service_is_compared_with_its_peer(folder: Path) -> None:
    rows = results_of("service", folder, "--plot", folder / "plot.png")
    assert [row["client"] for row in rows] == ["kclient", "kclient, forked", "jupyter_client"]
    assert [(row["n"], row["errors"], row["bad"]) for row in rows] == [(20, 0, 0)] * 3
    assert all(row["all_kib"] > row["server_kib"] > 0 for row in rows)


# Two builds


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("module", "clients"),
    [
        ("latency", {"kernel_info": 2, "execute": 2, "run": 2, "run, ipykernel": 1}),
        ("iopub", {"drain": 3, "ticker, flooded": 1}),
        ("concurrency", {"pipelined": 2}),
        ("startup", {"start": 2, "shutdown": 2, "wait_for_ready": 1, "import": 1}),
        ("scale", {"one client": 1, "4 clients": 1, "memory of one more client": 1}),
    ],
)
def test_build_is_compared_with_another(module: str, clients: dict[str, int], folder: Path) -> None:
    """Here with itself; `clients` is how many of kclient there are, by operation."""
    rows = results_of(module, folder, "--transport", "ipc", "--plot", folder / "plot.png", "--against", ROOT)
    before = [row for row in rows if row["client"].endswith(BEFORE)]
    assert Counter(row["operation"] for row in before) == clients
    assert not any("ratio_to_before" in row for row in before)
    today = {(row["operation"], row["client"] + BEFORE): row for row in rows}
    assert all(today[row["operation"], row["client"]]["ratio_to_before"] > 0 for row in before)


def test_each_build_is_the_first_in_every_other_round() -> None:
    order: list[str] = []

    class Recorded(Build):
        def __init__(self, end: str) -> None:
            self.end = end

        def turn(self, name: str, *arguments: object) -> object:
            order.append(self.end)
            return (self.end, name, *arguments)

    turns = Builds({end: Recorded(end) for end in ("", BEFORE)}).turns("kclient", "calls", "run")
    for count in (7, 8, 9):
        assert [turn(count) for turn in turns.values()] == [(end, "calls", "run", count) for end in ("", BEFORE)]
    assert list(turns) == ["kclient", f"kclient{BEFORE}"]
    assert order == ["", BEFORE, BEFORE, "", "", BEFORE]


def test_build_is_that_of_its_checkout(folder: Path) -> None:
    """This one connects to nothing at once, and fails where a kernel has a name."""
    (folder / "kclient").mkdir()
    source = """class KernelClient:
    def __init__(self, connection): self.connection = connection
    def wait_for_ready(self, timeout): assert not self.connection
    def close(self): pass
    start_channels = close"""
    (folder / "kclient" / "__init__.py").write_text(source)
    with closing(Build(folder)) as build:
        assert len(build.turn("time_until_ready", {}, 3)) == 3
        with pytest.raises(RuntimeError, match="failed at 'time_until_ready'"):
            build.turn("time_until_ready", {"kernel_name": "none"}, 1)


def test_ratio_by_round_is_that_of_the_rounds_and_not_of_the_run() -> None:
    rounds = {"kclient": [1.0, 2.0, 90.0], f"kclient{BEFORE}": [1.0, 1.0, 100.0], "raw": [1.0]}
    times = {"kclient": 3.0, f"kclient{BEFORE}": 2.0, "raw": 1.0}
    assert ratios_to_before(times, rounds) == {"kclient": {"ratio_to_before": 1.5, "ratio_by_round": 1.0}}


@pytest.mark.parametrize("module", ["benchmarks", *(f"benchmarks.{name}" for name in sorted(COMPARE_BUILDS))])
def test_checkout_without_kclient_is_refused_at_once(module: str, folder: Path) -> None:
    done = run(module, "--against", folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no kclient/ in" in done.stderr


def test_single_functions_run(folder: Path) -> None:
    done = run("benchmarks.micro", "--debug-single-value", "-o", folder / "micro.json")
    assert done.returncode == 0, done.stderr
    names = {each["metadata"]["name"] for each in json.loads((folder / "micro.json").read_text())["benchmarks"]}
    assert {"serialize", "deserialize", "route a reply", "route an output"} <= names


# Stress


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_each_of_many_calls_gets_its_own_reply_in_time(transport: str) -> None:
    with echo_kernels() as kernels:
        made = stress(kernels[0][transport], 1500, seed=5, title="stress")
    assert made.recorder.n >= 1500
    assert made.recorder.figures().max_us < 1e6


def test_stress_notices_a_lost_wake_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream does not look again after a send. When the time of a late call is up, it looks once more."""
    send = ZmqStream.send

    def send_alone(stream: ZmqStream, frames: Sequence[Any]) -> None:
        was_pumping, stream._is_pumping = stream._is_pumping, True  # then a send leaves the look to the pump
        try:
            send(stream, frames)
        finally:
            stream._is_pumping = was_pumping

    monkeypatch.setattr(ZmqStream, "send", send_alone)
    monkeypatch.setattr("benchmarks.stress.PATIENCE", 0.2)
    with echo_kernels() as kernels:
        for seed in range(200):
            if stress(kernels[0]["tcp"], 300, seed, title="stress").recorder.figures().max_us >= 0.2e6:
                break
        else:
            pytest.fail("no call was late")


# The end of a run


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_benchmark_and_its_kernels(signum: int, folder: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.stress", "--transport", "ipc", "--calls", "10000000"]
    with subprocess.Popen(command, cwd=ROOT, stdout=PIPE, stderr=PIPE, text=True) as process:
        wait_for_calls(process.pid)
        process.send_signal(signum)
        out, err = process.communicate(timeout=TIME)
    assert process.returncode == 128 + signum
    assert "Traceback" not in err
    assert out == ""


def wait_for_calls(pid: int) -> None:
    """Return when that process makes calls: its echo kernel sleeps far more often than while it started."""
    while not any(sleeps(int(child)) > 1000 for child in leaks.read(pid, f"task/{pid}/children").split()):
        leaks.turn_loop(0.01)


def sleeps(pid: int) -> int:
    return int(leaks.read(pid, "status").partition("\nvoluntary_ctxt_switches:")[2].split()[0])


@pytest.mark.parametrize("module", MODULES)
def test_file_that_cannot_be_written_is_refused_at_once(module: str, folder: Path) -> None:
    done = run(f"benchmarks.{module}", "--json", folder / "missing" / "figures.json")
    assert (done.returncode, done.stdout) == (2, "")
    assert "No such file" in done.stderr


def test_echo_kernel_that_no_program_waits_for_ends_in_silence(folder: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.echo"]
    with subprocess.Popen(command, cwd=ROOT, stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        process.stdout.close()  # type: ignore[union-attr]  # it is a pipe
        assert process.stderr.read() == b""  # type: ignore[union-attr]  # so is it
    assert process.returncode == 0
    assert list((folder / "t").iterdir()) == []


def test_echo_kernel_ends_with_its_standard_input(folder: Path) -> None:
    with echo_kernels() as kernels:
        assert os.path.exists(f"{kernels[0]['ipc']['ip']}-1")
    assert list((folder / "t").iterdir()) == []


# Figures read from results


def test_percentiles_are_those_of_the_values() -> None:
    recorder = Recorder()
    recorder.record(1000 * n for n in range(1, 10_001))
    figures = recorder.figures()
    assert figures.n == 10_000
    expected = [5000, 9000, 9900, 9990, 10_000]
    found = [figures.p50_us, figures.p90_us, figures.p99_us, figures.p999_us, figures.max_us]
    assert found == pytest.approx(expected, rel=2e-3)
    assert figures.per_s == pytest.approx(1e6 / 5000.5, rel=1e-6)
    curve = recorder.curve()
    assert curve[0][0] == 1
    assert curve[-1][0] == pytest.approx(10_000)
    assert [value for _, value in curve] == sorted(value for _, value in curve)


def test_recorder_without_calls_has_no_figures() -> None:
    for ask in (Recorder().figures, Recorder().curve):
        with pytest.raises(ValueError, match="no call"):
            ask()


def test_readme_gets_its_figures_between_the_markers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {**dict.fromkeys(KEYS), "benchmark": "latency", "operation": "run", "client": "kclient", "transport": "tcp"}
    row |= {"n": 2000, "p50_us": 1234.56, "ratio_to_raw": 1.2}
    row |= {"bar": "<= 1.4", "bar_of": "p50 to that of raw", "bar_value": 1.2, "bar_met": True}
    machine = {"cpu": "one", "cores": 2, "os": "Linux", "python": "CPython", "libzmq": "4.3.5"}
    page = tmp_path / "README.md"
    page.write_text(f"before\n{readme.START}\nold\n{readme.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(readme, "README", page)
    readme.write_readme({"machine": machine, "results": [row]})
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert "one, 2 cores, Linux, CPython, libzmq 4.3.5" in text
    assert "| latency | run | kclient | tcp | p50 to that of raw | <= 1.4 | 1.200 | yes |" in text
    assert "| client | n | p50 us | to raw |" in text
    assert "| kclient | 2,000 | 1,234.6 | 1.200 |" in text
    page.write_text("no markers", encoding="utf-8")
    with pytest.raises(ValueError, match="must contain"):
        readme.write_readme({"machine": machine, "results": [row]})


def test_readme_of_the_suite_has_the_markers() -> None:
    text = readme.README.read_text(encoding="utf-8")
    assert text.index(readme.START) < text.index(readme.END)


def test_every_bar_is_that_of_a_client_that_is_measured() -> None:
    assert {benchmark for benchmark, _, _ in BARS} == {"latency", "iopub", "concurrency", "scale", "startup", "pool"}
    assert all(bar.limit > 0 and bar.what for bar in BARS.values())
