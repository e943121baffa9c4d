"""The receiver of each reply and of each output, and the answers that a kernel still owes."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kclient.errors import ChannelClosed, KernelRestarted, LocalProtocolError
from kclient.protocol import pending_answers, routing
from kclient.protocol.comms import CommRoutes
from kclient.protocol.inbox import Inbox
from kclient.protocol.messages import OUTPUT_TYPES, Message
from kclient.protocol.pending_answers import PendingAnswers
from kclient.protocol.routing import Outputs, Requests
from kclient.protocol.session import Session

BOUND = 4
STRANGE_PARENTS = ({}, {"msg_id": None}, {"msg_id": 5}, {"msg_id": ["a"]}, {"msg_id": {}}, {"msg_type": "x"})


def no_comms():
    return CommRoutes("", None)


@pytest.fixture
def requests():
    return Requests(PendingAnswers())


@pytest.fixture
def small_bounds(monkeypatch):
    monkeypatch.setattr(routing, "MAX_UNCOLLECTED_REPLIES", BOUND)
    monkeypatch.setattr(pending_answers, "MAX_OWED_ANSWERS", BOUND)


def ask(msg_type="execute_request"):
    return Session().msg(msg_type)


def answer(request, msg_type=None, *, nbytes=1):
    """The reply to `request`, or a message of another type that bears its id."""
    header = Session().msg(msg_type or request.msg_type.replace("_request", "_reply")).header
    return Message(header, request.header, received=1.0, nbytes=nbytes)


def stray(parent_header):
    return Message({"msg_id": "stray", "msg_type": "execute_reply"}, parent_header, nbytes=1)


def open_and_await(requests, request):
    slot = requests.open(request)
    slot.on_settled = settled
    return slot


def settled(slot):
    """Stand for a waiter: the test looks at the slot itself."""


def restarted(msg_id):
    return KernelRestarted(msg_id)


# Replies


def test_reply_goes_to_its_waiter(requests):
    request = ask()
    slot = open_and_await(requests, request)
    assert slot.is_pending()
    reply = answer(request)
    assert requests.route(reply) is slot
    assert slot.is_settled
    assert requests.take(slot) is reply
    assert (len(requests), len(requests.inbox)) == (0, 0)


def test_each_waiter_gets_its_own_reply_in_whatever_order_they_come(requests):
    asked = [ask() for _ in range(5)]
    slots = [open_and_await(requests, request) for request in asked]
    replies = [answer(request) for request in asked]
    for number in (3, 0, 4, 2, 1):
        assert requests.route(replies[number]) is slots[number]
    assert [requests.take(slot) for slot in slots] == replies


def test_reply_that_came_before_its_waiter_is_kept_for_it(requests):
    request = ask()
    requests.open(request)
    reply = answer(request)
    assert requests.route(reply) is None
    slot = requests.claim(request.msg_id)
    assert slot.is_settled
    assert requests.take(slot) is reply
    assert len(requests.inbox) == 0


def test_reply_can_be_taken_once(requests):
    request = ask()
    requests.open(request)
    requests.route(answer(request))
    requests.take(requests.claim(request.msg_id))
    with pytest.raises(LocalProtocolError, match="already taken"):
        requests.claim(request.msg_id)


def test_reply_that_is_still_awaited_can_not_be_taken_and_comes_all_the_same(requests):
    request = ask()
    slot = open_and_await(requests, request)
    with pytest.raises(LocalProtocolError, match=request.msg_id):
        requests.take(slot)
    assert requests.route(answer(request)) is slot


def test_reply_taken_out_of_the_inbox_can_not_be_asked_for(requests):
    request = ask()
    requests.open(request)
    reply = answer(request)
    requests.route(reply)
    assert requests.next_unclaimed() is reply
    with pytest.raises(LocalProtocolError, match=request.msg_id):
        requests.claim(request.msg_id)
    assert len(requests) == 0


def test_id_that_was_never_sent_can_not_be_asked_for(requests):
    with pytest.raises(LocalProtocolError, match="never sent"):
        requests.claim("no-such-id")


def test_id_that_another_awaits_can_not_be_asked_for(requests):
    request = ask()
    slot = requests.open(request)
    assert requests.claim(request.msg_id) is slot
    slot.on_settled = settled
    with pytest.raises(LocalProtocolError, match="another greenlet already awaits"):
        requests.claim(request.msg_id)


def test_message_under_way_is_not_sent_again(requests):
    """Otherwise the second waiter would take the slot of the first, which would wait for ever."""
    request = ask()
    slot = open_and_await(requests, request)
    with pytest.raises(LocalProtocolError, match=request.msg_id):
        requests.open(request)
    assert requests.route(answer(request)) is slot
    requests.take(slot)
    assert requests.open(request).is_pending()  # it is answered: the id may be used again


def test_reply_of_another_type_is_no_reply(requests):
    request = ask("kernel_info_request")
    slot = open_and_await(requests, request)
    wrong = [answer(request, msg_type) for msg_type in ("execute_reply", "kernel_info_request", "status", "reply")]
    assert [requests.route(message) for message in wrong] == [None] * 4
    assert slot.is_pending()
    right = answer(request)
    assert requests.route(right) is slot
    assert requests.take(slot) is right
    assert [requests.next_unclaimed() for _ in range(4)] == wrong


def test_reply_of_another_type_does_not_close_the_slot_when_it_is_read(requests):
    request = ask()
    requests.open(request)
    requests.route(answer(request, "inspect_reply"))
    requests.next_unclaimed()
    assert requests.claim(request.msg_id).is_pending()


def test_second_reply_is_nobodys(requests):
    request = ask()
    slot = open_and_await(requests, request)
    first, second, third = (answer(request) for _ in range(3))
    assert requests.route(first) is slot
    assert requests.route(second) is None  # before the first was taken
    assert requests.take(slot) is first
    assert requests.route(third) is None  # and after
    assert [requests.next_unclaimed() for _ in range(2)] == [second, third]


def test_second_reply_does_not_replace_an_uncollected_one(requests):
    request = ask()
    requests.open(request)
    first, second = answer(request), answer(request)
    requests.route(first)
    requests.route(second)
    assert requests.take(requests.claim(request.msg_id)) is first
    assert requests.next_unclaimed() is second


def test_reply_to_unknown_request_goes_to_the_inbox(requests):
    slot = open_and_await(requests, ask())
    strays = [stray(parent) for parent in ({"msg_id": "unknown"}, *STRANGE_PARENTS)]
    assert [requests.route(message) for message in strays] == [None] * len(strays)
    assert [requests.next_unclaimed() for _ in strays] == strays
    assert slot.is_pending()
    with pytest.raises(KeyError):
        requests.next_unclaimed()


def test_any_message_answers_a_request_whose_name_does_not_tell_its_reply(requests):
    request = ask("custom_question")
    slot = open_and_await(requests, request)
    reply = answer(request, "some_answer")
    assert requests.route(reply) is slot
    assert requests.take(slot) is reply


def test_reply_to_a_comm_message_cannot_be_awaited(requests):
    for msg_type in ("comm_open", "comm_msg", "comm_close"):
        request = ask(msg_type)
        requests.open(request)
        with pytest.raises(LocalProtocolError):
            requests.claim(request.msg_id)
    assert len(requests) == 0


def test_slot_knows_the_subshell_of_its_request(requests):
    request = ask()
    assert requests.open(request).subshell_id is None
    other = ask()
    other.header["subshell_id"] = "s1"
    assert requests.open(other).subshell_id == "s1"


# Waiters that give up


def test_waiter_that_gave_up_may_ask_again(requests):
    request = ask()
    slot = open_and_await(requests, request)
    requests.release(slot)
    assert requests.claim(request.msg_id) is slot
    reply = answer(request)
    requests.route(reply)
    assert requests.take(slot) is reply


def test_reply_that_came_as_its_waiter_gave_up_can_be_asked_for_again(requests):
    request = ask()
    slot = open_and_await(requests, request)
    reply = answer(request)
    assert requests.route(reply) is slot
    requests.release(slot)
    assert len(requests.inbox) == 1
    assert requests.take(requests.claim(request.msg_id)) is reply
    assert len(requests.inbox) == requests.inbox.nbytes == 0


def test_reply_in_the_inbox_stays_there_once_when_its_waiter_gives_up(requests):
    """Ctrl-C may come between the claim and the taking."""
    request = ask()
    requests.open(request)
    reply = answer(request, nbytes=7)
    requests.route(reply)
    requests.release(requests.claim(request.msg_id))
    assert (len(requests.inbox), requests.inbox.nbytes) == (1, 7)
    assert requests.take(requests.claim(request.msg_id)) is reply
    assert (len(requests.inbox), requests.inbox.nbytes) == (0, 0)


def test_error_that_came_as_its_waiter_gave_up_is_raised_at_the_next_call(requests):
    request = ask()
    slot = open_and_await(requests, request)
    assert requests.fail(requests, restarted) == [slot]
    requests.release(slot)
    with pytest.raises(KernelRestarted) as caught:
        requests.take(requests.claim(request.msg_id))
    assert caught.value.msg_id == request.msg_id
    with pytest.raises(LocalProtocolError):
        requests.claim(request.msg_id)


def test_abandoned_reply_is_discarded_when_it_comes(requests):
    request = ask()
    slot = open_and_await(requests, request)
    requests.abandon(slot)
    with pytest.raises(LocalProtocolError):
        requests.claim(request.msg_id)
    assert requests.route(answer(request)) is None
    assert (len(requests), len(requests.inbox)) == (0, 0)


def test_abandoned_request_still_takes_only_its_own_reply(requests):
    request = ask()
    requests.abandon(open_and_await(requests, request))
    wrong = answer(request, "inspect_reply")
    requests.route(wrong)
    requests.route(answer(request))
    assert requests.inbox.pop_all() == [wrong]
    assert len(requests) == 0


def test_abandoned_reply_that_is_there_already_is_discarded(requests):
    handed, kept = ask(), ask()
    slot = open_and_await(requests, handed)
    requests.route(answer(handed))
    requests.abandon(slot)
    requests.open(kept)
    requests.route(answer(kept))
    requests.abandon(requests.claim(kept.msg_id))
    assert (len(requests), len(requests.inbox), requests.inbox.nbytes) == (0, 0, 0)


@pytest.mark.usefixtures("small_bounds")
def test_abandoned_requests_are_remembered_up_to_a_bound():
    requests = Requests(PendingAnswers())
    asked = [ask() for _ in range(BOUND + 2)]
    for request in asked:
        requests.abandon(open_and_await(requests, request))
    assert len(requests) == BOUND
    for request in asked:
        requests.route(answer(request))
    assert len(requests) == 0
    assert len(requests.inbox) == 2  # the inbox has the two forgotten replies


@pytest.mark.usefixtures("small_bounds")
def test_requests_that_are_not_abandoned_outlive_those_that_are():
    requests = Requests(PendingAnswers())
    waiting = open_and_await(requests, ask())
    for _ in range(3 * BOUND):
        requests.abandon(open_and_await(requests, ask()))
    assert requests.get(waiting.msg_id) is waiting


def test_discarded_request_was_never_sent(requests):
    unanswered, answered = ask(), ask()
    requests.discard(open_and_await(requests, unanswered))
    requests.open(answered)
    requests.route(answer(answered))
    requests.discard(requests.claim(answered.msg_id))
    assert (len(requests), len(requests.inbox)) == (0, 0)
    for request in (unanswered, answered):
        with pytest.raises(LocalProtocolError):
            requests.claim(request.msg_id)


# Failure


def test_failure_reaches_every_waiter_and_later_callers(requests):
    asked = [ask() for _ in range(4)]
    awaited = [open_and_await(requests, request) for request in asked[:2]]
    requests.open(asked[2])
    requests.abandon(open_and_await(requests, asked[3]))
    assert requests.fail(requests, restarted) == awaited
    for slot in (*awaited, requests.claim(asked[2].msg_id)):
        with pytest.raises(KernelRestarted) as caught:
            requests.take(slot)
        assert caught.value.msg_id == slot.msg_id
    assert len(requests) == 0


def test_reply_that_is_in_outlives_a_failure(requests):
    request = ask()
    requests.open(request)
    reply = answer(request)
    requests.route(reply)
    assert requests.fail(requests, restarted) == []
    assert requests.take(requests.claim(request.msg_id)) is reply


def test_failure_is_nothing_to_requests_that_come_after_it(requests):
    open_and_await(requests, ask())
    requests.fail(requests, restarted)
    request = ask()
    slot = open_and_await(requests, request)
    assert slot.is_pending()
    assert requests.route(answer(request)) is slot


def test_uncollected_failure_is_not_replaced_by_the_next(requests):
    request = ask()
    requests.open(request)
    requests.fail(requests, restarted)
    assert requests.fail(requests, lambda msg_id: ChannelClosed("shell")) == []
    with pytest.raises(KernelRestarted):
        requests.take(requests.claim(request.msg_id))


@pytest.mark.usefixtures("small_bounds")
def test_uncollected_failures_are_bounded_and_the_oldest_go():
    requests = Requests(PendingAnswers())
    asked = [ask() for _ in range(BOUND + 2)]
    for request in asked:
        requests.open(request)
    requests.fail(requests, restarted)
    assert len(requests) == BOUND
    with pytest.raises(LocalProtocolError):
        requests.claim(asked[1].msg_id)
    with pytest.raises(KernelRestarted):
        requests.take(requests.claim(asked[2].msg_id))


@pytest.mark.usefixtures("small_bounds")
def test_reply_that_came_after_a_failure_outlives_further_failures():
    requests = Requests(PendingAnswers())
    request = ask()
    requests.open(request)
    requests.fail(requests, restarted)
    reply = answer(request)
    requests.route(reply)
    for _ in range(BOUND + 1):
        requests.open(ask())
    requests.fail(requests, restarted)
    assert (len(requests), len(requests.inbox)) == (BOUND + 1, 1)
    assert requests.take(requests.claim(request.msg_id)) is reply


def test_slots_can_be_changed_while_they_are_listed(requests):
    slots = [open_and_await(requests, ask()) for _ in range(3)]
    for slot in requests:
        requests.discard(slot)
    assert len(requests) == 0
    assert slots


# Bounds


@pytest.mark.usefixtures("small_bounds")
def test_uncollected_replies_are_bounded_and_the_oldest_go():
    requests = Requests(PendingAnswers())
    asked = [ask() for _ in range(BOUND + 2)]
    for request in asked:
        requests.open(request)
    for request in asked:
        requests.route(answer(request))
    assert (len(requests), len(requests.inbox), requests.inbox.dropped) == (BOUND, BOUND, 2)
    for request in asked[:2]:
        with pytest.raises(LocalProtocolError):
            requests.claim(request.msg_id)
    for request in asked[2:]:
        assert requests.take(requests.claim(request.msg_id)).parent_id == request.msg_id


def test_replies_that_nobody_collects_are_bounded_in_bytes(requests):
    requests.inbox = Inbox(100, 1000)
    asked = [ask() for _ in range(4)]
    for request in asked:
        requests.open(request)
        requests.route(answer(request, nbytes=400))
    assert [requests.get(request.msg_id) is not None for request in asked] == [False, False, True, True]


@pytest.mark.usefixtures("small_bounds")
def test_flood_of_strays_keeps_no_reply_from_its_waiter():
    requests = Requests(PendingAnswers())
    request = ask()
    slot = open_and_await(requests, request)
    for _ in range(10 * BOUND):
        requests.route(stray({"msg_id": "unknown"}))
    assert requests.route(answer(request)) is slot
    assert len(requests.inbox) == BOUND


# Owed answers


def owed(pending):
    return list(pending.owed_idle), list(pending.owed_reply)


def test_half_an_answer_is_owed_until_the_other_half_comes():
    pending = PendingAnswers()
    pending.tracking = True
    pending.unanswered = {"a", "b"}
    pending.note_reply("a", 1.0)
    pending.note_idle("b", 2.0)
    assert owed(pending) == (["a"], ["b"])
    assert (pending.owed_idle["a"], pending.owed_reply["b"]) == (1.0, 2.0)
    pending.note_idle("a", 3.0)
    pending.note_reply("b", 3.0)
    assert owed(pending) == ([], [])


def test_idle_of_what_others_have_sent_is_not_owed_a_reply():
    pending = PendingAnswers()
    pending.tracking = True
    pending.note_idle("of another client", 1.0)
    assert owed(pending) == ([], [])


def test_nothing_is_owed_while_iopub_does_not_run():
    pending = PendingAnswers()
    pending.note_reply("a", 1.0)
    pending.note_idle("b", 1.0)
    assert owed(pending) == ([], [])


def test_owed_answers_can_be_forgotten():
    pending = PendingAnswers()
    pending.tracking = True
    pending.note_reply("a", 1.0)
    pending.note_idle("b", 1.0)
    pending.forget()
    assert owed(pending) == ([], [])


@pytest.mark.usefixtures("small_bounds")
def test_owed_answers_are_bounded_and_the_oldest_go():
    pending = PendingAnswers()
    pending.tracking = True
    pending.unanswered = {f"i{number}" for number in range(BOUND + 2)}
    for number in range(BOUND + 2):
        pending.note_reply(f"r{number}", 1.0)
        pending.note_idle(f"i{number}", 1.0)
    assert owed(pending) == ([f"r{n}" for n in range(2, BOUND + 2)], [f"i{n}" for n in range(2, BOUND + 2)])


def test_reply_and_idle_cancel_out_across_channels(requests):
    outputs = Outputs(100, 10**6, PendingAnswers(), no_comms())
    pending = outputs.pending = requests.pending
    pending.tracking = True
    first, second, abandoned = ask(), ask("inspect_request"), ask()
    open_and_await(requests, first)
    requests.open(second)
    requests.abandon(open_and_await(requests, abandoned))
    for request in (first, second, abandoned):
        requests.route(answer(request))
    assert owed(pending) == ([first.msg_id, second.msg_id, abandoned.msg_id], [])
    for request in (second, abandoned, first):
        outputs.route(iopub("status", request, {"execution_state": "idle"}))
    assert owed(pending) == ([], [])


def test_messages_that_are_no_reply_owe_nothing(requests):
    requests.pending.tracking = True
    request = ask()
    open_and_await(requests, request)
    requests.route(answer(request, "inspect_reply"))
    requests.route(stray({"msg_id": "unknown"}))
    requests.route(stray({}))
    assert owed(requests.pending) == ([], [])


# Outputs


class Execution:
    """The part of an execution that the routing knows. It keeps the messages that it is given."""

    def __init__(self, outputs):
        self.request = ask()
        self.updates = []
        outputs.executions[self.request.msg_id] = self

    def feed(self, message):
        raise AssertionError("routing must not feed an execution")

    def update_display(self, message):
        self.updates.append(message)

    def fail(self, failure):
        raise AssertionError("routing must not fail an execution")


@pytest.fixture
def outputs():
    return Outputs(100, 10**6, PendingAnswers(), no_comms())


def iopub(msg_type, parent=None, content=None, *, nbytes=1):
    header = {"msg_id": "of-the-kernel", "msg_type": msg_type}
    return Message(header, {} if parent is None else parent.header, {}, content or {}, received=1.0, nbytes=nbytes)


def status(state, parent=None):
    return iopub("status", parent, {"execution_state": state})


@pytest.mark.parametrize("msg_type", sorted(OUTPUT_TYPES | {"status", "execute_input"}))
def test_output_goes_to_its_execution(outputs, msg_type):
    executions = [Execution(outputs) for _ in range(3)]
    for execution in executions:
        assert outputs.route(iopub(msg_type, execution.request)) is execution
    assert len(outputs.inbox) == 0


def test_output_of_no_execution_goes_to_the_inbox(outputs):
    Execution(outputs)
    messages = [iopub("stream", ask()), iopub("stream"), status("starting"), iopub("execute_input", ask())]
    assert [outputs.route(message) for message in messages] == [None] * 4
    assert outputs.inbox.pop_all() == messages


def test_strange_parents_lead_to_the_inbox(outputs):
    Execution(outputs)
    for msg_type in ("stream", "status", "update_display_data", "iopub_welcome"):
        for parent in STRANGE_PARENTS:
            message = iopub(msg_type, content={"execution_state": "busy"})
            message.parent_header = parent
            assert outputs.route(message) is None
    assert len(outputs.inbox) == 3 * len(STRANGE_PARENTS)
    assert outputs.executing.get(None) is None


def test_messages_of_other_types_go_to_the_inbox_though_they_bear_the_id_of_an_execution(outputs):
    execution = Execution(outputs)
    messages = [
        iopub(msg_type, execution.request) for msg_type in ("comm_open", "comm_msg", "debug_event", "brand_new")
    ]
    assert [outputs.route(message) for message in messages] == [None] * 4
    assert outputs.inbox.pop_all() == messages


def test_late_output_goes_to_the_inbox(outputs):
    execution = Execution(outputs)
    del outputs.executions[execution.request.msg_id]
    late = iopub("stream", execution.request)
    assert outputs.route(late) is None
    assert outputs.inbox.pop_all() == [late]


def test_flood_of_strays_keeps_no_output_from_its_execution():
    outputs = Outputs(BOUND, 10**6, PendingAnswers(), no_comms())
    execution = Execution(outputs)
    for _ in range(10 * BOUND):
        outputs.route(iopub("stream"))
    assert outputs.route(iopub("stream", execution.request)) is execution
    assert (len(outputs.inbox), outputs.inbox.dropped) == (BOUND, 9 * BOUND)


def test_any_message_shows_that_iopub_is_subscribed(outputs):
    assert not outputs.subscribed
    outputs.route(status("busy", ask()))
    assert outputs.subscribed


def test_welcome_is_noticed_and_goes_nowhere(outputs):
    assert outputs.route(iopub("iopub_welcome", content={"subscription": ""})) is None
    assert outputs.subscribed
    assert len(outputs.inbox) == 0
    assert outputs.execution_state == "unknown"


# The kernel's state


def test_kernel_is_busy_with_the_request_of_its_latest_busy(outputs):
    first, second = ask(), ask()
    assert (outputs.execution_state, outputs.executing.get(None)) == ("unknown", None)
    outputs.route(status("busy", first))
    assert (outputs.execution_state, outputs.executing.get(None)) == ("busy", first.msg_id)
    outputs.route(status("idle", first))
    assert (outputs.execution_state, outputs.executing, outputs.executing_since) == ("idle", {}, {})
    outputs.route(status("busy", second))
    assert outputs.executing.get(None) == second.msg_id


def test_idle_of_another_request_does_not_end_the_busy_one(outputs):
    first, other = ask(), ask()
    outputs.route(status("busy", first))
    outputs.route(status("idle", other))
    assert outputs.executing.get(None) == first.msg_id
    outputs.route(status("idle"))
    assert outputs.executing.get(None) == first.msg_id


def test_state_is_told_also_by_the_status_of_an_execution(outputs):
    execution = Execution(outputs)
    assert outputs.route(status("busy", execution.request)) is execution
    assert outputs.executing.get(None) == execution.request.msg_id


def test_states_of_a_newer_protocol_pass_through(outputs):
    for state in ("starting", "restarting", "dreaming"):
        outputs.route(status(state))
        assert outputs.execution_state == state


def test_status_that_tells_no_state_changes_nothing(outputs):
    request = ask()
    outputs.pending.tracking = True
    outputs.route(status("busy", request))
    for content in ({}, {"execution_state": None}, {"execution_state": 5}, {"execution_state": ["idle"]}):
        outputs.route(iopub("status", request, content))
    assert (outputs.execution_state, outputs.executing.get(None)) == ("busy", request.msg_id)
    assert owed(outputs.pending) == ([], [])


# Displays


# After a restart


def status_of(session, request=None, times=1):
    message = status("idle", request)
    message.header["session"] = session
    return [message] * times


def kernels_after(outputs, *messages):
    for message in messages:
        outputs.route(message)
    return outputs.kernels


def test_kernel_that_keeps_its_session_is_one_kernel(outputs):
    assert kernels_after(outputs, *status_of("a", times=10)) == 0


def test_other_session_after_one_that_was_kept_is_another_kernel(outputs):
    assert kernels_after(outputs, *status_of("a", times=10), *status_of("b", times=10), *status_of("c")) == 2


def test_welcome_tells_of_another_kernel(outputs):
    welcome = iopub("iopub_welcome")
    welcome.header["session"] = "b"
    assert kernels_after(outputs, *status_of("a", times=10), welcome) == 1


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_kernel_that_keeps_no_session_is_one_kernel(outputs, kept):
    messages = [message for number in range(10) for message in status_of(str(number), times=kept)]
    assert kernels_after(outputs, *messages) == 0


def test_session_that_is_that_of_the_request_tells_nothing(outputs):
    requests = [ask() for _ in range(3)]
    for number, request in enumerate(requests):
        request.header["session"] = f"client {number}"
    echoes = [message for request in requests for message in status_of(request.header["session"], request, times=5)]
    assert kernels_after(outputs, *status_of("a", times=10), *echoes, *status_of("a", times=10)) == 0


@pytest.mark.parametrize("session", [None, 5, ["a"], {}])
def test_session_that_is_none_tells_nothing(outputs, session):
    assert kernels_after(outputs, *status_of("a", times=10), *status_of(session, times=10), *status_of("a")) == 0


def test_another_kernel_on_a_new_connection_is_no_surprise(outputs):
    kernels_after(outputs, *status_of("a", times=10))
    outputs.forget_kernel()
    assert kernels_after(outputs, *status_of("b", times=10)) == 0


def test_update_of_a_display_reaches_every_other_execution_once(outputs):
    executions = [Execution(outputs) for _ in range(3)]
    update = iopub("update_display_data", executions[1].request, {"transient": {"display_id": "d"}})
    assert outputs.route(update) is executions[1]
    assert [execution.updates for execution in executions] == [[update], [], [update]]


def test_display_of_another_execution_reaches_those_that_may_have_one_of_its_id(outputs):
    executions = [Execution(outputs) for _ in range(2)]
    for msg_type in ("display_data", "execute_result"):
        outputs.route(iopub(msg_type, executions[0].request, {"data": {}, "transient": {}}))
        named = iopub(msg_type, executions[0].request, {"data": {}, "transient": {"display_id": "d"}})
        assert outputs.route(named) is executions[0]
        assert (executions[0].updates, executions[1].updates.pop()) == ([], named)
    assert executions[1].updates == []


def test_update_that_belongs_to_no_execution_reaches_all_and_the_inbox(outputs):
    executions = [Execution(outputs) for _ in range(2)]
    content = {"transient": {"display_id": "d"}}
    updates = [iopub("update_display_data", ask(), content), iopub("update_display_data", content=content)]
    assert [outputs.route(update) for update in updates] == [None, None]
    assert [execution.updates for execution in executions] == [updates, updates]
    assert outputs.inbox.pop_all() == updates


# Any order of all calls


class Asked:
    """The state of one request in the model: that of its slot, and the place of its reply."""

    def __init__(self, message, slot, *, awaited):
        self.message = message
        self.slot = slot
        self.state = "awaited" if awaited else "open"  # then "handed", "abandoned", "closed"
        self.reply = None
        self.has_failed = False

    def __repr__(self):
        return f"<{self.message.msg_type} {self.message.msg_id[-3:]} {self.state}>"

    def is_answered_by(self, message):
        is_open = self.state in ("open", "awaited", "abandoned") and self.reply is None
        expected = self.message.msg_type.replace("_request", "_reply")
        return is_open and (expected == self.message.msg_type or message.msg_type == expected)


class AnyOrder(RuleBasedStateMachine):
    """Requests under the calls that channels make, in any order, beside a model of them."""

    MAX_BYTES = 100

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(routing, "MAX_UNCOLLECTED_REPLIES", BOUND)
        self.patch.setattr(pending_answers, "MAX_OWED_ANSWERS", BOUND)
        self.requests = Requests(PendingAnswers())
        self.requests.inbox = Inbox(BOUND, self.MAX_BYTES)
        self.session = Session()
        self.asked = []
        self.inbox = []
        self.abandoned = []
        self.routed = 0
        self.dropped = 0
        self.discarded = 0
        self.delivered = []

    def teardown(self):
        try:
            while self.inbox:
                self.get_msg()
            assert len(set(self.delivered)) == len(self.delivered)
            handed = sum(one.state == "handed" and one.reply is not None for one in self.asked)
            assert self.routed == len(self.delivered) + self.dropped + self.discarded + handed
        finally:
            self.patch.undo()

    def any_of(self, data, *states):
        return data.draw(st.sampled_from([one for one in self.asked if one.state in states]), label="request")

    def has(*states):
        return precondition(lambda self: any(one.state in states for one in self.asked))

    types = st.sampled_from(["execute_request", "inspect_request", "question"])

    @initialize()
    def begin(self):
        assert len(self.requests) == 0

    @rule(msg_type=types, awaited=st.booleans())
    def send(self, msg_type, awaited):
        message = self.session.msg(msg_type)
        slot = self.requests.open(message)
        if awaited:
            slot.on_settled = settled
        self.asked.append(Asked(message, slot, awaited=awaited))

    @rule(msg_type=st.sampled_from(["comm_msg", "comm_open"]))
    def send_comm_message(self, msg_type):
        message = self.session.msg(msg_type)
        slot = self.requests.open(message)
        one = Asked(message, slot, awaited=False)
        one.state = "closed"
        self.asked.append(one)

    @has("open", "awaited", "abandoned")
    @rule(data=st.data(), nbytes=st.integers(0, 60))
    def reply_comes(self, data, nbytes):
        one = self.any_of(data, "open", "awaited", "abandoned")
        self.route(one, answer(one.message, nbytes=nbytes))

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), msg_type=st.sampled_from(["execute_reply", "inspect_reply", "status"]))
    def message_comes(self, data, msg_type):
        one = data.draw(st.sampled_from(self.asked), label="request")
        self.route(one, answer(one.message, msg_type))

    def route(self, one, message):
        self.routed += 1
        slot = self.requests.route(message)
        if not one.is_answered_by(message):
            assert slot is None
            self.keep(message, None)
        elif one.state == "abandoned":
            assert slot is None
            one.state = "closed"
            self.discarded += 1
        elif one.state == "awaited":
            assert slot is one.slot
            assert slot.reply is message
            one.state, one.reply = "handed", message
        else:
            assert slot is None
            one.reply = message
            self.keep(message, one)

    @rule(parent=st.sampled_from([*STRANGE_PARENTS, {"msg_id": "unknown"}]))
    def stray_comes(self, parent):
        message = stray(parent)
        self.routed += 1
        assert self.requests.route(message) is None
        self.keep(message, None)

    @has("open")
    @rule(data=st.data(), gives_up=st.booleans())
    def claim(self, data, gives_up):
        """As get_reply does: claim, then take the reply that is there, or wait."""
        one = self.any_of(data, "open")
        assert self.requests.claim(one.message.msg_id) is one.slot
        one.slot.on_settled = settled
        one.state = "awaited"
        if gives_up:
            self.requests.release(one.slot)
            one.state = "open"
        elif one.slot.is_settled:
            self.take_from(one)

    @has("awaited", "handed", "abandoned", "closed")
    @rule(data=st.data())
    def claim_in_vain(self, data):
        one = self.any_of(data, "awaited", "handed", "abandoned", "closed")
        with pytest.raises(LocalProtocolError):
            self.requests.claim(one.message.msg_id)

    @has("handed")
    @rule(data=st.data())
    def take(self, data):
        self.take_from(self.any_of(data, "handed"))

    def take_from(self, one):
        if one.reply is not None:
            message = self.requests.take(one.slot)
            assert message is one.reply
            self.delivered.append(message)
            self.inbox = [kept for kept in self.inbox if kept[0] is not message]
        else:
            assert one.has_failed
            with pytest.raises(KernelRestarted):
                self.requests.take(one.slot)
        one.state = "closed"

    @has("awaited", "handed")
    @rule(data=st.data())
    def give_up(self, data):
        one = self.any_of(data, "awaited", "handed")
        self.requests.release(one.slot)
        is_handed, one.state = one.state == "handed", "open"
        if is_handed and one.reply is not None:
            self.keep(one.reply, one)

    @has("awaited", "handed")
    @rule(data=st.data())
    def abandon(self, data):
        one = self.any_of(data, "awaited", "handed")
        self.requests.abandon(one.slot)
        if one.state == "handed":
            one.state = "closed"
            self.discarded += one.reply is not None
            return
        one.state = "abandoned"
        self.abandoned.append(one)
        if len(self.abandoned) > BOUND:
            self.abandoned.pop(0).state = "closed"

    @precondition(lambda self: self.inbox)
    @rule()
    def get_msg(self):
        message, one = self.inbox.pop(0)
        assert self.requests.next_unclaimed() is message
        self.delivered.append(message)
        if one is not None:
            one.state = "closed"

    @precondition(lambda self: sum(one.state in ("open", "awaited", "abandoned") for one in self.asked) > BOUND)
    @rule()
    def fail(self):
        unanswered = [one for one in self.asked if one.state in ("open", "awaited", "abandoned") and one.reply is None]
        pending = [one for one in unanswered if not one.has_failed]
        awaited = [one.slot for one in pending if one.state == "awaited"]
        assert self.requests.fail(self.requests, restarted) == awaited
        for one in pending:
            if one.state == "awaited":
                one.state = "handed"
            elif one.state == "abandoned":
                one.state = "closed"
            one.has_failed = True
        uncollected = [one for one in unanswered if one.state == "open"]
        gone = [one for one in uncollected if self.requests.get(one.message.msg_id) is None]
        assert len(gone) == max(0, len(uncollected) - BOUND)
        for one in gone:
            one.state = "closed"

    def keep(self, message, one):
        self.inbox.append((message, one))
        while len(self.inbox) > BOUND or (
            sum(m.nbytes for m, _ in self.inbox) > self.MAX_BYTES and len(self.inbox) > 1
        ):
            _, gone = self.inbox.pop(0)
            self.dropped += 1
            if gone is not None:
                gone.state = "closed"

    @invariant()
    def open_slots_are_those_of_the_model(self):
        expected = {one.message.msg_id for one in self.asked if one.state in ("open", "awaited", "abandoned")}
        assert {slot.msg_id for slot in self.requests} == expected
        assert len(self.requests) == len(expected)

    @invariant()
    def inbox_is_that_of_the_model(self):
        inbox = self.requests.inbox
        assert (len(inbox), inbox.dropped) == (len(self.inbox), self.dropped)
        assert inbox.nbytes == sum(message.nbytes for message, _ in self.inbox)


class TestAnyOrder(AnyOrder.TestCase):
    settings = settings(max_examples=150, stateful_step_count=40)
