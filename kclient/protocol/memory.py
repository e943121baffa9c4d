"""The memory that a value read from JSON takes."""

from __future__ import annotations

from sys import getsizeof
from typing import Any, Final

_ARE_CONTAINERS: Final = frozenset([dict, list])

_none_is_container: Final = _ARE_CONTAINERS.isdisjoint


SPARE_NBYTES: Final = 64 * 2**10
"""Outputs may take so much more memory than `max_output_bytes`: a few small ones fit into a bound of a few bytes."""

MIME_BUNDLE_NBYTES: Final = 440
"""The dicts of a display's data and metadata, with up to five mime types, and the one that holds both."""


def memory_of_display(data: dict[str, Any], metadata: dict[str, Any]) -> int:
    """Bytes that the content of a display takes. Quick for texts and images, which are strings, without metadata."""
    if not metadata and len(data) <= 5 and _none_is_container(map(type, data.values())):
        return MIME_BUNDLE_NBYTES + sum(map(getsizeof, data.values()))
    return memory_of({"data": data, "metadata": metadata})


def memory_of(value: Any) -> int:
    """Bytes that `value` takes. A value that is there twice counts twice; a name in dicts counts once.

    Only containers that are not empty cost a step of this loop: `{}` and `[]` are 64 bytes that came as 3.
    """
    total = getsizeof(value)
    names: set[str] = set()
    containers = [value] if type(value) in _ARE_CONTAINERS else []
    while containers:
        container = containers.pop()
        values = container
        if type(container) is dict:
            names.update(container)
            values = container.values()
        total += sum(map(getsizeof, values))
        if not _none_is_container(map(type, values)):
            containers += [inner for inner in values if inner and type(inner) in _ARE_CONTAINERS]
    return total + sum(map(getsizeof, names))
