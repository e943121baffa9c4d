"""What the library logs: nothing on stderr by itself; at DEBUG a line a message, without content and keys."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator

import pytest

import kclient
from kclient.concurrency import log as logs
from kclient.testing import FakeKernel, Request, result, stream

WAIT = 20

SAYS_A_WARNING = """
import sys, kclient
from kclient.concurrency.deadline import Deadline
from kclient.testing import FakeKernel

with FakeKernel() as fake, kclient.connect(fake.connection_info, timeout=20) as client:
    assert "logging" not in sys.modules
    if "handler" in sys.argv:
        import logging
        logging.basicConfig(format="%(levelname)s %(name)s %(message)s", stream=sys.stdout)
    inbox = client.iopub_channel.inbox
    inbox.max_messages = 1
    for _ in range(3):
        fake.publish("news", {})
    while not inbox.dropped:
        client.iopub_channel.changed.wait(Deadline(20))
    client.kernel_info(timeout=20)
    assert "logging" in sys.modules
"""

LINE = re.compile(
    r"(shell|control|iopub|stdin): (send|got) (\w+) (\S+)( of (no request|\S+)| to \S+|), (\d+) bytes(.*)"
)


@pytest.fixture
def fake() -> Iterator[FakeKernel]:
    with FakeKernel() as fake:
        yield fake


def test_program_without_handlers_sees_no_warning_and_one_with_a_handler_sees_it(
    run_script: Callable[..., str],
) -> None:
    assert run_script(SAYS_A_WARNING) == ""
    said = "WARNING kclient iopub is not read: its inbox is full and drops the oldest messages"
    assert run_script(SAYS_A_WARNING, "handler") == said


def test_at_debug_the_log_has_a_line_for_each_message_without_content_and_key(
    fake: FakeKernel, caplog: pytest.LogCaptureFixture
) -> None:
    info = fake.connection_info
    fake.script["6 * 7  # secret"] = [stream("spoken"), result("42")]
    with kclient.connect(info, timeout=WAIT) as client:
        client.iopub_channel.flush()
        with caplog.at_level(logging.DEBUG, "kclient"):
            reply = client.run("6 * 7  # secret", timeout=WAIT).reply
            client.close()
    assert reply is not None
    msg_id = reply.parent_id or ""
    found = [match for match in map(LINE.fullmatch, caplog.messages) if match]
    about = [match for match in found if msg_id in match[0]]
    assert len(about) == len({match[4] for match in about}), "a message has one line"
    send, *got = about
    assert send.groups()[:5] == ("shell", "send", "execute_request", msg_id, "")
    assert int(send[7]) > len("6 * 7  # secret")
    kinds = {(match[1], match[3]) for match in got}
    assert kinds == {
        ("shell", "execute_reply"),
        *(("iopub", kind) for kind in ("status", "execute_input", "stream", "execute_result")),
    }
    assert all(match[6] == msg_id and re.fullmatch(r", \d+\.\d\d ms after the request", match[8]) for match in got)
    for secret in ("secret", "spoken", "42", info.key.decode()):
        assert secret not in re.sub(r"\S*_\d+|\d+ bytes|\d+\.\d+ ms", "", caplog.text)


def test_input_is_logged_without_the_answer(fake: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    def ask(request: Request) -> None:
        request.publish("stream", {"name": "stdout", "text": request.ask("name?")})
        request.reply()

    fake.script["ask"] = ask
    with kclient.connect(fake.connection_info, timeout=WAIT) as client, caplog.at_level(logging.DEBUG, "kclient"):
        assert client.run("ask", on_input=lambda prompt, password: "hidden", timeout=WAIT).stdout == "hidden"
    lines = [line for line in caplog.messages if line.startswith("stdin")]
    assert [line.split()[1:3] for line in lines] == [["got", "input_request"], ["send", "input_reply"]]
    assert "hidden" not in caplog.text
    assert "name?" not in caplog.text


def test_type_and_id_from_a_kernel_stay_on_one_line(fake: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    with kclient.connect(fake.connection_info, timeout=WAIT) as client, caplog.at_level(logging.DEBUG, "kclient"):
        message = fake.session.msg("two\nlines\x1b[2J", {}, parent={"msg_id": "x" * 1000})
        fake.send("iopub", message, [b"topic"])
        client.kernel_info(timeout=WAIT)
        client.iopub_channel.flush()
    (line,) = [line for line in caplog.messages if "two" in line]
    assert line.isprintable()
    assert len(line) < 400


def test_at_info_no_message_is_logged(fake: FakeKernel, caplog: pytest.LogCaptureFixture) -> None:
    with kclient.connect(fake.connection_info, timeout=WAIT) as client, caplog.at_level(logging.INFO, "kclient"):
        assert not logs.is_enabled(logs.DEBUG)
        client.run("6 * 7", timeout=WAIT)
    assert caplog.messages == []
