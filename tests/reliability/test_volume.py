"""Large amounts: unread messages, large messages, floods of small ones, and much output of a kernel that starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import pytest
from figures import Figures
from fixtures import WAIT

import kclient
from benchmarks.kernels import echo_kernels
from kclient.protocol.kept_outputs import CUT_MARK
from kclient.protocol.transcript import MAX_OUTPUT_BYTES

pytestmark = [pytest.mark.kernel, pytest.mark.timeout(900)]

MIB = 2**20

PATIENCE = 300
"""Seconds for a call of full size."""


class Memory:
    """The peak memory of this process since this object was made; 0 where Linux does not tell."""

    def __init__(self) -> None:
        self._status = Path("/proc/self/status")
        if self._status.exists():
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, see proc_pid_clear_refs(5)
        self._before = self._read("VmRSS")

    @property
    def growth(self) -> float:
        """MiB beyond the memory that was held in the beginning."""
        return (self._read("VmHWM") - self._before) / MIB

    def _read(self, name: str) -> int:
        if not self._status.exists():
            return 0
        lines = dict(line.split(":", 1) for line in self._status.read_text().splitlines())
        return int(lines[name].split()[0]) * 1024


# Unread messages


@contextmanager
def kernel_for_many_executes(transport: str, figures: Figures) -> Iterator[kclient.KernelClient]:
    """A real kernel in the long run, an echo kernel in the short one."""
    if figures.is_long:
        with kclient.start_kernel(transport=transport) as manager:
            yield manager.client
    else:
        with echo_kernels() as kernels, kclient.connect(kernels[0][transport], watch=False) as client:
            yield client


def test_executes_whose_output_nobody_reads_harm_nobody(transport: str, figures: Figures) -> None:
    """The inbox drops the oldest messages, and counts them."""
    number = figures.size(3000, 20_000)
    code, last = ("None", "print(1)") if figures.is_long else ("say 1", "say 1")
    published = 3  # busy, execute_input or the echo kernel's stream, idle
    with kernel_for_many_executes(transport, figures) as client:
        inbox = client.iopub_channel.outputs.inbox
        inbox.max_messages = figures.size(5000, inbox.max_messages)
        client.iopub_channel.flush()
        memory, started = Memory(), perf_counter()
        for n in range(number):
            if n % 2:
                reply = client.execute(code, timeout=WAIT)
            else:
                content = {"code": code, "silent": False, "allow_stdin": False}
                reply = client.shell_channel.get_reply(client.shell_channel.send("execute_request", content), WAIT)
            assert reply.content["status"] == "ok"
        seconds = perf_counter() - started
        result = client.run(last, timeout=WAIT)
        assert (result.stdout.strip(), result.complete) == ("1", True)
        assert len(inbox) == inbox.max_messages
        assert inbox.dropped + len(inbox) == number * published
        assert len(client.shell_channel.requests) == 0
        kept = client.iopub_channel.flush()
        assert kept[-1].content == {"execution_state": "idle"}
    what = f"{number} unread executes over {transport}"
    figures.note(what, seconds, "s")
    figures.note(f"{what}: growth of memory", memory.growth, "MiB", at_most=150)


# A single large message

DISPLAY = "get_ipython().display_pub.publish({{'text/plain': 'x' * {nbytes}}})"


def texts(outputs: list[dict[str, object]]) -> list[int]:
    """The length of the text of each display."""
    return [len(output["data"]["text/plain"]) for output in outputs]  # type: ignore[index]


def test_large_message_arrives_whole_or_not_at_all(
    kernel: kclient.KernelManager, client: kclient.KernelClient, transport: str, figures: Figures
) -> None:
    """In a run, within its limit and beyond it, and unclaimed, within the limit of the inbox and beyond it."""
    nbytes = figures.size(8, 100) * 10**6
    code, inbox = DISPLAY.format(nbytes=nbytes), client.iopub_channel.outputs.inbox
    kernel.iopub_channel.outputs.inbox.max_bytes = 1  # another client that reads nothing
    memory, started = Memory(), perf_counter()
    result = client.run(code, timeout=PATIENCE)
    figures.note(f"a message of {nbytes / 1e6:g} MB over {transport}", perf_counter() - started, "s", at_most=10)
    figures.note(f"a message of {nbytes / 1e6:g} MB: growth of memory", memory.growth, "MiB", at_most=10 * nbytes / MIB)
    assert (texts(result.outputs), result.truncated, result.complete) == ([nbytes], False, True)
    del result
    result = client.run(code, max_output_bytes=nbytes, timeout=PATIENCE)  # the rest of the message goes beyond it
    assert (result.outputs, result.truncated, result.complete, result.ok) == ([], True, True, True)
    inbox.max_bytes = 2 * nbytes
    client.execute(code, timeout=PATIENCE)
    unclaimed = client.iopub_channel.flush(timeout=PATIENCE)
    counted = (
        inbox.dropped,
        inbox.nbytes,
        client.iopub_channel.dropped,
        client.kernel_connection.channels.pending.owed_idle,
    )
    types = [message.msg_type for message in unclaimed]
    assert types == ["status", "execute_input", "display_data", "status"], counted
    assert len(unclaimed[2].content["data"]["text/plain"]) == nbytes
    del unclaimed
    inbox.max_bytes = nbytes // 2
    dropped = inbox.dropped
    client.execute(code, timeout=PATIENCE)
    kept = client.iopub_channel.flush(timeout=PATIENCE)
    assert [message.msg_type for message in kept] == ["status"], "it goes when the idle comes"
    assert inbox.dropped - dropped == 3


# Many messages

FLOOD = "import sys\nfor _ in range({number}):\n    _ = sys.stdout.write('x' * 8191 + '\\n')\n    sys.stdout.flush()"
FLOOD_LINE = "x" * 8191 + "\n"
"""Each of these outputs is 8 KiB in one piece: `print` writes the end of a line separately."""

FEW = 7
"""MiB: fewer messages than the high-water mark of the kernel's socket. Beyond it the kernel drops messages."""


def test_flood_is_cut_off_at_the_limit_with_a_mark(
    start_kernel: Callable[..., kclient.KernelManager], figures: Figures
) -> None:
    manager = start_kernel()
    total = figures.size(FEW, 1024) * MIB
    limit = figures.size(2 * MIB, MAX_OUTPUT_BYTES)
    memory, started = Memory(), perf_counter()
    result = manager.run(FLOOD.format(number=total // 8192), max_output_bytes=limit, timeout=PATIENCE)
    figures.note(f"{total // MIB} MiB in messages of 8 KiB, kept to a limit", perf_counter() - started, "s")
    figures.note("a flood that is kept: growth of memory", memory.growth, "MiB", at_most=4 * limit / MIB)
    assert (result.ok, result.complete, result.truncated) == (True, True, True)
    lines = FLOOD_LINE * (limit // len(FLOOD_LINE) + 1)
    assert result.stdout == lines[:limit] + CUT_MARK
    del lines
    del result
    assert manager.run("print('on')", timeout=WAIT).stdout == "on\n"


def test_every_byte_of_a_flood_arrives_where_it_is_streamed(
    start_kernel: Callable[..., kclient.KernelManager], figures: Figures
) -> None:
    manager = start_kernel()
    total = figures.size(FEW, 1024) * MIB
    counted = 0

    def add(message: kclient.Message) -> None:
        nonlocal counted
        counted += len(message.content["text"])

    memory, started = Memory(), perf_counter()
    result = manager.run(FLOOD.format(number=total // 8192), keep_outputs=False, on_output=add, timeout=PATIENCE)
    figures.note(f"{total // MIB} MiB in messages of 8 KiB, streamed", perf_counter() - started, "s")
    figures.note("a flood that is streamed: growth of memory", memory.growth, "MiB", at_most=100)
    assert counted == total
    assert (result.ok, result.complete, result.truncated, result.outputs) == (True, True, False, [])


# Output during the start

NOISY = """
import os, sys
line = b"x" * 99_999 + b"\\n"
for _ in range({lines}): os.write(2, line)
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance(connection_file=sys.argv[1]); app.initialize([]); app.start()
"""


def test_kernel_that_prints_very_much_while_it_starts_does_start(
    install_kernel: Callable[..., str], start_kernel: Callable[..., kclient.KernelManager], figures: Figures
) -> None:
    nbytes = figures.size(10, 100) * 10**6
    name = install_kernel(NOISY.format(lines=nbytes // 100_000))
    memory, started = Memory(), perf_counter()
    manager = start_kernel(name)
    figures.note(f"start of a kernel that prints {nbytes / 1e6:g} MB", perf_counter() - started, "s", at_most=5)
    figures.note("growth of memory meanwhile", memory.growth, "MiB", at_most=20)
    assert manager.run("print('on')", timeout=WAIT).stdout == "on\n"
    with pytest.raises(kclient.DeadKernelError) as caught:
        manager.run("import os; os.write(2, b'last output'); os._exit(3)", timeout=WAIT)
    assert caught.value.stderr.endswith("last output")
    assert len(caught.value.stderr) < 100_000
