"""The end of processes that are not children of this process."""

from __future__ import annotations

import os
import select
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest
from fixtures import WAIT

needs_pidfd = pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="nothing tells of the end of another's child here"
)


@contextmanager
def ending(pids: Iterable[int]) -> Iterator[None]:
    """Assert that all these processes end in the block or soon after. Those that have ended before do not count."""
    with ExitStack() as stack:
        pidfds = []
        for pid in pids:
            with suppress(ProcessLookupError):
                pidfds.append(stack.enter_context(open(os.pidfd_open(pid), "rb", buffering=0)))
        yield
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], WAIT)[0], "it lives"
