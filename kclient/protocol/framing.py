"""Where one message ends and the next begins, in frames that were read without asking.

After its delimiter a message has five frames or more. To ask ZeroMQ after each frame whether more follow costs five
times as much as the frame; so a channel reads the five that every message has, and asks only then. What a kernel sends
that ends sooner runs into the message behind it; here they are parted.
"""

from __future__ import annotations

from typing import Final

DELIMITER: Final = b"<IDS|MSG>"

FRAMES: Final = 6
"""Frames that every message has from its delimiter on: that, the signature and the four dicts."""


def end_of_first(frames: list[bytes], topics: int) -> int:
    """How many of `frames`, which end where a message ends, are the first message; all of them, if it is well formed.

    `frames` hold a delimiter. Where the next one comes before the content of the first message, that one ends before
    the next, and the `topics` frames that precede a delimiter on this socket.
    """
    start = frames.index(DELIMITER) + 1
    body = frames[start : start + FRAMES - 1]
    is_well_formed = DELIMITER not in body and body and body[-1].startswith(b"{")  # which no topic does
    if is_well_formed or DELIMITER not in frames[start:]:
        return len(frames)
    return max(frames.index(DELIMITER, start) - topics, 1)
