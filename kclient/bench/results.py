"""Results: one row for each client and operation that was measured, and the JSON that holds them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from kclient.bench.recorder import Figures, Recorder


@attrs.frozen
class Row:
    """One line of a table. Latencies in microseconds; None where a figure has no meaning.

    `ratio_to_raw` is the ratio of the medians; for an operation that has only a rate, that of the rates. `extra` holds
    values that only some rows have. They go into the JSON beside the other keys.
    """

    benchmark: str
    transport: str
    client: str
    operation: str
    n: int
    p50_us: float | None = None
    p90_us: float | None = None
    p99_us: float | None = None
    p999_us: float | None = None
    max_us: float | None = None
    per_s: float | None = None
    ratio_to_raw: float | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The values by name, those of `extra` among them."""
        values = attrs.asdict(self, filter=lambda attribute, value: attribute.name != "extra")
        return {**values, **self.extra}

    def figure(self, name: str) -> float | None:
        """The value of that name, in the row or in its `extra`."""
        value = getattr(self, name) if name in _NAMES else self.extra.get(name)
        return None if value is None else float(value)

    def with_extra(self, **extra: Any) -> Row:
        """This row, with those values in its `extra` as well."""
        return attrs.evolve(self, extra={**self.extra, **extra})


_NAMES = frozenset(attribute.name for attribute in attrs.fields(Row))


def row_of(
    benchmark: str, transport: str, client: str, operation: str, recorder: Recorder, floor: Figures | None = None
) -> Row:
    """The figures of one client, and the ratio of its median to that of the floor."""
    figures = recorder.figures()
    ratio = figures.p50_us / floor.p50_us if floor is not None else None
    return Row(benchmark, transport, client, operation, **attrs.asdict(figures), ratio_to_raw=ratio)


def write_json(path: str | Path, machine: Mapping[str, Any], rows: Iterable[Row]) -> None:
    """Write the machine and the rows; raises OSError."""
    values = {"machine": dict(machine), "results": [row.to_dict() for row in rows]}
    Path(path).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def check_writable(path: str | Path) -> None:
    """Raise OSError if no file can be written there; leaves nothing behind."""
    path = Path(path)
    is_new = not path.exists()
    with path.open("ab"):
        pass
    if is_new:
        path.unlink()
