"""The end of processes that are nobody's children here."""

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
    """What the block does ends all these processes, those that have not ended before, now or soon after."""
    with ExitStack() as stack:
        pidfds = []
        for pid in pids:
            with suppress(ProcessLookupError):
                pidfds.append(stack.enter_context(open(os.pidfd_open(pid), "rb", buffering=0)))
        yield
        for pidfd in pidfds:
            assert select.select([pidfd], [], [], WAIT)[0], "it lives"
