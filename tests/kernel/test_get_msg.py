import time

import pytest

import kclient

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

CHANNELS = ["shell_channel", "iopub_channel", "stdin_channel", "control_channel"]


def fill(client, channel, number):
    """Let `number` messages that no call awaits arrive on `channel`; returns what identifies each of them."""
    shell = client.shell_channel
    if channel in ("shell_channel", "control_channel"):
        return [getattr(client, channel).send("kernel_info_request") for _ in range(number)]
    if channel == "iopub_channel":
        publish = (
            "get_ipython().kernel.send_response(get_ipython().kernel.iopub_socket, 'test', {{'n': {}}}, ident=b't')"
        )
        for n in range(number):
            assert client.run(publish.format(n)).ok
        return [str(n) for n in range(number)]
    code = f"answers = [input({number - 1} - n) for n in reversed(range({number}))]"
    shell.send("execute_request", {"code": code, "silent": True, "allow_stdin": True})
    return [str(n) for n in range(number)]


def name_of(message):
    if message.msg_type == "input_request":
        return message.content["prompt"]
    if message.msg_type == "test":
        return str(message.content["n"])
    return message.parent_id


def answered(client, channel):
    """Let code go on that waits for an answer."""
    if channel == "stdin_channel":
        client.input("")


@pytest.mark.parametrize("channel", CHANNELS)
def test_get_msg_blocks_until_an_unclaimed_message_arrives(client, background, channel):
    getattr(client, channel).get_msgs()
    message = background(getattr(client, channel).get_msg)
    assert message.is_waiting
    (name,) = fill(client, channel, 1)
    assert name_of(message.get()) == name
    answered(client, channel)


@pytest.mark.parametrize("channel", CHANNELS)
def test_get_msg_returns_messages_in_order_of_arrival(client, channel):
    getattr(client, channel).get_msgs()
    names = fill(client, channel, 3)
    for name in names:
        assert name_of(getattr(client, channel).get_msg(timeout=WAIT)) == name
        answered(client, channel)


@pytest.mark.parametrize("channel", CHANNELS)
def test_get_msg_on_an_empty_channel_raises(client, channel):
    channel = getattr(client, channel)
    channel.get_msgs()
    for arguments in ({"block": False}, {"timeout": 0}, {"timeout": 0.01}, {"block": False, "timeout": WAIT}):
        with pytest.raises(kclient.KernelTimeout, match=f"no message on the {channel.name} channel"):
            channel.get_msg(**arguments)
    assert channel.get_msgs() == []
    assert not channel.msg_ready()


@pytest.mark.parametrize("channel", CHANNELS)
def test_script_that_only_polls_sees_the_message(client, channel):
    """No other greenlet gets a turn here: msg_ready itself takes in the messages that have arrived."""
    channel_name, channel = channel, getattr(client, channel)
    channel.get_msgs()
    names = fill(client, channel_name, 1)
    deadline = time.monotonic() + WAIT
    while not channel.msg_ready():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    assert [name_of(message) for message in channel.get_msgs()] == names
    assert not channel.msg_ready()
    answered(client, channel_name)


def test_code_that_wants_to_see_every_message_itself_can(client):
    """Front ends of 2013 did so: they sent a request, then sorted the messages by the parent's id."""
    shell, iopub = client.shell_channel, client.iopub_channel
    msg_id = shell.send("execute_request", {"code": "print('seen'); 6 * 7", "store_history": True})
    published = []
    while not published or published[-1].content.get("execution_state") != "idle":
        message = iopub.get_msg(timeout=WAIT)
        if message.parent_id == msg_id:
            published.append(message)
    types = [message.msg_type for message in published]
    assert (types[:2], sorted(types[2:-1])) == (["status", "execute_input"], ["execute_result", "stream"])
    reply = shell.get_msg(timeout=WAIT)
    assert (reply.msg_type, reply.parent_id) == ("execute_reply", msg_id)


def test_reply_taken_by_get_msg_is_gone_for_get_reply_and_the_other_way_round(client):
    shell = client.shell_channel
    first, second = (shell.send("kernel_info_request") for _ in range(2))
    assert shell.get_msg(timeout=WAIT).parent_id == first
    assert shell.get_reply(second, timeout=WAIT).parent_id == second
    for msg_id in (first, second):
        with pytest.raises(kclient.LocalProtocolError):
            shell.get_reply(msg_id)
    assert shell.get_msgs() == []


def test_get_msg_does_not_take_a_reply_that_a_request_awaits(client, background):
    message = background(client.shell_channel.get_msg)
    for _ in range(3):
        client.kernel_info(timeout=WAIT)
    assert message.is_waiting
    msg_id = client.shell_channel.send("kernel_info_request")
    assert message.get().parent_id == msg_id


def test_each_of_several_waiters_gets_a_message_of_its_own(client, background):
    waiters = [background(client.control_channel.get_msg) for _ in range(5)]
    ids = [client.control_channel.send("kernel_info_request") for _ in range(5)]
    assert sorted(waiter.get().parent_id for waiter in waiters) == sorted(ids)


def test_get_msg_that_fails_speaks_of_its_failure_alone(client, background):
    """The error does not tell of an empty inbox, too."""
    waiting = background(client.stdin_channel.get_msg)
    client.stop_channels()
    assert isinstance(waiting.error(), kclient.ChannelClosed)
    assert waiting.error().__context__ is None
