"""Where one message ends and the next begins, in frames that were read without asking.

A message has its delimiter first or, after a topic, second, and five frames or more after that. To ask ZeroMQ after
each frame whether more follow costs five times as much as the frame; so a channel reads the frames that every message
has, and asks only then. What a kernel sends that is shorter runs into the message behind it; here they are parted.
"""

from __future__ import annotations

from typing import Final

DELIMITER: Final = b"<IDS|MSG>"

FRAMES: Final = 6
"""Frames that every message has from its delimiter on: that, the signature and the four dicts."""


def end_of_first(frames: list[bytes], topics: int) -> int:
    """How many of `frames`, which end where a message ends, are the first message; all of them, if it is well formed.

    `topics` is how many frames precede a delimiter on this socket; one more, an envelope, is taken for its message's.
    Where the first message is none, because its delimiter is missing, or the next one comes before the content, it ends
    before the next that may be one.
    """
    start = 0
    if DELIMITER in frames[: topics + 2]:
        start = frames.index(DELIMITER) + 1
        body = frames[start : start + FRAMES - 1]
        if DELIMITER not in body and body and body[-1].startswith(b"{"):  # which no topic does
            return len(frames)
    if DELIMITER not in frames[start:]:
        return len(frames)
    return max(frames.index(DELIMITER, start) - topics, 1)
