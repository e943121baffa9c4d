"""Mutated messages against a live client: each is dropped and counted, or delivered, and calls get their own answer."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any

import gevent
import pytest
from figures import Figures
from fixtures import WAIT
from fuzz import CHANNELS, DELIVERED, EITHER, Fuzzer
from gevent.event import Event
from gevent.queue import Queue

import kclient
from kclient.testing import FakeKernel, Request, stream

KINDS = ("execute_request", "complete_request", "interrupt_request")
"""The types of the requests that the calls of a batch send."""

BATCH_CALLS = 200
"""Messages that come while one set of calls is pending."""


class CountingKernel(FakeKernel):
    """Counts the messages to each channel. Its answers wait for `goes_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: Counter[str] = Counter()
        self.goes_on = Event()
        self.on("complete_request", lambda request: request.reply({"matches": [request.content["code"]]}))
        self.on("interrupt_request", self.answer_interrupt)

    def send_frames(self, channel: str, frames: Sequence[bytes]) -> None:
        self.sent[channel] += 1
        super().send_frames(channel, frames)

    def wait(self, request: Request) -> None:
        """Run code: wait, and print a word."""
        self.goes_on.wait(WAIT)
        request.publish(*stream(request.content["code"] + "\n"))

    def answer_interrupt(self, request: Request) -> None:
        self.goes_on.wait(WAIT)
        request.reply({"heard": True})


class Live:
    """A client, its pending calls, and the messages that it was given."""

    def __init__(self, fake: CountingKernel, client: kclient.KernelClient, random: Random) -> None:
        self.fate: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.fuzzer = Fuzzer(fake.session, random)
        self._fake = fake
        self._client = client
        self._random = random
        self._number = 0
        self._dropped_before = {name: self._channel(name).dropped.copy() for name in CHANNELS}
        for name in CHANNELS:
            self._channel(name).call_handlers = self._handler(name)
        for name in ("x", "y"):
            client.comms.register_target(name, self._take_comm)

    def _channel(self, name: str) -> Any:
        return getattr(self._client, f"{name}_channel")

    def _handler(self, name: str) -> Callable[[kclient.Message], None]:
        def handle(message: kclient.Message) -> None:
            self.seen[name] += 1

        return handle

    def _take_comm(self, comm: kclient.Comm, message: kclient.Message) -> None:
        self.seen["comms"] += 1
        comm.on_message = self._take_comm_message
        comm.on_close = self._take_end

    def _take_comm_message(self, message: kclient.Message) -> None:
        self.seen["comm messages"] += 1

    def _take_end(self, error: Exception) -> None:
        self.seen["ends of comms"] += 1

    def batch(self) -> None:
        """Start calls, send mutated messages, and see that each call gets its own answer."""
        fake, client = self._fake, self._client
        fake.goes_on.clear()
        fake.requests.clear()
        tokens = [f"token{self._number + number}" for number in range(3)]
        self._number += 3
        fake.script = dict.fromkeys(tokens, fake.wait)
        waits: dict[str, Any] = {"timeout": WAIT, "on_abandon": "leave"}  # so that it is sent before the others end
        calls = [
            gevent.spawn(client.run, tokens[0], on_input=lambda prompt, password: "", **waits),
            gevent.spawn(client.run, tokens[1], on_output=lambda message: None, **waits),
            gevent.spawn(client.execute, tokens[2], timeout=WAIT),
            gevent.spawn(client.complete, tokens[0], timeout=WAIT),
            gevent.spawn(client.control_channel.interrupt, timeout=WAIT),
        ]
        while sum(request.msg_type in KINDS for request in fake.requests) < len(calls):
            gevent.sleep(1e-6)
        self._learn_parents()
        for _ in range(BATCH_CALLS):
            self._send()
        fake.goes_on.set()
        gevent.joinall(calls, raise_error=True)
        first, second, execute, complete, interrupt = (call.value for call in calls)
        for token, outcome in zip(tokens, (first, second), strict=False):
            assert outcome.reply.parent_header["msg_id"] in self._ids[token]
            assert (outcome.status, f"{token}\n" in outcome.stdout) == ("ok", True)
            use(outcome)
        assert (execute.content["status"], execute.parent_id in self._ids[tokens[2]]) == ("ok", True)
        assert (complete.content["matches"], interrupt.content["heard"]) == ([tokens[0]], True)
        fake.script.clear()
        self._take_in()

    def _learn_parents(self) -> None:
        headers = {"shell": [], "control": []}
        self._ids: dict[str, list[str]] = {}
        for request in filter(lambda request: request.msg_type in KINDS, self._fake.requests):
            name = "control" if request.msg_type == "interrupt_request" else "shell"
            headers[name].append(request.header)
            self._ids.setdefault(request.content.get("code", ""), []).append(request.msg_id)
        self.fuzzer.parents.update(headers, stdin=headers["shell"], iopub=headers["shell"])

    def _send(self) -> None:
        channel = self._random.choice(CHANNELS)
        envelope = b"topic" if channel == "iopub" else self._client.session.identity
        for fate, frames in self.fuzzer.messages(channel):
            self.fate[fate] += 1
            self._fake.send_frames(channel, [envelope, *frames])

    def _take_in(self) -> None:
        """Wait until the client has counted all messages that were sent; empties the inboxes."""
        deadline = time.monotonic() + WAIT
        self._client.iopub_channel.flush(WAIT)
        while not self.is_all_counted():
            assert time.monotonic() < deadline, f"sent {self._fake.sent}, counted {self.counted()}"
            gevent.sleep(1e-6)
        for name in CHANNELS:
            self._channel(name).get_msgs()

    def counted(self) -> dict[str, int]:
        return {name: self.seen[name] + self._channel(name).dropped.total() for name in CHANNELS}

    def is_all_counted(self) -> bool:
        return self.counted() == {name: self._fake.sent[name] for name in CHANNELS}

    def dropped(self) -> Counter[str]:
        return sum((self._channel(name).dropped for name in CHANNELS), Counter())


def use(outcome: kclient.Result) -> None:
    """Use each property of a result: none raises, with any content."""
    for name in ("stdout", "stderr", "text", "data", "error", "status", "ok", "execution_count"):
        getattr(outcome, name)
    for output in outcome.outputs:
        assert output["output_type"] in ("stream", "display_data", "execute_result", "error")


@pytest.fixture
def errors_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The errors that the hub prints: those of callbacks of the loop and of greenlets without an owner."""
    errors: list[str] = []
    hub = gevent.get_hub()
    monkeypatch.setattr(hub, "print_exception", lambda context, kind, value, tb: errors.append(f"{context}: {value!r}"))
    return errors


@pytest.mark.timeout(1800)
def test_mutated_messages_harm_nobody(
    figures: Figures, errors_of_the_hub: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR, "kclient")
    number = figures.size(20_000, 1_000_000)
    with CountingKernel() as fake, kclient.connect(fake.connection_info, timeout=WAIT) as client:
        client.iopub_channel.flush()
        fake.sent.clear()
        live = Live(fake, client, Random(4))
        started = time.monotonic()
        while live.fate.total() < number:
            live.batch()
        assert min(live.seen[what] for what in ("comms", "comm messages", "ends of comms")) > 0
        figures.note("mutated messages", live.fate.total(), "")
        figures.note("mutated messages a second, sender included", number / (time.monotonic() - started), "1/s")
        dropped = live.dropped()
        assert len(client.shell_channel.requests) == len(client.control_channel.requests) == 0
    assert (errors_of_the_hub, caplog.messages) == ([], [])
    assert {reason: dropped[reason] for reason in ("layout", "signature", "replay")} == {
        reason: live.fate[reason] for reason in ("layout", "signature", "replay")
    }
    assert live.fate["json"] <= dropped["json"] <= live.fate["json"] + live.fate[EITHER]
    assert live.fate[DELIVERED] > number / 10


@pytest.mark.timeout(600)
def test_heartbeat_that_is_no_echo_harms_nobody(figures: Figures, errors_of_the_hub: list[str]) -> None:
    random = Random(5)
    with FakeKernel() as fake, kclient.connect(fake.connection_info, timeout=WAIT) as client:
        pings: Queue[list[bytes]] = Queue()
        fake.take = lambda port, frames: (  # type: ignore[method-assign]
            pings.put(frames) if port.name == "hb" else FakeKernel.take(fake, port, frames)
        )
        client.hb_channel.pause()
        client.hb_channel.unpause()
        ping = pings.get(timeout=WAIT)
        for _ in range(figures.size(1000, 100_000)):
            frames = [random.randbytes(random.randrange(9)) for _ in range(random.randrange(1, 4))]
            fake.send_frames("hb", [ping[0], *frames])
        assert client.kernel_info(timeout=WAIT).content["status"] == "ok"
        assert client.is_alive()
    assert errors_of_the_hub == []
