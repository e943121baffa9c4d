import os
import signal
import time

import gevent
import gevent.event
import pytest

import kclient

BOTH_LINES = True

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

ASK = "answer = input('name? '); answer"


@pytest.fixture
def attach(kernel):
    """Make a ready manager, of a subclass, for the shared kernel, which it did not start."""
    made = []

    def make(manager_class):
        manager = manager_class()
        made.append(manager)
        manager.load_connection_file(kernel.connection_file)
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        return manager

    yield make
    for manager in made:
        manager.stop_channels()


# Callbacks that answer


def test_on_input_of_run_answers(client):
    asked = []

    def answer(prompt, password):
        asked.append((prompt, password))
        return f"answer {len(asked)}"

    code = "import getpass\n[input(), input('two? '), getpass.getpass('secret: '), getpass.getpass()]"
    result = client.run(code, on_input=answer)
    assert result.text == "['answer 1', 'answer 2', 'answer 3', 'answer 4']"
    assert asked == [("", False), ("two? ", False), ("secret: ", True), ("", True)]


def test_on_input_runs_in_the_caller_of_run(client):
    here = []
    client.run(ASK, on_input=lambda prompt, password: here.append(gevent.getcurrent()) or "")
    assert here == [gevent.getcurrent()]


def test_on_input_of_submit_answers(client):
    execution = client.submit(ASK, on_input=lambda prompt, password: "submitted")
    assert execution.result().text == "'submitted'"


def test_on_input_of_the_client_answers_those_without_their_own(client):
    client.on_input = lambda prompt, password: "the client's"
    assert client.run(ASK).text == '"the client\'s"'
    assert client.run(ASK, on_input=lambda prompt, password: "my own").text == "'my own'"
    assert client.submit(ASK).result().text == '"the client\'s"'
    reply = client.execute(ASK, user_expressions={"answer": "answer"}, timeout=WAIT)
    assert reply.content["user_expressions"]["answer"]["data"]["text/plain"] == '"the client\'s"'


def test_each_execution_asks_its_own_on_input(client):
    executions = [client.submit(ASK, on_input=lambda prompt, password, n=n: f"of {n}") for n in range(5)]
    assert [execution.result().text for execution in executions] == [f"'of {n}'" for n in range(5)]


def test_greenlet_that_waits_in_get_msg_answers(client, background):
    request = background(client.stdin_channel.get_msg)
    reply = background(client.execute, ASK)
    assert request.get().content == {"prompt": "name? ", "password": False}
    client.input("waited for")
    assert reply.get().content["status"] == "ok"
    assert client.run("answer").text == "'waited for'"


def test_call_handlers_of_the_stdin_channel_answers(attach):
    class Answering(kclient.StdInChannel):
        def call_handlers(self, message):
            self.input(message.content["prompt"].upper())

    manager = attach(type("Manager", (kclient.KernelManager,), {"stdin_channel_class": Answering}))
    assert manager.run(ASK).text == "'NAME? '"
    assert manager.execute(ASK, timeout=WAIT).content["status"] == "ok"


def test_allow_stdin_can_be_said_by_hand(client, background):
    reply = background(client.execute, ASK, allow_stdin=True)
    assert client.stdin_channel.get_msg(timeout=WAIT).msg_type == "input_request"
    client.stdin_channel.input("by hand")
    assert reply.get().content["status"] == "ok"
    client.on_input = lambda prompt, password: "never"
    assert client.execute(ASK, allow_stdin=False, timeout=WAIT).content["ename"] == "StdinNotImplementedError"


# No answer


def test_code_gets_a_clear_error_when_nobody_will_answer(client):
    for content in (client.run(ASK).reply.content, client.execute(ASK, timeout=WAIT).content):
        assert content["ename"] == "StdinNotImplementedError"
        assert "does not support input requests" in content["evalue"]
    assert client.submit(ASK).result().error.ename == "StdinNotImplementedError"


def test_code_gets_a_clear_error_without_a_stdin_channel(attach):
    class NoStdIn(kclient.KernelManager):
        def start_channels(self):
            super().start_channels(stdin=False)

    manager = attach(NoStdIn)
    manager.on_input = lambda prompt, password: "not called"
    for result in (manager.run(ASK), manager.run(ASK, on_input=lambda prompt, password: "")):
        assert result.error.ename == "StdinNotImplementedError"


def test_input_that_was_not_asked_for_is_refused(client):
    with pytest.raises(kclient.LocalProtocolError, match="not asked for input"):
        client.input("unasked")
    assert client.run(ASK, on_input=lambda prompt, password: "x").ok
    with pytest.raises(kclient.LocalProtocolError, match="not asked for input"):
        client.input("again")


# Inside on_input


def test_request_on_the_main_shell_from_inside_on_input_raises_at_once(client):
    errors = []

    def answer(prompt, password):
        msg_id = client.shell_channel.send("kernel_info_request")
        for call in (
            lambda: client.run("1"),
            client.kernel_info,
            lambda: client.complete("a"),
            lambda: client.shell_channel.get_reply(msg_id),
            lambda: client.submit("1").result(),
        ):
            try:
                call()
            except kclient.LocalProtocolError as exc:
                errors.append(str(exc))
        return "done"

    assert client.run(ASK, on_input=answer).text == "'done'"
    assert len(errors) == 5
    assert all("waits for this input" in error for error in errors)


def test_request_on_control_or_a_subshell_from_inside_on_input_works(client):
    def answer(prompt, password):
        language = client.control_channel.kernel_info(timeout=WAIT).content["language_info"]["name"]
        return language + client.run("'!'", subshell_id=subshell_id).text

    subshell_id = client.create_subshell(timeout=WAIT).content["subshell_id"]
    result = client.run(ASK, on_input=answer)
    client.delete_subshell(subshell_id, timeout=WAIT)
    assert result.text == "\"python'!'\""


def test_other_greenlets_may_ask_while_on_input_answers(client, background):
    others = []

    def answer(prompt, password):
        others.append(background(client.complete, "impor"))
        gevent.sleep(0)
        return "x"

    assert client.run(ASK, on_input=answer).ok
    assert others[0].get().content["matches"] == ["import"]


def test_error_of_on_input_interrupts_the_code_and_is_raised_by_run(client):
    def answer(prompt, password):
        raise ZeroDivisionError(prompt)

    with pytest.raises(ZeroDivisionError, match="name"):
        client.run(ASK, on_input=answer)
    with pytest.raises(ZeroDivisionError, match="name"):
        client.submit(ASK, on_input=answer).result()
    assert client.run("print('idle again')").stdout == "idle again\n"


def test_error_of_the_clients_on_input_interrupts_the_code(client, caplog):
    def answer(prompt, password):
        raise ZeroDivisionError(prompt)

    client.on_input = answer
    content = client.execute(ASK, timeout=WAIT).content
    assert content["ename"] == "KeyboardInterrupt"
    assert "ZeroDivisionError: name? " in caplog.text


def test_on_input_must_return_a_string(client):
    with pytest.raises(kclient.InvalidArgument, match="must be a string"):
        client.run(ASK, on_input=lambda prompt, password: None)
    assert client.run("print('idle again')").stdout == "idle again\n"


# Input that never comes


def test_run_that_waits_for_input_can_time_out(client):
    never = gevent.event.Event()
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.05):
        client.run(ASK, on_input=lambda prompt, password: never.wait())
    assert client.run("print('idle again')").stdout == "idle again\n"


def test_execution_that_waits_for_input_can_be_interrupted(client, background):
    request = background(client.stdin_channel.get_msg)
    execution = client.submit(ASK)
    request.get()
    execution.interrupt()
    assert execution.result().error.ename == "KeyboardInterrupt"


def test_answer_to_a_question_of_the_past_is_not_taken_for_the_next(client, background):
    """The kernel discards messages that wait on stdin before it asks."""
    request = background(client.stdin_channel.get_msg)
    execution = client.submit(ASK)
    request.get()
    execution.interrupt()
    execution.result()
    client.input("too late")
    assert client.run(ASK, on_input=lambda prompt, password: "in time").text == "'in time'"


@pytest.mark.parametrize("of", ["run", "client"])
def test_death_of_the_kernel_while_on_input_answers_is_told_as_what_it_is(kernel_manager, caplog, of):
    """The end of the connection may be known before the death of the process."""

    def answer(prompt, password):
        os.kill(kernel_manager.process.pid, signal.SIGKILL)
        time.sleep(0.05)  # time itself: the hub stands still while ZeroMQ sees the end of the connection
        return "Ada"

    kernel_manager.on_input = answer if of == "client" else None
    with pytest.raises(kclient.DeadKernelError, match="SIGKILL"):
        kernel_manager.run(ASK, on_input=answer if of == "run" else None, timeout=WAIT)
    gevent.idle()
    assert caplog.messages == []
