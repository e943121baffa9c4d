"""The debugger of a real kernel, driven as a blocking script does."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from fixtures import WAIT, Background

import kclient
from kclient.client import watchdog

CELL = """
def double(number):
    twice = 2 * number
    return twice

double(21)
"""


def test_script_stops_at_a_breakpoint_reads_a_variable_and_goes_on(
    start_kernel: Callable[..., kclient.KernelManager],
    background: Callable[..., Background],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request that waits behind stopped code does not count as lost."""
    monkeypatch.setattr(watchdog, "OVERDUE_S", 0.05)
    kernel = start_kernel()

    def ask(command: str, **arguments: Any) -> Any:
        content = kernel.debug(command, arguments, timeout=WAIT).content
        assert content["success"], content
        return content.get("body")

    ask("initialize", clientID="kclient", adapterID="", pathFormat="path", linesStartAt1=True, columnsStartAt1=True)
    ask("attach")
    path = ask("dumpCell", code=CELL)["sourcePath"]
    (breakpoint_set,) = ask("setBreakpoints", source={"path": path}, breakpoints=[{"line": 4}])["breakpoints"]
    ask("configurationDone")
    assert (breakpoint_set["verified"], breakpoint_set["line"]) == (True, 4)

    execution = kernel.submit(CELL)
    stopped = kernel.wait_for_debug_event("stopped", timeout=WAIT)
    thread = stopped.content["body"]["threadId"]
    behind = background(kernel.is_complete, "1")

    frame = ask("stackTrace", threadId=thread)["stackFrames"][0]
    assert (frame["name"], frame["line"]) == ("double", 4)
    scope = ask("scopes", frameId=frame["id"])["scopes"][0]
    variables = ask("variables", variablesReference=scope["variablesReference"])["variables"]
    assert {variable["name"]: variable["value"] for variable in variables} == {"number": "21", "twice": "42"}
    assert ask("evaluate", expression="twice + 1", frameId=frame["id"])["result"] == "43"
    assert ask("richInspectVariables", variableName="twice", frameId=frame["id"])["data"] == {"text/plain": "42"}
    ask("copyToGlobals", srcVariableName="twice", srcFrameId=frame["id"], dstVariableName="copied")
    assert thread in ask("debugInfo")["stoppedThreads"]
    assert not execution.done()
    assert behind.is_waiting

    ask("continue", threadId=thread)
    assert kernel.wait_for_debug_event("continued", timeout=WAIT).content["body"]["threadId"] == thread
    result = execution.result(timeout=WAIT)
    assert (result.text, result.complete, len(result.outputs)) == ("42", True, 1)
    assert behind.get().content["status"] == "complete"
    assert "copied" in [variable["name"] for variable in ask("inspectVariables")["variables"]]
    ask("disconnect")
    kernel.kill_kernel()  # else its debugger takes 2 s to end
    shutil.rmtree(Path(path).parent)  # no kernel removes it


def test_debugger_that_was_not_started_answers_with_data(client: kclient.KernelClient) -> None:
    information = client.debug("debugInfo", timeout=WAIT).content
    assert (information["success"], information["body"]["isStarted"]) == (True, False)
    if tuple(map(int, version("ipykernel").split(".")[:2])) >= (7, 4):  # earlier versions do not answer
        refused = client.debug(
            "copyToGlobals", {"srcVariableName": "1", "srcFrameId": 0, "dstVariableName": "a"}, timeout=WAIT
        )
        assert refused.content["success"] is False
        assert "valid identifiers" in refused.content["message"]
    assert client.debug("stackTrace", {"threadId": 1}, timeout=WAIT).content == {}
    assert client.debug("modules", timeout=WAIT).content["body"]["totalModules"] > 0
