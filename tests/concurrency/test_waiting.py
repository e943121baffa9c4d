"""Owners, deadlines, parked greenlets, timers, callbacks and logging from the hub."""

import gc
import logging
import math
import os
import signal
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from fractions import Fraction
from itertools import count
from time import monotonic

import gevent
import pytest
from gevent import get_hub, getcurrent
from gevent._hub_local import get_hub_if_exists
from strikes import Strike

from kclient.concurrency import deadline as deadline_module
from kclient.concurrency.callbacks import call_back, in_callback
from kclient.concurrency.deadline import Deadline, check_seconds
from kclient.concurrency.log import log_soon
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking, Timer, switch_soon, weakly
from kclient.errors import InvalidArgument, KClientError, WrongThread

FOR_EVER = Deadline(None)
LONG = 30
"""Seconds. A test waits so long only if it fails."""


@pytest.fixture
def parking():
    return Parking(Owner())


@pytest.fixture
def clock(monkeypatch):
    """The time of the clock in seconds, in a list of one number."""
    now = [1000.0]
    monkeypatch.setattr(deadline_module, "monotonic", lambda: now[0])
    return now


@pytest.fixture(autouse=True)
def default_sigint():
    """Restore Python's own handler: a shell that runs the tests in the background lets them ignore SIGINT."""
    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, old)


def in_thread(function):
    """The value that `function` returns in another thread; raises its exception."""

    def run():
        try:
            return function()
        finally:
            made = get_hub_if_exists()
            if made is not None:
                made.destroy()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def in_child(function):
    """The text of the value that `function` returns in a forked child."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork in a process with threads
        pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, str(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return text


def in_hub(function):
    """The value that `function` returns in the hub."""
    outcome, done = [], Parking(Owner())

    def run():
        outcome.append(function())
        done.wake()

    get_hub().loop.run_callback(run)
    assert done.wait(Deadline(LONG))
    return outcome[0]


def error_of(function, *args):
    """The type's name and the text of the error that `function` raises."""
    try:
        function(*args)
    except KClientError as exc:
        return f"{type(exc).__name__}: {exc}"
    return "none"


# Owners


def test_every_greenlet_of_the_owners_hub_may_call():
    owner = Owner()
    owner.check()
    assert gevent.spawn(owner.check).get() is None
    assert gevent.spawn(lambda: owner.is_here).get() is True
    assert not owner.forked


def test_another_thread_may_not_call():
    owner = Owner()
    with pytest.raises(WrongThread, match="make one of your own in this thread"):
        in_thread(owner.check)
    assert in_thread(lambda: owner.is_here) is False


def test_another_thread_with_a_hub_of_its_own_may_not_call():
    owner = Owner()

    def call():
        assert get_hub() is not owner.hub
        owner.check()

    with pytest.raises(WrongThread):
        in_thread(call)


def test_owner_of_another_thread_may_not_be_used_here():
    other = in_thread(Owner)
    with pytest.raises(WrongThread):
        other.check()


def test_refused_call_makes_no_hub_in_the_foreign_thread():
    owner = Owner()

    def call():
        error = error_of(owner.check)
        return error, get_hub_if_exists()

    error, made = in_thread(call)
    assert error.startswith("WrongThread")
    assert made is None


def test_forked_child_may_not_call():
    owner = Owner()
    assert in_child(lambda: error_of(owner.check)).startswith("ForkedProcess: made before a fork")
    assert in_child(lambda: (owner.forked, owner.is_here)) == "(True, False)"
    owner.check()  # and the parent may still call


def test_forked_child_may_call_what_it_made_itself():
    assert in_child(lambda: (Owner().forked, error_of(Owner().check))) == "(False, 'none')"


def test_child_of_a_child_is_a_fork_as_well():
    def fork_again():
        mine = Owner()
        return error_of(mine.check) + ", " + in_child(lambda: error_of(mine.check))

    assert in_child(fork_again).startswith("none, ForkedProcess: ")


def test_function_runs_at_once_in_the_owners_hub():
    ran = []
    Owner().run_here(lambda: ran.append(getcurrent()))
    assert ran == [getcurrent()]


def test_function_of_another_thread_runs_in_the_owners_hub(parking):
    owner, ran = Owner(), []

    def run():
        ran.append(threading.current_thread())
        parking.wake()

    in_thread(lambda: owner.run_here(run))
    assert ran == []
    assert parking.wait(Deadline(LONG))
    assert ran == [threading.current_thread()]


def test_function_does_not_run_in_a_forked_child():
    owner, ran = Owner(), []

    def call():
        owner.run_here(lambda: ran.append(1))
        return ran

    assert in_child(call) == "[]"


def test_function_runs_at_once_in_any_thread_when_the_owners_hub_is_gone():
    other, ran = in_thread(Owner), []
    other.run_here(lambda: ran.append(1))
    assert ran == [1]


# Deadlines


def test_deadline_is_one_budget(clock):
    deadline = Deadline(10)
    assert (deadline.timeout, deadline.left(), deadline.is_over) == (10, 10, False)
    clock[0] += 4
    assert (deadline.left(), deadline.is_over) == (6, False)
    clock[0] += 6
    assert (deadline.left(), deadline.is_over) == (0, True)
    clock[0] += 100
    assert (deadline.left(), deadline.is_over) == (0, True)
    assert deadline.timeout == 10


def test_deadline_of_none_is_never_over(clock):
    deadline = Deadline(None)
    clock[0] += 10**9
    assert (deadline.timeout, deadline.left(), deadline.is_over) == (None, None, False)


def test_deadline_of_zero_is_over_at_once(clock):
    assert Deadline(0).is_over
    assert Deadline(0).left() == 0


def test_step_takes_no_longer_than_the_call(clock):
    deadline = Deadline(10)
    clock[0] += 8
    assert deadline.at_most(5).left() == 2
    assert deadline.at_most(1).left() == 1
    assert Deadline(None).at_most(5).left() == 5
    clock[0] += 5
    assert deadline.at_most(5).is_over


def test_infinite_timeout_never_ends(clock):
    deadline = Deadline(math.inf)
    clock[0] += 10**9
    assert (deadline.left(), deadline.is_over) == (math.inf, False)
    assert deadline.at_most(3).left() == 3


def test_timeout_is_a_number_of_seconds():
    for timeout in (0, 0.0, 1, 2.5, 10**9, 1e300, math.inf):
        assert check_seconds(timeout, "timeout") == timeout


def test_timeout_that_is_no_number_of_seconds_is_an_invalid_argument():
    for timeout in ("1", "", b"1", [], {}, object(), None, True, False, 1j, Decimal(1), Fraction(1), int):
        with pytest.raises(InvalidArgument, match="number of seconds"):
            check_seconds(timeout, "timeout")
    for timeout in (-1, -0.001, -math.inf, math.nan):
        with pytest.raises(InvalidArgument, match="0 or more") as caught:
            Deadline(timeout)
        assert repr(timeout) in str(caught.value)


def test_timeout_beyond_every_float_is_an_invalid_argument():
    with pytest.raises(InvalidArgument):
        Deadline(10**400)


# Waiting


def test_wake_lets_everyone_go_on(parking):
    waiting = [gevent.spawn(parking.wait, FOR_EVER) for _ in range(5)]
    gevent.idle()
    assert len(parking) == 5
    parking.wake()
    assert gevent.joinall(waiting, timeout=LONG) == waiting
    assert [each.value for each in waiting] == [True] * 5
    assert len(parking) == 0


def test_woken_greenlet_goes_on_at_the_next_turn_and_not_inside_the_wake(parking):
    order = []

    def wait():
        parking.wait(FOR_EVER)
        order.append("woken")

    waiting = gevent.spawn(wait)
    gevent.idle()
    parking.wake("any cause")
    order.append("after the wake")
    waiting.join()
    assert order == ["after the wake", "woken"]


def test_those_woken_while_someone_gathers_them_are_left_to_that(parking):
    wakeups = Owner().wakeups
    waiting = [gevent.spawn(parking.wait, FOR_EVER) for _ in range(2)]
    gevent.idle()

    def gather():
        wakeups.woken = woken = []
        parking.wake()
        wakeups.woken = None
        return woken

    gathered = in_hub(gather)
    assert len(gathered) == 2
    gevent.idle()
    assert not any(each.ready() for each in waiting)
    switch_soon(gathered)
    gevent.joinall(waiting, timeout=LONG)
    assert [each.value for each in waiting] == [True, True]


def test_all_objects_of_a_hub_share_its_wakeups():
    assert Owner().wakeups is Owner().wakeups
    assert in_thread(lambda: Owner().wakeups) is not Owner().wakeups


def test_wake_is_for_greenlets_that_wait_now(parking):
    parking.wake()
    assert parking.wait(Deadline(0.01)) is False


def test_wait_again_is_a_new_wait(parking):
    for _ in range(3):
        gevent.spawn(parking.wake)
        assert parking.wait(Deadline(LONG)) is True
    assert parking.wait(Deadline(0.01)) is False


def test_wait_ends_with_its_deadline(parking):
    before = monotonic()
    assert parking.wait(Deadline(0.05)) is False
    assert 0.05 <= monotonic() - before < LONG
    assert len(parking) == 0


def test_wait_of_no_time_does_not_let_others_run(parking):
    ran = []
    other = gevent.spawn(ran.append, 1)
    assert parking.wait(Deadline(0)) is False
    assert ran == []
    other.join()


def test_wait_may_be_very_long(parking):
    for timeout in (math.inf, 1e300, 1e9):
        gevent.spawn(parking.wake)
        assert parking.wait(Deadline(timeout)) is True


def test_killed_greenlet_leaves_the_others_waiting(parking):
    killed, waiting = (gevent.spawn(parking.wait, FOR_EVER) for _ in range(2))
    gevent.idle()
    killed.kill()
    assert len(parking) == 1
    parking.wake()
    assert waiting.get(timeout=LONG) is True


def test_wake_that_comes_too_late_for_a_killed_greenlet_ends_no_wait(parking):
    waiting = gevent.spawn(parking.wait, FOR_EVER)
    gevent.idle()
    waiting.kill(block=False)
    parking.wake()
    waiting.join()
    assert isinstance(waiting.value, gevent.GreenletExit)
    assert len(parking) == 0
    assert parking.wait(Deadline(0.01)) is False


def test_timeout_of_the_caller_ends_the_wait_and_leaves_nothing(parking):
    with pytest.raises(gevent.Timeout) as caught, gevent.Timeout(0.01) as timeout:
        parking.wait(Deadline(LONG))
    assert caught.value is timeout
    assert len(parking) == 0


def test_wake_and_timeout_in_one_turn_wake_once(parking):
    """The first of the two timers must not end a later wait."""

    def stall_and_wake():
        until = monotonic() + 0.02
        while monotonic() < until:
            pass
        parking.wake()

    gevent.spawn(stall_and_wake)
    parking.wait(Deadline(0.01))
    assert parking.wait(Deadline(0.01)) is False


def test_wait_in_the_hub_is_refused(parking):
    for deadline in (FOR_EVER, Deadline(LONG)):
        refused = in_hub(lambda deadline=deadline: error_of(parking.wait, deadline))
        assert refused.startswith("InvalidState: a blocking call in the hub")
        assert "spawn" in refused
    assert in_hub(lambda: parking.wait(Deadline(0))) is False
    assert len(parking) == 0


def test_hub_of_another_thread_waits_and_wakes_as_well():
    def wait():
        parking = Parking(Owner())
        timed_out = parking.wait(Deadline(0.01))
        gevent.spawn(parking.wake)
        return timed_out, parking.wait(Deadline(LONG))

    assert in_thread(wait) == (False, True)


# Ctrl-C


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def handler():
    return signal.getsignal(signal.SIGINT)


def test_ctrl_c_is_raised_in_the_waiting_main_greenlet_and_in_no_other(parking):
    survived = []

    def bystander():
        ctrl_c()
        survived.append(1)

    other = gevent.spawn(bystander)
    for deadline in (Deadline(LONG), FOR_EVER):
        with pytest.raises(KeyboardInterrupt):
            parking.wait(deadline)
        gevent.spawn(ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        parking.wait(FOR_EVER)
    assert other.successful()
    assert survived == [1]
    assert len(parking) == 0
    assert handler() is signal.default_int_handler


def test_ctrl_c_is_raised_by_a_wait_in_which_nothing_else_happens(parking):
    is_waiting = threading.Event()

    def press():
        is_waiting.wait(LONG)
        ctrl_c()

    thread = threading.Thread(target=press)
    thread.start()
    get_hub().loop.run_callback(is_waiting.set)  # the hub does this last before it sleeps
    with pytest.raises(KeyboardInterrupt):
        parking.wait(Deadline(1))  # the hub sees a signal that comes just before it sleeps when it wakes
    thread.join()


def test_ctrl_c_beside_a_wake_is_not_lost(parking):
    def both():
        parking.wake()
        ctrl_c()

    gevent.spawn(both)
    with pytest.raises(KeyboardInterrupt):
        parking.wait(FOR_EVER)


def test_ctrl_c_outside_a_wait_is_pythons_own(parking):
    gevent.spawn(parking.wake)
    parking.wait(FOR_EVER)
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_pythons_handler_is_back_however_the_wait_ends(parking):
    gevent.spawn(parking.wake)
    parking.wait(FOR_EVER)
    assert handler() is signal.default_int_handler
    parking.wait(Deadline(0.001))
    assert handler() is signal.default_int_handler
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.001):
        parking.wait(FOR_EVER)
    assert handler() is signal.default_int_handler


def test_handler_of_the_user_is_called_and_the_wait_goes_on(parking):
    caught = []

    def mine(signum, frame):
        caught.append(signum)

    signal.signal(signal.SIGINT, mine)

    def press():
        ctrl_c()
        gevent.idle()
        parking.wake()

    gevent.spawn(press)
    assert parking.wait(FOR_EVER) is True
    assert caught == [signal.SIGINT]
    assert handler() is mine


def test_error_in_a_handler_of_the_user_is_the_users_own(parking):
    class Stop(KClientError):
        pass

    def mine(signum, frame):
        raise Stop

    signal.signal(signal.SIGINT, mine)

    def press():
        with pytest.raises(Stop):
            ctrl_c()
        parking.wake()

    pressed = gevent.spawn(press)
    assert parking.wait(Deadline(LONG)) is True
    assert pressed.successful()
    assert handler() is mine


def test_ignored_ctrl_c_stays_ignored(parking):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gevent.spawn(ctrl_c)
    assert parking.wait(Deadline(0.01)) is False
    assert handler() is signal.SIG_IGN


def test_handler_that_the_user_sets_during_the_wait_stays(parking):
    def mine(signum, frame):
        pass

    def set_and_wake():
        signal.signal(signal.SIGINT, mine)
        parking.wake()

    gevent.spawn(set_and_wake)
    parking.wait(FOR_EVER)
    assert handler() is mine


def test_handler_that_the_user_found_during_the_wait_and_puts_back_later_still_works(parking):
    found = []

    def look_and_wake():
        found.append(signal.signal(signal.SIGINT, signal.SIG_IGN))
        parking.wake()

    gevent.spawn(look_and_wake)
    parking.wait(FOR_EVER)
    signal.signal(signal.SIGINT, found[0])
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_wait_of_another_greenlet_leaves_the_handler_alone(parking):
    waiting = gevent.spawn(parking.wait, FOR_EVER)
    gevent.idle()
    assert handler() is signal.default_int_handler
    parking.wake()
    waiting.join()


# Callbacks


def test_callback_is_known_to_be_one_in_its_greenlet_alone():
    def callback(number):
        return number, in_callback(), gevent.spawn(in_callback).get()

    assert call_back(callback, 5) == (5, True, False)
    assert not in_callback()


def test_callback_in_a_callback_is_still_in_the_outer_one_when_it_is_over():
    def outer():
        inner = call_back(in_callback)
        return inner, in_callback()

    assert call_back(outer) == (True, True)
    assert not in_callback()


def test_callback_that_fails_is_over():
    with pytest.raises(ZeroDivisionError):
        call_back(lambda: 1 / 0)
    assert not in_callback()


def test_killed_callback_is_over_and_its_greenlet_can_be_collected(parking):
    running = gevent.spawn(call_back, parking.wait, FOR_EVER)
    gevent.idle()
    running.kill()
    reference = weakref.ref(running)
    del running
    gevent.idle()
    gc.collect()
    assert reference() is None


# Logging from the hub


class KeepingHandler(logging.Handler):
    """Keeps log records, and lets other greenlets run meanwhile, as a handler that writes to a socket does."""

    def __init__(self, parking):
        super().__init__()
        self.parking = parking
        self.kept = []

    def emit(self, record):
        gevent.sleep(0)
        self.kept.append((record.levelno, record.getMessage()))
        self.parking.wake()


@pytest.fixture
def log_handler(parking):
    return KeepingHandler(parking)


@pytest.fixture
def logger(log_handler):
    logger = logging.getLogger("kclient.tests.hub")
    logger.setLevel(logging.WARNING)
    logger.addHandler(log_handler)
    yield logger
    logger.removeHandler(log_handler)


def test_line_is_logged_at_once_outside_the_hub(logger, log_handler):
    log_soon(logger, logging.WARNING, "%s of %d", "one", 2)
    assert log_handler.kept == [(logging.WARNING, "one of 2")]


def test_line_is_logged_soon_in_the_hub_though_the_handler_blocks(logger, log_handler, parking):
    assert in_hub(lambda: log_soon(logger, logging.ERROR, "%s", "from the hub")) is None
    while not log_handler.kept:
        assert parking.wait(Deadline(LONG))
    assert log_handler.kept == [(logging.ERROR, "from the hub")]


def test_line_below_the_level_costs_nothing(logger, log_handler):
    class Costly:
        def __str__(self):
            raise AssertionError("the line is below the level")

    log_soon(logger, logging.INFO, "%s", Costly())
    assert in_hub(lambda: log_soon(logger, logging.DEBUG, "%s", Costly())) is None
    gevent.idle()
    assert log_handler.kept == []


def test_watcher_keeps_no_object_alive():
    class Watched:
        def __init__(self):
            self.called = []

        def note(self, *args):
            self.called.append(args)

    watched = Watched()
    call = weakly(watched.note)
    call(1, 2)
    assert watched.called == [(1, 2)]
    reference = weakref.ref(watched)
    del watched
    gc.collect()
    assert reference() is None
    call(3)  # and a call that is too late does nothing


class Called:
    """Counts the calls of a timer. The first one sets the timer again, if `again` is true."""

    def __init__(self, again=False):
        self.owner = Owner()
        self.timer = Timer(self.owner, self.call)
        self.again = again
        self.count = 0

    def call(self):
        self.count += 1
        if self.again and self.count == 1:
            self.timer.set(0)

    def wait_until_it_is_done(self):
        deadline = Deadline(LONG)
        while self.count <= self.again or self.timer._timer is not None:
            gevent.sleep(0.001)
            assert not deadline.is_over


@pytest.mark.parametrize("again", [False, True])
def test_ctrl_c_at_any_line_of_a_timers_call_does_not_lose_the_call(again):
    for at in count(1):
        called = Called(again)
        called.timer.set(0)
        assert called.timer.is_set
        strike = Strike(at, Timer._fire.__code__)
        error = strike.during(called.wait_until_it_is_done)
        assert isinstance(error, KeyboardInterrupt) or not strike.where, f"{error!r} at {strike.where}"
        called.wait_until_it_is_done()
        assert not called.timer.is_set, strike.where
        if not strike.where:
            break
    assert at > 10
    assert called.count == 1 + again


def test_timer_whose_call_raises_does_not_call_again(capsys):
    class Broken(Called):
        def call(self):
            super().call()
            raise ValueError("broken")

    broken = Broken()
    broken.timer.set(0)
    broken.wait_until_it_is_done()
    assert not broken.timer.is_set
    assert (broken.count, capsys.readouterr().err.count("broken")) == (1, 2)


def test_cancelled_timer_does_not_call():
    called, other = Called(), Called()
    called.timer.set(0)
    called.timer.cancel()
    other.timer.set(0)
    other.wait_until_it_is_done()
    assert (called.count, called.timer.is_set) == (0, False)
