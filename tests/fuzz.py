"""Messages that are changed at random, and the fate that each must have."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any

from kclient.protocol.framing import DELIMITER
from kclient.protocol.session import Session

Frames = list[bytes]

CHANNELS = ("shell", "control", "stdin", "iopub")

DELIVERED = "delivered"
EITHER = "either"
"""Parsers may read or refuse these: it depends on their depth in the stack."""

REPLIES = (
    *("execute_reply", "complete_reply", "interrupt_reply", "inspect_reply", "kernel_info_reply", "shutdown_reply"),
    *("create_subshell_reply", "delete_subshell_reply", "list_subshell_reply", "debug_reply", "comm_info_reply"),
)
PUBLISHED = (
    *(
        "status",
        "stream",
        "display_data",
        "update_display_data",
        "execute_result",
        "error",
        "clear_output",
        "execute_input",
    ),
    *("comm_open", "comm_msg", "comm_close", "debug_event", "iopub_welcome", "shutdown_reply", "news_of_tomorrow"),
)
KEYS = (
    *("name", "text", "data", "metadata", "transient", "display_id", "ename", "evalue", "traceback", "wait"),
    *("execution_state", "execution_count", "status", "prompt", "password", "code", "payload", "text/plain"),
)
KEYS_OF = {
    "comm_open": ("comm_id", "target_name", "target_module", "data"),
    "comm_msg": ("comm_id", "data"),
    "comm_close": ("comm_id", "data"),
    "debug_event": ("event", "body"),
    "create_subshell_reply": ("subshell_id",),
    "list_subshell_reply": ("subshell_id",),
    "kernel_info_reply": ("supported_features", "debugger", "implementation", "language_info", "help_links", "banner"),
}
"""The keys that kclient reads in these. Another `protocol_version` would make it another kernel."""
COMM_NAMES = (b'"x"', b'"y"', b'"z"')
"""Few names, so that comms open twice, and messages for open comms occur."""

LITERALS = (
    *(b"null", b"true", b"0", b"-1", b"1.5", b"1e999", b"NaN", b"-Infinity", b'""', b'"x"', b"[]", b"{}", b"[null]"),
    *(b'"\\ud800"', b'"\\ud800\\udc00"', b'"\xf0\x9f\x92\xa9"', b'"\\u0000"', b"123456789012345678901234567890"),
    *(
        b"18446744073709551615",
        b"9223372036854775808",
        b'{"text/plain":"x"}',
        b'{"display_id":"d"}',
        b'{"display_id":[]}',
    ),
    *(
        b'"stdout"',
        b'"stderr"',
        b'["a","b"]',
        b"[1,[2,[3]]]",
        b'"busy"',
        b'"starting"',
        b'"error"',
        b'"aborted"',
        b'"abort"',
    ),
)

NO_JSON_DEEP = b"[" * 20_000

NO_JSON = (b"", b"{", b"}", b"nul", b"{]", b'{"a"}', b"\xff\xfe", b'"\xff"', NO_JSON_DEEP, b"9" * 5000, b"{}x", b"\x00")

SURE_DEPTH = 200

DEPTHS = (10, 150, 250, 300, 900, 990, 1020, 1100)
"""Levels of nesting around the limits of orjson, json and repr."""


class Fuzzer:
    """Makes messages for one session with a key. `parents` are the headers of the requests that are awaited now."""

    def __init__(self, session: Session, random: Random) -> None:
        self.parents: dict[str, list[dict[str, Any]]] = {name: [] for name in CHANNELS}
        self._session = session
        self._random = random
        self._chosen: dict[str, Any] | None = None
        self._msg_type = ""
        self._number = count()
        self._genuine: deque[Frames] = deque(maxlen=100)
        self._kinds: list[Callable[[str], tuple[str, Frames]]] = [
            *[self.odd] * 6,
            *[self.strange_parts] * 3,
            self.flipped,
            self.cut_short,
            self.without_delimiter,
            self.swapped,
            self.signed_wrong,
            self.signed_by_another,
            self.replayed,
            self.with_more_frames,
        ]

    def messages(self, channel: str) -> list[tuple[str, Frames]]:
        """Usually one pair: the reason to drop the message, or DELIVERED, and its frames without the envelope.

        One that is too short comes with another behind it, from which the client has to part it.
        """
        kind = self._random.choice(self._kinds)
        fate, frames = kind(channel)
        if fate in (DELIVERED, EITHER, "json"):
            self._genuine.append(frames)
        found = [(fate, frames)]
        if kind == self.cut_short:
            found.append((DELIVERED, self._signed(b'{"msg_id":"1","msg_type":"x"}', b"{}", self._metadata(), b"{}")))
        return found

    # Well-formed messages of odd content

    def odd(self, channel: str) -> tuple[str, Frames]:
        frames = self._signed(*self._parts(channel))
        return self._expected(frames[2:]), frames

    def with_more_frames(self, channel: str) -> tuple[str, Frames]:
        fate, frames = self.odd(channel)
        more = [self._random.randbytes(self._random.randrange(20)) for _ in range(self._random.randrange(1, 4))]
        return fate, [*frames, *more]

    def strange_parts(self, channel: str) -> tuple[str, Frames]:
        """A right signature over parts of which one is odd."""
        parts = self._parts(channel)
        parts[self._random.randrange(4)] = self._random.choice([self._literal, self._nested, self._no_json])()
        frames = self._signed(*parts)
        return self._expected(parts), frames

    def _parts(self, channel: str) -> Frames:
        return [self._header(channel), self._parent(channel), self._metadata(), self._content(channel)]

    def _metadata(self) -> bytes:
        """No two messages are the same: a repeated one is dropped."""
        return b'{"number":%d}' % next(self._number)

    def _header(self, channel: str) -> bytes:
        random = self._random
        types = PUBLISHED if channel == "iopub" else ("input_request", "stream") if channel == "stdin" else REPLIES
        header: dict[str, Any] = {"msg_id": f"m{next(self._number)}", "msg_type": random.choice(types)}
        if channel in ("shell", "control") and self._parent_is_awaited(channel):
            header["msg_type"] = "stream"  # a reply of the right type would be taken for the reply
        self._msg_type = header["msg_type"]
        for name in random.sample(["date", "version", "session", "username", "msg_id", "msg_type"], 2):
            if random.random() < 0.1:
                header[name] = json.loads(random.choice([b"5", b'"five"', b"null", b"[]", b"{}", b'"x"']))
        return json.dumps(header).encode()

    def _parent_is_awaited(self, channel: str) -> bool:
        self._chosen = self._random.choice(self.parents[channel]) if self.parents[channel] else None
        if self._random.random() < 0.5:
            self._chosen = None
        return self._chosen is not None

    def _parent(self, channel: str) -> bytes:
        if channel not in ("shell", "control"):
            self._parent_is_awaited(channel)
        if self._chosen is not None:
            return json.dumps(self._chosen).encode()
        return self._random.choice([b"{}", b"null", b'{"msg_id":"x"}', b'{"msg_id":[1]}', b'{"msg_id":null}'])

    def _content(self, channel: str) -> bytes:
        random = self._random
        own = [name for name in KEYS_OF.get(self._msg_type, ()) if random.random() < 0.8]
        names = dict.fromkeys([*own, *random.sample(KEYS, random.randrange(5))])
        pairs = [b'"%s":%s' % (name.encode(), self._value(name)) for name in names]
        return b"{" + b",".join(pairs) + b"}"

    def _value(self, name: str) -> bytes:
        chance = self._random.random()
        if name in ("comm_id", "target_name") and chance > 0.3:
            return self._random.choice(COMM_NAMES)
        return self._nested() if chance < 0.02 else self._literal()

    def _literal(self) -> bytes:
        return self._random.choice(LITERALS)

    def _nested(self) -> bytes:
        depth = self._random.choice(DEPTHS)
        return self._random.choice([b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth])

    def _no_json(self) -> bytes:
        return self._random.choice(NO_JSON)

    def _signed(self, *parts: bytes) -> Frames:
        return [DELIMITER, self._session.sign(parts), *parts]

    def _expected(self, parts: Frames) -> str:
        """The values that the standard library reads from the parts."""
        if any(part.count(b"[") > SURE_DEPTH or part.count(b"{") > SURE_DEPTH for part in parts):
            return "json" if NO_JSON_DEEP in parts else EITHER
        try:
            header, parent, metadata, content = map(json.loads, parts)
        except (ValueError, RecursionError):
            return "json"
        is_message = isinstance(header, dict) and all(isinstance(header.get(n), str) for n in ("msg_id", "msg_type"))
        is_message = is_message and isinstance(content, dict)
        return DELIVERED if is_message and all(isinstance(x, dict | None) for x in (parent, metadata)) else "json"

    # Malformed messages

    def flipped(self, channel: str) -> tuple[str, Frames]:
        _, frames = self.odd(channel)
        place = self._random.randrange(len(frames))
        frame = bytearray(frames[place])
        frame[self._random.randrange(len(frame))] ^= 1 << self._random.randrange(8)
        frames = [*frames[:place], bytes(frame), *frames[place + 1 :]]
        return "layout" if place == 0 else "signature", frames

    def cut_short(self, channel: str) -> tuple[str, Frames]:
        _, frames = self.odd(channel)
        return "layout", frames[: self._random.randrange(1, len(frames))]

    def without_delimiter(self, channel: str) -> tuple[str, Frames]:
        _, frames = self.odd(channel)
        return "layout", frames[1:] if self._random.random() < 0.5 else [self._random.randbytes(3)]

    def swapped(self, channel: str) -> tuple[str, Frames]:
        _, (delimiter, signature, header, parent, metadata, content) = self.odd(channel)
        return "signature", [delimiter, signature, parent, header, metadata, content]

    def signed_wrong(self, channel: str) -> tuple[str, Frames]:
        _, (delimiter, signature, *parts) = self.odd(channel)
        wrong = [b"", signature[:-1], signature + b"0", signature.upper(), b"\xff" * 64, b"0" * 64, b"0" * 10_000]
        return "signature", [delimiter, self._random.choice(wrong), *parts]

    def signed_by_another(self, channel: str) -> tuple[str, Frames]:
        _, (delimiter, _, *parts) = self.odd(channel)
        return "signature", [delimiter, Session(b"another").sign(parts), *parts]

    def replayed(self, channel: str) -> tuple[str, Frames]:
        """A message that was sent a short time ago, perhaps on another channel."""
        if not self._genuine:
            return self.odd(channel)
        return "replay", self._random.choice(self._genuine)
