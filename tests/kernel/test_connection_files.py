import json
import os
import stat
from pathlib import Path

import pytest

import kclient
from kclient.kernels.process.local import LocalLauncher

WAIT = 30
"""Seconds, for a wait of milliseconds on an idle machine."""


def ipc_sockets(info):
    names = ("shell", "iopub", "stdin", "hb", "control")
    return [f"{info['ip']}-{info[f'{name}_port']}" for name in names] if info["transport"] == "ipc" else []


def test_connection_file_is_there_before_the_kernel_and_private(start_kernel, transport):
    class Looking(LocalLauncher):
        def start(self, argv, **where):
            (path,) = [argument for argument in argv if argument.endswith(".json")]
            with open(path) as file:
                self.values = json.load(file)
            self.modes = [stat.S_IMODE(os.stat(place).st_mode) for place in (path, os.path.dirname(path))]
            return super().start(argv, **where)

    launcher = Looking()
    manager = start_kernel(transport=transport, launcher=launcher)
    assert launcher.modes == [0o600, 0o700]
    assert launcher.values == manager.get_connection_info()
    assert launcher.values["transport"] == transport
    assert launcher.values["kernel_name"] == "python3"


def test_ipc_sockets_are_in_a_private_folder(kernel, transport):
    for path in ipc_sockets(kernel.get_connection_info()):
        assert os.path.isabs(path)
        assert stat.S_ISSOCK(os.stat(path).st_mode)
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700


def test_files_are_removed_at_shutdown(kernel_manager, runtime_dir):
    info, path = kernel_manager.get_connection_info(), kernel_manager.connection_file
    assert [os.fspath(found) for found in runtime_dir.iterdir()] == [path]
    kernel_manager.shutdown_kernel()
    assert not os.path.exists(path)
    assert not any(os.path.exists(socket) for socket in ipc_sockets(info))


def test_files_are_removed_when_the_kernel_is_killed(kernel_manager):
    info, path = kernel_manager.get_connection_info(), kernel_manager.connection_file
    kernel_manager.shutdown_kernel(now=True)
    assert not any(os.path.exists(left) for left in [path, *ipc_sockets(info)])


def test_connection_file_can_be_named(start_kernel, folder, transport):
    path = folder / "sub" / "mine.json"
    manager = start_kernel(transport=transport, connection_file=path)
    assert manager.connection_file == os.fspath(path)
    assert json.loads(path.read_text()) == manager.get_connection_info()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    manager.shutdown_kernel()
    assert not path.exists()


def test_one_client_connects_in_every_way(kernel, monkeypatch):
    path = kernel.connection_file
    name = os.path.basename(path)
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", os.path.dirname(path))
    values = kernel.get_connection_info()
    kernel_id = name.removeprefix("kernel-").removesuffix(".json")
    for connection in (path, name, kernel_id, values, kclient.ConnectionInfo.from_dict(values)):
        with kclient.connect(connection, timeout=WAIT) as client:
            assert client.run("print('connected')").stdout == "connected\n"
    assert os.path.exists(path)
    assert kernel.is_alive()


def test_manager_that_loads_a_file_talks_to_its_kernel_and_leaves_it_running(kernel):
    path = kernel.connection_file
    with kclient.KernelManager() as manager:
        manager.load_connection_file(path)
        assert manager.connection_file == path
        assert manager.get_connection_info() == kernel.get_connection_info()
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        assert not manager.has_kernel
        assert manager.is_alive()
        assert manager.run("print('loaded')").stdout == "loaded\n"
    assert os.path.exists(path)
    assert all(os.path.exists(socket) for socket in ipc_sockets(kernel.get_connection_info()))
    assert kernel.is_alive()
    with kclient.connect(path, timeout=WAIT) as client:
        assert client.run("6 * 7").text == "42"


def test_kernel_is_started_with_the_file_that_was_loaded_and_the_file_stays(kernel, start_kernel, folder):
    """kclient does not remove a file that another program wrote."""
    path = folder / "theirs.json"
    with start_kernel() as first:
        path.write_text(json.dumps(first.get_connection_info()))
    manager = kclient.KernelManager()
    manager.load_connection_file(path)
    with manager:
        manager.start_kernel()
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        assert manager.get_connection_info() == json.loads(path.read_text())
        assert manager.run("6 * 7").text == "42"
    assert path.exists()


def test_file_is_loaded_only_while_nothing_runs(kernel):
    with pytest.raises(RuntimeError, match="shut them down"):
        kernel.load_connection_file(kernel.connection_file)
    with pytest.raises(RuntimeError, match="no connection file was named"):
        kclient.KernelManager().load_connection_file()


def test_file_can_be_written_and_cleaned_up_without_a_kernel(transport, runtime_dir):
    manager = kclient.KernelManager(transport=transport)
    manager.write_connection_file()
    path = manager.connection_file
    info = json.loads(Path(path).read_text())
    assert info == manager.get_connection_info()
    assert 0 not in [info[f"{name}_port"] for name in ("shell", "iopub", "stdin", "hb", "control")]
    manager.cleanup_connection_file()
    manager.cleanup_connection_file()
    assert not os.path.exists(path)
    manager.cleanup_ipc_files()
    manager.shutdown_kernel()
    assert list(runtime_dir.iterdir()) == []


def test_ports_written_before_the_start_are_the_ones_used(transport):
    manager = kclient.KernelManager(transport=transport)
    with manager:
        manager.write_connection_file()
        info, path = manager.get_connection_info(), manager.connection_file
        manager.start_kernel()
        manager.start_channels()
        manager.wait_for_ready(WAIT)
        assert (manager.get_connection_info(), manager.connection_file) == (info, path)
        assert manager.run("6 * 7").text == "42"


def test_client_leaves_files_and_kernel_alone(kernel):
    for _ in range(2):
        with kclient.connect(kernel.connection_file, timeout=WAIT) as client:
            client.stop_channels()
    assert os.path.exists(kernel.connection_file)
    assert all(os.path.exists(socket) for socket in ipc_sockets(kernel.get_connection_info()))


def test_shutdown_by_a_client_ends_the_kernel_and_its_manager_knows(kernel_manager):
    with kclient.connect(kernel_manager.connection_file, timeout=WAIT) as client:
        assert client.shutdown(timeout=WAIT).content["status"] == "ok"
        assert kernel_manager.process.exited.wait(WAIT)
        assert not kernel_manager.is_alive()


BYTES_AND_TEXT = """
import kclient
from kclient.testing import FakeKernel

for transport in ("tcp", "ipc"):
    with kclient.start_kernel(transport=transport, encryption="auto", timeout=30) as kernel:
        kernel.run("1", timeout=30)
        kernel.restart_kernel(timeout=30)
        values = kernel.get_connection_info()
        for connection in (kernel.connection_file, values, kclient.ConnectionInfo.from_dict(values)):
            with kclient.connect(connection, timeout=30) as client:
                assert client.run("6 * 7", timeout=30).text == "42"
                repr(client), repr(client.session), repr(client.connection)
for curve in (False, True):
    with FakeKernel(curve=curve) as fake, kclient.connect(fake.connection_info, timeout=30) as client:
        client.run("x", timeout=30)
"""


def test_program_that_forbids_to_compare_text_and_bytes_works(run_script):
    """The fixture runs it with -bb."""
    assert run_script(BYTES_AND_TEXT) == ""
