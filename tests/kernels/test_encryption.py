"""The kernels that get keys, and the cases that are refused before anything starts."""

from __future__ import annotations

import json
import logging

import pytest
import zmq

import kclient
from kclient.kernels.connection.encryption import is_wanted
from kclient.kernels.specs.spec import KernelSpec

CAN = KernelSpec("able", ["p"], metadata={"supported_encryption": ["curve"]})
CANNOT = KernelSpec("unable", ["p"])


@pytest.fixture
def no_curve(monkeypatch):
    """Pretend that libzmq was built without CURVE."""
    monkeypatch.setattr(zmq, "has", lambda name: name != "curve")


def test_keys_are_for_kernels_that_declare_it():
    assert [is_wanted("auto", spec) for spec in (CAN, CANNOT)] == [True, False]
    assert [is_wanted("off", spec) for spec in (CAN, CANNOT)] == [False, False]
    assert is_wanted("required", CAN)


def test_required_encryption_that_the_kernel_cannot_do_is_refused_with_what_to_do():
    with pytest.raises(kclient.InvalidArgument) as caught:
        is_wanted("required", CANNOT)
    for word in ("'unable'", "'curve'", "metadata.supported_encryption", "encryption='auto'"):
        assert word in str(caught.value)


def test_libzmq_without_curve_encrypts_nothing_and_says_so(no_curve, caplog):
    assert not is_wanted("off", CAN)
    assert not is_wanted("auto", CANNOT)
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        assert not is_wanted("auto", CAN)
    assert "'able' is started without encryption: this libzmq was built without CurveZMQ" in caplog.text
    with pytest.raises(kclient.InvalidArgument, match="without CurveZMQ"):
        is_wanted("required", CAN)


def test_libzmq_without_curve_does_not_connect_to_an_encrypted_kernel(no_curve):
    public, secret = zmq.curve_keypair()
    info = kclient.ConnectionInfo(shell_port=1, iopub_port=2, curve_publickey=public, curve_secretkey=secret)
    with kclient.KernelClient(info) as client, pytest.raises(kclient.InvalidState, match="without CurveZMQ"):
        client.start_channels()


@pytest.mark.parametrize("wrong", ["on", "AUTO", "", True, None, ["auto"]])
def test_other_values_are_refused_at_once(wrong):
    with pytest.raises(kclient.InvalidArgument, match="'auto', 'required' or 'off'"):
        kclient.KernelManager(encryption=wrong)
    with pytest.raises(kclient.InvalidArgument, match="'auto', 'required' or 'off'"):
        kclient.start_kernel("no such kernel", encryption=wrong)


def test_required_encryption_is_refused_before_anything_starts(install_kernel, runtime_dir, folder):
    name = install_kernel(f"open({str(folder / 'started')!r}, 'w')", metadata={"supported_encryption": ["tls"]})
    with pytest.raises(kclient.InvalidArgument, match="'odd' cannot be encrypted"):
        kclient.start_kernel(name, encryption="required")
    manager = kclient.KernelManager(name, encryption="required")
    with pytest.raises(kclient.InvalidArgument, match="'odd' cannot be encrypted"):
        manager.write_connection_file()
    assert (list(runtime_dir.iterdir()), (folder / "started").exists(), manager.has_kernel) == ([], False, False)


def test_file_without_keys_is_not_loaded_where_encryption_is_required(folder):
    path = folder / "plain.json"
    path.write_text(json.dumps({"shell_port": 1, "iopub_port": 2}))
    kclient.KernelManager().load_connection_file(path)
    with pytest.raises(kclient.ConnectionFileError, match="no curve_publickey, and encryption is required") as caught:
        kclient.KernelManager(encryption="required").load_connection_file(path)
    assert caught.value.path == str(path)


def test_file_is_written_without_a_kernel_spec_where_that_has_nothing_to_say(runtime_dir, folder):
    with kclient.KernelManager("no such kernel", encryption="off") as manager:
        manager.write_connection_file()
        path = folder / "plain.json"
        path.write_text(json.dumps(manager.get_connection_info()))
    with kclient.KernelManager("no such kernel") as manager:
        manager.load_connection_file(path)
        manager.write_connection_file()
        assert manager.get_connection_info() == json.loads(path.read_text())
    with kclient.KernelManager("no such kernel") as manager, pytest.raises(kclient.NoSuchKernel):
        manager.write_connection_file()


def test_file_that_is_written_before_the_start_has_the_keys(install_kernel):
    name = install_kernel("", metadata={"supported_encryption": "curve"})
    keys = {}
    for encryption in ("auto", "required", "off"):
        with kclient.KernelManager(name, encryption=encryption) as manager:
            manager.write_connection_file()
            with open(manager.connection_file) as file:
                keys[encryption] = json.load(file).get("curve_secretkey")
            manager.write_connection_file()
            assert manager.get_connection_info().get("curve_secretkey") == keys[encryption]
    assert keys["off"] is None
    assert len({*keys.values()}) == 3, "each kernel has its own"
