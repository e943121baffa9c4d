"""The table of docs/kernels.md, which `tox -e interop` writes, is that of the catalog."""

from __future__ import annotations

from pathlib import Path

from catalog import ROWS


def test_document_tells_of_every_kernel_and_every_gap() -> None:
    document = (Path(__file__).resolve().parents[2] / "docs" / "kernels.md").read_text(encoding="utf-8")
    for row in ROWS:
        gaps = [row.ipc_gap] if row.ipc_gap is not None else []
        for text in (row.package, *(gap.why for gap in (*gaps, *row.gaps.values()))):
            assert text in document, "tox -e interop writes the table"
