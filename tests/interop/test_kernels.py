"""Kernels of other projects: the outcome of each feature, over tcp and ipc. `docs/kernels.md` has the table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from catalog import WANTED, Row
from features import LOOK
from fixtures import WAIT

import kclient

pytestmark = pytest.mark.interop


@pytest.mark.parametrize("feature", WANTED)
def test_kernel_shows_what_the_protocol_says_or_the_gap_that_is_known(
    driven: Any, feature: str, kernel: kclient.KernelManager, report: Callable[..., None]
) -> None:
    row = driven.row
    info = kernel.kernel_info(timeout=WAIT).content
    seen = LOOK[feature](kernel, row)
    assert seen in row.accepted(feature), "mended, perhaps: then take the gap away"
    encrypted = "yes" if kernel.get_connection_info().get("curve_publickey") else "no"
    report(row, driven.transport, feature, seen, protocol=info["protocol_version"], encrypted=encrypted)


def test_kernel_that_cannot_listen_there_over_ipc_ends_in_an_error_that_tells_why(
    refuser: Row, prepare: Callable[[Row], None], session_folder: Path, report: Callable[..., None]
) -> None:
    prepare(refuser)
    gap = refuser.ipc_gap
    assert gap is not None
    folder = session_folder / gap.folder
    folder.mkdir(mode=0o700, exist_ok=True)
    with pytest.raises(kclient.LaunchError) as caught:
        kclient.start_kernel(refuser.name, transport="ipc", ip=str(folder / "k"), timeout=WAIT)
    assert gap.prints in caught.value.stderr, "mended, perhaps: then take the gap away"
    assert gap.folder or "pass transport='tcp'" in str(caught.value)
    report(refuser, "ipc", "ipc", "refused")
