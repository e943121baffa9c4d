"""The two messages of the handshake, without a socket."""

from __future__ import annotations

import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kclient.errors import BadMessage, InvalidArgument, RemoteProtocolError
from kclient.protocol.connection import CHANNELS, ConnectionInfo
from kclient.protocol.registration import Registration

INFO = ConnectionInfo(
    key=b"secret",
    kernel_name="python3",
    curve_publickey=b"p" * 40,
    curve_secretkey=b"s" * 40,
    extra={"of_later": 1},
)
REGISTRATION = Registration(INFO, "id-1", "127.0.0.1", 51587)
PORTS = [65535, 1, 50003, 50004, 50005]
LISTENING = INFO.with_ports("127.0.0.1", PORTS)
REPORT = {"kernel_id": "id-1", **{f"{name}_port": port for name, port in zip(CHANNELS, PORTS, strict=True)}}


def read(content: Any, registration: Registration = REGISTRATION) -> list[int]:
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    identities, ports = REGISTRATION.read_report([b"someone", *registration._signed(text)])
    assert identities == [b"someone"]
    return ports


def reason_to_ignore(frames: list[bytes]) -> str:
    with pytest.raises(BadMessage) as caught:
        REGISTRATION.read_report(frames)
    return caught.value.reason


def test_launcher_reads_what_the_kernel_reports() -> None:
    frames = REGISTRATION.report(LISTENING)
    assert REGISTRATION.read_report([b"a", b"b", *frames]) == ([b"a", b"b"], PORTS)
    assert json.loads(frames[-1]) == {name: str(value) for name, value in REPORT.items()}


def test_kernel_reads_the_receipt() -> None:
    identity, *frames = REGISTRATION.receipt([b"someone"])
    assert identity == b"someone"
    assert frames[-1] == b"ACK"
    REGISTRATION.read_receipt(frames)
    with pytest.raises(BadMessage, match="signature"):
        Registration(ConnectionInfo(key=b"other"), "id-1", "127.0.0.1", 51587).read_receipt(frames)


def test_messages_are_signed_as_any_other_of_that_key() -> None:
    _, signature, content = REGISTRATION.report(LISTENING)
    assert signature.decode() == hmac.new(b"secret", content, hashlib.sha256).hexdigest()


def test_registration_file_says_all_but_the_ports() -> None:
    values = REGISTRATION.to_dict()
    assert values == {
        "kernel_id": "id-1",
        "registration_ip": "127.0.0.1",
        "registration_port": "51587",
        "transport": "tcp",
        "ip": "127.0.0.1",
        "key": "secret",
        "signature_scheme": "hmac-sha256",
        "kernel_name": "python3",
        "curve_publickey": "p" * 40,
        "curve_secretkey": "s" * 40,
        "of_later": 1,
    }
    assert Registration.from_dict(values) == REGISTRATION
    assert Registration.from_dict(values | {"registration_port": 51587}) == REGISTRATION
    assert "secret" not in repr(REGISTRATION)


def test_ports_may_be_numbers_and_other_keys_are_of_no_concern() -> None:
    assert read(REPORT | {"of_later": {}}) == PORTS


NO_PORTS = [0, -1, 65536, "0", "70000", "", "x", "5e4", " 50000", "٥٠٠٠", "9" * 50, True, None, 50000.0, [1]]


@pytest.mark.parametrize("value", NO_PORTS)
def test_port_that_cannot_be_is_an_error(value: Any) -> None:
    with pytest.raises(RemoteProtocolError, match="iopub_port is .*, not a number from 1 to 65535") as caught:
        read(REPORT | {"iopub_port": value})
    assert not isinstance(caught.value, BadMessage)


@pytest.mark.parametrize("channel", CHANNELS)
def test_port_that_is_missing_is_an_error(channel: str) -> None:
    with pytest.raises(RemoteProtocolError, match=f"{channel}_port is missing"):
        read({name: value for name, value in REPORT.items() if name != f"{channel}_port"})


def test_one_port_for_two_channels_is_an_error() -> None:
    with pytest.raises(RemoteProtocolError, match="two channels have 50005"):
        read(REPORT | {"shell_port": "50005"})


@pytest.mark.parametrize("kernel_id", ["id-2", "", None, 1, ["id-1"]])
def test_report_of_another_start_is_ignored_whatever_its_ports(kernel_id: Any) -> None:
    with pytest.raises(BadMessage) as caught:
        read(REPORT | {"kernel_id": kernel_id, "hb_port": 0})
    assert caught.value.reason == "replay"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"null", b"\xff", b"[" * 20_000])
def test_report_that_is_no_object_is_ignored(content: bytes) -> None:
    with pytest.raises(BadMessage) as caught:
        read(content)
    assert caught.value.reason == "json"


def test_report_that_is_not_signed_by_the_key_is_ignored() -> None:
    delimiter, signature, content = REGISTRATION.report(LISTENING)
    for wrong in (b"", b"0" * 64, signature.upper(), signature[:-1], signature + b"0", "ä".encode()):
        assert reason_to_ignore([delimiter, wrong, content]) == "signature"
    assert reason_to_ignore([delimiter, signature, content + b" "]) == "signature"
    other = Registration(ConnectionInfo(key=b"other"), "id-1", "127.0.0.1", 51587)
    assert reason_to_ignore(other.report(LISTENING)) == "signature"


@given(st.lists(st.sampled_from([b"<IDS|MSG>", b"", b"x", b"{}"]), max_size=6))
def test_frames_of_any_layout_are_ignored(frames: list[bytes]) -> None:
    assert reason_to_ignore(frames) in {"layout", "signature"}


@pytest.mark.parametrize("values", [None, [], {}, {"kernel_id": "x", "registration_ip": "y", "registration_port": "z"}])
def test_file_that_is_no_registration_file_is_refused(values: Any) -> None:
    with pytest.raises(InvalidArgument, match="registration file"):
        Registration.from_dict(values)
