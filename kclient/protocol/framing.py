"""Where one message ends and the next begins, in frames that may be those of two messages.

A message has five frames or more after its delimiter. The channel reads these five without asking ZeroMQ whether
more frames follow, because asking costs five times as much as reading the frame. It asks only after the fifth. So a
message that is too short is read together with the next one. `end_of_first` finds where the first ends.
"""

from __future__ import annotations

from typing import Final

DELIMITER: Final = b"<IDS|MSG>"

FRAMES: Final = 6
"""Frames that every message has from its delimiter on: the delimiter, the signature and the four dicts."""


def end_of_first(frames: list[bytes], topics: int) -> int:
    """The number of `frames` that the first message has: all of them if it is well formed.

    `frames` hold a delimiter, and end where a message ends. A second delimiter before the content of the first message
    belongs to a second message. That message begins `topics` frames before its delimiter: so many topics or
    identities precede a delimiter on this socket. The first message ends there.
    """
    start = frames.index(DELIMITER) + 1
    body = frames[start : start + FRAMES - 1]
    is_well_formed = DELIMITER not in body and body and body[-1].startswith(b"{")  # no topic begins with {
    if is_well_formed or DELIMITER not in frames[start:]:
        return len(frames)
    return max(frames.index(DELIMITER, start) - topics, 1)
