"""Look at any other installed kernels, and put their outcomes into docs/kernels.md: ``python tried.py``.

They are hard to install, or slow, so no test depends on them.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))

from catalog import PYTHON, WANTED, Row  # noqa: E402
from features import LOOK, OF_ITS_OWN  # noqa: E402
from table import put  # noqa: E402

import kclient  # noqa: E402

SCHEME = {
    "stream": '(display "hi")',
    "order": "(for-each (lambda (i) (display i) (newline)) (range 500))",
    "result": "(* 6 7)",
    "error": "(/ 1 0)",
    "complete": ("(dis", "display"),
    "inspect": ("display", "display"),
    "is_complete": ("(* 6 7)", "(define (f x)"),
    "sleep": '(display "ready") (newline) (import "time") (time.sleep 60)',
    "stdin": '(display (string-append "hello " (input "name? ")))',
}
R = {
    "stream": "cat('hi')",
    "order": "for (i in 0:499) cat(i, '\\n')",
    "result": "6 * 7",
    "error": "stop('no')",
    "complete": ("prin", "print"),
    "inspect": ("print", "Print"),
    "is_complete": ("6 * 7", "for (i in 1:3) {"),
    "sleep": "cat('ready\\n'); flush.console(); Sys.sleep(60)",
    "stdin": "cat('hello', readline('name? '))",
}
OCTAVE = {
    "stream": "printf('hi\\n')",
    "order": "for i = 0:499, printf('%d\\n', i); end",
    "result": "6 * 7",
    "error": "error('no')",
    "complete": ("prin", "printf"),
    "inspect": ("printf", "printf"),
    "is_complete": ("6 * 7", "for i = 1:3"),
    "sleep": "printf('ready\\n'); pause(60)",
    "stdin": "printf('hello %s', input('name? ', 's'))",
}
JAVA = {
    "stream": 'System.out.println("hi");',
    "order": "for (int i = 0; i < 500; i++) System.out.println(i);",
    "result": "6 * 7",
    "error": 'throw new RuntimeException("no");',
    "complete": ("System.ou", "out"),
    "inspect": ("String", "String"),
    "is_complete": ("6 * 7", "for (int i = 0; i < 3; i++) {"),
    "sleep": 'for (int i = 0; i < 600; i++) { if (i == 0) System.out.println("ready"); Thread.sleep(100); }',
    "stdin": 'System.out.print("name? "); System.out.println("hello " + new java.util.Scanner(System.in).nextLine());',
}
KOTLIN = {
    "stream": 'println("hi")',
    "order": "for (i in 0..499) println(i)",
    "result": "6 * 7",
    "error": 'throw RuntimeException("no")',
    "complete": ("printl", "println("),
    "inspect": ("println", "println"),
    "is_complete": ("6 * 7", "for (i in 1..3) {"),
    "sleep": 'println("ready"); Thread.sleep(60000)',
    "stdin": 'println("hello " + readLine())',
}
JAVASCRIPT = {
    "stream": "globalThis.console.log('hi')",
    "order": "for (let i = 0; i < 500; i++) globalThis.console.log(i)",
    "result": "6 * 7",
    "error": "throw new TypeError('no')",
    "complete": ("Math.ab", "abs"),
    "inspect": ("Math.abs", "abs"),
    "is_complete": ("6 * 7", "for (const i of [1, 2]) {"),
    "sleep": "globalThis.console.log('ready'); while (true) {}",
    "stdin": "prompt('name? ')",
}

TRIED = [
    Row("async", "async-kernel", "pip install async-kernel", PYTHON, "ZeroDivisionError"),
    Row("calysto_scheme", "calysto-scheme", "pip install calysto-scheme", SCHEME, "RunTimeError"),
    Row("ir", "IRkernel", "apt-get install r-cran-irkernel", R, "ERROR"),
    Row("java", "jjava", "pip install jjava", JAVA, "RuntimeException"),
    Row("jslab", "tslab", "npm install tslab", JAVASCRIPT, "TypeError"),
    Row("kotlin", "kotlin-jupyter-kernel", "pip install kotlin-jupyter-kernel", KOTLIN, "java.lang.RuntimeException"),
    Row("octave", "octave-kernel", "pip install octave-kernel, apt-get install octave", OCTAVE, "Error"),
]


def look(row: Row, transport: str) -> dict[str, Any]:
    """The outcome of every feature of the kernel over that transport."""
    facts: dict[str, Any] = {"kernel": row.package, "install": row.install, "transport": transport}
    try:
        shared = start(row, transport)
    except kclient.KClientError as exc:
        return {**facts, "start": type(exc).__name__}
    with shared:
        info = shared.kernel_info(timeout=60).content
        facts |= {name: info[name] for name in ("implementation_version", "protocol_version")}
        seen = {feature: see(row, feature, shared) for feature in WANTED if feature not in OF_ITS_OWN}
    for feature in OF_ITS_OWN:
        with start(row, transport, feature) as kernel:
            seen[feature] = see(row, feature, kernel)
            if seen[feature] != row.wanted(feature):
                kernel.shutdown_kernel(now=True)
    other = {feature: seen[feature] for feature in WANTED if seen[feature] != row.wanted(feature)}
    return {**facts, "other": other}


def start(row: Row, transport: str, feature: str = "") -> kclient.KernelManager:
    manager = kclient.KernelManager(row.name, transport=transport)
    if feature == "interrupt by message":
        manager.kernel_spec.interrupt_mode = "message"
    try:
        manager.start_kernel()
        manager.start_channels()
        manager.wait_for_ready(30)
    except BaseException:
        manager.shutdown_kernel(now=True)
        raise
    return manager


def see(row: Row, feature: str, kernel: kclient.KernelManager) -> str:
    try:
        return LOOK[feature](kernel, row)
    except Exception as exc:  # an error is an outcome, too
        return type(exc).__name__


def render(seen: list[dict[str, Any]]) -> str:
    lines = ["| kernel | install | protocol | over | what it shows instead |", "|---|---|---|---|---|"]
    for facts in seen:
        if "start" in facts:
            version, protocol, other = "", "", f"{facts['start']} at its start"
        else:
            version, protocol = facts["implementation_version"], facts["protocol_version"]
            other = "; ".join(f"{feature}: `{word}`" for feature, word in facts["other"].items()) or "all passed"
        cells = [f"{facts['kernel']} {version}".strip(), facts["install"], protocol, facts["transport"], other]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    seen = []
    for row in TRIED:
        for transport in ("tcp", "ipc"):
            with suppress(kclient.NoSuchKernel):
                seen.append(look(row, transport))
                print(json.dumps(seen[-1]), flush=True)
    put(HERE.parents[1] / "docs" / "kernels.md", "tried", render(seen))


if __name__ == "__main__":
    main()
