"""Decisions of a pool, without any kernel: who gets which kernel, how many start, and when a start is tried again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kclient import InvalidState, LaunchError
from kclient.pool.scheduler import (
    BUSY,
    ENDING,
    EXTRA_IDLE_S,
    FAILURES_BEFORE_REFUSAL,
    IDLE,
    STARTING,
    STATES,
    Checkout,
    PoolEntry,
    Scheduler,
    Steps,
    percentile,
)

BROKEN = LaunchError("it is broken")


class House:
    """A scheduler, and the steps that a pool would take for it. `now` is its clock."""

    def __init__(self, size: int = 1, max_size: int | None = None, *, starters: int = 100, **options: Any) -> None:
        self.scheduler = Scheduler(size, size if max_size is None else max_size, starters=starters, **options)
        self.now = 1000.0
        self.act()

    def act(self) -> Steps:
        while self.scheduler.offered() is not None:
            self.scheduler.lend()
        return self.scheduler.next_steps(self.now)

    def pass_by(self, seconds: float) -> Steps:
        self.now += seconds
        return self.act()

    def entries(self, state: str) -> list[PoolEntry]:
        return [entry for entry in self.scheduler if entry.state == state]

    def ask(self) -> Checkout:
        checkout = self.scheduler.ask(self.now, lambda: None)
        self.act()
        return checkout

    def come_up(self) -> None:
        """Let every start succeed, also the starts that follow from it."""
        while self.entries(STARTING):
            for entry in self.entries(STARTING):
                self.scheduler.ready(entry, self.now)
            self.act()

    def fail(self) -> Steps:
        """Let every start fail."""
        for entry in self.entries(STARTING):
            self.scheduler.start_failed(entry, BROKEN, self.now)
        return self.act()

    def fail_until(self, failures: int) -> Steps:
        """Let every start fail, `failures` times in a row, each as soon as it is tried."""
        steps = self.fail()
        for _ in range(failures - 1):
            self.pass_by(self.scheduler.next_look(self.now) or 0.0)
            steps = self.fail()
        return steps

    def die(self, entry: PoolEntry) -> Steps:
        self.scheduler.died(entry, BROKEN, self.now)
        return self.act()

    def end(self) -> Steps:
        """Let every kernel that is to end have ended."""
        for entry in self.entries(ENDING):
            self.scheduler.ended(entry)
        return self.act()

    def give_back(self, checkout: Checkout, *, reusable: bool = False) -> Steps:
        self.scheduler.give_back(got(checkout), self.now, reusable=reusable)
        return self.act()

    def counts(self) -> tuple[int, ...]:
        """The numbers of kernels that are starting, idle, busy and ending."""
        return tuple(self.scheduler.count(state) for state in STATES)


def got(checkout: Checkout) -> PoolEntry:
    assert checkout.entry is not None
    return checkout.entry


def warm(size: int = 1, max_size: int | None = None, **options: Any) -> House:
    house = House(size, max_size, **options)
    house.come_up()
    return house


# Who gets a kernel


def test_idle_kernel_is_lent_at_once() -> None:
    house = warm()
    assert got(house.ask()).state == BUSY


def test_kernels_are_handed_out_in_the_order_of_the_calls() -> None:
    house = House(size=3)
    checkouts = [house.ask() for _ in range(3)]
    for number, checkout in enumerate(checkouts):
        assert [checkout.is_settled for checkout in checkouts] == [earlier < number for earlier in range(3)]
        house.scheduler.ready(house.entries(STARTING)[0], house.now)
        house.act()
        assert checkout.is_settled


def test_caller_that_comes_as_a_kernel_becomes_idle_does_not_pass_those_that_wait() -> None:
    house = House()
    first = house.ask()
    house.scheduler.ready(house.entries(STARTING)[0], house.now)
    second = house.scheduler.ask(house.now, lambda: None)
    house.act()
    assert (first.is_settled, second.is_settled) == (True, False)


def test_kernel_whose_caller_is_gone_before_it_saw_it_is_the_next_ones() -> None:
    house = warm()
    gone, waits = house.ask(), house.ask()
    entry = got(gone)
    house.scheduler.withdraw(gone)
    house.act()
    assert (waits.entry, entry.uses) == (entry, 1)


def test_caller_that_is_gone_leaves_the_queue() -> None:
    house = House()
    gone, waits = house.ask(), house.ask()
    house.scheduler.withdraw(gone)
    house.come_up()
    assert (gone.entry, waits.is_settled) == (None, True)


def test_withdrawn_kernel_that_was_shut_down_meanwhile_stays_so() -> None:
    house = warm()
    checkout = house.ask()
    entry = got(checkout)
    house.scheduler.remove(entry)
    house.scheduler.withdraw(checkout)
    assert entry.state == ENDING


# How many there are


def test_size_kernels_are_kept_and_the_busy_ones_count() -> None:
    house = warm(size=3, max_size=5)
    house.ask()
    assert house.counts() == (0, 2, 1, 0)


def test_kernel_is_replaced_when_its_user_is_done() -> None:
    house = warm(size=1, max_size=2)
    steps = house.give_back(house.ask())
    assert (len(steps.start), len(steps.end)) == (1, 1)


def test_there_are_never_more_than_max_size_processes_even_while_some_end() -> None:
    house = warm(size=1)
    assert not house.give_back(house.ask()).start
    assert len(house.end().start) == 1


def test_for_callers_that_wait_more_are_started_up_to_max_size() -> None:
    house = warm(size=1, max_size=3)
    for _ in range(5):
        house.ask()
    assert house.counts() == (2, 0, 1, 0)


def test_no_more_are_started_at_a_time_than_can_be() -> None:
    house = House(size=5, starters=2)
    assert house.counts() == (2, 0, 0, 0)
    house.scheduler.ready(house.entries(STARTING)[0], house.now)
    house.act()
    assert house.counts() == (2, 1, 0, 0)


def test_kernel_beyond_size_ends_with_its_use() -> None:
    house = warm(size=1, max_size=2)
    first, second = house.ask(), house.ask()
    house.come_up()
    house.give_back(second)
    house.end()
    assert house.counts() == (0, 0, 1, 0)
    assert got(first).state == BUSY


def test_kernel_beyond_size_that_no_caller_takes_ends_after_a_while() -> None:
    house = warm(size=1, max_size=2)
    house.ask()
    house.scheduler.withdraw(house.ask())
    house.come_up()
    assert house.counts() == (0, 1, 1, 0)
    assert house.scheduler.next_look(house.now) == EXTRA_IDLE_S
    house.pass_by(EXTRA_IDLE_S - 1)
    assert house.counts() == (0, 1, 1, 0)
    house.pass_by(1)
    assert house.counts() == (0, 0, 1, 1)


# One kernel for several users


def test_clean_kernel_goes_on_to_the_next_user_until_it_is_used_up() -> None:
    house = warm(max_uses=2)
    first = house.ask()
    steps = house.give_back(first, reusable=True)
    assert (steps.renew, steps.end) == ([first.entry], [])
    house.come_up()
    second = house.ask()
    assert second.entry is first.entry
    assert house.give_back(second, reusable=True).end == [first.entry]


def test_kernel_that_is_not_clean_is_replaced_however_often_it_may_be_used() -> None:
    house = warm(max_uses=10)
    checkout = house.ask()
    assert house.give_back(checkout, reusable=False).end == [checkout.entry]


def test_kernel_being_renewed_takes_no_place_of_one_that_starts() -> None:
    house = warm(size=2, max_uses=2, starters=1)
    first, second = house.ask(), house.ask()
    house.ask()
    house.ask()
    house.give_back(first, reusable=True)
    house.give_back(second)
    assert house.counts() == (1, 0, 0, 1)
    house.end()
    assert house.counts() == (2, 0, 0, 0)


def test_kernel_shut_down_while_it_is_renewed_is_not_renewed_and_not_lent() -> None:
    house = warm(max_uses=2)
    checkout = house.ask()
    house.scheduler.give_back(got(checkout), house.now, reusable=True)
    house.scheduler.remove(got(checkout))
    steps = house.act()
    assert (steps.renew, steps.end) == ([], [checkout.entry])
    house.scheduler.ready(got(checkout), house.now)
    assert house.scheduler.count(IDLE) == 0


# Age


def test_old_kernels_are_replaced_by_new_ones_first_where_there_is_room() -> None:
    house = warm(size=2, max_size=4, max_age=60)
    assert house.scheduler.next_look(house.now) == 60
    steps = house.pass_by(60)
    assert (len(steps.start), len(steps.end)) == (2, 0)
    house.come_up()
    assert house.counts() == (0, 2, 0, 2)


def test_old_kernel_is_lent_while_its_successor_starts() -> None:
    house = warm(size=1, max_size=2, max_age=60)
    house.pass_by(60)
    assert house.ask().is_settled


def test_old_kernels_are_replaced_one_at_a_time_where_there_is_no_room() -> None:
    house = warm(size=3, max_age=60)
    house.pass_by(60)
    for _ in range(3):
        assert house.counts()[1:] == (2, 0, 1)
        house.end()
        assert house.counts() == (1, 2, 0, 0)
        house.come_up()
    assert house.counts() == (0, 3, 0, 0)


def test_old_kernels_are_kept_while_no_other_comes_up() -> None:
    house = warm(size=2, max_age=60)
    house.pass_by(60)
    house.end()
    house.fail()
    house.fail()
    assert house.counts() == (0, 1, 0, 0)
    assert house.ask().is_settled


def test_old_kernel_is_not_used_again() -> None:
    house = warm(max_uses=10, max_age=60)
    checkout = house.ask()
    house.pass_by(60)
    assert house.give_back(checkout, reusable=True).end == [checkout.entry]


# Failures


def test_caller_gets_the_reason_when_starts_fail_and_none_is_left_to_wait_for() -> None:
    house = House()
    checkout = house.ask()
    asked_at = house.now
    assert house.fail_until(FAILURES_BEFORE_REFUSAL).wake == [checkout]
    assert house.now - asked_at < 0.5
    assert isinstance(checkout.error, LaunchError)
    assert checkout.error is not BROKEN
    assert house.ask().error is not None


def test_few_failed_starts_are_nothing_to_tell_callers_who_can_wait() -> None:
    house = House()
    checkout = house.ask()
    assert not house.fail_until(FAILURES_BEFORE_REFUSAL - 1).wake
    assert house.scheduler.obstacle(house.now) is None
    house.pass_by(1)
    house.come_up()
    house.give_back(checkout)
    house.end()
    waits = house.ask()
    assert not house.fail_until(FAILURES_BEFORE_REFUSAL - 1).wake  # the kernel in between was a good one
    house.pass_by(1)
    house.come_up()
    assert got(waits).state == BUSY


def test_caller_waits_while_the_next_try_is_under_way() -> None:
    house = House()
    house.fail_until(FAILURES_BEFORE_REFUSAL)
    house.pass_by(1)
    assert house.counts() == (1, 0, 0, 0)
    checkout = house.ask()
    assert not checkout.is_settled
    assert house.fail().wake == [checkout]


def test_caller_waits_on_while_another_kernel_lives() -> None:
    house = warm(size=1, max_size=2)
    house.ask()
    waits = house.ask()
    house.fail_until(FAILURES_BEFORE_REFUSAL)
    assert not waits.is_settled
    assert house.scheduler.is_failing


def test_failed_start_is_tried_again_at_once_and_then_ever_later() -> None:
    house = House()
    assert len(house.fail().start) == 1
    for seconds in (0.1, 0.2, 0.4):
        assert not house.fail().start
        assert house.scheduler.next_look(house.now) == pytest.approx(seconds)
        assert not house.pass_by(seconds / 2).start
        assert len(house.pass_by(seconds).start) == 1


def test_starts_that_fail_together_are_one_failure() -> None:
    house = House(size=8)
    house.now += 1
    assert len(house.fail().start) == 8


def test_kernel_that_is_lent_ends_the_time_of_failures() -> None:
    house = House()
    house.fail()
    house.fail()
    house.pass_by(1)
    house.come_up()
    house.ask()
    assert not house.scheduler.is_failing


def test_idle_kernel_that_dies_is_replaced() -> None:
    house = warm(size=2, max_size=3)
    steps = house.die(house.entries(IDLE)[0])
    assert (len(steps.start), len(steps.end)) == (1, 1)
    assert house.scheduler.counters.deaths == 1


def test_kernels_that_die_idle_and_young_are_replaced_ever_later() -> None:
    house = warm(max_size=2)
    for _ in range(3):
        house.die(house.entries(IDLE)[0])
        house.end()
        house.pass_by(1)
        house.come_up()
    house.die(house.entries(IDLE)[0])
    assert house.scheduler.next_look(house.now) == pytest.approx(0.4)
    assert isinstance(house.ask().error, LaunchError)


def test_kernels_that_die_idle_after_long_are_replaced_at_once() -> None:
    house = warm(max_size=2)
    for _ in range(5):
        house.pass_by(11)
        assert len(house.die(house.entries(IDLE)[0]).start) == 1
        house.end()
        house.come_up()


def test_deaths_under_users_do_not_slow_down_starts() -> None:
    house = warm(max_size=2)
    for _ in range(5):
        checkout = house.ask()
        house.die(got(checkout))
        assert got(checkout).state == BUSY
        assert len(house.give_back(checkout).start) == 1
        house.end()
        house.come_up()
    assert (house.scheduler.counters.deaths, house.scheduler.is_failing) == (5, False)


def test_pool_is_not_warm_for_the_reason_why_starts_fail_even_beside_kernels_that_live() -> None:
    house = House(size=2)
    house.scheduler.ready(house.entries(STARTING)[0], house.now)
    house.fail_until(FAILURES_BEFORE_REFUSAL)
    assert house.scheduler.obstacle(house.now) is BROKEN
    assert house.scheduler.refusal(house.now) is None


# The end


def test_closing_ends_every_kernel_and_refuses_every_caller() -> None:
    house = warm(size=2)
    held = house.ask()
    house.ask()
    waits = house.ask()
    house.scheduler.close()
    steps = house.act()
    assert (len(steps.end), steps.wake) == (2, [waits])
    assert isinstance(waits.error, InvalidState)
    assert isinstance(house.ask().error, InvalidState)
    house.give_back(held)
    assert not house.end().start
    assert len(house.scheduler) == 0
    assert house.scheduler.next_look(house.now) is None


def test_kernel_given_back_after_it_was_shut_down_is_not_recycled_twice() -> None:
    house = warm(max_size=2)
    checkout = house.ask()
    house.scheduler.remove(got(checkout))
    assert len(house.act().end) == 1
    assert not house.give_back(checkout).end


@pytest.mark.parametrize(("percent", "value"), [(50, 5), (90, 9), (99, 10), (100, 10)])
def test_percentiles_are_values_that_occurred(percent: int, value: int) -> None:
    assert percentile([*range(1, 11)], percent) == value


def test_there_are_no_percentiles_of_nothing() -> None:
    assert House().scheduler.stats().checkout_p99 is None


# Any order of events


class Anything(RuleBasedStateMachine):
    """A pool to which anything happens, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.house = House(size=2, max_size=4, max_uses=2, max_age=60, starters=2)
        self.waiting: list[Checkout] = []
        self.held: list[Checkout] = []

    def act(self) -> None:
        """Act as the pool does. Dead kernels are left out."""
        self.house.act()
        served = [checkout for checkout in self.waiting if checkout.is_settled]
        assert served == self.waiting[: len(served)], "first come, first served"
        self.waiting = self.waiting[len(served) :]
        self.held += [checkout for checkout in served if checkout.entry is not None]

    def pick(self, state: str, data: st.DataObject) -> PoolEntry | None:
        entries = self.house.entries(state)
        return data.draw(st.sampled_from(entries)) if entries else None

    @rule()
    def ask(self) -> None:
        self.waiting.append(self.house.scheduler.ask(self.house.now, lambda: None))
        self.act()

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def give_up(self, data: st.DataObject) -> None:
        checkout = data.draw(st.sampled_from(self.waiting))
        self.waiting.remove(checkout)
        self.house.scheduler.withdraw(checkout)
        self.act()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def be_killed_while_handed_a_kernel(self, data: st.DataObject) -> None:
        checkout = data.draw(st.sampled_from(self.held))
        self.held.remove(checkout)
        self.house.scheduler.withdraw(checkout)
        self.act()

    @precondition(lambda self: self.held)
    @rule(data=st.data(), reusable=st.booleans())
    def give_back(self, data: st.DataObject, reusable: bool) -> None:
        checkout = data.draw(st.sampled_from(self.held))
        self.held.remove(checkout)
        self.house.scheduler.give_back(got(checkout), self.house.now, reusable=reusable)
        self.act()

    @rule(data=st.data())
    def come_up(self, data: st.DataObject) -> None:
        if entry := self.pick(STARTING, data):
            self.house.scheduler.ready(entry, self.house.now)
            self.act()

    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        if entry := self.pick(STARTING, data):
            self.house.scheduler.start_failed(entry, BROKEN, self.house.now)
            self.act()

    @rule(data=st.data(), state=st.sampled_from([IDLE, BUSY]))
    def die(self, data: st.DataObject, state: str) -> None:
        if entry := self.pick(state, data):
            self.house.scheduler.died(entry, BROKEN, self.house.now)
            self.act()

    @rule(data=st.data(), state=st.sampled_from(STATES))
    def shut_down(self, data: st.DataObject, state: str) -> None:
        if entry := self.pick(state, data):
            self.house.scheduler.remove(entry)
            self.act()

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        if entry := self.pick(ENDING, data):
            self.house.scheduler.ended(entry)
            self.act()

    @rule(seconds=st.sampled_from([0.1, 5.0, 61.0]))
    def pass_by(self, seconds: float) -> None:
        self.house.now += seconds
        self.act()

    @invariant()
    def no_kernel_has_two_users(self) -> None:
        users = [got(checkout) for checkout in self.held]
        assert len(set(users)) == len(users)
        assert set(self.house.entries(BUSY)) <= set(users)

    @invariant()
    def there_are_never_too_many(self) -> None:
        assert len(self.house.scheduler) <= 4
        assert all(entry.uses <= 2 for entry in self.house.scheduler)

    @invariant()
    def no_caller_waits_beside_an_idle_kernel(self) -> None:
        assert not (self.waiting and self.house.entries(IDLE))
        assert self.house.scheduler.waiting == len(self.waiting)

    @invariant()
    def no_caller_waits_in_vain(self) -> None:
        """While a caller waits, an action is under way or the time of the next look is set."""
        if self.waiting:
            scheduler = self.house.scheduler
            assert len(scheduler) or scheduler.next_look(self.house.now) is not None

    def teardown(self) -> None:
        """When all kernels are given back and all starts succeed, `size` young kernels are idle and no caller waits."""
        house = self.house
        for _ in range(20):
            for checkout in self.held:
                house.scheduler.give_back(got(checkout), house.now, reusable=False)
            self.held = []
            for entry in house.entries(BUSY):
                house.scheduler.remove(entry)
            house.pass_by(31)
            house.end()
            house.come_up()
            self.act()
        assert not self.waiting
        assert 2 <= house.scheduler.count(IDLE) <= 4


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=60, stateful_step_count=40)
