"""Many requests at once to a service that runs code, from a separate process: python -m benchmarks.load http://...

Each request's code computes a number that no other request has and that is not in the code. A correct answer is the
complete sequence of events with that number as output. An error with a reason is correct, too, if all output before it
is the beginning of the expected output. A caller that has its answer asks again at once; a caller that was refused does
so after the time in Retry-After. A latency includes the time that the request waited for its kernel.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import suppress
from random import Random
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Any

import aiohttp
import attrs

from benchmarks.descendants import descendants, kernels_of, own_kib, share_kib
from benchmarks.kernels import ROOT
from kclient.bench.recorder import Recorder

FOR_EVER_S = 600
"""Seconds that endless code sleeps: longer than any limit of a service."""

SAMPLE_S = 0.5
"""Seconds between two measurements of the memory."""

TOLD = 20
"""The number of complaints that are printed."""

KINDS = {
    "print": "print({number})",
    "stream": "import time\nfor n in range(4):\n    print(n, {number}, flush=True)\n    time.sleep(0.02)",
    "result": "{number}",
    "error": "raise ValueError({number})",
    "endless": "import time\nprint({number}, flush=True)\ntime.sleep({for_ever})",
    "leave": "import time\nprint({number}, flush=True)\ntime.sleep({for_ever})",
    "exit": "import os\nprint({number}, flush=True)\nos._exit(3)",
}
"""The code of each kind of request. The caller of a "leave" request hangs up at the first output."""

STATUS = {"error": "error", "endless": "timeout", "exit": "died"}
"""The status at the end, for the kinds whose status is not "ok"."""

CLEAR = ["refused", "died", "timeout", "failed"]
"""Correct outcomes while kernels are killed: the answer gives a reason, and no output but the request's own."""

BAD = ["wrong", "broken", "hung"]
"""Incorrect outcomes: output of another request or a malformed answer; a broken connection; no answer in time."""


@attrs.frozen
class Request:
    """One request, and the output and status that are expected."""

    kind: str
    code: str
    output: str
    status: str
    timeout: float | None = None

    @classmethod
    def make(cls, kind: str, random: Random, *, is_fresh: bool) -> Request:
        """A request with a random number. With `is_fresh` its output is wrong if its kernel was used before."""
        number, mask = random.getrandbits(62), random.getrandbits(62)
        expression = f"{number ^ mask} ^ {mask}"
        if is_fresh:
            expression = f"globals().setdefault('owner', {expression})"
        output = {
            "stream": "".join(f"{n} {number}\n" for n in range(4)),
            "result": str(number),
            "error": str(number),
        }.get(kind, f"{number}\n")
        code = KINDS[kind].format(number=expression, for_ever=FOR_EVER_S)
        timeout = {"endless": 0.5}.get(kind)
        return cls(kind, code, output, STATUS.get(kind, "ok"), timeout)

    @property
    def body(self) -> dict[str, Any]:
        return {"code": self.code} if self.timeout is None else {"code": self.code, "timeout": self.timeout}


@attrs.define
class Answer:
    """How a request ended. `first` and `done` are its first output and its end, in nanoseconds after its start."""

    outcome: str = "hung"
    reason: str = ""
    output: str = ""
    first: int | None = None
    done: int | None = None
    retry_after: float = 0


class Wrong(Exception):
    """An incorrect answer."""


async def ask(session: aiohttp.ClientSession, url: str, request: Request, patience: float) -> Answer:
    """Send a request and check its answer. It never raises: the answer holds what went wrong."""
    answer = Answer()
    try:
        await asyncio.wait_for(converse(session, url, request, answer), patience)
    except asyncio.TimeoutError:
        answer.reason = f"no end within {patience:g} s"
    except Wrong as exc:
        answer.outcome, answer.reason = "wrong", str(exc)
    except (aiohttp.ClientError, OSError) as exc:
        answer.outcome, answer.reason = "broken", f"{type(exc).__name__}: {exc}"
    except (AttributeError, KeyError, TypeError, ValueError) as exc:  # no JSON, or of another shape
        answer.outcome, answer.reason = "wrong", f"{type(exc).__name__}: {exc}"
    is_whole = answer.output == request.output
    if answer.outcome == "ok" and not is_whole and request.status in CLEAR:
        answer.outcome = request.status  # the expected end, but before all of the output
    if not request.output.startswith(answer.output) or (answer.outcome == "ok" and not is_whole):
        answer.outcome = "wrong"
        answer.reason = f"the output was {answer.output!r}, and should have been {request.output!r}"
    return answer


async def converse(session: aiohttp.ClientSession, url: str, request: Request, answer: Answer) -> None:
    start = perf_counter_ns()
    async with session.post(f"{url}/run", json=request.body) as response:
        if response.status == 503:
            answer.reason = str((await response.json()).get("error") or "")
            retry_after = response.headers.get("Retry-After", "")
            check(answer.reason and retry_after.isdecimal(), "a 503 without reason or Retry-After")
            answer.outcome, answer.retry_after = "refused", float(retry_after)
            return
        text = "" if response.status == 200 else await response.text()
        check(response.status == 200, f"HTTP {response.status}: {text}")
        check(response.content_type == "text/event-stream", f"not a stream of events but {response.content_type}")
        has_begun = False
        async for name, data in events_of(response):
            check(answer.done is None, f"{name} {data} after done")
            check((name == "started") is not has_begun, f"{name} {data}: started must come first, and only once")
            has_begun = True
            if name == "output":
                answer.first = answer.first or perf_counter_ns() - start
                answer.output += text_of(data)
                if request.kind == "leave":
                    answer.outcome = "left"
                    response.close()
                    return
            elif name == "done":
                answer.done = perf_counter_ns() - start
                judge(request, data, answer)
            else:
                check(isinstance(data.get("kernel_id"), str) and name == "started", f"an event {name} {data}")
        check(answer.done is not None, "it ended without done")


def judge(request: Request, done: dict[str, Any], answer: Answer) -> None:
    """Set the outcome from the data of the event "done"; raises Wrong."""
    status, message = done.get("status"), done.get("message")
    answer.reason = str(message)
    if status == request.status:
        answer.outcome = "ok"
    else:
        check(status in CLEAR and isinstance(message, str) and message, f"it ended with {done}")
        answer.outcome = str(status)


def check(is_so: object, otherwise: str) -> None:
    if not is_so:
        raise Wrong(otherwise)


async def events_of(response: aiohttp.ClientResponse) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """Name and data of each event; raises Wrong for data that is no event."""
    rest = b""
    async for part in response.content.iter_any():
        *blocks, rest = (rest + part).split(b"\n\n")
        for block in blocks:
            name, _, data = block.decode().partition("\n")
            check(name.startswith("event: ") and data.startswith("data: "), f"no event: {block!r}")
            try:
                yield name[len("event: ") :], json.loads(data[len("data: ") :])
            except ValueError as exc:
                raise Wrong(f"no JSON: {data}") from exc
    check(not rest, f"half an event: {rest!r}")


def text_of(output: dict[str, Any]) -> str:
    """The text in which an output has the number of the request."""
    kind = output.get("output_type")
    if kind == "stream":
        return str(output["text"])
    if kind == "error":
        return str(output["evalue"])
    return str(output.get("data", {}).get("text/plain"))


class Load:
    """All requests, their outcomes, and the memory of the service meanwhile."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.random = Random(options.seed)
        self.outcomes: Counter[str] = Counter()
        self.complaints: list[str] = []
        self.reasons: Counter[str] = Counter()
        self.first: list[int] = []
        self.done: list[int] = []
        self.server_kib: list[int] = []
        self.all_kib: list[int] = []
        self.killed = 0
        self.seconds = 0.0
        self._until = float("inf")

    async def run(self) -> None:
        options = self.options
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None)) as session:
            watchers = [self._kill] * bool(options.kill) + [self._measure] * bool(options.pid)
            tasks = [asyncio.ensure_future(watch()) for watch in watchers]
            start = perf_counter()
            self._until = start + options.seconds
            requests = self._requests()
            await asyncio.gather(*(self._keep_asking(session, requests) for _ in range(options.concurrent)))
            self.seconds = perf_counter() - start
            for task in tasks:
                task.cancel()
            for ended in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(ended, Exception):
                    raise ended

    def _requests(self) -> Iterator[Request]:
        for _ in range(self.options.requests):
            yield Request.make(self.random.choice(self.options.kinds), self.random, is_fresh=self.options.fresh)

    async def _keep_asking(self, session: aiohttp.ClientSession, requests: Iterator[Request]) -> None:
        """One caller: send one request after the other."""
        for request in requests:
            answer = await ask(session, self.options.url.rstrip("/"), request, self.options.patience)
            self._note(request, answer)
            if perf_counter() > self._until:
                return
            await asyncio.sleep(answer.retry_after)

    def _note(self, request: Request, answer: Answer) -> None:
        self.outcomes[answer.outcome] += 1
        if answer.outcome in BAD:
            self.complaints.append(f"{answer.outcome}: {request.kind}: {answer.reason}")
        elif answer.outcome in CLEAR:
            self.reasons[f"{answer.outcome}: {answer.reason.splitlines()[0]}"] += 1
        if answer.outcome == "ok" and answer.done is not None:
            self.done.append(answer.done)
            if answer.first is not None:
                self.first.append(answer.first)

    async def _kill(self) -> None:
        """Kill kernels of the service at random, busy or not, `--kill` a second on average."""
        while True:
            await asyncio.sleep(self.random.expovariate(self.options.kill))
            victims = await asyncio.to_thread(kernels_of, self.options.pid)
            if victims:
                with suppress(ProcessLookupError):
                    os.kill(self.random.choice(victims), signal.SIGKILL)
                    self.killed += 1

    async def _measure(self) -> None:
        """Note the memory of the service's own process, and of all its processes together, every `SAMPLE_S`."""
        pid = self.options.pid
        while True:
            self.server_kib.append(own_kib(pid))
            everyone = [pid, *descendants(pid)]
            self.all_kib.append(await asyncio.to_thread(lambda pids: sum(map(share_kib, pids)), everyone))
            await asyncio.sleep(SAMPLE_S)

    def to_dict(self) -> dict[str, Any]:
        return {
            "outcomes": dict(self.outcomes),
            "complaints": self.complaints,
            "reasons": dict(self.reasons),
            "seconds": self.seconds,
            "killed": self.killed,
            "server_kib": max(self.server_kib, default=None),
            "all_kib": median(self.all_kib) if self.all_kib else None,
            "first_ns": self.first,
            "done_ns": self.done,
        }

    def __str__(self) -> str:
        lines = [f"{self.outcomes.total()} requests in {self.seconds:.1f} s, {self.killed} kernels killed"]
        lines += [f"  {count} {outcome}" for outcome, count in self.outcomes.most_common()]
        lines += [f"  {count} x {reason}" for reason, count in self.reasons.most_common(TOLD)]
        for what, times in [("first output", self.first), ("done", self.done)]:
            if times:
                recorder = Recorder()
                recorder.record(times)
                found = recorder.figures()
                lines.append(f"{what}: p50 {found.p50_us / 1e3:.1f} ms, p99 {found.p99_us / 1e3:.1f} ms")
        if self.server_kib:
            lines.append(
                f"memory: server {max(self.server_kib) / 1024:.1f} MiB, all {median(self.all_kib) / 1024:.1f} MiB"
            )
        return "\n".join([*lines, *list(dict.fromkeys(self.complaints))[:TOLD]])


def put_load(url: str, pid: int, *arguments: object) -> dict[str, Any]:
    """Run this module in a new process against the service at `url`; returns its `Load.to_dict`."""
    command = [sys.executable, "-m", "benchmarks.load", url, "--json", "--pid", str(pid), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return dict(json.loads(done.stdout))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url", help="of the service, for example http://127.0.0.1:8000")
    parser.add_argument("--concurrent", type=int, default=200, help="requests at the same time [200]")
    parser.add_argument("--requests", type=int, default=1000, help="requests at most [1000]")
    parser.add_argument("--seconds", type=float, default=300, help="no request is sent after that [300]")
    parser.add_argument(
        "--kinds", type=lambda text: text.split(","), default=["print"], help=f"some of {','.join(KINDS)} [print]"
    )
    parser.add_argument("--fresh", action="store_true", help="check that no kernel runs the code of two requests")
    parser.add_argument("--patience", type=float, default=120, help="seconds after which a request has hung [120]")
    parser.add_argument("--pid", type=int, help="the service's process, to measure its memory")
    parser.add_argument("--kill", type=float, default=0, metavar="RATE", help="kernels to kill per second; needs --pid")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--json", action="store_true", help="print all that was measured")
    options = parser.parse_args(argv)
    if unknown := set(options.kinds) - set(KINDS):
        parser.error(f"no such kind: {', '.join(sorted(unknown))}")
    if options.kill and not options.pid:
        parser.error("--kill needs the --pid of the service")
    if not options.url.startswith(("http://", "https://")):
        parser.error(f"not a URL such as http://127.0.0.1:8000: {options.url}")
    if min(options.concurrent, options.requests) < 1:
        parser.error("--concurrent and --requests must be 1 or more")
    load = Load(options)
    try:
        asyncio.run(load.run())
    except KeyboardInterrupt:
        sys.exit("ended by SIGINT")
    sys.stdout.write((json.dumps(load.to_dict()) if options.json else str(load)) + "\n")
    if load.complaints:
        sys.exit(1)


if __name__ == "__main__":
    main()
