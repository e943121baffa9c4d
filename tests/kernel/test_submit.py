import gc
import time
import weakref

import gevent
import gevent.event
import pytest

import kclient

BOTH_LINES = True

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""


def text_of(messages):
    return "".join(message.content["text"] for message in messages if message.msg_type == "stream")


def test_submit_returns_at_once_and_result_waits(client, gate):
    execution = client.submit(f"{gate.code} print('x'); 6 * 7")
    assert not execution.done()
    gate.open()
    result = execution.result(timeout=WAIT)
    assert (result.text, result.stdout) == ("42", "x\n")
    assert execution.done()
    assert execution.result() is result
    assert execution.result(timeout=0) is result


def test_msg_id_is_the_one_of_the_request(client):
    execution = client.submit("1")
    assert execution.msg_id.startswith(client.session.session)
    assert execution.result().reply.parent_id == execution.msg_id


def test_executions_run_one_after_the_other_in_order(client):
    client.run("order = []")
    executions = [client.submit(f"order.append({n}); list(order)") for n in range(20)]
    for n, execution in reversed(list(enumerate(executions))):
        assert execution.result().text == str(list(range(n + 1)))


def test_result_may_be_asked_again_after_a_timeout(client, gate):
    execution = client.submit(f"print('on'); {gate.code} 'the end'")
    next(iter(execution))
    for timeout in (0, 0.01):
        with pytest.raises(kclient.KernelTimeout) as caught:
            execution.result(timeout=timeout)
        assert caught.value.execution is execution
        assert caught.value.timeout == timeout
        assert caught.value.result.stdout.startswith("on")
    gate.open()
    assert execution.result().text == "'the end'"


def test_timeout_of_result_does_not_interrupt(client, gate):
    execution = client.submit(gate.code)
    with pytest.raises(kclient.KernelTimeout):
        execution.result(timeout=0.01)
    gate.open()
    assert execution.result().ok


# Iteration


def test_iteration_yields_outputs_as_they_arrive(client, gate):
    execution = client.submit(f"print('one', flush=True); {gate.code} print('two', flush=True); 3")
    messages = []
    for message in execution:
        if not messages:
            assert not execution.done()
            gate.open()
        messages.append(message)
    assert text_of(messages) == "one\ntwo\n"
    assert messages[-1].msg_type == "execute_result"
    assert execution.done()
    assert execution.result().text == "3"


def test_iteration_yields_each_message_once(client):
    execution = client.submit("print('once')")
    assert execution.result().stdout == "once\n"
    assert text_of(execution) == "once\n"
    assert list(execution) == []


def test_iteration_yields_errors_updates_and_clears(client):
    execution = client.submit(
        "from IPython.display import clear_output\n"
        "handle = display(1, display_id=True)\nhandle.update(2)\nclear_output()\n1 / 0"
    )
    types = [message.msg_type for message in execution]
    assert types == ["display_data", "update_display_data", "clear_output", "error"]


def test_iteration_ends_with_what_went_wrong(client, background, gate):
    execution = client.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    rest = background(list, execution)
    client.stop_channels()
    assert isinstance(rest.error(), kclient.ChannelClosed)


def test_many_greenlets_may_wait_for_one_execution(client, gate, background):
    execution = client.submit(f"{gate.code} 'for all'")
    waiting = [background(execution.result) for _ in range(5)]
    gate.open()
    assert {id(call.get()) for call in waiting} == {id(execution.result())}


# Callbacks


def test_on_output_of_submit_gets_each_output(client):
    seen = []
    execution = client.submit("print('x', flush=True)\n'y'", on_output=seen.append)
    assert execution.result().text == "'y'"
    assert text_of(seen) == "x\n"
    assert seen[-1].msg_type == "execute_result"


def test_on_output_of_submit_runs_in_one_greenlet_that_may_block(client):
    greenlets = set()

    def see(message):
        greenlets.add(gevent.getcurrent())
        gevent.sleep(0)
        client.shell_channel.kernel_info(timeout=WAIT)

    execution = client.submit("display(1); display(2)", on_output=see)
    assert execution.result().ok
    assert len(greenlets) == 1
    assert not greenlets & {gevent.getcurrent(), gevent.get_hub()}


def test_result_waits_until_on_output_has_seen_all(client):
    release, started = gevent.event.Event(), gevent.event.Event()

    def see(message):
        started.set()
        release.wait()

    execution = client.submit("display(1)", on_output=see)
    assert started.wait(WAIT)
    with pytest.raises(kclient.KernelTimeout):
        execution.result(timeout=0.01)
    release.set()
    assert execution.result().ok
    assert execution.done()


def test_error_of_on_output_interrupts_the_code_and_is_raised_by_result(client, gate):
    def fail(message):
        raise ZeroDivisionError(message.msg_type)

    execution = client.submit(f"display(1); {gate.code}", on_output=fail)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError, match="display_data"):
            execution.result()
    assert client.run("print('idle again')").stdout == "idle again\n"  # although the gate is closed


def test_outputs_that_go_to_on_output_cannot_be_iterated(client):
    execution = client.submit("print('x')", on_output=lambda message: None)
    with pytest.raises(kclient.LocalProtocolError, match="on_output"):
        list(execution)
    assert execution.result().ok


# done and times


def test_script_that_only_polls_done_gets_to_the_end(client):
    """No other greenlet gets a turn here: done itself takes in the messages that have arrived."""
    execution = client.submit("print('polled'); 6 * 7")
    deadline = time.monotonic() + WAIT
    while not execution.done():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    result = execution.result(timeout=0)
    assert (result.stdout, result.text) == ("polled\n", "42")


def test_script_that_only_polls_done_gets_its_callbacks(client):
    seen = []
    execution = client.submit("print('polled')", on_output=seen.append)
    deadline = time.monotonic() + WAIT
    while not execution.done() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert execution.done()
    assert execution.result().stdout == "polled\n"
    assert text_of(seen) == "polled\n"


def test_times_tell_when_what_happened(client, gate):
    before = time.perf_counter()
    execution = client.submit(f"print('on'); {gate.code}")
    next(iter(execution))
    times = execution.times
    assert before <= times.sent <= times.busy <= time.perf_counter()
    assert (times.reply, times.idle) == (0.0, 0.0)
    gate.open()
    execution.result()
    times = execution.times
    assert before <= times.sent <= times.busy
    assert times.busy < times.reply <= time.perf_counter()
    assert times.busy < times.idle <= time.perf_counter()


# Forgotten executions


def test_execution_without_references_is_collected_when_it_is_done(client):
    gone = weakref.ref(client.submit("print('x')"))
    client.run("1")
    gc.collect()
    assert gone() is None
    assert client.iopub_channel.get_msgs() == []


def test_iterator_that_is_left_halfway_leaves_the_execution_usable(client):
    execution = client.submit("display(1); display(2)")
    for _ in execution:
        break
    assert execution.result().ok
    assert [message.content["data"]["text/plain"] for message in execution] == ["2"]
