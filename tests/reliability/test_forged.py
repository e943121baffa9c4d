"""Messages signed without the key, and replays: they are dropped, without a pause."""

from __future__ import annotations

import gc
from time import thread_time

import pytest
from figures import Figures

from kclient.errors import BadMessage
from kclient.protocol.session import REPLAY_HISTORY_SIGNATURES, Session


def test_history_of_what_was_seen_makes_no_pause(figures: Figures) -> None:
    """Each new signature drops one old one from the history, so no message waits for a thousand to be sorted out."""
    kernel, client = Session(b"key"), Session(b"key")
    count = REPLAY_HISTORY_SIGNATURES + figures.size(1000, 300_000)
    longest = 0.0
    gc.disable()
    try:
        for number in range(count):
            frames = kernel.serialize(kernel.msg("status", {"execution_state": "idle"}))
            start = thread_time()
            client.deserialize(frames)
            if number > REPLAY_HISTORY_SIGNATURES:
                longest = max(longest, thread_time() - start)
    finally:
        gc.enable()
    with pytest.raises(BadMessage):
        client.deserialize(frames)
    figures.note(
        "history of signatures: processor time of the longest of all messages", longest * 1e3, "ms", at_most=10
    )
