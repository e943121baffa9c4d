"""Frames that were read together: each well-formed message is found, whole and in order."""

from __future__ import annotations

import pytest

from kclient.protocol.framing import DELIMITER, FRAMES, end_of_first

GOOD = [DELIMITER, b"signature", b"{header}", b"{parent}", b"{metadata}", b"{content}"]


def test_frames_are_counted_right() -> None:
    assert len(GOOD) == FRAMES


def parted(frames: list[bytes], topics: int) -> list[list[bytes]]:
    """The messages that `frames` are divided into."""
    messages = []
    while frames:
        end = end_of_first(frames, topics)
        messages.append(frames[:end])
        frames = frames[end:]
    return messages


@pytest.mark.parametrize("topics", [0, 1])
@pytest.mark.parametrize("buffers", [[], [b"buffer"], [DELIMITER], [b"", DELIMITER, *GOOD]])
def test_well_formed_message_is_one_whatever_its_buffers_hold(topics: int, buffers: list[bytes]) -> None:
    message = [b"topic"] * topics + GOOD + buffers
    assert end_of_first(message, topics) == len(message)


def test_message_without_the_topic_that_iopub_has_is_one() -> None:
    assert end_of_first(GOOD, 1) == len(GOOD)


@pytest.mark.parametrize("topics", [0, 1])
@pytest.mark.parametrize(
    "short",
    [
        [DELIMITER],
        [DELIMITER, b"x"],
        [DELIMITER, b"x", b"{}", b"{}", b"{}"],
        [b"x", DELIMITER, b"x", b"{}", b"{}", b"{}"],
        [DELIMITER] * 7,
    ],
)
def test_message_behind_one_that_is_too_short_is_found(topics: int, short: list[bytes]) -> None:
    behind = [b"topic"] * topics + GOOD
    *dropped, last = parted(short + behind, topics)
    assert last[last.index(DELIMITER) :] == GOOD
    assert dropped
