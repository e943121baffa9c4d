"""Messages to signed frames and back: JSON, HMAC, message ids and the check for replays.

On the wire a message is ``[identities or topic..., <IDS|MSG>, signature, header, parent_header, metadata,
content, buffers...]``; the signature is the HMAC, in hex, of the four dicts ("The Wire Protocol" in
"Messaging in Jupyter"). An empty key means: unsigned.
"""

from __future__ import annotations

import hmac
import json
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from time import perf_counter
from typing import Any, Final

import orjson

from kclient.errors import BadMessage, InvalidArgument
from kclient.protocol.connection import digest_of
from kclient.protocol.messages import PROTOCOL_VERSION, Message

DELIMITER: Final = b"<IDS|MSG>"

REPLAY_HISTORY: Final = 65_536
"""Signatures remembered, first in, first out: about 10 MiB at most."""

_BIGGEST_EXACT = 2.0**63
"""orjson turns whole numbers beyond 64 bits into floats without a word; smaller ones are exact."""


class Session:
    """One conversation with a kernel: who we are, the key, and what was seen already."""

    def __init__(
        self,
        key: bytes | str = b"",
        *,
        signature_scheme: str = "hmac-sha256",
        username: str = "kclient",
        replay_history: int = REPLAY_HISTORY,
    ) -> None:
        self.session = uuid.uuid4().hex
        self.username = username
        self.key = key.encode() if isinstance(key, str) else key
        self._auth: hmac.HMAC | None = None
        digest = digest_of(signature_scheme)
        if digest is None:
            raise InvalidArgument(f"signature_scheme must be hmac- and the name of a hash, not {signature_scheme!r}")
        if self.key:
            self._auth = hmac.new(self.key, digestmod=digest)
        self._count = 0
        self._replay_history = replay_history
        self._seen: set[bytes] = set()
        self._seen_in_order: deque[bytes] = deque()

    def __repr__(self) -> str:
        return f"<Session {self.session} {'signed' if self._auth else 'unsigned'}>"

    @property
    def identity(self) -> bytes:
        """The ROUTING_ID that shell and stdin share, so that input requests find the way back."""
        return self.session.encode()

    def msg(
        self,
        msg_type: str,
        content: Mapping[str, Any] | None = None,
        parent: Message | Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Message:
        """A new message, not sent; `parent` is the message it belongs to, or that one's header."""
        if not isinstance(msg_type, str) or not msg_type:
            raise InvalidArgument(f"msg_type must be a non-empty string, not {msg_type!r}")
        self._count += 1
        header = {
            "msg_id": f"{self.session}_{self._count}",
            "msg_type": msg_type,
            "username": self.username,
            "session": self.session,
            "date": datetime.now(timezone.utc).isoformat(),
            "version": PROTOCOL_VERSION,
        }
        return Message(header, _header_of(parent), _dict(metadata, "metadata"), _dict(content, "content"))

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """The signature of the four serialized dicts; empty without a key."""
        if self._auth is None:
            return b""
        auth = self._auth.copy()
        for part in parts:
            auth.update(part)
        return auth.hexdigest().encode()

    def serialize(self, message: Message) -> list[Any]:
        """The frames of a message, from the delimiter on; raises InvalidArgument for what JSON can't hold."""
        parts = [
            _dumps(message.header),
            _dumps(message.parent_header),
            _dumps(message.metadata),
            _dumps(message.content),
        ]
        return [DELIMITER, self.sign(parts), *parts, *map(_check_buffer, message.buffers)]

    def deserialize(self, frames: Sequence[bytes]) -> Message:
        """The message in `frames`; raises BadMessage.

        The signature is checked before anything is parsed or remembered.
        """
        try:
            start = frames.index(DELIMITER) + 1
        except ValueError:
            raise BadMessage("layout", f"no {DELIMITER.decode()} delimiter in {len(frames)} frames") from None
        parts = frames[start + 1 : start + 5]
        if len(parts) < 4:
            raise BadMessage("layout", f"{len(frames) - start} frames after the delimiter, not 5 or more")
        if self._auth is not None:
            self._check_signature(frames[start], parts)
        header = _loads_dict(parts[0], "header")
        if not isinstance(header.get("msg_id"), str) or not isinstance(header.get("msg_type"), str):
            raise BadMessage("json", "the header lacks a msg_id or a msg_type")
        buffers = list(frames[start + 5 :])
        return Message(
            header,
            {} if parts[1] == b"{}" else _loads_dict(parts[1], "parent_header", optional=True),
            {} if parts[2] == b"{}" else _loads_dict(parts[2], "metadata", optional=True),
            _loads_dict(parts[3], "content", exact=True),
            buffers,
            perf_counter(),
            len(parts[3]) + sum(map(len, buffers)),
        )

    def _check_signature(self, signature: bytes, parts: Sequence[bytes]) -> None:
        if not hmac.compare_digest(signature, self.sign(parts)):
            raise BadMessage("signature", "a wrong signature: another key, or a forged message")
        if signature in self._seen:
            raise BadMessage("replay", "a message that was received before")
        self._seen.add(signature)
        self._seen_in_order.append(signature)
        if len(self._seen_in_order) > self._replay_history:
            self._seen.discard(self._seen_in_order.popleft())


def _header_of(parent: Message | Mapping[str, Any] | None) -> dict[str, Any]:
    if parent is None:
        return {}
    header = parent.header if isinstance(parent, Message) else parent
    if isinstance(header, Mapping):
        header = header.get("header", header)
    if not isinstance(header, Mapping):
        raise InvalidArgument(f"parent must be a Message or the header of one, not {parent!r}")
    return dict(header)


def _dict(value: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"{name} must be a dict, not {type(value).__name__}")
    return dict(value)


_ORJSON = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME | orjson.OPT_PASSTHROUGH_SUBCLASS


def _dumps(value: dict[str, Any]) -> bytes:
    """JSON as the standard library writes it; orjson refuses some values, and would write NaN as null."""
    if not value:
        return b"{}"
    try:
        text = orjson.dumps(value, option=_ORJSON)
        if b"null" not in text:
            return text
    except TypeError:
        pass
    try:
        return json.dumps(value, separators=(",", ":"), default=_as_orjson_has_it).encode()
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidArgument(f"cannot be written as JSON: {exc}") from None


def _as_orjson_has_it(value: object) -> Any:
    """A UUID or the value of an Enum, which orjson writes and the standard library does not."""
    return orjson.loads(orjson.dumps(value, option=_ORJSON))


def _check_buffer(buffer: Any) -> Any:
    try:
        if isinstance(buffer, bytes) or memoryview(buffer).contiguous:
            return buffer
    except TypeError:
        pass
    raise InvalidArgument(f"a buffer must hold contiguous bytes, which a {type(buffer).__name__} does not")


def _loads_dict(text: bytes, name: str, *, optional: bool = False, exact: bool = False) -> dict[str, Any]:
    try:
        value = orjson.loads(text)
        if exact and _has_big_number(value):
            value = json.loads(text)
    except (ValueError, RecursionError):
        value = _loads_slowly(text, name)
    if optional and value is None:
        return {}
    if not isinstance(value, dict):
        raise BadMessage("json", f"the {name} is a {type(value).__name__}, not an object")
    return value


def _loads_slowly(text: bytes, name: str) -> Any:
    """What orjson refuses: NaN, Infinity, lone surrogates."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise BadMessage("json", f"the {name} is not JSON: {exc}") from None


def _has_big_number(value: Any) -> bool:
    """True if a float in `value` may have been a whole number that orjson could not hold exactly."""
    if isinstance(value, float):
        return not -_BIGGEST_EXACT < value < _BIGGEST_EXACT
    if isinstance(value, dict):
        return any(map(_has_big_number, value.values()))
    if isinstance(value, list):
        return any(map(_has_big_number, value))
    return False
