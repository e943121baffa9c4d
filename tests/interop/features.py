"""The features that a kernel is asked for. Each is a function that returns the outcome in a word or two."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from catalog import Row
from fixtures import WAIT

import kclient

NO_EFFECT: Final = 1.0
"""Seconds for which code has to run on after an interrupt without effect. The interrupt is sent twice in that time."""

LINES: Final = 500
"""Lines that the code for `order` prints: so many that a kernel which prints in another thread is not done by then."""

ANSI: Final = re.compile(r"\x1b\[[0-9;]*m")


def kernel_info(kernel: kclient.KernelManager, row: Row) -> str:
    content = kernel.kernel_info(timeout=WAIT).content
    fields = ("protocol_version", "implementation", "implementation_version", "banner")
    wanted = [*(content.get(field) for field in fields), content.get("language_info", {}).get("name")]
    return "complete" if all(isinstance(value, str) and value for value in wanted) else f"lacks some of {wanted}"


def stream(kernel: kclient.KernelManager, row: Row) -> str:
    return run(kernel, row.code["stream"]).stdout.strip()


def order(kernel: kclient.KernelManager, row: Row) -> str:
    """Whether all output comes before the idle status, or some of it later, into the inbox."""
    result = run(kernel, row.code["order"])
    lines = result.stdout.split()
    while len(lines) < LINES:
        message = kernel.iopub_channel.get_msg(timeout=WAIT)
        lines += message.content["text"].split() if message.parent_id == result.reply.parent_id else []
    assert lines == [str(number) for number in range(LINES)]
    return "all before idle" if result.stdout.split() == lines else "some after idle"


def result(kernel: kclient.KernelManager, row: Row) -> str:
    return ANSI.sub("", str(run(kernel, row.code["result"]).text))


def error(kernel: kclient.KernelManager, row: Row) -> str:
    result = run(kernel, row.code["error"])
    published = [output["ename"] for output in result.outputs if output["output_type"] == "error"]
    if result.error is None:
        return f"status {result.status}"
    return result.error.ename if published == [result.error.ename] else f"{result.error.ename}, in the reply alone"


def complete(kernel: kclient.KernelManager, row: Row) -> str:
    code, wanted = row.code["complete"]
    matches = kernel.complete(code, len(code), timeout=WAIT).content["matches"]
    return "found" if wanted in matches else f"not among {matches}"


def inspect(kernel: kclient.KernelManager, row: Row) -> str:
    code, wanted = row.code["inspect"]
    content = kernel.inspect(code, len(code), timeout=WAIT).content
    if not content["found"]:
        return "not found"
    return "found" if wanted in content["data"]["text/plain"] else str(content["data"])


def history(kernel: kclient.KernelManager, row: Row) -> str:
    ran = run(kernel, row.code["result"])
    if not ran.ok:
        return f"code before it is {ran.status}"
    entries = kernel.history(hist_access_type="tail", n=1, timeout=WAIT).content["history"]
    return str([source for _session, _line, source in entries])


def is_complete(kernel: kclient.KernelManager, row: Row) -> str:
    return ", ".join(str(kernel.is_complete(code, timeout=WAIT).content["status"]) for code in row.code["is_complete"])


def stdin(kernel: kclient.KernelManager, row: Row) -> str:
    prompts: list[str] = []

    def answer(prompt: str, password: bool) -> str:
        prompts.append(prompt)
        return "Ada"

    stdout = run(kernel, row.code["stdin"], on_input=answer).stdout
    return f"{prompts[0]}{stdout.strip()}" if prompts else "not asked"


def interrupt(kernel: kclient.KernelManager, row: Row) -> str:
    """Interrupt code that runs: its first output has come."""
    execution = kernel.submit(row.code["sleep"])
    for message in execution:
        if message.msg_type == "stream":
            break
    with suppress(kclient.KernelTimeout):  # a kernel still busy with that output may lose its reply (bash_kernel)
        kernel.control_channel.kernel_info(timeout=NO_EFFECT)
    execution.interrupt()
    try:
        result = execution.result(timeout=NO_EFFECT if is_ignored(kernel, row) else WAIT)
    except kclient.DeadKernelError as exc:
        return f"died, exit code {exc.exit_code}"
    except kclient.KernelTimeout:
        kernel.kill_kernel()
        return "goes on"
    after = run(kernel, row.code["stream"])
    if not after.ok:
        return f"ended; code after it is {after.status}"
    return "ended" if not result.ok else "ended as if nothing had been"


def is_ignored(kernel: kclient.KernelManager, row: Row) -> bool:
    mode = "interrupt by message" if kernel.kernel_spec.interrupt_mode == "message" else "interrupt"
    return mode in row.gaps and row.gaps[mode].seen == "goes on"


def restart(kernel: kclient.KernelManager, row: Row) -> str:
    assert run(kernel, row.code["stream"]).ok
    assert kernel.process is not None
    old = kernel.process.pid
    kernel.restart_kernel(timeout=WAIT)
    assert kernel.process.pid != old
    return run(kernel, row.code["stream"]).stdout.strip()


def shutdown(kernel: kclient.KernelManager, row: Row) -> str:
    process = kernel.process
    assert process is not None
    kernel.shutdown_kernel()
    return "ended" if not process.is_alive() else "lives"


def run(kernel: kclient.KernelManager, code: str, **kwargs: Any) -> kclient.Result:
    """Run the code; returns a complete Result."""
    result = kernel.run(code, timeout=WAIT, **kwargs)
    assert result.complete
    return result


LOOK: Final[Mapping[str, Callable[[kclient.KernelManager, Row], str]]] = {
    "kernel_info": kernel_info,
    "stream": stream,
    "order": order,
    "result": result,
    "error": error,
    "complete": complete,
    "inspect": inspect,
    "history": history,
    "is_complete": is_complete,
    "stdin": stdin,
    "interrupt": interrupt,
    "interrupt by message": interrupt,
    "restart": restart,
    "shutdown": shutdown,
}
"""The function for each feature."""

OF_ITS_OWN: Final = frozenset(["interrupt", "interrupt by message", "restart", "shutdown"])
"""Features that need a kernel of their own, since it may not outlive them."""
