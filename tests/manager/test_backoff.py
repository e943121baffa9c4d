"""The delays between repeated attempts, and the attempt after which to give up."""

from __future__ import annotations

import pytest

from kclient import InvalidArgument
from kclient.manager.backoff import LONGEST_WAIT_S, Backoff


def test_the_first_try_is_made_at_once_and_each_later_one_after_twice_the_time() -> None:
    backoff = Backoff(limit=5)
    assert [backoff.after(0.0) for _ in range(5)] == [0.0, 0.1, 0.2, 0.4, 0.8]


def test_after_the_limit_it_gives_up() -> None:
    backoff = Backoff(limit=2)
    assert [backoff.after(0.0) is None for _ in range(4)] == [False, False, True, True]


def test_a_limit_of_none_at_all_gives_up_at_once() -> None:
    assert Backoff(limit=0).after(0.0) is None


def test_stable_run_does_not_count_as_a_failure() -> None:
    backoff = Backoff(limit=1, stable_start_time=10.0)
    assert [backoff.after(lasted) for lasted in (9.9, 10.0, 10.1, 9.9)] == [0.0, 0.0, 0.0, None]


def test_without_a_limit_it_goes_on_for_ever_and_never_waits_longer_than_the_most() -> None:
    backoff = Backoff(limit=None)
    waits = [backoff.after(0.0) for _ in range(5000)]
    assert None not in waits
    assert waits[-1] == LONGEST_WAIT_S


def test_a_success_makes_the_next_failure_the_first() -> None:
    backoff = Backoff(limit=2)
    backoff.after(0.0)
    backoff.after(0.0)
    backoff.reset()
    assert backoff.after(0.0) == 0.0


@pytest.mark.parametrize("limit", [-1, 1.5, "5", True])
def test_what_is_no_number_of_restarts_is_refused(limit: object) -> None:
    with pytest.raises(InvalidArgument, match="whole number"):
        Backoff(limit=limit)  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [-1, "10", None, float("nan")])
def test_what_is_no_time_is_refused(seconds: object) -> None:
    with pytest.raises(InvalidArgument, match="stable_start_time"):
        Backoff(stable_start_time=seconds)  # type: ignore[arg-type]
