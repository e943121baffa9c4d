"""All benchmarks, one after the other, into a folder: figures.json, a plot each, and what pyperf measured.

With ``--readme`` the tables and plots go into benchmarks/README.md; ``--from FOLDER`` takes those of an earlier run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyperf

from benchmarks.builds import add_against
from benchmarks.kernels import ROOT
from benchmarks.readme import README, write_readme
from benchmarks.report import run_script

COMPARE_BUILDS = {"latency", "iopub", "concurrency", "scale", "startup"}

MODULES = ["latency", "iopub", "concurrency", "scale", "startup", "pool", "service"]

PLOTS = README.parent / "plots"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=Path("benchmark-results"), help="[benchmark-results]")
    parser.add_argument("--quick", action="store_true", help="too few calls to mean anything, in under a minute")
    parser.add_argument("--readme", action="store_true", help="write the tables and plots into benchmarks/README.md")
    parser.add_argument("--from", dest="done", type=Path, metavar="FOLDER", help="measure nothing: it is all there")
    add_against(parser)
    options = parser.parse_args(argv)
    folder: Path = options.done or options.folder
    if options.done is None:
        measure(folder, options.against, quick=options.quick)
    if options.readme:
        PLOTS.mkdir(exist_ok=True)
        for module in MODULES:
            shutil.copyfile(folder / f"{module}.png", PLOTS / f"{module}.png")
        write_readme(json.loads((folder / "figures.json").read_text(encoding="utf-8")))


def measure(folder: Path, against: Path | None, *, quick: bool) -> None:
    """Run each module in a process of its own, so that none inherits another's memory."""
    folder.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = {"machine": {}, "results": []}
    for module in MODULES:
        files = ["--json", folder / f"{module}.json", "--plot", folder / f"{module}.png"]
        builds = ["--against", against] if against is not None and module in COMPARE_BUILDS else []
        run(module, *files, *builds, *["--quick"] * quick)
        found = json.loads((folder / f"{module}.json").read_text(encoding="utf-8"))
        figures["machine"] = found["machine"]
        figures["results"] += found["results"]
    micro = folder / "micro.json"
    micro.unlink(missing_ok=True)  # pyperf writes over no file
    run("micro", "-o", micro, *["--debug-single-value"] * quick)
    figures["results"] += micro_results(micro)
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def run(module: str, *arguments: object) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def micro_results(path: Path) -> list[dict[str, Any]]:
    """What pyperf measured, as rows like all others: it gives a mean and no percentiles."""
    nothing = dict.fromkeys(["p50_us", "p90_us", "p99_us", "p999_us", "max_us"])
    rows = []
    for bench in pyperf.BenchmarkSuite.load(str(path)).get_benchmarks():
        client, _, operation = bench.get_name().rpartition(": ")
        row = {"benchmark": "micro", "transport": "", "client": client or "kclient", "operation": operation}
        row |= {"n": bench.get_nvalue(), **nothing, "per_s": 1 / bench.mean(), "ratio_to_raw": None}
        rows.append(row | {"mean_us": bench.mean() * 1e6})
    return rows


if __name__ == "__main__":
    run_script(main)
