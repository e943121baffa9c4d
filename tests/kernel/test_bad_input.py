import json
import logging
import os
import stat

import pytest

import kclient

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""

PUBLISH = """
kernel = get_ipython().kernel
def publish(*frames):
    kernel.iopub_socket.send_multipart([frame.encode() for frame in frames])
def publish_signed(*parts):
    publish('test', '<IDS|MSG>', kernel.session.sign([part.encode() for part in parts]).decode(), *parts)
"""
"""Publish raw frames on the iopub socket of a real kernel."""


@pytest.fixture
def publish(client):
    """Let the kernel publish frames unchanged; returns the client's inbox, and the number of drops for each reason."""

    def do(code):
        iopub = client.iopub_channel
        iopub.flush()
        iopub.dropped.clear()
        assert client.run(PUBLISH + code).ok
        assert client.run("print('fine')").stdout == "fine\n"
        return iopub.get_msgs(), dict(iopub.dropped)

    return do


# Messages


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("publish('stream')", "layout"),
        ("publish('')", "layout"),
        ("publish('stream', '<IDS|MSG>', 'signature')", "layout"),
        ("publish('stream', '<IDS|MSG>', 'signature', '{}', '{}', '{}')", "layout"),
        ("publish('stream', '<IDS|MSG>', 'wrong', '{}', '{}', '{}', '{}')", "signature"),
        ("publish('stream', '<IDS|MSG>', '', '{}', '{}', '{}', '{}')", "signature"),
        ("publish_signed('{', '{}', '{}', '{}')", "json"),
        ("publish_signed('[]', '{}', '{}', '1')", "json"),
        ("publish_signed('{}', '{}', '{}', '{}')", "json"),
        ("publish_signed('{\"msg_id\": \"a\", \"msg_type\": \"b\"}', '{}', '{}', '[' * 20_000)", "json"),
    ],
)
def test_frames_that_are_no_message_are_counted_logged_and_dropped(publish, caplog, code, reason):
    with caplog.at_level(logging.WARNING, "kclient"):
        inbox, dropped = publish(code)
    assert dropped == {reason: 1}
    assert inbox == []
    assert "dropped a message on iopub" in caplog.text


def test_replayed_message_is_dropped(publish):
    inbox, dropped = publish(
        "frames = kernel.session.serialize(kernel.session.msg('test', {'n': 1}))\n"
        "for _ in range(3): kernel.iopub_socket.send_multipart(frames)"
    )
    assert [message.content for message in inbox] == [{"n": 1}]
    assert dropped == {"replay": 2}


def test_message_of_an_unknown_type_goes_to_the_inbox(publish):
    inbox, dropped = publish("kernel.session.send(kernel.iopub_socket, 'from_the_future', {'new': [1]})")
    assert [(message.msg_type, message.content) for message in inbox] == [("from_the_future", {"new": [1]})]
    assert dropped == {}


def test_message_of_an_unknown_type_that_bears_an_id_of_ours_goes_to_the_inbox(client):
    result = client.run("get_ipython().kernel.send_response(get_ipython().kernel.iopub_socket, 'from_the_future', {});")
    assert (result.ok, result.outputs) == (True, [])
    assert [message.msg_type for message in client.iopub_channel.flush()] == ["from_the_future"]


def test_reply_to_unknown_request_goes_to_the_inbox(client):
    """The kernel answers a request that this client never sent, as it may through a broken proxy."""
    client.run(
        "kernel = get_ipython().kernel\n"
        "ident = kernel.get_parent()['header']['session'].encode()\n"
        "kernel.session.send(kernel.shell_stream, 'kernel_info_reply', {'status': 'ok'}, ident=ident,"
        " parent={'header': {'msg_id': 'never-sent', 'msg_type': 'kernel_info_request'}})",
        check=True,
    )
    message = client.shell_channel.get_msg(timeout=WAIT)
    assert (message.msg_type, message.parent_id) == ("kernel_info_reply", "never-sent")
    assert client.kernel_info(timeout=WAIT).content["language_info"]["name"] == "python"


def test_wrong_key_is_named_gets_no_answer_and_does_no_harm(kernel):
    values = {**kernel.get_connection_info(), "key": "not the key"}
    with pytest.raises(kclient.ConnectionFileError, match="has another key") as caught:
        kclient.connect(values)
    assert "not the key" not in str(caught.value)
    assert kernel.run("'unharmed'").text == "'unharmed'"


# Connection files


def half_of(kernel):
    whole = json.dumps(kernel.get_connection_info())
    return whole[: len(whole) // 2]


BROKEN = {
    "empty": (lambda kernel: "", "is empty"),
    "half-written": (half_of, "not valid JSON"),
    "no JSON": (lambda kernel: "hello", "not valid JSON"),
    "no object": (lambda kernel: "[1, 2]", "expected an object"),
    "not text": (lambda kernel: b"\xff\xfe\x00", "not UTF-8"),
    "without a port": (lambda kernel: without(kernel, "shell_port"), "shell_port is missing"),
    "port of text": (lambda kernel: json.dumps({**kernel.get_connection_info(), "hb_port": "80"}), "hb_port must be"),
    "transport": (lambda kernel: json.dumps({**kernel.get_connection_info(), "transport": "udp"}), "transport must be"),
    "scheme": (
        lambda kernel: json.dumps({**kernel.get_connection_info(), "signature_scheme": "x"}),
        "signature_scheme",
    ),
}


def without(kernel, name):
    return json.dumps({key: value for key, value in kernel.get_connection_info().items() if key != name})


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_connection_file_is_an_error_that_says_what_and_where(kernel, folder, make, message):
    path = folder / "broken.json"
    content = make(kernel)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    manager = kclient.KernelManager()
    for load in (kclient.connect, kclient.KernelClient, manager.load_connection_file):
        with pytest.raises(kclient.ConnectionFileError, match=message) as caught:
            load(path)
        assert isinstance(caught.value, ValueError)
        assert caught.value.path == os.fspath(path)
        assert os.fspath(path) in str(caught.value)
        assert kernel.get_connection_info()["key"] not in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-file.json", "1234", "/no/such/directory/file.json", ""])
def test_missing_connection_file_is_an_error_that_says_where_it_was_looked_for(name):
    with pytest.raises(kclient.ConnectionFileError) as caught:
        kclient.connect(name)
    assert caught.value.path == name
    assert repr(name) in str(caught.value)


def test_directory_or_unreadable_file_is_an_error(folder):
    with pytest.raises(kclient.ConnectionFileError, match="regular file"):
        kclient.connect(folder)
    path = folder / "secret.json"
    path.write_text("{}")
    path.chmod(0)
    if not os.access(path, os.R_OK):
        with pytest.raises(kclient.ConnectionFileError, match="cannot be read"):
            kclient.connect(path)
    path.chmod(stat.S_IRUSR)


@pytest.mark.parametrize("connection", [None, 3, [], object(), b"bytes.json"])
def test_invalid_connection_is_an_error(connection):
    with pytest.raises(kclient.ConnectionFileError):
        kclient.connect(connection)


def test_kernel_that_is_gone_is_noticed_while_connecting(kernel_manager):
    """No process listens at the kernel's addresses any more."""
    info = kernel_manager.get_connection_info()
    kernel_manager.shutdown_kernel()
    with pytest.raises((kclient.KernelTimeout, kclient.DeadKernelError)):
        kclient.connect(info, timeout=0.2)
