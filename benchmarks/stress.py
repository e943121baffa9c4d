"""No lost wake-up: very many calls from many greenlets, in random order. Each must get its own reply within 1 s.

The kind of each call is random, and so are the points at which it lets other greenlets run. So sends and receives on
one socket interleave in every possible way. After a lost wake-up a call would wait for ever, or until another event
wakes it.

With many greenlets another event comes soon and hides the loss. So a fifth of the calls are made by one, two or three
greenlets, which touch the sockets only to send and to wait. They send, compute for about the time of a round trip, and
send again: the first reply may come at any moment in between.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from contextlib import closing
from random import Random
from time import perf_counter, perf_counter_ns

import gevent

import kclient
from benchmarks.clients import PATIENCE
from benchmarks.codec import execute_content
from benchmarks.kernels import Connection, echo_kernels
from benchmarks.report import Report, parse, run_script
from kclient.bench.progress import ProgressLine
from kclient.bench.recorder import Recorder
from kclient.bench.results import row_of
from kclient.bench.table import LATENCY
from kclient.errors import KernelTimeout

GREENLETS = 64

CALL_LIMIT_S = 1.0
"""Seconds that a call may take."""

BLOCK = 4
"""Requests that are sent before the first of their replies is asked for."""

FEW = (1, 2, 3)
"""Numbers of greenlets so small that hardly any greenlet is woken by the events of another."""

SHARE_OF_FEW = 0.2

THINK_S = 0.0006
"""Seconds at most between two sends; a round trip takes a third of that."""

STEP = 200
"""Calls between two updates of the progress."""


class WrongReply(Exception):
    """A call returned the reply to another call."""


class Stress:
    """Greenlets that call one client. `recorder` has the time of each call."""

    def __init__(self, client: kclient.KernelClient, seed: int) -> None:
        self.recorder = Recorder()
        self._client = client
        self._random = Random(seed)
        self._count = 0
        self._left = 0
        self._kinds: list[Callable[[], None]] = [
            self.kernel_info,
            self.execute,
            self.run_code,
            self.submit,
            self.replies_out_of_order,
            self.poll,
        ]
        self._kinds_of_few: list[Callable[[], None]] = [self.kernel_info, self.run_code, self.send_think_send]

    def run(self, calls: int, progress: ProgressLine | None = None) -> None:
        """Make at least `calls` calls; raises the error of the first call that fails."""
        few = int(calls * SHARE_OF_FEW / len(FEW))
        for greenlets in FEW:
            self._call(few, greenlets, self._kinds_of_few, progress)
        self._call(calls - few * len(FEW), GREENLETS, self._kinds, progress)

    def _call(
        self, calls: int, greenlets: int, kinds: Sequence[Callable[[], None]], progress: ProgressLine | None
    ) -> None:
        self._left = calls
        workers = [gevent.spawn(self._work, kinds, progress) for _ in range(greenlets)]
        try:
            gevent.joinall(workers, raise_error=True)
        finally:
            gevent.killall(workers)

    def _work(self, kinds: Sequence[Callable[[], None]], progress: ProgressLine | None) -> None:
        while self._left > 0:
            if self._random.random() < 0.2:
                gevent.sleep(0)
            self._random.choice(kinds)()
            if self._count % STEP == 0:
                if kinds is self._kinds:
                    self._client.iopub_channel.get_msgs()  # output of `execute`, which no execution takes
                if progress is not None:
                    progress.advance()

    def _done(self, start: int, calls: int = 1) -> None:
        self._left -= calls
        self.recorder.record([perf_counter_ns() - start] * calls)

    def _token(self) -> str:
        self._count += 1
        return f"{self._count}"

    # The kinds of calls

    def kernel_info(self) -> None:
        start = perf_counter_ns()
        reply = self._client.kernel_info(timeout=PATIENCE)
        self._done(start)
        check("echo", reply.content["implementation"])

    def execute(self) -> None:
        token, start = self._token(), perf_counter_ns()
        reply = self._client.execute(f"say {token}", timeout=PATIENCE)
        self._done(start)
        check(token, reply.content["said"])

    def run_code(self) -> None:
        token, start = self._token(), perf_counter_ns()
        result = self._client.run(f"say {token}", timeout=PATIENCE)
        self._done(start)
        check(token, result.stdout)

    def send_think_send(self) -> None:
        """Send twice. The second send may consume the socket's event for the first reply, if that comes just then."""
        shell = self._client.shell_channel
        token, start = self._token(), perf_counter()
        msg_id = shell.send("execute_request", execute_content(f"say {token}"))
        until = start + self._random.random() * THINK_S
        while perf_counter() < until:
            pass
        asked = perf_counter_ns()
        check("echo", shell.kernel_info(timeout=PATIENCE).content["implementation"])
        self._done(asked)
        check(token, shell.get_reply(msg_id, timeout=PATIENCE).content["said"])
        self._done(asked)

    def submit(self) -> None:
        token, start = self._token(), perf_counter_ns()
        execution = self._client.submit(f"say {token}")
        if self._random.random() < 0.5:
            check(token, "".join(message.content["text"] for message in execution))
        result = execution.result(timeout=PATIENCE)
        self._done(start)
        check(token, result.stdout)

    def replies_out_of_order(self) -> None:
        """Send some requests at once, and ask for their replies in another order."""
        shell = self._client.shell_channel
        tokens, start = [self._token() for _ in range(BLOCK)], perf_counter_ns()
        sent = [(shell.send("execute_request", execute_content(f"say {token}")), token) for token in tokens]
        self._random.shuffle(sent)
        replies = []
        for msg_id, token in sent:
            if self._random.random() < 0.3:
                gevent.sleep(0)
            replies.append((token, shell.get_reply(msg_id, timeout=PATIENCE)))
        self._done(start, BLOCK)
        for token, reply in replies:
            check(token, reply.content["said"])

    def poll(self) -> None:
        """Ask with a timeout of 0 and let other greenlets run, until the reply is there."""
        shell = self._client.shell_channel
        token, start = self._token(), perf_counter_ns()
        msg_id = shell.send("execute_request", execute_content(f"say {token}"))
        while True:
            try:
                reply = shell.get_reply(msg_id, timeout=0)
                break
            except KernelTimeout:
                if perf_counter_ns() - start > PATIENCE * 1e9:
                    raise
                gevent.sleep(0)
        self._done(start)
        check(token, reply.content["said"])


def check(expected: str, found: str) -> None:
    if found != expected:
        raise WrongReply(f"the reply should have been {expected!r}, and was {found!r}")


def stress(connection: Connection, calls: int, seed: int, title: str) -> Stress:
    """Make at least `calls` calls; raises WrongReply, KernelTimeout and the other errors of calls."""
    client = kclient.KernelClient(connection)
    with closing(client), ProgressLine(title, max(1, calls // STEP)) as progress:
        client.start_channels(stdin=False, hb=False, control=False)
        client.wait_for_ready(PATIENCE)
        made = Stress(client, seed)
        made.run(calls, progress)
    return made


def report_on(report: Report, transport: str, calls: int, seed: int) -> None:
    """Make the calls, and report the time of the longest; exits with code 1 if that is more than `CALL_LIMIT_S`."""
    start = perf_counter()
    with echo_kernels() as kernels:
        made = stress(kernels[0][transport], calls, seed, f"stress, {transport}")
    row = row_of(report.benchmark, transport, "kclient", "stress", made.recorder)
    report.add_rows(transport, "stress", [row], LATENCY[:-1])
    longest = row.max_us or 0.0
    report.say(
        f"{row.n:,} calls of {GREENLETS} greenlets in {perf_counter() - start:.0f} s, seed {seed}: "
        f"each got its own reply; the longest took {longest / 1e3:.1f} ms"
    )
    if longest > CALL_LIMIT_S * 1e6:
        raise SystemExit(f"a call took longer than {CALL_LIMIT_S:g} s")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, metavar="N", default=0, help="[1,000,000; with --quick 2,000]")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random numbers [1]")


def main(argv: Sequence[str] | None = None) -> None:
    options = parse("stress", __doc__ or "", argv, add_options)
    report = Report("stress", options)
    for transport in options.transports:
        report_on(report, transport, options.rest.calls or options.pick(1_000_000, 2000), options.rest.seed)
    report.finish()


if __name__ == "__main__":
    run_script(main)
