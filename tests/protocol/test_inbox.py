"""The inbox keeps the newest messages, in order, within its bounds, and counts those that it dropped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kclient.protocol.inbox import MESSAGE_NBYTES, Backlog, Inbox
from kclient.protocol.memory import SPARE_NBYTES
from kclient.protocol.messages import Message

NO_BOUND = 10**9


def message(nbytes=1):
    return Message({"msg_id": "1", "msg_type": "stream"}, nbytes=nbytes)


def test_messages_come_out_in_order_of_arrival():
    inbox = Inbox(NO_BOUND, NO_BOUND)
    messages = [message() for _ in range(5)]
    for each in messages:
        assert inbox.append(each) == []
    assert len(inbox) == 5
    assert [inbox.pop_oldest() for _ in range(2)] == messages[:2]
    assert inbox.pop_all() == messages[2:]
    assert len(inbox) == inbox.nbytes == inbox.dropped == 0


def test_message_that_is_wanted_is_taken_from_between_the_others():
    inbox = Inbox(NO_BOUND, NO_BOUND)
    messages = [message(nbytes) for nbytes in (1, 2, 3, 2)]
    for each in messages:
        inbox.append(each)
    assert inbox.take(lambda each: each.nbytes == 2) is messages[1]
    assert inbox.take(lambda each: each.nbytes == 9) is None
    assert (inbox.nbytes, inbox.dropped) == (6, 0)
    assert inbox.pop_all() == [messages[0], *messages[2:]]


def test_second_look_sees_only_newer_messages():
    inbox = Inbox(3, NO_BOUND)
    for nbytes in (1, 2, 3):
        inbox.append(message(nbytes))
    seen, looked_at = inbox.arrived, []
    assert inbox.take(looked_at.append, seen) is None
    newer = [message(nbytes) for nbytes in (4, 5)]
    for each in newer:
        inbox.append(each)
    inbox.remove(newer[0])
    inbox.append(message(6))
    assert inbox.take(looked_at.append, seen) is None
    assert [each.nbytes for each in looked_at] == [3, 5, 6]  # 3 in place of 4, which is gone


def test_empty_inbox_has_no_oldest():
    inbox = Inbox(NO_BOUND, NO_BOUND)
    assert inbox.pop_all() == []
    with pytest.raises(KeyError):
        inbox.pop_oldest()
    assert inbox.nbytes == 0


def test_message_beyond_the_bound_pushes_out_the_oldest():
    inbox = Inbox(3, NO_BOUND)
    messages = [message() for _ in range(5)]
    assert [inbox.append(each) for each in messages] == [[], [], [], messages[:1], messages[1:2]]
    assert (len(inbox), inbox.nbytes, inbox.dropped) == (3, 3, 2)
    assert inbox.pop_all() == messages[2:]


def test_big_message_pushes_out_as_many_as_it_needs_to():
    inbox = Inbox(NO_BOUND, 100)
    small = [message(30) for _ in range(3)]
    for each in small:
        inbox.append(each)
    big = message(70)
    assert inbox.append(big) == small[:2]
    assert (len(inbox), inbox.nbytes, inbox.dropped) == (2, 100, 2)


def test_message_bigger_than_the_bound_is_kept_alone():
    inbox = Inbox(NO_BOUND, 100)
    first, huge, last = message(1), message(1000), message(1)
    inbox.append(first)
    assert inbox.append(huge) == [first]
    assert (len(inbox), inbox.nbytes) == (1, 1000)
    assert inbox.append(last) == [huge]
    assert (len(inbox), inbox.nbytes) == (1, 1)


def test_message_can_be_taken_out_of_the_middle():
    inbox = Inbox(NO_BOUND, NO_BOUND)
    one, two, three = message(1), message(2), message(3)
    for each in (one, two, three):
        inbox.append(each)
    inbox.remove(two)
    assert (len(inbox), inbox.nbytes, inbox.dropped) == (2, 4, 0)
    inbox.remove(two)
    inbox.remove(message(5))
    assert inbox.nbytes == 4
    assert inbox.pop_all() == [one, three]


def test_messages_that_look_alike_are_two():
    inbox = Inbox(NO_BOUND, NO_BOUND)
    one, other = message(), message()
    inbox.append(one)
    inbox.append(other)
    inbox.remove(other)
    assert inbox.pop_all() == [one]


def test_inbox_knows_what_it_holds():
    inbox = Inbox(2, NO_BOUND)
    one, two, three = message(), message(), message()
    for each in (one, two, three):
        inbox.append(each)
    assert [each in inbox for each in (one, two, three)] == [False, True, True]
    inbox.remove(two)
    assert two not in inbox


@given(
    st.integers(1, 5),
    st.integers(1, 50),
    st.lists(st.tuples(st.sampled_from(["append", "append", "append", "pop", "remove", "all"]), st.integers(0, 30))),
)
def test_inbox_holds_the_newest_that_fit_and_counts_the_rest(max_messages, max_bytes, steps):
    inbox, held, dropped = Inbox(max_messages, max_bytes), [], 0
    for step, number in steps:
        if step == "append":
            new = message(number)
            gone = inbox.append(new)
            held.append(new)
            assert gone == held[: len(gone)]
            held = held[len(gone) :]
            dropped += len(gone)
            needless = [gone[-1], *held] if gone else []  # with the last to go it is too full
            assert not gone or len(needless) > max_messages or sum(each.nbytes for each in needless) > max_bytes
        elif step == "pop" and held:
            assert inbox.pop_oldest() is held.pop(0)
        elif step == "remove" and held:
            inbox.remove(held.pop(number % len(held)))
        elif step == "all":
            assert inbox.pop_all() == held
            held = []
        assert (len(inbox), inbox.dropped) == (len(held), dropped)
        assert inbox.nbytes == sum(each.nbytes for each in held)
        assert len(held) <= max_messages
        assert inbox.nbytes <= max_bytes or len(held) == 1


def test_backlog_keeps_the_first_that_fit_and_has_room_again_when_they_are_read():
    half = SPARE_NBYTES // 2
    backlog = Backlog(2 * MESSAGE_NBYTES + 30)
    first, second = message(half + 10), message(half + 20)
    assert [backlog.append(each) for each in (first, second, message(0))] == [True, True, False]
    assert (backlog.popleft(), len(backlog)) == (first, 1)
    third = message(half + 10)
    assert backlog.append(third)
    assert [backlog.popleft(), backlog.popleft()] == [second, third]
    with pytest.raises(IndexError):
        backlog.popleft()


def test_message_that_waits_alone_has_the_whole_bound_and_small_ones_fit_into_any():
    backlog = Backlog(10)
    assert [backlog.append(message(SPARE_NBYTES + 10)), backlog.append(message(1))] == [True, False]
    backlog.clear()
    assert not backlog.append(message(SPARE_NBYTES + 11))
    assert [backlog.append(message(1)) for _ in range(30)] == [True] * 30


def test_backlog_without_a_bound_keeps_all_and_can_be_emptied():
    backlog = Backlog(None)
    assert all(backlog.append(message(10**9)) for _ in range(10))
    backlog.clear()
    assert len(backlog) == 0


def test_message_counts_what_its_content_takes_in_memory():
    nested = Message({"msg_id": "1", "msg_type": "display_data"}, content={"data": [{} for _ in range(1000)]})
    nested.nbytes = 3000
    inbox, backlog = Inbox(NO_BOUND, NO_BOUND), Backlog(3_000)
    inbox.append(nested)
    assert inbox.nbytes > 70_000
    inbox.remove(nested)
    assert inbox.nbytes == 0
    assert [backlog.append(nested), backlog.append(nested)] == [True, False]
