"""A fixture for all tests against real kernels."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures import WAIT


@pytest.fixture(scope="session")
def shared_kernel(shared_kernel: Any) -> Any:
    """Switch jedi off, whose first completion takes seconds, and make `%reset` quick, which collects garbage."""
    prepare = "%config Completer.use_jedi = False\nimport gc\ngc.collect()\ngc.freeze()"
    assert shared_kernel.manager.run(prepare, silent=True, timeout=WAIT).ok
    return shared_kernel
