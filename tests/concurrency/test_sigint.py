"""Ctrl-C during a public call is put off until the call waits or ends. In a callback it is raised at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import gevent
import gevent.event
import pytest

from kclient.concurrency.callbacks import call_back
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking

WAIT = 20


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture(autouse=True)
def default_sigint() -> Iterator[None]:
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def strike() -> None:
    signal.raise_signal(signal.SIGINT)


def test_ctrl_c_in_a_call_is_raised_when_it_ends(owner: Owner) -> None:
    steps = []

    def call() -> None:
        with owner.call():
            strike()
            steps.append("after it")
        steps.append("after the call")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert steps == ["after it"]


def test_ctrl_c_in_a_call_is_raised_at_its_next_wait(owner: Owner) -> None:
    steps = []

    def call() -> None:
        with owner.call():
            strike()
            steps.append("before the wait")
            Parking(owner).wait(Deadline(WAIT))
            steps.append("after the wait")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert steps == ["before the wait"]


def test_ctrl_c_in_a_call_within_a_call_is_raised_when_the_outer_one_ends(owner: Owner) -> None:
    steps = []

    def call() -> None:
        with owner.call():
            with owner.call():
                strike()
            steps.append("after the inner one")

    with pytest.raises(KeyboardInterrupt):
        call()
    assert steps == ["after the inner one"]


def test_ctrl_c_in_a_callback_is_raised_there_and_put_off_again_after_it(owner: Owner) -> None:
    with owner.call():
        with pytest.raises(KeyboardInterrupt):
            call_back(strike)
        strike()
        with pytest.raises(KeyboardInterrupt):
            call_back(lambda: None)


def test_handler_that_the_user_sets_in_a_callback_stays(owner: Owner) -> None:
    with owner.call():
        call_back(signal.signal, signal.SIGINT, signal.SIG_IGN)
    assert signal.signal(signal.SIGINT, signal.default_int_handler) is signal.SIG_IGN


def test_handler_that_the_user_found_during_a_call_and_puts_back_later_still_works(owner: Owner) -> None:
    with owner.call():
        found = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, found)
    with pytest.raises(KeyboardInterrupt):
        strike()
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_handler_of_the_user_is_called_at_once(owner: Owner) -> None:
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda signum, frame: came.append(signum))
    try:
        with owner.call():
            strike()
            assert came == [signal.SIGINT]
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_call_in_another_greenlet_passes_ctrl_c_on_to_the_main_one(owner: Owner) -> None:
    def call() -> str:
        with owner.call():
            strike()
        return "went on"

    other = gevent.spawn(call)
    with pytest.raises(KeyboardInterrupt):
        gevent.sleep(WAIT)
    assert other.get(timeout=WAIT) == "went on"


def test_ctrl_c_while_the_call_of_another_greenlet_waits_is_none_of_its_business(owner: Owner) -> None:
    parking = Parking(owner)

    def call() -> bool:
        with owner.call():
            return parking.wait(Deadline(WAIT))

    other = gevent.spawn(call)
    gevent.idle()
    with pytest.raises(KeyboardInterrupt):
        strike()
    parking.wake()
    assert other.get(timeout=WAIT)


def test_call_in_another_thread_leaves_signals_alone() -> None:
    seen = []

    def call() -> None:
        with Owner().call():
            call_back(lambda: seen.append(signal.getsignal(signal.SIGINT)))

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    assert seen == [signal.default_int_handler]


def test_call_of_the_main_thread_does_not_disturb_a_callback_of_another(owner: Owner) -> None:
    errors = []

    def call() -> None:
        try:
            call_back(lambda: None)
        except ValueError as exc:  # signal handlers can be set in the main thread only
            errors.append(exc)

    with owner.call():
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert errors == []


def test_handler_that_gevent_has_set_stays(owner: Owner) -> None:
    """A server shuts down by gevent.signal_handler, which replaces the handler without Python's knowledge."""
    came = gevent.event.Event()
    handler = gevent.signal_handler(signal.SIGINT, came.set)
    try:
        with owner.call():
            Parking(owner).wait(Deadline(0.001))
        Parking(owner).wait(Deadline(0.001))
        os.kill(os.getpid(), signal.SIGINT)
        assert came.wait(WAIT)
    finally:
        handler.cancel()
        signal.signal(signal.SIGINT, signal.default_int_handler)
