"""The values of a connection file, and the addresses that follow from them."""

import json
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jupyter_client.connect import write_connection_file
from zmq.utils import z85

from kclient.errors import ConnectionFileError, InvalidPortNumber, KClientError
from kclient.protocol.connection import CHANNELS, MAX_IPC_PATH_BYTES, ConnectionInfo, make_address

PORTS = {"shell_port": 1001, "iopub_port": 1002, "stdin_port": 1003, "control_port": 1004, "hb_port": 1005}
VALUES = {
    **PORTS,
    "transport": "tcp",
    "ip": "127.0.0.1",
    "key": "a-very-secret-key",
    "signature_scheme": "hmac-sha256",
    "kernel_name": "python3",
}
PATH = "/somewhere/kernel-1.json"
CURVE = {
    "curve_publickey": "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID",
    "curve_secretkey": "D:)Q[IlAW!ahhC2ac:9*A}h:p?([4%wOTJ%JR%cs",
}
"""A key pair of zmq_curve(7)."""


@pytest.fixture
def written_by_jupyter_client(tmp_path):
    def write(**values):
        path, _ = write_connection_file(str(tmp_path / "kernel-1.json"), **values)
        with open(path) as file:
            return file.read()

    return write


# From a connection file and back


def test_file_that_jupyter_client_wrote_is_read_with_every_value(written_by_jupyter_client):
    text = written_by_jupyter_client(ip="127.0.0.1", key=b"the-key", kernel_name="ir", signature_scheme="hmac-sha512")
    values = json.loads(text)
    info = ConnectionInfo.from_json(text)
    assert (info.transport, info.ip, info.key) == ("tcp", "127.0.0.1", b"the-key")
    assert (info.signature_scheme, info.kernel_name) == ("hmac-sha512", "ir")
    for channel in CHANNELS:
        assert info.port(channel) == values[f"{channel}_port"]
        assert info.address(channel) == f"tcp://127.0.0.1:{values[f'{channel}_port']}"


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_file_that_jupyter_client_wrote_is_written_again_as_it_was(written_by_jupyter_client, transport):
    text = written_by_jupyter_client(
        ip="127.0.0.1" if transport == "tcp" else "/run/kernel", transport=transport, key=b"k", kernel_name="x", jvm=[8]
    )
    assert ConnectionInfo.from_json(text).to_dict() == json.loads(text)


def test_values_read_back_as_they_were_written():
    info = ConnectionInfo.from_dict(VALUES)
    assert info.to_dict() == VALUES
    assert ConnectionInfo.from_json(json.dumps(info.to_dict())) == info
    assert ConnectionInfo.from_json(json.dumps(info.to_dict()).encode()) == info


keys = st.text(max_size=20) | st.text(st.characters(codec="ascii"), max_size=40)
strategies = {
    **dict.fromkeys(PORTS, st.integers(0, 65535)),
    "transport": st.sampled_from(["tcp", "ipc"]),
    "ip": st.text(min_size=1, max_size=20),
    "key": keys,
    "signature_scheme": st.sampled_from(["hmac-sha256", "hmac-md5", "hmac-sha3_256"]),
    "kernel_name": st.text(max_size=9),
    "of_another_client": st.none() | st.lists(st.integers()),
}


@given(st.fixed_dictionaries(strategies))
def test_any_connection_reads_back_as_it_was_written(values):
    info = ConnectionInfo.from_dict(values)
    assert info.to_dict() == values
    assert ConnectionInfo.from_json(json.dumps(info.to_dict())) == info
    moved = info.with_ports("elsewhere", [1, 2, 3, 4, 5])
    assert (moved.key, moved.extra) == (info.key, info.extra)


def test_bytes_that_are_no_text_serve_as_a_key():
    info = ConnectionInfo.from_dict(PORTS | {"key": b"\xff\x00key"})
    assert info.key == b"\xff\x00key"
    assert ConnectionInfo.from_dict(info.to_dict()).key == info.key
    assert info.with_ports("127.0.0.1", [1, 2, 3, 4, 5]).key == info.key


def test_values_that_may_be_left_out_have_their_defaults():
    info = ConnectionInfo.from_dict({"shell_port": 1, "iopub_port": 2})
    assert (info.transport, info.ip, info.key, info.signature_scheme) == ("tcp", "127.0.0.1", b"", "hmac-sha256")
    assert (info.stdin_port, info.control_port, info.hb_port, info.kernel_name) == (0, 0, 0, "")
    assert ConnectionInfo.from_dict({"shell_port": 1, "iopub_port": 2, "transport": "ipc"}).ip == "kernel-ipc"


def test_file_of_2013_has_no_control_port():
    values = {"stdin_port": 3, "ip": "127.0.0.1", "hb_port": 5, "key": "k", "shell_port": 1, "iopub_port": 2}
    info = ConnectionInfo.from_dict(values)
    assert info.address("shell") == "tcp://127.0.0.1:1"
    with pytest.raises(InvalidPortNumber):
        info.address("control")


def test_kernel_name_of_null_is_no_name():
    assert ConnectionInfo.from_dict(VALUES | {"kernel_name": None}).kernel_name == ""


def test_unknown_keys_are_kept_through_every_change():
    values = VALUES | {"jupyter_session": "/a.ipynb", "vendor": {"a": [1, None]}}
    info = ConnectionInfo.from_json(json.dumps(values)).with_ports("10.0.0.1", [1, 2, 3, 4, 5])
    assert info.extra == {"jupyter_session": "/a.ipynb", "vendor": {"a": [1, None]}}
    assert info.to_dict()["vendor"] == {"a": [1, None]}


def test_new_ports_change_nothing_else():
    info = ConnectionInfo.from_dict(VALUES)
    moved = info.with_ports("10.0.0.1", [1, 2, 3, 4, 5])
    assert [moved.port(channel) for channel in CHANNELS] == [1, 2, 3, 4, 5]
    assert moved.to_dict() == VALUES | {
        "ip": "10.0.0.1",
        "shell_port": 1,
        "iopub_port": 2,
        "stdin_port": 3,
        "control_port": 4,
        "hb_port": 5,
    }
    assert info.to_dict() == VALUES


# Wrong values


def refusal(values):
    with pytest.raises(ConnectionFileError) as caught:
        ConnectionInfo.from_dict(values, path=PATH)
    assert isinstance(caught.value, ValueError)
    assert caught.value.path == PATH
    return str(caught.value)


WRONG = {
    "transport": ["udp", "", "TCP", None, 5, ["tcp"]],
    "ip": ["", None, 5, ["127.0.0.1"], {}],
    "key": [None, 5, ["k"], {}, "\ud800"],
    "signature_scheme": ["sha256", "hmac-", "hmac-nope", "", None, 5, "hmac-shake_128"],
    **{f"{channel}_port": [-1, 65536, "1001", 1001.0, math.nan, None, True, [1001], 10**30] for channel in CHANNELS},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_value_is_refused_by_name_with_the_path(name):
    for value in WRONG[name]:
        message = refusal(VALUES | {name: value})
        assert name in message
        assert PATH in message
        assert VALUES["key"] not in message


@pytest.mark.parametrize("name", ["shell_port", "iopub_port"])
def test_missing_port_is_refused_by_name(name):
    message = refusal({key: value for key, value in VALUES.items() if key != name})
    assert f"{name} is missing" in message
    assert PATH in message


def test_values_that_are_no_object_are_refused():
    for values in (None, [], "text", 5, [("shell_port", 1)]):
        assert PATH in refusal(values)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty"),
        (" \n", "empty"),
        (b"", "empty"),
        ('{"shell_port": 1001, "iop', "not valid JSON"),
        ("hello", "not valid JSON"),
        (b"\xff\xfe\xff", "not valid JSON"),
        (b'{"key": "\xff"}', "not valid JSON"),
        ("[" * 20_000, "not valid JSON"),
        ('{"shell_port": ' + "1" * 5000 + "}", "not valid JSON"),
        ("[]", "object"),
        ("null", "object"),
        ("{}", "shell_port is missing"),
    ],
    ids=["empty", "blank", "no bytes", "half", "words", "binary", "UTF-8", "deep", "digits", "list", "null", "{}"],
)
def test_text_that_is_no_connection_file_is_refused(text, match):
    with pytest.raises(ConnectionFileError, match=match) as caught:
        ConnectionInfo.from_json(text, path=PATH)
    assert caught.value.path == PATH
    assert PATH in str(caught.value)


@given(st.integers(0, len(json.dumps(VALUES)) - 1))
def test_half_written_file_is_refused_wherever_it_ends(length):
    with pytest.raises(ConnectionFileError):
        ConnectionInfo.from_json(json.dumps(VALUES)[:length], path=PATH)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()), max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from([*VALUES, *CURVE]), json_values, max_size=4))
@example({"transport": "ipc", "ip": "/tmp/\udce9"})  # a directory with a name that is no UTF-8
def test_no_values_raise_anything_but_errors_of_kclient(values):
    for given_values in (values, VALUES | values):
        try:
            info = ConnectionInfo.from_json(json.dumps(given_values))
            assert [info.address(channel).partition(":")[0] for channel in CHANNELS] == [info.transport] * 5
        except (ConnectionFileError, InvalidPortNumber):
            pass


def test_refusal_without_a_path_speaks_of_connection_info():
    with pytest.raises(ConnectionFileError, match="connection info: shell_port is missing") as caught:
        ConnectionInfo.from_dict({})
    assert caught.value.path is None


@pytest.mark.parametrize("nothing", [None, ""])
def test_empty_curve_keys_mean_no_encryption(nothing):
    info = ConnectionInfo.from_dict(VALUES | dict.fromkeys(CURVE, nothing))
    assert (info.curve_publickey, info.curve_secretkey) == (b"", b"")
    assert info.to_dict() == VALUES, "a kernel may take an empty key for one"


def test_curve_keys_are_read_kept_and_written():
    info = ConnectionInfo.from_dict(VALUES | CURVE)
    assert [info.curve_publickey.decode(), info.curve_secretkey.decode()] == list(CURVE.values())
    assert info.to_dict() == VALUES | CURVE
    assert info.with_ports("127.0.0.2", [1, 2, 3, 4, 5]).curve_publickey == info.curve_publickey


@given(st.binary(min_size=32, max_size=32))
def test_every_key_of_libzmq_is_taken(key):
    text = z85.encode(key).decode()
    assert ConnectionInfo.from_dict(VALUES | CURVE | {"curve_publickey": text}).curve_publickey == text.encode()


@pytest.mark.parametrize(
    "wrong", ["p", "p" * 39, "p" * 41, "p" * 39 + "~", "p" * 39 + "\xfc", "#" * 40, 7, ["p"], False]
)
@pytest.mark.parametrize("name", CURVE)
def test_curve_key_that_is_none_is_refused_by_its_name(name, wrong):
    message = refusal(VALUES | CURVE | {name: wrong})
    assert f"{name} must be a key of CurveZMQ: 40 characters" in message
    assert not [value for value in (str(wrong), *CURVE.values()) if len(value) > 5 and value in message]


@pytest.mark.parametrize("name", CURVE)
def test_one_curve_key_without_the_other_is_refused(name):
    for nothing in ({}, {name: None}, {name: ""}):
        others = {other: key for other, key in CURVE.items() if other != name}
        assert f"{name} is missing" in refusal(VALUES | others | nothing)


def test_key_is_in_no_repr_and_no_error():
    info = ConnectionInfo.from_dict(VALUES | CURVE)
    shown = [repr(info), str(info), repr(info.with_ports("127.0.0.1", [1, 2, 3, 4, 5])), repr([info])]
    shown += [refusal(VALUES | CURVE | {name: wrong[0]}) for name, wrong in WRONG.items() if name != "key"]
    shown += [refusal(VALUES | CURVE | {name: wrong}) for name in CURVE for wrong in (None, CURVE[name] + "x")]
    with pytest.raises(ConnectionFileError) as caught:
        ConnectionInfo.from_json(json.dumps(VALUES | CURVE)[:-1])
    shown.append(repr(caught.value))
    assert not [text for text in shown for key in ("a-very-secret-key", *CURVE.values()) if key in text]


# Addresses


def test_ipc_addresses_and_paths():
    info = ConnectionInfo.from_dict(VALUES | {"transport": "ipc", "ip": "/run/k"})
    assert [info.address(channel) for channel in CHANNELS] == [f"ipc:///run/k-{1001 + number}" for number in range(5)]
    assert info.ipc_paths() == [f"/run/k-{1001 + number}" for number in range(5)]
    assert ConnectionInfo.from_dict(VALUES).ipc_paths() == []


def test_ipc_kernel_without_a_channel_has_no_path_for_it():
    info = ConnectionInfo.from_dict({"shell_port": 1, "iopub_port": 2, "transport": "ipc", "ip": "k"})
    assert info.ipc_paths() == ["k-1", "k-2"]


def test_port_of_zero_has_no_address():
    info = ConnectionInfo.from_dict(VALUES | {"hb_port": 0})
    with pytest.raises(InvalidPortNumber, match="0") as caught:
        info.address("hb")
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, KClientError)
    assert info.address("shell") == "tcp://127.0.0.1:1001"


def test_pair_of_ip_and_port_is_an_address():
    for port in (1, 1001, 65535):
        assert make_address(("10.0.0.1", port)) == f"tcp://10.0.0.1:{port}"
    assert make_address(("host.example", 80)) == "tcp://host.example:80"
    assert make_address(("k", 7), transport="ipc") == "ipc://k-7"


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_port_that_is_none_is_refused(transport):
    for port in (0, -1, 65536, "80", 80.0, None, True):
        with pytest.raises(InvalidPortNumber):
            make_address(("127.0.0.1", port), transport=transport)


def test_ip_of_every_interface_is_connected_to_here():
    for ip in ("*", "0.0.0.0", ""):
        assert make_address((ip, 80)) == "tcp://127.0.0.1:80"
    assert ConnectionInfo.from_dict(VALUES | {"ip": "*"}).address("shell") == "tcp://127.0.0.1:1001"
    assert ConnectionInfo.from_dict(VALUES | {"ip": "*"}).to_dict()["ip"] == "*"


def test_ipv6_address_is_put_in_brackets_once():
    assert make_address(("::1", 80)) == "tcp://[::1]:80"
    assert make_address(("[::1]", 80)) == "tcp://[::1]:80"
    assert make_address(("fe80::1%eth0", 80)) == "tcp://[fe80::1%eth0]:80"


def test_url_stays_as_it_is():
    for url in ("tcp://127.0.0.1:1001", "tcp://[::1]:65535", "tcp://host.example:1", "ipc:///run/k-1", "inproc://x"):
        assert make_address(url) == url


def test_url_without_a_port_to_connect_to_is_refused():
    for url in (
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1",
        "tcp://[::1]",
        "tcp://h:",
        "tcp://h:*",
        "tcp://h:-1",
        "tcp://h:x",
    ):
        with pytest.raises(InvalidPortNumber, match="port"):
            make_address(url)


def test_url_with_a_port_beyond_65535_is_refused():
    for url in ("tcp://127.0.0.1:65536", "tcp://127.0.0.1:700000"):
        with pytest.raises(InvalidPortNumber, match="port"):
            make_address(url)


@pytest.mark.parametrize("letter", ["x", "é", "😀"])
def test_ipc_path_of_107_bytes_is_taken_and_of_108_is_refused(letter):
    size = len(letter.encode())
    stem = letter * ((MAX_IPC_PATH_BYTES - 2) // size)
    fits = stem + "y" * (MAX_IPC_PATH_BYTES - 2 - len(stem.encode()))
    assert make_address((fits, 1), transport="ipc") == f"ipc://{fits}-1"
    assert len(f"{fits}-1".encode()) == 107
    for ip, port in ((fits + "y", 1), (fits, 10)):
        with pytest.raises(ConnectionFileError, match="108 bytes.*107.*shorter") as caught:
            make_address((ip, port), transport="ipc")
        assert caught.value.path == f"{ip}-{port}"


def test_ipc_url_of_108_bytes_is_refused_as_well():
    assert make_address("ipc://" + "x" * 107) == "ipc://" + "x" * 107
    with pytest.raises(ConnectionFileError, match="107"):
        make_address("ipc://" + "x" * 108)


def test_address_that_is_none_is_refused_by_an_error_of_kclient():
    for address in ("nonsense", "", "127.0.0.1:80", 5, None, ("127.0.0.1",), (None, 80)):
        with pytest.raises(KClientError):
            make_address(address)


def test_address_that_is_wrong_names_the_file_that_it_came_from() -> None:
    info = ConnectionInfo.from_dict(VALUES | {"shell_port": 0}, path="/tmp/kernel-1.json")
    with pytest.raises(InvalidPortNumber, match=r"^connection file /tmp/kernel-1\.json: shell_port: "):
        info.address("shell")
    info = ConnectionInfo.from_dict(VALUES | {"transport": "ipc", "ip": "x" * 110}, path="/tmp/kernel-1.json")
    with pytest.raises(
        ConnectionFileError, match=r"^connection file /tmp/kernel-1\.json: ipc path of 115 bytes"
    ) as caught:
        info.address("shell")
    assert caught.value.path == "/tmp/kernel-1.json"


def test_path_of_its_file_makes_a_connection_no_other() -> None:
    info, same = ConnectionInfo.from_dict(VALUES), ConnectionInfo.from_dict(VALUES, path="/tmp/kernel-1.json")
    assert (info, info.to_dict()) == (same, same.to_dict())
    assert same.with_ports("127.0.0.1", [1, 2, 3, 4, 5]).path == "/tmp/kernel-1.json"


@pytest.mark.parametrize("scheme", ["hmac-sha3-256", "hmac-sha3_256", "hmac-SHA3_256"])
def test_scheme_is_written_as_other_programs_spell_it(scheme: str) -> None:
    info = ConnectionInfo.from_dict(VALUES | {"signature_scheme": scheme})
    assert (info.signature_scheme, info.to_dict()["signature_scheme"]) == ("hmac-sha3_256", "hmac-sha3_256")
    assert ConnectionInfo(signature_scheme=scheme).to_dict()["signature_scheme"] == "hmac-sha3_256"
