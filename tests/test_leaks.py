"""The leak check finds every kind of leak."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import gevent
import leaks
import pytest
from gevent.event import Event

pytestmark = pytest.mark.skipif(not leaks.PROC, reason="needs /proc")


@pytest.fixture
def before(tmp_path: Path) -> Iterator[leaks.Snapshot]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leaks, "SETTLE", 0)
        yield leaks.Snapshot(environment=f"MARK={tmp_path}", directories=[tmp_path])


UNTIL_EOF = [sys.executable, "-c", "input()"]


def test_nothing_left_is_no_leak(before: leaks.Snapshot) -> None:
    gevent.spawn(Event().wait).kill()
    assert before.leaks() == []


def test_waiting_greenlet_is_found_with_the_line_it_waits_in(before: leaks.Snapshot) -> None:
    def forgotten() -> None:
        Event().wait()

    greenlets = [gevent.spawn(forgotten), gevent.spawn_raw(forgotten)]
    gevent.sleep(0)
    found = before.leaks()
    gevent.killall(greenlets)
    assert [line.startswith("greenlet: ") and "test_leaks.py" in line for line in found] == [True, True]


def test_greenlet_that_was_not_begun_is_found(before: leaks.Snapshot) -> None:
    later = gevent.spawn_later(1000, print)
    found = before.leaks()
    later.kill()
    assert len(found) == 1


def test_descriptor_is_found_and_one_in_the_place_of_another_is_not(before: leaks.Snapshot) -> None:
    reader, writer = os.pipe()
    assert [line.partition(",")[0] for line in before.leaks()] == ["descriptor: 2 x pipe"]
    now = leaks.Snapshot()
    other = os.pipe()
    os.close(reader)
    os.close(writer)
    assert now.leaks() == []
    for fd in other:
        os.close(fd)


def test_child_is_found_even_when_dead(before: leaks.Snapshot) -> None:
    with subprocess.Popen(UNTIL_EOF, stdin=subprocess.PIPE) as child:
        assert child.stdin
        assert any(f"process: {child.pid}" in line for line in before.leaks())
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert any(f"process: {child.pid} state Z" in line for line in before.leaks())


def test_process_of_another_parent_is_found_by_its_environment(before: leaks.Snapshot, tmp_path: Path) -> None:
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL).pid)"
    with subprocess.Popen(
        [sys.executable, "-c", code, *UNTIL_EOF],
        env={**os.environ, "MARK": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        stray = int(parent.stdout.readline())
        parent.wait()
        assert any(f"process: {stray}" in line for line in before.leaks())


def test_thread_is_found_by_its_name(before: leaks.Snapshot) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait, name="forgotten")
    thread.start()
    found = before.leaks()
    done.set()
    thread.join()
    assert found == [f"thread: forgotten ({thread.native_id})"]


def test_file_by_which_tempfile_tries_a_folder_is_no_leak(before: leaks.Snapshot, tmp_path: Path) -> None:
    (tmp_path / "lx5jg67y").write_bytes(b"blat")
    (tmp_path / "qltisuda").write_bytes(b"something else")
    assert before.leaks() == [f"file: {tmp_path / 'qltisuda'}"]


def test_file_is_found(before: leaks.Snapshot, tmp_path: Path) -> None:
    (tmp_path / "kernel-1.json").touch()
    assert before.leaks() == [f"file: {tmp_path / 'kernel-1.json'}"]
