import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import tempfile

import attrs
import pytest

import kclient
from kclient.errors import ConnectionFileError
from kclient.kernels.connection.files import (
    check_replaceable,
    find_connection_file,
    new_connection_file,
    new_ipc_folder,
    read_connection_file,
    remove_connection_file,
    remove_ipc_files,
    write_connection_file,
)
from kclient.protocol.connection import MAX_IPC_PATH_BYTES, ConnectionInfo

INFO = ConnectionInfo(shell_port=1, iopub_port=2, stdin_port=3, control_port=4, hb_port=5, key=b"secret-key")


@pytest.fixture
def runtime_dir(tmp_path, monkeypatch):
    path = tmp_path / "share" / "runtime"
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(path))
    return path


@pytest.fixture
def temp_dir(tmp_path, monkeypatch):
    path = tmp_path / "temp"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    return path


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


@contextlib.contextmanager
def unprivileged():
    """Root may do anything: run the block as an ordinary user."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# Connection files


def test_connection_file_reads_back_as_it_was_written(tmp_path):
    path = str(tmp_path / "kernel-1.json")
    write_connection_file(INFO, path)
    assert read_connection_file(path) == INFO
    assert os.listdir(tmp_path) == ["kernel-1.json"]


def test_connection_file_and_its_new_directories_are_private_whatever_the_umask(tmp_path):
    path = str(tmp_path / "new" / "inner" / "kernel-1.json")
    umask = os.umask(0)
    try:
        write_connection_file(INFO, path)
    finally:
        os.umask(umask)
    assert [mode_of(name) for name in (path, tmp_path / "new" / "inner", tmp_path / "new")] == [0o600, 0o700, 0o700]


def test_runtime_directory_and_those_above_it_are_private_whatever_the_umask(tmp_path, runtime_dir):
    umask = os.umask(0)
    try:
        new_connection_file()
    finally:
        os.umask(umask)
    assert [mode_of(name) for name in (runtime_dir, tmp_path / "share")] == [0o700, 0o700]


def test_connection_file_is_private_and_whole_at_every_step_of_its_making(tmp_path, monkeypatch):
    """The test looks before and after each system call of the program."""
    path = tmp_path / "new" / "kernel-1.json"
    steps, folders, drafts, files = [], set(), set(), []

    def look():
        for found in path.parent.glob("*"):
            if found == path:
                files.append((mode_of(found), read_connection_file(str(found))))
            else:
                drafts.add(mode_of(found))
        if path.parent.exists():
            folders.add(mode_of(path.parent))

    def watch(name):
        real = getattr(os, name)

        def step(*args, **kwargs):
            result = real(*args, **kwargs)
            if steps[-1:] != ["look"]:  # looking makes system calls, too
                steps.append("look")
                look()
                steps[-1] = name
            return result

        monkeypatch.setattr(os, name, step)

    for name in ("chmod", "link", "mkdir", "open", "rename", "replace", "unlink"):
        watch(name)
    umask = os.umask(0)
    try:
        write_connection_file(INFO, str(path))
    finally:
        os.umask(umask)
    assert steps == ["mkdir", "open", "replace"]
    assert (folders, drafts, files) == ({0o700}, {0o600}, [(0o600, INFO)])


def test_connection_file_replaces_one_that_others_could_read(tmp_path):
    path = tmp_path / "kernel-1.json"
    path.write_text("old")
    path.chmod(0o666)
    with open(path) as reader:
        write_connection_file(INFO, str(path))
        assert reader.read() == "old"
    assert mode_of(path) == 0o600
    assert read_connection_file(str(path)) == INFO


def test_connection_file_can_be_written_to_a_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_connection_file(INFO, "k.json")
    assert read_connection_file("k.json") == INFO


def test_failed_write_leaves_no_file_behind_and_keeps_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "kernel-1.json"
    path.write_text("old")

    def fail(source, target):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(ConnectionFileError, match="Read-only file system") as caught:
        write_connection_file(INFO, str(path))
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)
    assert "secret-key" not in str(caught.value)
    assert os.listdir(tmp_path) == ["kernel-1.json"]
    assert path.read_text() == "old"


def test_write_to_a_full_disk_is_an_error_and_leaves_no_file_behind(tmp_path):
    script = """
import resource, sys
from kclient.errors import ConnectionFileError
from kclient.kernels.connection.files import write_connection_file
from kclient.protocol.connection import ConnectionInfo
resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))
try:
    write_connection_file(ConnectionInfo(), sys.argv[1])
except ConnectionFileError as exc:
    print(exc)
"""
    path = str(tmp_path / "kernel-1.json")
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=60, check=True)
    assert path in done.stdout
    assert "File too large" in done.stdout
    assert os.listdir(tmp_path) == []


def test_write_below_a_file_or_over_a_directory_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (str(tmp_path / "file" / "kernel-1.json"), str(tmp_path / "folder")):
        with pytest.raises(ConnectionFileError, match="cannot be written") as caught:
            write_connection_file(INFO, path)
        assert caught.value.path == path
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_write_to_a_directory_of_someone_else_is_an_error():
    with unprivileged(), pytest.raises(ConnectionFileError, match="Permission denied"):
        write_connection_file(INFO, "/usr/kernel-1.json")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b'{"shell_port": 1, "iop', "not valid JSON"),
        (b"[1]", "expected an object"),
        (b'{"shell_port": 1}', "iopub_port is missing"),
        (b'{"shell_port": "1", "iopub_port": 2}', "shell_port"),
        (b"\xff\xfe{}", "not UTF-8"),
        (b"\x00" * 100, "not valid JSON"),
    ],
)
def test_broken_connection_file_is_an_error_that_names_it(tmp_path, content, complaint):
    path = tmp_path / "kernel-1.json"
    path.write_bytes(content)
    with pytest.raises(ConnectionFileError, match=complaint) as caught:
        read_connection_file(str(path))
    assert caught.value.path == str(path)
    assert str(path) in str(caught.value)


def test_missing_connection_file_is_an_error_that_names_it(tmp_path):
    path = str(tmp_path / "kernel-1.json")
    with pytest.raises(ConnectionFileError, match=r"No such file.*is the kernel running") as caught:
        read_connection_file(path)
    assert caught.value.path == path


def test_unreadable_connection_file_is_an_error(tmp_path):
    path = tmp_path / "kernel-1.json"
    write_connection_file(INFO, str(path))
    path.chmod(0)
    with unprivileged(), pytest.raises(ConnectionFileError, match="Permission denied"):
        read_connection_file(str(path))


def test_reading_a_directory_or_a_pipe_is_an_error_and_never_blocks(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ConnectionFileError, match="not a regular file"):
            read_connection_file(str(path))


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666, 0o777])
def test_connection_file_that_others_may_write_to_is_refused(tmp_path, mode):
    path = tmp_path / "kernel-1.json"
    write_connection_file(INFO, str(path))
    path.chmod(mode)
    with pytest.raises(ConnectionFileError, match=f"{mode:o}.*chmod 600") as caught:
        read_connection_file(str(path))
    assert caught.value.path == str(path)
    path.chmod(0o644)
    assert read_connection_file(str(path)) == INFO


def test_connection_file_of_another_user_is_refused_and_that_of_root_is_read(tmp_path, monkeypatch):
    path = str(tmp_path / "kernel-1.json")
    write_connection_file(INFO, path)
    real = os.fstat
    for owner, is_read in ((os.geteuid(), True), (0, True), (os.geteuid() + 1, False)):

        def fstat(number, owner=owner):
            found = list(real(number))
            found[stat.ST_UID] = owner
            return os.stat_result(found)

        monkeypatch.setattr(os, "fstat", fstat)
        if is_read:
            assert read_connection_file(path) == INFO
        else:
            with pytest.raises(ConnectionFileError, match=f"another user .number {owner}.*copy of your own"):
                read_connection_file(path)


def test_what_is_looked_at_is_what_is_read(tmp_path, monkeypatch):
    """The file is replaced between any two system calls of the program."""
    path, evil = tmp_path / "kernel-1.json", tmp_path / "evil.json"
    real = os.fstat

    def exchange(number):
        write_connection_file(attrs.evolve(INFO, key=b"evil"), str(evil))
        evil.chmod(0o666)
        os.rename(evil, path)
        monkeypatch.setattr(os, "fstat", real)
        return real(number)

    write_connection_file(INFO, str(path))
    monkeypatch.setattr(os, "fstat", exchange)
    assert read_connection_file(str(path)) == INFO
    with pytest.raises(ConnectionFileError, match="chmod 600"):
        read_connection_file(str(path))


def test_every_way_to_a_kernel_refuses_a_file_that_others_may_write_to(tmp_path):
    path = tmp_path / "kernel-1.json"
    write_connection_file(INFO, str(path))
    path.chmod(0o660)
    manager = kclient.KernelManager()
    for take in (kclient.connect, kclient.KernelClient, manager.load_connection_file):
        with pytest.raises(ConnectionFileError, match="chmod 600"):
            take(path)


def test_refused_file_leaves_no_descriptor_open(tmp_path):
    path = tmp_path / "kernel-1.json"
    path.touch()
    path.chmod(0o666)
    before = os.listdir("/dev/fd")
    for place in (path, tmp_path):
        with pytest.raises(ConnectionFileError):
            read_connection_file(str(place))
    assert os.listdir("/dev/fd") == before


def test_file_that_others_may_write_to_is_not_replaced(tmp_path):
    path = tmp_path / "kernel-1.json"
    write_connection_file(INFO, str(path))
    check_replaceable(str(path))
    path.chmod(0o666)
    with pytest.raises(ConnectionFileError, match="other users may write"):
        check_replaceable(str(path))


def test_path_with_a_nul_is_an_error():
    for call in (read_connection_file, find_connection_file, lambda path: write_connection_file(INFO, path)):
        with pytest.raises(ConnectionFileError):
            call("/tmp/a\0b")


def test_byte_order_mark_is_read_over(tmp_path):
    path = tmp_path / "kernel-1.json"
    path.write_text(json.dumps(INFO.to_dict()), encoding="utf-8-sig")
    assert read_connection_file(str(path)) == INFO


def test_existing_path_is_found_as_it_is(tmp_path, monkeypatch, runtime_dir):
    path = tmp_path / "k.json"
    path.write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert find_connection_file("k.json") == "k.json"
    assert find_connection_file(path) == str(path)
    assert find_connection_file(str(tmp_path)) == str(tmp_path)


def test_name_and_kernel_id_are_found_in_the_runtime_directory(runtime_dir):
    path = runtime_dir / "kernel-1234.json"
    write_connection_file(INFO, str(path))
    assert find_connection_file("1234") == str(path)
    assert find_connection_file("kernel-1234.json") == str(path)


def test_directory_named_like_a_kernel_id_does_not_hide_the_file(tmp_path, monkeypatch, runtime_dir):
    write_connection_file(INFO, str(runtime_dir / "kernel-1234.json"))
    (tmp_path / "1234").mkdir()
    monkeypatch.chdir(tmp_path)
    assert find_connection_file("1234") == str(runtime_dir / "kernel-1234.json")


def test_file_that_is_nowhere_is_an_error_that_names_where_it_looked(runtime_dir):
    with pytest.raises(ConnectionFileError) as caught:
        find_connection_file("1234")
    for path in (os.path.abspath("1234"), runtime_dir / "1234", runtime_dir / "kernel-1234.json"):
        assert str(path) in str(caught.value)


def test_path_with_a_directory_is_not_looked_for_elsewhere(runtime_dir):
    write_connection_file(INFO, str(runtime_dir / "sub" / "kernel-1234.json"))
    for name in ("sub/kernel-1234.json", ""):
        with pytest.raises(ConnectionFileError):
            find_connection_file(name)


# Paths of new files


def test_new_connection_file_is_a_fresh_path_in_the_private_runtime_directory(runtime_dir):
    first, second = new_connection_file(), new_connection_file()
    assert first != second
    assert os.path.dirname(first) == str(runtime_dir)
    assert os.path.basename(first).startswith("kernel-")
    assert first.endswith(".json")
    assert mode_of(runtime_dir) == 0o700
    assert os.listdir(runtime_dir) == []


def test_removal_takes_the_file_and_leaves_the_runtime_directory(runtime_dir):
    path = new_connection_file()
    write_connection_file(INFO, path)
    remove_connection_file(path)
    remove_connection_file(path)
    assert os.listdir(runtime_dir) == []


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o1777])
def test_runtime_directory_that_others_may_write_to_is_not_used(runtime_dir, temp_dir, mode):
    runtime_dir.mkdir(parents=True)
    runtime_dir.chmod(mode)
    check_private_replacement(temp_dir)


def test_runtime_directory_that_cannot_be_made_is_not_used(tmp_path, temp_dir, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "file" / "runtime"))
    check_private_replacement(temp_dir)


def test_runtime_directory_that_cannot_be_written_to_is_not_used(runtime_dir, temp_dir, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check_private_replacement(temp_dir)


def test_runtime_directory_of_someone_else_is_not_used(runtime_dir, temp_dir, monkeypatch):
    runtime_dir.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    check_private_replacement(temp_dir)


def check_private_replacement(temp_dir):
    path = new_connection_file()
    folder = os.path.dirname(path)
    assert os.path.dirname(folder) == str(temp_dir)
    assert mode_of(folder) == 0o700
    write_connection_file(INFO, path)
    remove_connection_file(path)
    assert os.listdir(temp_dir) == []


def test_removal_does_not_touch_a_directory_of_the_user(tmp_path):
    path = tmp_path / "mine" / "k.json"
    write_connection_file(INFO, str(path))
    remove_connection_file(str(path))
    assert os.listdir(tmp_path / "mine") == []


def test_no_usable_directory_at_all_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", "/proc/none")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(ConnectionFileError, match="set TMPDIR"):
        new_connection_file()


# ipc


def bind(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    return sock


def test_ipc_folder_is_private_and_its_addresses_work_from_any_directory(temp_dir, monkeypatch):
    folder = new_ipc_folder()
    assert mode_of(folder.path) == 0o700
    assert os.path.isabs(folder.ip)
    monkeypatch.chdir("/")
    for port in range(1, 6):
        bind(f"{folder.ip}-{port}").close()
    folder.remove()
    folder.remove()
    assert os.listdir(temp_dir) == []


@pytest.mark.parametrize("length", [60, 70, 75, 80, 85, 90, 95, 100, 107, 200])
def test_ipc_addresses_are_short_enough_however_long_the_temporary_directory(tmp_path, monkeypatch, length):
    long = os.path.join("/tmp", "é" * ((length - 5) // 2))
    os.makedirs(long)
    monkeypatch.setattr(tempfile, "tempdir", long)
    try:
        folder = new_ipc_folder()
        try:
            assert len(os.fsencode(f"{folder.ip}-5")) <= MAX_IPC_PATH_BYTES
            bind(f"{folder.ip}-5").close()
        finally:
            folder.remove()
        assert os.listdir(long) == []
    finally:
        os.rmdir(long)


def test_ipc_folder_is_absolute_in_a_relative_temporary_directory(temp_dir, monkeypatch):
    monkeypatch.chdir(temp_dir.parent)
    monkeypatch.setattr(tempfile, "tempdir", temp_dir.name)
    folder = new_ipc_folder()
    assert os.path.isabs(folder.ip)
    folder.remove()
    assert os.listdir(temp_dir) == []


LONG = "d" * 200
"""The name of a folder. Fifteen of them, nested, make a path that most programs can still use."""


@pytest.mark.kernel
@pytest.mark.parametrize("where", ["read-only", "very long"])
def test_ipc_kernel_starts_in_a_directory_that_is_read_only_or_has_a_very_long_path(tmp_path, where):
    script = f"""
import os, sys, kclient
if {where == "very long"}:
    for _ in range(15):
        os.mkdir({LONG!r})
        os.chdir({LONG!r})
    assert len(os.getcwd()) > 3000
else:
    os.chdir("/proc")  # where not even root can make a file
    try:
        open("file", "w")
    except OSError:
        pass
    else:
        sys.exit("it is not read-only")
with kclient.start_kernel(transport="ipc", timeout=60) as kernel:
    assert kernel.run("import os; os.getcwd()", timeout=60).text == repr(os.getcwd())
    ip = kernel.get_connection_info()["ip"]
    assert os.path.isabs(ip) and os.path.exists(ip + "-5") and len(ip + "-5") <= 107
assert not os.path.exists(os.path.dirname(ip))
"""
    if not os.path.isdir("/proc"):
        pytest.skip("no directory here that root cannot write to")
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(kclient.__file__))}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_folder_is_not_removed_by_a_forked_child(temp_dir):
    folder = new_ipc_folder()
    pid = os.fork()
    if pid == 0:
        folder.remove()
        os._exit(0)
    os.waitpid(pid, 0)
    assert os.path.isdir(folder.path)
    folder.remove()


def test_socket_files_of_a_kernel_are_removed_and_nothing_else(tmp_path):
    info = ConnectionInfo(transport="ipc", ip=str(tmp_path / "k"), shell_port=1, iopub_port=2, hb_port=3)
    bind(f"{info.ip}-1").close()
    (tmp_path / "k-2").write_text("a user's file")
    remove_ipc_files(info)
    remove_ipc_files(info)
    remove_ipc_files(INFO)
    assert os.listdir(tmp_path) == ["k-2"]


TEXT = json.dumps(INFO.to_dict())


@pytest.mark.parametrize(
    "text", [TEXT, json.dumps(INFO.to_dict(), indent=2), TEXT[1:], TEXT.encode(), [INFO.to_dict()]]
)
@pytest.mark.parametrize(
    "use",
    [
        kclient.connect,
        kclient.KernelClient,
        lambda text: kclient.KernelManager(connection_file=text),
        lambda text: kclient.start_kernel(connection_file=text),
        lambda text: kclient.KernelManager().load_connection_file(text),
    ],
)
def test_text_of_a_connection_file_in_place_of_its_path_is_refused_without_its_key(use, text):
    with pytest.raises((ConnectionFileError, kclient.InvalidArgument, TypeError)) as caught:
        use(text)
    shown = f"{caught.value} {caught.value!r} {vars(caught.value)}"
    assert INFO.key.decode() not in shown
    if isinstance(text, str):
        assert "json.loads" in shown
