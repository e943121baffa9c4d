"""The figures in README.md: tables made of the JSON of a run, between two markers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from kclient.bench.machine import machine_line

README = Path(__file__).resolve().parent / "README.md"

START, END = "<!-- figures -->", "<!-- end of figures -->"

Result = dict[str, Any]

COLUMNS: list[tuple[str, str, int]] = [
    ("n", "n", 0),
    ("p50 us", "p50_us", 1),
    ("p90 us", "p90_us", 1),
    ("p99 us", "p99_us", 1),
    ("p99.9 us", "p999_us", 1),
    ("max us", "max_us", 1),
    ("mean us", "mean_us", 2),
    ("per s", "per_s", 0),
    ("lost", "lost", 0),
    ("KiB one more", "kib", 1),
    ("KiB with 1", "kib_at_one", 0),
    ("KiB with all", "kib_at_all", 0),
    ("descriptors one more", "descriptors", 1),
    ("KiB RssAnon", "anonymous_kib", 0),
    ("KiB its own", "private_kib", 0),
    ("KiB with its share", "share_kib", 0),
    ("served per s", "served_per_s", 1),
    ("server KiB", "server_kib", 0),
    ("all KiB", "all_kib", 0),
    ("errors", "errors", 0),
    ("p99 to one's", "p99_to_one", 2),
    ("p50 over raw, us", "over_raw_us", 0),
    ("to raw", "ratio_to_raw", 3),
    ("to jupyter_client", "ratio_to_jupyter_client", 3),
    ("to before", "ratio_to_before", 3),
    ("by round", "ratio_by_round", 3),
]
"""Title, key and digits of each column. A column without any value is left out."""


def write_readme(figures: dict[str, Any]) -> None:
    """Put the tables and plots into README.md; raises as `put_figures` does."""
    put_figures(sections(figures), README)


def put_figures(text: str, page: Path) -> None:
    """Put `text` between the markers of that page; raises ValueError if they are missing."""
    before, start, rest = page.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{page} must contain {START} and {END}")
    page.write_text(f"{before}{START}\n\n{text}\n\n{END}{after}", encoding="utf-8")


def sections(figures: dict[str, Any]) -> str:
    """The table of the bars, and the tables and the plot of each benchmark."""
    results: list[Result] = figures["results"]
    parts = [machine_line(figures["machine"]), "### The bars", bar_table(results)]
    for benchmark, found in groupby(results, key=lambda result: result["benchmark"]):
        parts.append(f"### {benchmark}")
        if benchmark == "micro":
            parts.append(table(list(found), ["operation", "client"]))
            continue
        for (operation, transport), rows in groupby(found, key=lambda row: (row["operation"], row["transport"])):
            parts += [
                f"**{operation}, {transport}**" if transport else f"**{operation}**",
                table(list(rows), ["client"]),
            ]
        parts.append(f"![latency by percentile](plots/{benchmark}.png)")
    return "\n\n".join(parts)


def table(rows: Sequence[Result], labels: Sequence[str]) -> str:
    """A table in Markdown: labels on the left, figures on the right."""
    columns = [column for column in COLUMNS if any(row.get(column[1]) is not None for row in rows)]
    return markdown(
        [*labels, *(title for title, _, _ in columns)],
        [[*(row[name] for name in labels), *(cell(row, key, digits) for _, key, digits in columns)] for row in rows],
        len(labels),
    )


def bar_table(results: Iterable[Result]) -> str:
    """A table of the bars, the measured figures, and whether each bar is met."""
    return markdown(
        ["benchmark", "operation", "client", "transport", "figure", "bar", "measured", "met"],
        [
            [
                *(row[name] for name in ("benchmark", "operation", "client", "transport", "bar_of", "bar")),
                f"{row['bar_value']:,.3f}" if row["bar_value"] is not None else "-",
                "yes" if row["bar_met"] else "**no**",
            ]
            for row in results
            if "bar" in row
        ],
        6,
    )


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], left: int) -> str:
    rules = ["---" if number < left else "---:" for number, _ in enumerate(head)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [head, rules, *rows])


def cell(row: Result, key: str, digits: int) -> str:
    value = row.get(key)
    return "" if value is None else f"{value:,.{digits}f}"
