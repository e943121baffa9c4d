"""Messages to signed frames and back: JSON, HMAC, message ids and the check for replays.

On the wire a message is ``[identities or topic..., <IDS|MSG>, signature, header, parent_header, metadata,
content, buffers...]``; the signature is the HMAC, in hex, of the four dicts ("The Wire Protocol" in
"Messaging in Jupyter"). An empty key means: unsigned.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import orjson

from kclient.errors import BadMessage, InvalidArgument
from kclient.protocol.connection import CURVE_KEY, curve_key, digest_of
from kclient.protocol.framing import DELIMITER
from kclient.protocol.json_codec import dumps, loads_parts
from kclient.protocol.messages import LEFT_OUT, OUTPUT_TYPES, PROTOCOL_VERSION, Message

if TYPE_CHECKING:
    from kclient.protocol.signing import Signer

STAND_IN_BYTES: Final = 64 * 1024
"""Size up to which a part of a message that is too large is parsed all the same: its header, or a small content."""

REPLAY_HISTORY_SIGNATURES: Final = 65_536
"""Signatures remembered, first in, first out: about 10 MiB at most."""


class Session:
    """The messages of one client: it makes their ids, signs them, checks those of the kernel and refuses replays.

    `server_key` is the public key of a kernel that encrypts, `ConnectionInfo.curve_publickey`; empty for others.
    `max_message_bytes` is the limit of a message of the kernel, None for no limit. It may be set at any time. A message
    that exceeds it is not parsed; see `stand_in`.
    """

    def __init__(
        self,
        key: bytes | str = b"",
        *,
        signature_scheme: str = "hmac-sha256",
        username: str = "kclient",
        replay_history: int = REPLAY_HISTORY_SIGNATURES,
        server_key: bytes | str = b"",
    ) -> None:
        self.session = uuid.uuid4().hex
        self._signer: Signer | None = None
        self.username = username
        self.key = _check_key(key)
        self.server_key = _check_server_key(server_key)
        digest = digest_of(signature_scheme)
        if digest is None:
            raise InvalidArgument(f"signature_scheme must be hmac- and the name of a hash, not {signature_scheme!r}")
        if self.key:
            from kclient.protocol.signing import Signer  # the import takes 3 ms, for OpenSSL

            self._signer = Signer(self.key, digest)
        self.max_message_bytes: int | None = None
        self._count = 0
        self._replay_history = _check_replay_history(replay_history)
        self._seen: set[bytes] = set()
        self._seen_in_order: deque[bytes] = deque()

    def __repr__(self) -> str:
        if not hasattr(self, "_signer"):
            return "<Session half made>"
        return f"<Session {self.session} {'signed' if self._signer else 'unsigned'}>"

    @property
    def identity(self) -> bytes:
        """The ROUTING_ID that shell and stdin share, so that the kernel can send input requests to this client."""
        return self.session.encode()

    def msg(
        self,
        msg_type: str,
        content: Mapping[str, Any] | None = None,
        parent: Message | Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Message:
        """A new message, not sent. `parent` is the message that it answers, or the header of that message."""
        if not isinstance(msg_type, str) or not msg_type:
            raise InvalidArgument(f"msg_type must be a non-empty string, not {msg_type!r}")
        self._count += 1
        header = {
            "msg_id": f"{self.session}_{self._count}",
            "msg_type": msg_type,
            "username": self.username,
            "session": self.session,
            # In ISO 8601; orjson writes it in 0.5 us, `isoformat` in 1.7.
            "date": orjson.dumps(datetime.now(timezone.utc))[1:-1].decode(),
            "version": PROTOCOL_VERSION,
        }
        return Message(
            header,
            {} if parent is None else _header_of(parent),
            {} if metadata is None else _dict(metadata, "metadata"),
            {} if content is None else _dict(content, "content"),
        )

    def sign(self, parts: Sequence[bytes]) -> bytes:
        """The signature of the four serialized dicts; empty without a key."""
        return b"" if self._signer is None else self._signer.sign(parts)

    def serialize(self, message: Message) -> list[Any]:
        """The frames of a message, from the delimiter on; raises InvalidArgument for a value that JSON cannot hold."""
        parts = [
            dumps(message.header),
            dumps(message.parent_header) if message.parent_header else b"{}",
            dumps(message.metadata) if message.metadata else b"{}",
            dumps(message.content) if message.content else b"{}",
        ]
        frames = [DELIMITER, self.sign(parts), *parts]
        if message.buffers:
            frames += map(_check_buffer, message.buffers)
        return frames

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
        if self._signer is not None:
            signature = frames[start]
            if not self._signer.has_signed(signature, parts):
                raise BadMessage("signature", "a wrong signature: another key, or a forged message")
            if signature in self._seen:
                raise BadMessage("replay", "a message that was received before")
            self._seen.add(signature)
            self._seen_in_order.append(signature)
            if len(self._seen_in_order) > self._replay_history:
                self._seen.discard(self._seen_in_order.popleft())
        if self.max_message_bytes is not None and (size := sum(map(len, frames))) > self.max_message_bytes:
            raise BadMessage("size", f"a message of {size} bytes, more than max_message_bytes={self.max_message_bytes}")
        header, parent_header, metadata, content = loads_parts(parts)
        if type(header.get("msg_id")) is not str or type(header.get("msg_type")) is not str:
            raise BadMessage("json", "the header lacks a msg_id or a msg_type")
        message = Message(header, parent_header, metadata, content, [], perf_counter(), len(parts[3]))
        if len(frames) > start + 5:
            message.buffers = list(frames[start + 5 :])
            message.nbytes += sum(map(len, message.buffers))
        return message


def stand_in(frames: Sequence[bytes]) -> Message | None:
    """The message for a channel in place of one that exceeds `max_message_bytes` and has the right signature.

    A status and a reply must not get lost. A reply becomes an error. An output becomes a message that marks its
    execution as truncated. None for other messages, and for one whose header is very large.
    """
    start = frames.index(DELIMITER) + 2
    header, parent_header, _, content = frames[start : start + 4]
    if max(len(header), len(parent_header)) > STAND_IN_BYTES:
        return None
    small = content if len(content) <= STAND_IN_BYTES else b"{}"
    try:
        parsed_header, parsed_parent, _metadata, parsed = loads_parts([header, parent_header, b"{}", small])
    except BadMessage:
        return None
    message = Message(parsed_header, parsed_parent, {}, parsed, [], perf_counter(), 0)
    msg_type = message.header.get("msg_type")
    if not isinstance(msg_type, str) or not isinstance(message.header.get("msg_id"), str):
        return None
    if msg_type in OUTPUT_TYPES:
        message.header["msg_type"], message.content = LEFT_OUT, {}
    elif msg_type == "input_request":
        message.content = {"prompt": "", "password": False}
    elif msg_type.endswith("_reply"):
        evalue = "the reply of the kernel exceeds max_message_bytes"
        message.content = {"status": "error", "ename": "MessageTooLarge", "evalue": evalue, "traceback": []}
    elif msg_type not in ("status", "execute_input"):
        return None
    return message


def _check_key(key: bytes | str) -> bytes:
    """An empty key means unsigned messages, so nothing else that is empty may pass for one."""
    if isinstance(key, str):
        return key.encode()
    if not isinstance(key, bytes):
        raise InvalidArgument(f"key must be bytes or a string, not {type(key).__name__}; b'' is for unsigned messages")
    return key


def _check_replay_history(replay_history: int) -> int:
    if type(replay_history) is not int or replay_history < 0:
        raise InvalidArgument(f"replay_history must be a number of messages, 0 or more, not {replay_history!r}")
    return replay_history


def _check_server_key(server_key: bytes | str) -> bytes:
    checked = curve_key(server_key) if server_key else b""
    if checked is None:
        raise InvalidArgument(f"server_key must be {CURVE_KEY}")
    return checked


def _header_of(parent: Message | Mapping[str, Any]) -> dict[str, Any]:
    header = parent.header if isinstance(parent, Message) else parent
    if isinstance(header, Mapping):
        header = header.get("header", header)
    if not isinstance(header, Mapping):
        raise InvalidArgument(f"parent must be a Message or the header of one, not {parent!r}")
    return dict(header)


def _dict(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(value, (dict, Mapping)):  # dict comes first: the check for Mapping takes 0.3 us
        raise InvalidArgument(f"{name} must be a dict, not {type(value).__name__}")
    return dict(value)


def _check_buffer(buffer: Any) -> Any:
    if isinstance(buffer, bytes):
        return buffer
    try:
        is_contiguous = memoryview(buffer).c_contiguous
    except (TypeError, ValueError, BufferError) as exc:  # ValueError: it was released
        raise InvalidArgument(f"a buffer must be a bytes-like object, not {type(buffer).__name__}: {exc}") from None
    if not is_contiguous:
        raise InvalidArgument(
            f"a buffer must be C-contiguous, but this {type(buffer).__name__} is not; send a copy, say bytes(buffer)"
        )
    return buffer
