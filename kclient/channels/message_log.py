"""A line a message in the log, where the program has set the logger `kclient` to DEBUG.

A line has the channel, type, id, parent, size and latency of the message; never its content, and never a key.
"""

from __future__ import annotations

import os
from collections import deque
from time import perf_counter
from typing import Any, Final

import gevent
from gevent import getcurrent
from gevent._hub_local import get_hub_if_exists  # get_hub() would make a hub in a foreign thread

from kclient.concurrency.log import log
from kclient.protocol.json_codec import dumps
from kclient.protocol.messages import Message

MAX_REQUESTS: Final = 1000
"""Requests whose time is remembered, the newest ones: the latency of what arrives is counted from its request on."""

MAX_NAME: Final = 100
"""Characters of a type or an id. The kernel may send any text for them."""

_sent_at: dict[str, float] = {}

_lines: deque[tuple[Any, ...]] = deque()
"""Lines that wait: a handler that blocks must not stop the hub, or a read under way."""

os.register_at_fork(after_in_child=_lines.clear)  # they are the parent's


def sending(channel: str, message: Message) -> None:
    """Log a message that is about to be sent. The size is that of content and buffers, as it is of one that arrives."""
    size = len(dumps(message.content)) + sum(memoryview(buffer).nbytes for buffer in message.buffers)
    parent_id = message.parent_id
    answered = "" if parent_id is None else f" to {_plain(parent_id)}"
    _lines.append(("%s: send %s %s%s, %d bytes", channel, *_names(message), answered, size))
    write()
    _sent_at[message.msg_id] = perf_counter()
    if len(_sent_at) > MAX_REQUESTS:
        del _sent_at[next(iter(_sent_at))]


def received(channel: str, message: Message) -> None:
    """Log a message that has arrived, soon."""
    parent_id = message.parent_id
    since = _sent_at.get(parent_id or "")
    after = "" if since is None else f", {(message.received - since) * 1000:.2f} ms after the request"
    parent = "no request" if parent_id is None else _plain(parent_id)
    if not _lines:
        gevent.spawn(_write)
    _lines.append(("%s: got %s %s of %s, %d bytes%s", channel, *_names(message), parent, message.nbytes, after))


def write() -> None:
    """Log the lines that wait: now or, in the hub, soon."""
    if not _lines:
        return
    if getcurrent() is get_hub_if_exists():
        gevent.spawn(_write)
    else:
        _write()


def _write() -> None:
    logger = log()
    while _lines:
        logger.debug(*_lines.popleft())


def _names(message: Message) -> tuple[str, str]:
    return _plain(message.msg_type), _plain(message.msg_id)


def _plain(text: str) -> str:
    """A type or an id, on one line."""
    return text if len(text) <= MAX_NAME and text.isprintable() else repr(text[:MAX_NAME])
