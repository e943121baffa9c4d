"""Single functions, measured with pyperf: the time to serialize, deserialize and route one message.

``python -m benchmarks.micro`` takes the options of pyperf, for example ``--fast`` and ``-o FILE``.
"""

from __future__ import annotations

from itertools import count
from typing import Any

import pyperf

from benchmarks.codec import Codec, execute_content
from kclient.protocol.comms import CommRoutes
from kclient.protocol.messages import Message
from kclient.protocol.pending_answers import PendingAnswers
from kclient.protocol.routing import Outputs, Requests
from kclient.protocol.session import Session

KEY = b"0123456789abcdef" * 2

TEXT = {"name": "stdout", "text": "a line of output, as long as one is\n"}


def main() -> None:
    runner = pyperf.Runner(program_args=("-m", "benchmarks.micro"))
    runner.metadata["description"] = "single functions of kclient"
    session = Session(KEY)
    request = session.msg("execute_request", execute_content("pass"))
    runner.bench_func("message", session.msg, "execute_request", request.content)
    runner.bench_func("serialize", session.serialize, request)
    runner.bench_time_func("deserialize", time_deserialize)
    runner.bench_time_func("route a reply", time_replies)
    runner.bench_time_func("route an output", time_outputs)
    codec = Codec(KEY)
    runner.bench_func("raw codec: serialize", codec.request, "execute_request", request.content)
    runner.bench_func("raw codec: deserialize", codec.read, codec.request("stream", TEXT))


def time_deserialize(loops: int) -> float:
    """Read messages with different signatures, since a signature is accepted only once."""
    kernel, session = Session(KEY), Session(KEY)
    frames = [kernel.serialize(kernel.msg("stream", TEXT)) for _ in range(loops)]
    start = pyperf.perf_counter()
    for each in frames:
        session.deserialize(each)
    return pyperf.perf_counter() - start


def time_replies(loops: int) -> float:
    """Open a slot, and route the reply to it."""
    pairs = [request_and_answer("kernel_info_reply") for _ in range(loops)]
    requests = Requests(PendingAnswers())
    start = pyperf.perf_counter()
    for request, reply in pairs:
        slot = requests.open(request)
        slot.on_settled = ignore
        requests.route(reply)
    return pyperf.perf_counter() - start


def time_outputs(loops: int) -> float:
    """Find the execution that an output belongs to."""
    outputs = Outputs(1000, 2**20, PendingAnswers(), CommRoutes("", None))
    request, output = request_and_answer("stream")
    outputs.executions[request.msg_id] = Sink()
    start = pyperf.perf_counter()
    for _ in range(loops):
        outputs.route(output)
    return pyperf.perf_counter() - start


_session = Session(KEY)
_numbers = count()


def request_and_answer(msg_type: str) -> tuple[Message, Message]:
    request = _session.msg("kernel_info_request")
    return request, _session.msg(msg_type, {"status": "ok", "number": next(_numbers)}, parent=request)


def ignore(slot: object) -> None:
    """Do nothing when a reply has come."""


class Sink:
    """An execution that keeps nothing."""

    def feed(self, message: Message) -> None: ...

    def update_display(self, message: Message) -> object: ...

    def fail(self, failure: Any) -> None: ...


if __name__ == "__main__":
    main()
