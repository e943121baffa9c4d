"""The figures of a test: written down if asked for, and held to bounds where the machine does nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import attrs


@attrs.define
class Figures:
    """The figures of one test. With `is_long` the test has its full size and a machine for itself, and bounds hold."""

    is_long: bool
    test: str
    path: Path | None

    def size(self, short: int, long: int) -> int:
        """The size of a test: `short` in the ordinary suite, `long` with ``--long``."""
        return long if self.is_long else short

    def note(self, what: str, value: float, unit: str, *, at_most: float | None = None) -> None:
        """Write down a figure; with ``--long``, fail if it is beyond its bound."""
        if self.path is not None:
            row = {"test": self.test, "what": what, "value": value, "unit": unit, "at_most": at_most}
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({**row, "long": self.is_long}) + "\n")
        if self.is_long and at_most is not None:
            assert value <= at_most, f"{what}: {value:g} {unit}, and at most {at_most:g} {unit} are allowed"
