"""Tables of results, as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from kclient.bench.results import Row

WIDTH_COLUMNS: Final = 100_000
"""Columns of the page: so many that no cell is cut. A terminal wraps long lines."""

NOTHING: Final = "-"


@attrs.frozen
class Column:
    """A column; `text` makes its cell of a row."""

    title: str
    text: Callable[[Row], str]
    is_number: bool = True


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def figure(title: str, name: str, digits: int = 0) -> Column:
    """A column of the figure of that name."""
    return Column(title, lambda row: number(row.figure(name), digits))


def label(name: str) -> Column:
    """A column of the row's attribute of that name, as text."""
    return Column(name, lambda row: str(getattr(row, name)), is_number=False)


LATENCY: Final = [
    figure("calls", "n"),
    figure("p50 us", "p50_us", 1),
    figure("p90 us", "p90_us", 1),
    figure("p99 us", "p99_us", 1),
    figure("p99.9 us", "p999_us", 1),
    figure("max us", "max_us", 1),
    figure("calls/s", "per_s"),
]
"""The columns for calls that were timed one by one."""


def table_of(title: str, columns: Sequence[Column], rows: Sequence[Row]) -> str:
    """A table in lines of text, without colours."""
    console = Console(width=WIDTH_COLUMNS, markup=False, highlight=False, emoji=False, no_color=True)
    table = Table(title=title, title_justify="left", title_style="", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="right" if column.is_number else "left")
    for row in rows:
        table.add_row(*(column.text(row) for column in columns))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())
