"""Put the table of the kernels' outcomes into docs/kernels.md: ``python table.py REPORT DOCUMENT``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from catalog import ROWS, WANTED, Row

Seen = dict[tuple[str, str, str], dict[str, str]]
"""The lines of the report by kernel, transport and feature."""


def read(report: Path) -> Seen:
    lines = [json.loads(line) for line in report.read_text(encoding="utf-8").splitlines()]
    return {(line["kernel"], line["transport"], line["feature"]): line for line in lines}


def render(seen: Seen) -> str:
    """The table and its notes; raises KeyError for a feature that was not looked at, or did not pass."""
    notes: list[str] = []
    head = ["", *(f"{row.package} {facts(seen, row)['version']}" for row in ROWS)]
    lines = [head, ["---"] * len(head)]
    lines += ([fact, *(facts(seen, row)[fact] for row in ROWS)] for fact in ("protocol", "encrypted"))
    lines.append(["transports", *(transports(seen, row, notes) for row in ROWS)])
    lines += ([feature, *(cell(seen, row, feature, notes) for row in ROWS)] for feature in WANTED)
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return table + "\n" + "".join(f"{number}. {note}\n" for number, note in enumerate(notes, 1))


def facts(seen: Seen, row: Row) -> dict[str, str]:
    return seen[row.name, "tcp", "kernel_info"]


def transports(seen: Seen, row: Row, notes: list[str]) -> str:
    names = ", ".join(row.transports)
    if row.ipc_gap is None:
        return names
    assert seen[row.name, "ipc", "ipc"]["seen"] == "refused"
    return f"{names} {note(notes, f'ipc: {row.ipc_gap.why}. It says: `{row.ipc_gap.prints}`')}"


def cell(seen: Seen, row: Row, feature: str, notes: list[str]) -> str:
    shown = {seen[row.name, transport, feature]["seen"] for transport in row.transports}
    gap = row.gaps.get(feature)
    assert shown <= row.accepted(feature), f"{row.name} {feature}: {shown}"
    return "passed" if gap is None else f"gap {note(notes, f'{gap.why}. Seen: `{gap.seen}`')}"


def note(notes: list[str], text: str) -> str:
    """The mark of a note. The note is added unless it is there already."""
    if text not in notes:
        notes.append(text)
    return f"<sup>{notes.index(text) + 1}</sup>"


def put(document: Path, mark: str, table: str) -> None:
    """Put `table` between the comment `mark` and the next comment."""
    before, begin, rest = document.read_text(encoding="utf-8").partition(f"<!-- {mark} -->\n")
    _old, end, after = rest.partition("<!-- end")
    document.write_text(f"{before}{begin}{table}{end}{after}", encoding="utf-8")


def main() -> None:
    report, document = map(Path, sys.argv[1:])
    put(document, "table: tox -e interop", render(read(report)))


if __name__ == "__main__":
    main()
