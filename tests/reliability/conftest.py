"""What the tests of faults share: the same as the tests against real kernels."""

from __future__ import annotations

from fixtures import (
    await_arrival,
    background,
    client,
    gate,
    install_kernel,
    make_gate,
    run_script,
    start_script,
)

__all__ = ["await_arrival", "background", "client", "gate", "install_kernel", "make_gate", "run_script", "start_script"]
