"""What the tests against real kernels share."""

from __future__ import annotations

from typing import Any

import pytest
from fixtures import WAIT


@pytest.fixture(scope="session")
def shared_kernel(shared_kernel: Any) -> Any:
    """Without jedi, whose first completion takes seconds; and `%reset`, which collects garbage, made quick."""
    prepare = "%config Completer.use_jedi = False\nimport gc\ngc.collect()\ngc.freeze()"
    assert shared_kernel.manager.run(prepare, silent=True, timeout=WAIT).ok
    return shared_kernel
