"""The four dicts of a message to JSON and back: by orjson, and by the standard library where orjson falls short.

=====================================  ==================  =====================
to write                               orjson              dumps()
=====================================  ==================  =====================
NaN, Infinity                          null                NaN, Infinity
a number beyond 64 bits, a key that    refuses it          as the standard
is no string, a subclass of dict                           library writes it
=====================================  ==================  =====================

=====================================  ==================  =====================
to read                                orjson              loads_parts()
=====================================  ==================  =====================
NaN, Infinity, a lone surrogate        refuses it          reads it
a whole number beyond 64 bits          an inexact float    an exact int (content)
=====================================  ==================  =====================
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import orjson

from kclient.errors import BadMessage, InvalidArgument

_PARTS: Final = ("header", "parent_header", "metadata", "content")

_are_dicts: Final = frozenset([dict]).issuperset
_are_exact: Final = frozenset([str, int, bool, type(None)]).issuperset
"""True for types whose values orjson reads exactly, and that hold no other values."""

_ZEROS: Final = bytes(ord("0") if chr(byte) in "0123456789" else ord(" ") for byte in range(256))
_LONG_NUMBER: Final = b"0" * 19
"""As many digits as 2**63 has, in a text whose digits are all zeros."""

SHORT_BYTES: Final = 1000
"""A text up to this size is searched for a long number. A longer one, a picture say, holds far fewer values than bytes:
its values are looked at instead."""

_BIGGEST_EXACT: Final = 2.0**63
"""orjson reads a whole number beyond 64 bits as a float, without an error; smaller ones are exact."""

_OPTIONS: Final = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


def dumps(value: dict[str, Any]) -> bytes:
    """`value` as JSON, as the standard library writes it; raises InvalidArgument if JSON cannot hold it."""
    try:
        text = orjson.dumps(value, option=_OPTIONS)
        if b"null" not in text:  # a null may stand for NaN
            return text
    except TypeError:
        pass
    try:
        return json.dumps(value, separators=(",", ":"), default=_as_orjson_has_it).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidArgument(f"cannot be written as JSON: {exc}") from None


def loads_parts(parts: Sequence[bytes]) -> list[dict[str, Any]]:
    """The header, parent header, metadata and content that four texts hold; raises BadMessage."""
    try:
        values = [*map(orjson.loads, parts)]  # 30 ns less than list(), as much as the call of loads_parts costs
        if _are_dicts(map(type, values)) and _are_exact(map(type, values[3].values())):
            return values
        return _with_care(values, parts)
    except ValueError:
        return _parse_slowly(parts)


def _as_orjson_has_it(value: object) -> Any:
    """A UUID or the value of an Enum: orjson writes them, the standard library does not."""
    return orjson.loads(orjson.dumps(value, option=_OPTIONS))


def _with_care(values: list[Any], parts: Sequence[bytes]) -> list[dict[str, Any]]:
    """`values`, checked to be dicts, with the exact numbers in the content; raises BadMessage."""
    text = parts[3]
    try:
        # In a short text the search for a long number takes a quarter of the time of a look at each value.
        if (len(text) > SHORT_BYTES or _LONG_NUMBER in text.translate(_ZEROS)) and _may_be_inexact(values[3]):
            values[3] = json.loads(text)
    except RecursionError:
        return _parse_slowly(parts)
    return _as_dicts(values)


def _parse_slowly(parts: Sequence[bytes]) -> list[dict[str, Any]]:
    """The dicts, by the standard library, which reads NaN, Infinity and lone surrogates; raises BadMessage."""
    return _as_dicts([_loads_slowly(part, name) for part, name in zip(parts, _PARTS, strict=True)])


def _as_dicts(values: list[Any]) -> list[dict[str, Any]]:
    """`values`; a parent header or metadata that is null, as some kernels send it, becomes {}. Raises BadMessage."""
    values[1:3] = [{} if value is None else value for value in values[1:3]]
    for value, name in zip(values, _PARTS, strict=True):
        if not isinstance(value, dict):
            raise BadMessage("json", f"the {name} is a {type(value).__name__}, not an object")
    return values


def _loads_slowly(text: bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadMessage("json", f"the {name} is not JSON: {exc}") from None


def _may_be_inexact(value: Any) -> bool:
    """True if a float in `value` may have been a whole number that orjson could not hold exactly."""
    if isinstance(value, float):
        return not -_BIGGEST_EXACT < value < _BIGGEST_EXACT
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return not _are_exact(map(type, values)) and any(map(_may_be_inexact, values))
