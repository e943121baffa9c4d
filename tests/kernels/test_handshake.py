"""Kernels that choose their own ports: the launcher's reactions to reports of the kernel and of others."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import gevent
import gevent.event
import leaks
import pytest
from fixtures import WAIT, Background, in_forked_child
from handshaking import IDLE, PORTS, Stage, signed

import kclient
from kclient.kernels.connection import handshake
from kclient.kernels.connection.endpoint import Endpoint
from kclient.kernels.process.local import LocalLauncher
from kclient.protocol.registration import Registration


@pytest.fixture
def stage(install_kernel: Callable[..., str]) -> Iterator[Stage]:
    """A place where the kernel "odd" is played."""
    install_kernel("", **IDLE)
    with ExitStack() as stack:
        yield Stage(stack)


@pytest.fixture
def start(stage: Stage) -> Iterator[Callable[..., kclient.KernelManager]]:
    with ExitStack() as stack:
        yield lambda **launch: stack.enter_context(
            kclient.start_kernel("odd", **{"launcher": stage, "timeout": WAIT, **launch})
        )


@pytest.fixture
def manager(stage: Stage) -> Iterator[kclient.KernelManager]:
    """The manager of a kernel that is not started, and need not answer."""
    manager = kclient.KernelManager("odd", launcher=stage)
    yield manager
    manager.shutdown_kernel(now=True)


def ports(values: dict[str, Any]) -> list[int]:
    return [values[name] for name in PORTS]


# The kernel's registration file and its report


def test_kernel_that_registers_is_run_at_the_ports_that_it_chose(
    stage: Stage, start: Callable[..., kclient.KernelManager]
) -> None:
    manager = start()
    assert manager.run("6 * 7", timeout=WAIT).text == "42"
    assert ports(manager.get_connection_info()) == ports(stage.fakes[0].connection_info.to_dict())


def test_connection_file_is_there_for_others_and_the_registration_file_is_gone(
    stage: Stage, start: Callable[..., kclient.KernelManager], folder: Path, runtime_dir: Path
) -> None:
    manager = start(connection_file=folder / "mine.json")
    assert manager.connection_file == str(folder / "mine.json")
    assert json.loads((folder / "mine.json").read_text()) == manager.get_connection_info()
    assert stat.S_IMODE((folder / "mine.json").stat().st_mode) == 0o600
    assert list(runtime_dir.iterdir()) == []
    with kclient.connect(folder / "mine.json", timeout=WAIT) as client:
        assert client.run("6 * 7", timeout=WAIT).text == "42"
    manager.shutdown_kernel(now=True)
    assert not (folder / "mine.json").exists()


def test_registration_file_is_private_and_there_only_while_it_is_needed(
    stage: Stage, start: Callable[..., kclient.KernelManager], runtime_dir: Path
) -> None:
    found: dict[str, Any] = {}

    def play(registration: Registration) -> None:
        path = stage.files[-1]
        found["values"] = json.loads(path.read_text())
        found["mode"] = stat.S_IMODE(path.stat().st_mode)
        found["files"] = list(runtime_dir.iterdir())
        stage.register(registration)

    stage.play = play
    manager = start()
    assert found["mode"] == 0o600
    assert found["files"] == stage.files
    assert not PORTS.keys() & found["values"].keys()
    assert found["values"]["key"] == manager.get_connection_info()["key"]
    assert isinstance(found["values"]["registration_port"], str)
    assert list(runtime_dir.iterdir()) == [Path(manager.connection_file or "")]


def test_file_that_a_kernel_writes_over_its_registration_file_is_removed_after_its_end(
    stage: Stage, start: Callable[..., kclient.KernelManager], runtime_dir: Path
) -> None:
    manager = start()
    stage.files[0].write_text(json.dumps(manager.get_connection_info()))
    manager.restart_kernel(now=True, timeout=WAIT)
    stage.files[1].write_text(json.dumps(manager.get_connection_info()))
    manager.shutdown_kernel(now=True)
    assert list(runtime_dir.iterdir()) == []


@pytest.mark.parametrize(("ip", "host"), [("*", "127.0.0.1"), ("localhost", "127.0.0.1"), ("127.0.0.2", "127.0.0.2")])
def test_kernel_registers_where_it_is_to_listen(
    stage: Stage, start: Callable[..., kclient.KernelManager], ip: str, host: str
) -> None:
    manager = start(ip=ip)
    assert stage.registrations[0].host == host
    assert manager.get_connection_info()["ip"] == stage.registrations[0].info.ip


def test_kernel_that_was_started_step_by_step_has_ports_as_soon_as_it_is_started(stage: Stage) -> None:
    with kclient.KernelManager("odd", launcher=stage) as manager:
        client = manager.client
        manager.start_kernel(timeout=WAIT)
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        assert manager.client is client
        assert client.run("6 * 7", timeout=WAIT).text == "42"


def test_kernels_that_start_at_once_are_not_mixed_up(
    stage: Stage, start: Callable[..., kclient.KernelManager], background: Callable[..., Background]
) -> None:
    managers = [call.get() for call in [background(start) for _ in range(20)]]
    keys = {manager.session.key: manager for manager in managers}
    assert len(keys) == 20
    for registration in stage.registrations:
        assert keys[registration.info.key].run("me", timeout=WAIT).text == registration.kernel_id


# Reports that are not from the kernel


def report(registration: Registration, **changes: Any) -> dict[str, Any]:
    return {"kernel_id": registration.kernel_id, **PORTS, **changes}


def test_forged_and_malformed_registrations_are_counted_and_do_not_end_the_wait(
    stage: Stage, manager: kclient.KernelManager, caplog: pytest.LogCaptureFixture
) -> None:
    def play(registration: Registration) -> None:
        genuine = signed(registration, report(registration))
        stage.report(
            registration,
            [genuine[0], b"", genuine[2]],
            [genuine[0], b"0" * 64, genuine[2]],
            [*genuine, b"more"],
            [b"x"],
            signed(registration, b"{"),
            signed(registration, []),
            signed(registration, report(registration, kernel_id="another", shell_port=0)),
            genuine,
        )

    stage.play = play
    with caplog.at_level(logging.WARNING, "kclient"):
        manager.start_kernel(timeout=WAIT)
    assert ports(manager.get_connection_info()) == list(PORTS.values())
    dropped = [record.message for record in caplog.records if "dropped a registration" in record.message]
    assert sorted(what.partition(": ")[2][:12] for what in dropped) == [
        "a registrati",
        "a registrati",
        "a wrong sign",
        "no <IDS|MSG>",
    ]


def test_flood_of_forged_registrations_lets_other_greenlets_run_and_fills_no_log(
    stage: Stage, manager: kclient.KernelManager, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    turns, read_at = 0, []
    monkeypatch.setattr(handshake, "TURN_S", 0)  # so that each message takes one
    read_report = Registration.read_report

    def read(registration: Registration, frames: list[bytes]) -> Any:
        read_at.append(turns)
        return read_report(registration, frames)

    monkeypatch.setattr(Registration, "read_report", read)

    def play(registration: Registration) -> None:
        genuine = signed(registration, report(registration))
        stage.report(registration, *[[genuine[0], b"%064d" % number, genuine[2]] for number in range(100)], genuine)

    def count() -> None:
        nonlocal turns
        while not manager.get_connection_info()["shell_port"]:
            turns += 1
            leaks.turn_loop()

    stage.play = play
    counting = gevent.spawn(count)
    manager.start_kernel(timeout=WAIT)
    counting.join()
    assert len(read_at) == 101
    assert len(set(read_at)) > 50
    assert caplog.text.count("a wrong signature") == 1


def test_message_that_is_too_big_is_not_taken_in(stage: Stage, start: Callable[..., kclient.KernelManager]) -> None:
    def play(registration: Registration) -> None:
        stage.report(registration, signed(registration, report(registration, more="x" * 100_000)))
        stage.register(registration)

    stage.play = play
    assert ports(start().get_connection_info()) == ports(stage.fakes[0].connection_info.to_dict())


def test_registration_of_an_earlier_start_does_not_count_for_a_later_one(
    stage: Stage, start: Callable[..., kclient.KernelManager]
) -> None:
    manager = start()
    first = stage.registrations[0]

    def play(registration: Registration) -> None:
        stage.report(registration, first.report(stage.fakes[0].connection_info))
        stage.register(registration)

    stage.play = play
    manager.restart_kernel(now=True, timeout=WAIT)
    assert manager.run("me", timeout=WAIT).text == stage.registrations[1].kernel_id


# Errors


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"shell_port": 0}, "shell_port is 0"),
        ({"hb_port": "70000"}, "hb_port is '70000'"),
        ({"stdin_port": None}, "stdin_port is None"),
        ({"iopub_port": PORTS["hb_port"]}, f"two channels have {PORTS['hb_port']}"),
    ],
)
def test_kernel_that_registers_ports_that_cannot_be_used_is_killed_with_a_clear_error(
    stage: Stage, start: Callable[..., kclient.KernelManager], change: dict[str, Any], what: str
) -> None:
    stage.play = lambda registration: stage.report(registration, signed(registration, report(registration, **change)))
    with pytest.raises(kclient.RemoteProtocolError, match=what) as caught:
        start(timeout=None)
    assert "the kernel 'odd' registered ports that cannot be used" in str(caught.value)
    assert "the command was sh -c 'exec sleep 60' " in str(caught.value)


def test_kernel_that_does_not_register_in_time_is_killed_with_a_clear_error(
    stage: Stage, start: Callable[..., kclient.KernelManager]
) -> None:
    stage.play = lambda registration: stage.report(registration, [b"<IDS|MSG>", b"", b"{}"])
    with pytest.raises(kclient.KernelTimeout) as caught:
        start(timeout=0.3)
    text = str(caught.value)
    assert text.startswith("no registration of the kernel's ports within 0.3 s")
    assert "messages ignored at the registration port: 1 (signature)" in text
    assert "handshake='off'" in text
    assert "the command was sh -c 'exec sleep 60' " in text
    assert "it printed none" in text


def test_kernel_that_dies_before_it_registers_ends_the_wait_at_once(install_kernel: Callable[..., str]) -> None:
    install_kernel("", **{**IDLE, "argv": ["sh", "-c", "echo no shell_port >&2; exit 3", "{connection_file}"]})
    with pytest.raises(kclient.LaunchError) as caught:
        kclient.start_kernel("odd", timeout=None)
    assert caught.value.exit_code == 3
    assert caught.value.stderr == "no shell_port\n"
    assert caught.value.argv[0] == "sh"
    assert "handshake='off'" in str(caught.value)


def test_shutdown_by_another_greenlet_ends_the_wait(
    stage: Stage, manager: kclient.KernelManager, background: Callable[..., Background]
) -> None:
    stage.play = lambda registration: None
    call = background(manager.start_kernel, timeout=None)
    manager.shutdown_kernel(now=True)
    assert isinstance(call.error(), kclient.LaunchError)
    assert not manager.has_kernel


def test_wait_that_is_given_up_leaves_nothing(stage: Stage, manager: kclient.KernelManager, runtime_dir: Path) -> None:
    stage.play = lambda registration: None
    with pytest.raises(gevent.Timeout), gevent.Timeout(0.1):
        manager.start_kernel(timeout=None)
    assert not manager.has_kernel
    assert list(runtime_dir.iterdir()) == []


def test_forked_child_leaves_the_wait_to_its_parent(stage: Stage, start: Callable[..., kclient.KernelManager]) -> None:
    def play(registration: Registration) -> None:
        assert in_forked_child(lambda: str(manager.shutdown_kernel(now=True))) == "None"
        stage.register(registration)

    stage.play = play
    manager = kclient.KernelManager("odd", launcher=stage)
    with manager:
        manager.start_kernel(timeout=WAIT)
        assert manager.is_alive()


def test_guard_is_told_of_the_files_before_the_kernel_starts(runtime_dir: Path) -> None:
    endpoint = Endpoint("odd", "tcp", None, None)
    registrar = endpoint.expect_registration()
    assert endpoint.traces() == [f"f{endpoint.path}", f"f{registrar.path}"]
    assert json.loads(Path(registrar.path).read_text())
    endpoint.register(list(PORTS.values()))
    endpoint.remove()
    assert endpoint.traces() == []
    assert list(runtime_dir.iterdir()) == []


def test_file_that_is_no_connection_file_is_not_replaced_by_one(stage: Stage, folder: Path) -> None:
    dear = folder / "dear.txt"
    dear.write_text("to me")
    with pytest.raises(kclient.ConnectionFileError, match="exists and is no connection file"):
        kclient.start_kernel("odd", launcher=stage, connection_file=dear)
    assert dear.read_text() == "to me"
    assert stage.files == []


def test_ctrl_c_ends_the_wait_and_leaves_nothing(
    install_kernel: Callable[..., str], start_script: Callable[..., Any], runtime_dir: Path
) -> None:
    install_kernel("", **IDLE)
    script = start_script(
        """
import gevent, kclient
manager = kclient.KernelManager("odd")
def tell():
    while not manager.has_kernel:
        gevent.sleep(0)
    print("waiting", flush=True)
gevent.spawn(tell)
try:
    manager.start_kernel(timeout=None)
except KeyboardInterrupt:
    print(manager.has_kernel)
"""
    )
    assert script.read_line() == "waiting"
    script.interrupt()
    assert script.end() == "False"
    assert list(runtime_dir.iterdir()) == []


# Restarts


def test_client_goes_on_with_a_restarted_kernel_that_chose_other_ports(
    stage: Stage, start: Callable[..., kclient.KernelManager], background: Callable[..., Background]
) -> None:
    manager = start()
    client, path, before = manager.client, manager.connection_file, manager.get_connection_info()
    stage.fakes[0].on("execute_request", lambda request: gevent.sleep(WAIT))
    pending = background(client.run, "6 * 7", timeout=WAIT)
    manager.restart_kernel(now=True, timeout=WAIT)
    assert isinstance(pending.error(), kclient.KernelRestarted)
    after = manager.get_connection_info()
    assert manager.client is client
    assert client.run("me", timeout=WAIT).text == stage.registrations[1].kernel_id
    assert client.control_channel.address.endswith(f":{after['control_port']}")
    assert client.is_complete("1", timeout=WAIT).content["status"] == "complete"
    assert manager.connection_file == path
    assert json.loads(Path(path or "").read_text()) == after
    assert after["key"] == before["key"]
    assert not set(ports(after)) & set(ports(before))
    assert not stage.files[1].exists()


def test_comms_end_with_the_kernel_and_targets_stay_when_another_chose_other_ports(
    stage: Stage, start: Callable[..., kclient.KernelManager]
) -> None:
    manager = start()
    stage.fakes[0].on("comm_open", lambda request: None)
    manager.comms.register_target("t")
    comm = manager.comms.open("some")
    manager.restart_kernel(now=True, timeout=WAIT)
    with pytest.raises(kclient.KernelRestarted):
        comm.receive(timeout=WAIT)
    stage.fakes[1].script["open"] = lambda request: request.publish(
        "comm_open", {"comm_id": "k", "target_name": "t", "data": {}}
    )
    manager.run("open", timeout=WAIT)
    assert list(manager.comms) == ["k"]


def test_client_of_another_program_learns_that_the_kernel_is_not_there_any_more_when_it_chose_other_ports(
    stage: Stage, start: Callable[..., kclient.KernelManager], background: Callable[..., Background]
) -> None:
    manager = start()
    with kclient.connect(manager.connection_file, watch=True, timeout=WAIT) as other:
        other.hb_channel.time_to_dead = 0.1
        pending = background(other.iopub_channel.get_msg, timeout=WAIT)
        stage.fakes[0].close()
        manager.restart_kernel(now=True, timeout=WAIT)
        assert isinstance(pending.error(), kclient.DeadKernelError)
    with kclient.connect(manager.connection_file, timeout=WAIT) as other:
        assert other.run("me", timeout=WAIT).text == stage.registrations[1].kernel_id


def test_call_that_comes_while_another_kernel_registers_goes_to_that(
    stage: Stage, start: Callable[..., kclient.KernelManager], background: Callable[..., Background]
) -> None:
    manager = start()
    client = manager.client
    manager.kill_kernel()
    may_register = gevent.event.Event()

    def play(registration: Registration) -> None:
        may_register.wait(WAIT)
        stage.register(registration)

    stage.play = play
    starting = background(manager.start_kernel, timeout=WAIT)
    while len(stage.registrations) < 2:
        leaks.turn_loop()
    pending = background(client.is_complete, "1", timeout=WAIT)
    may_register.set()
    starting.get()
    assert pending.get().content["status"] == "complete"
    assert "is_complete_request" in [request.msg_type for request in stage.fakes[1].requests]


def test_call_that_comes_while_a_kernel_does_not_register_ends_with_the_start(
    stage: Stage, start: Callable[..., kclient.KernelManager], background: Callable[..., Background]
) -> None:
    manager = start()
    client = manager.client
    manager.kill_kernel()
    stage.play = lambda registration: None
    starting = background(manager.start_kernel, timeout=0.3)
    while len(stage.registrations) < 2:
        leaks.turn_loop()
    pending = [background(call, "1", timeout=WAIT) for call in (client.is_complete, client.run)]
    assert isinstance(starting.error(), kclient.KernelTimeout)
    assert [type(each.error()) for each in pending] == [kclient.InvalidState] * 2, "the channels were stopped"


def test_client_goes_on_after_a_kill_and_a_start(stage: Stage, start: Callable[..., kclient.KernelManager]) -> None:
    manager = start()
    client = manager.client
    manager.kill_kernel()
    manager.start_kernel(timeout=WAIT)
    assert client.run("me", timeout=WAIT).text == stage.registrations[1].kernel_id
    assert manager.client is client


def test_kernel_that_does_not_register_again_is_dead_to_its_client(
    stage: Stage, start: Callable[..., kclient.KernelManager]
) -> None:
    manager = start()
    stage.play = lambda registration: None
    with pytest.raises(kclient.KernelTimeout, match="no registration"):
        manager.restart_kernel(now=True, timeout=0.3)
    assert not manager.is_alive()
    with pytest.raises(kclient.DeadKernelError):
        manager.client.run("6 * 7", timeout=WAIT)
    stage.play = stage.register
    manager.restart_kernel(timeout=WAIT)
    assert manager.client.run("6 * 7", timeout=WAIT).text == "42"


# With or without a handshake


class Refusal(LocalLauncher):
    """A launcher that starts nothing, and keeps the values that it would have given to the kernel."""

    def __init__(self) -> None:
        self.values: dict[str, Any] | None = None

    def start(self, argv: Any, **where: Any) -> Any:
        self.values = json.loads(Path(argv[-1]).read_text())
        raise kclient.LaunchError("refused")


@pytest.mark.parametrize(
    ("spec", "options", "registers"),
    [
        ({"kernel_protocol_version": "5.6"}, {}, True),
        ({"kernel_protocol_version": "5.6"}, {"handshake": "required"}, True),
        ({"kernel_protocol_version": "5.6"}, {"handshake": "off"}, False),
        ({"kernel_protocol_version": "5.6"}, {"transport": "ipc"}, False),
        ({"kernel_protocol_version": "5.5"}, {}, False),
        ({}, {}, False),
    ],
)
def test_kernel_is_given_the_file_that_it_understands(
    install_kernel: Callable[..., str], spec: dict[str, Any], options: dict[str, Any], registers: bool
) -> None:
    launcher = Refusal()
    with pytest.raises(kclient.LaunchError, match="refused"):
        kclient.start_kernel(install_kernel("", **spec), launcher=launcher, **options)
    assert launcher.values is not None
    assert ("registration_port" in launcher.values) is registers
    assert ("shell_port" in launcher.values) is not registers


@pytest.mark.parametrize("handshake", ["auto", "required"])
def test_kernel_does_not_choose_its_ports_when_they_may_be_known_already(
    install_kernel: Callable[..., str], handshake: str
) -> None:
    launcher = Refusal()
    manager = kclient.KernelManager(install_kernel("", **IDLE), launcher=launcher, handshake=handshake)
    manager.write_connection_file()
    known = manager.get_connection_info()
    expected = "refused" if handshake == "auto" else "its ports are given by a connection file"
    with pytest.raises(kclient.KClientError, match=expected):
        manager.start_kernel()
    assert launcher.values == (known if handshake == "auto" else None)


@pytest.mark.parametrize(
    ("spec", "options", "obstacle"),
    [
        ({}, {}, "its spec says no kernel_protocol_version"),
        ({"kernel_protocol_version": "5.5"}, {}, "its spec says kernel_protocol_version '5.5'"),
        (IDLE, {"transport": "ipc"}, "the protocol has the handshake for tcp only"),
    ],
)
def test_handshake_that_is_required_and_cannot_be_had_is_refused_before_anything_starts(
    install_kernel: Callable[..., str], spec: dict[str, Any], options: dict[str, Any], obstacle: str
) -> None:
    launcher = Refusal()
    with pytest.raises(kclient.InvalidArgument, match=obstacle):
        kclient.start_kernel(install_kernel("", **spec), launcher=launcher, handshake="required", **options)
    assert launcher.values is None


@pytest.mark.parametrize("handshake", ["on", "", None, True, ["auto"]])
def test_handshake_that_is_no_such_word_is_refused(handshake: Any) -> None:
    with pytest.raises(kclient.InvalidArgument, match="handshake must be 'auto', 'off' or 'required', not"):
        kclient.KernelManager(handshake=handshake)
