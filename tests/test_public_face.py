"""The public interface: the names of `kclient`, their signatures, and the documentation of each name."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import kclient
import kclient.testing

ROOT = Path(__file__).resolve().parent.parent

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "examples").rglob("*.py"))]

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")

REQUESTS = {
    "complete": "code cursor_pos timeout",
    "inspect": "code cursor_pos detail_level timeout",
    "object_info": "oname detail_level timeout",
    "history": "raw output hist_access_type timeout kwargs",
    "is_complete": "code timeout",
    "comm_info": "target_name timeout",
    "execute": "code silent store_history user_expressions allow_stdin stop_on_error timeout subshell_id",
}
BOTH_REQUESTS = {"kernel_info": "timeout", "shutdown": "restart timeout"}
CONTROL_REQUESTS = {
    "interrupt": "timeout",
    "debug": "command arguments timeout",
    "create_subshell": "timeout",
    "delete_subshell": "subshell_id timeout",
    "list_subshells": "timeout",
}
RUNS = {
    "run": "code timeout check on_output on_input silent store_history user_expressions stop_on_error subshell_id "
    "on_abandon max_output_bytes keep_outputs displays linger",
    "submit": "code check on_output on_input silent store_history user_expressions stop_on_error subshell_id "
    "max_output_bytes keep_outputs displays linger",
    "request": "msg_type content timeout subshell_id",
    "wait_for_debug_event": "event timeout",
    "input": "string",
    "info": None,
    "kernel": None,
    "on_input": None,
    "comms": None,
    **{f"{name}_channel": None for name in CHANNELS},
}
CHANNEL = {"start": "", "stop": "", "is_alive": "", "call_handlers": "msg", "address": None, "session": None}
MESSAGES = {"get_msg": "block timeout", "get_msgs": "", "msg_ready": "", "inbox": None}
SENDS = {
    "send": "msg_type content metadata buffers subshell_id",
    "get_reply": "msg_id timeout",
    "request": "msg_type content timeout subshell_id",
}
STARTS_CHANNELS = {"start_channels": " ".join(CHANNELS), "stop_channels": "", "channels_running": None}

FACE: dict[str, dict[str, str | None]] = {
    "start_kernel": {
        "": "kernel_name timeout transport ip connection_file cwd env clean_env extra_arguments encryption stdout "
        "stderr launcher spin orphan_guard handshake restart"
    },
    "connect": {"": "connection timeout watch dead_after spin"},
    "KernelManager": {
        "": "kernel_name transport ip connection_file encryption launcher spin orphan_guard handshake restart",
        **STARTS_CHANNELS,
        **RUNS,
        **REQUESTS,
        **BOTH_REQUESTS,
        **CONTROL_REQUESTS,
        **{f"{name}_channel_class": None for name in CHANNELS},
        "start_kernel": "extra_arguments cwd env clean_env stdout stderr timeout",
        "shutdown_kernel": "now restart",
        "restart_kernel": "now timeout launch",
        "interrupt_kernel": "",
        "signal_kernel": "signum",
        "kill_kernel": "",
        "is_alive": "",
        "wait_for_ready": "timeout",
        "get_connection_info": "",
        "write_connection_file": "",
        "load_connection_file": "connection_file",
        "cleanup_connection_file": "",
        "cleanup_ipc_files": "",
        **dict.fromkeys(["has_kernel", "connection_file", "client", "kernel_spec", "session", "process"]),
        "shutdown_wait_time": None,
    },
    "KernelClient": {
        **STARTS_CHANNELS,
        **RUNS,
        **REQUESTS,
        **BOTH_REQUESTS,
        **CONTROL_REQUESTS,
        **{f"{name}_channel_class": None for name in CHANNELS},
        "close": "",
        "is_alive": "",
        "wait_for_ready": "timeout",
        "watch": "dead_after",
        "interrupt_kernel": "",
    },
    "ShellChannel": {"": "context session address", **CHANNEL, **MESSAGES, **SENDS, **REQUESTS, **BOTH_REQUESTS},
    "ControlChannel": {
        "": "context session address",
        **CHANNEL,
        **MESSAGES,
        **SENDS,
        **BOTH_REQUESTS,
        **CONTROL_REQUESTS,
    },
    "IOPubChannel": {
        "": "context session address",
        **CHANNEL,
        **MESSAGES,
        "flush": "timeout",
        "wait_for_debug_event": "event timeout",
    },
    "StdInChannel": {
        "": "context session address",
        **CHANNEL,
        **MESSAGES,
        "input": "string",
        "wait_for_peer": "timeout",
    },
    "HBChannel": {
        "": "context session address",
        **CHANNEL,
        "pause": "",
        "unpause": "",
        "is_beating": "",
        "time_to_dead": None,
    },
    "Execution": {"result": "timeout", "interrupt": "", "done": "", "times": None},
    "Result": {
        **dict.fromkeys(["status", "ok", "text", "data", "stdout", "stderr", "error", "payload", "user_expressions"]),
        "notebook_outputs": None,
        "with_displays": "displays",
        "raise_for_error": "by_reply",
    },
    "Displays": {"": "max_bytes", "take": "message"},
    "Session": {
        "": "key signature_scheme username replay_history server_key",
        "msg": "msg_type content parent metadata",
    },
    "ForkServer": {"": "preload", "close": ""},
    "AutoRestart": {"": "limit stable_start_time on_restart on_give_up start_timeout"},
    "KernelPool": {
        "": "kernel_name size max_size max_uses max_age warm_up launcher start_timeout on_event transport encryption "
        "cwd env clean_env extra_arguments orphan_guard handshake spin private_tmp "
        "max_message_bytes",
        "kernel": "timeout",
        "acquire": "timeout",
        "release": "kernel",
        "stats": "",
        "kernels": "",
        "shutdown_kernel": "kernel_id",
        "wait_until_warm": "timeout",
        "close": "",
    },
    "find_kernel_spec": {"": "name allowed"},
    "list_kernel_specs": {"": "allowed"},
    "install_kernel_spec": {"": "source_dir name user prefix replace"},
    "remove_kernel_spec": {"": "name"},
}
"""The parameters of each, "" for the object itself, and None for an attribute."""

CASES = [(name, member, takes) for name, members in FACE.items() for member, takes in members.items()]


def parameters(function: Any) -> str:
    return " ".join(name for name in inspect.signature(function).parameters if name != "self")


@pytest.mark.parametrize(("name", "member", "takes"), CASES, ids=[f"{name}.{member}" for name, member, _ in CASES])
def test_name_takes_what_it_always_took(name: str, member: str, takes: str | None) -> None:
    thing = getattr(kclient, name)
    found = getattr(thing, member) if member else thing
    if takes is not None:
        assert parameters(found) == takes


def test_every_exported_name_is_there_and_no_other() -> None:
    assert kclient.__all__ == sorted(kclient.__all__)
    for name in kclient.__all__:
        assert getattr(kclient, name) is not None
    assert set(kclient.__all__) <= set(dir(kclient))
    here = {name for name, value in vars(kclient).items() if inspect.isclass(value) or inspect.isfunction(value)}
    assert {name for name in here if not name.startswith("_")} <= set(kclient.__all__)


def test_names_that_the_rebuilt_house_left_alone_are_still_exported() -> None:
    assert set(FACE) <= set(kclient.__all__)
    assert {"FakeKernel", "Request", "Step", "display", "error", "result", "stream"} == set(kclient.testing.__all__)


@pytest.mark.parametrize("name", kclient.__all__)
def test_documentation_knows_every_exported_name(name: str) -> None:
    assert any(re.search(rf"\b{name}\b", page.read_text(encoding="utf-8")) for page in PAGES), f"no page names {name}"


def mentioned() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for name in re.findall(r"\bkclient\.([A-Z]\w+|[a-z_]+(?=\())", page.read_text(encoding="utf-8")):
            yield page.name, name


def test_every_name_that_the_documentation_gives_to_kclient_is_exported() -> None:
    wrong = {(page, name) for page, name in mentioned() if name not in kclient.__all__}
    assert not wrong
