"""With too few file descriptors a call raises one clear error before it opens any; open connections go on."""

from __future__ import annotations

import errno
import gc
import os
import resource
import sys
from collections.abc import Callable, Iterator

import leaks
import pytest
import zmq.green
from fixtures import WAIT

import kclient
from kclient.concurrency import file_limits
from kclient.concurrency.file_limits import SPARE_DESCRIPTORS, FileDescriptorReservation, check
from kclient.protocol.session import Session

pytestmark = pytest.mark.skipif(not leaks.PROC, reason="needs /proc")

over_tcp = pytest.mark.parametrize("transport", ["tcp"], indirect=True)
"""ipc takes as many descriptors as tcp."""

HARD = 4000

LIMITED = """
import errno, os, resource, sys
import gevent
import kclient

_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

def limit(number):
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))

def count():
    return len(os.listdir("/proc/self/fd")) - 1  # it opens one to look

def until(condition):
    while not condition():
        gevent.sleep(0.01)

def refused(call):
    before = count()
    try:
        call()
    except kclient.TooManyFiles as exc:
        assert exc.errno == errno.EMFILE
        assert count() == before, (before, count())
        return exc
    raise AssertionError("it was not refused")
"""
"""The beginning of each program. A limit set in this process would hold for the test run, too."""

WARM = """
from kclient.transport.zmq.context import context
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.owner import Owner
from kclient.concurrency.waiting import Parking

Parking(Owner()).wait(Deadline(0.001))
some_socket = context().socket(1)
"""
"""Open the descriptors that the loop and the ZeroMQ context open once."""


@pytest.fixture(autouse=True)
def no_reservations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the reservations of other tests."""
    monkeypatch.setattr(file_limits, "_reservations", set())


@pytest.fixture
def limit(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Make this process believe in another limit: descriptors with higher numbers do not count."""

    def limit(soft: int, hard: int = HARD) -> None:
        monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))

    return limit


@pytest.fixture
def free(limit: Callable[[int, int], None]) -> int:
    """The number of free descriptors below a limit of 300."""
    limit(300, HARD)
    return 300 - sum(number < 300 for number in leaks.descriptors())


@pytest.fixture
def reservation() -> Iterator[FileDescriptorReservation]:
    reservation = FileDescriptorReservation()
    yield reservation
    reservation.release()


def refusal(count: int, what: str = "a client", spare: int = SPARE_DESCRIPTORS) -> kclient.TooManyFiles:
    with pytest.raises(kclient.TooManyFiles) as caught:
        check(count, what, spare=spare)
    return caught.value


# Counting


def test_check_passes_up_to_the_last_free_descriptor(free: int) -> None:
    check(free, "all", spare=0)
    assert refusal(free + 1, spare=0).in_use == 300 - free
    check(free - SPARE_DESCRIPTORS, "all but the spare ones")
    refusal(free - SPARE_DESCRIPTORS + 1)


def test_descriptors_at_the_top_are_counted_wherever_they_are(free: int) -> None:
    taken = [os.open(os.devnull, os.O_RDONLY)]
    taken += [os.dup2(taken[0], number) for number in (299, 298, 290, 150)]
    try:
        check(free - 5, "the rest", spare=0)
        assert refusal(free - 4, spare=0).in_use == 300 - free + 5
    finally:
        for number in taken:
            os.close(number)


def test_no_limit_is_no_limit(limit: Callable[[int, int], None]) -> None:
    limit(resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    check(10**9, "very many")


def test_limit_beyond_the_largest_descriptor_is_none_that_counts(limit: Callable[[int, int], None]) -> None:
    limit(2**40, 2**40)
    check(10, "a client")


def test_error_says_what_is_needed_what_there_is_and_what_to_do(limit: Callable[[int, int], None]) -> None:
    limit(20, 5000)
    error = refusal(10)
    assert (error.needed, error.limit, error.hard_limit, error.errno) == (10, 20, 5000, errno.EMFILE)
    assert 0 < error.in_use <= 20
    for text in (
        *("a client takes 10 ", f"{SPARE_DESCRIPTORS} more must stay free", "of the 20 ", f"{error.in_use} are open"),
        *("ulimit -n 5000", "resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000))"),
    ):
        assert text in str(error)
    limit(20, 20)
    assert "hard limit" in str(refusal(10))
    limit(20, resource.RLIM_INFINITY)
    assert "ulimit -n unlimited" in str(refusal(10))
    assert refusal(10).hard_limit is None


# Reservations


def test_reserved_descriptors_do_not_count_as_free(free: int, reservation: FileDescriptorReservation) -> None:
    reservation.reserve(40, "one", later=30, spare=0)
    check(free - 30, "the rest", spare=0)
    assert "30 about to be opened" in str(refusal(free - 29, spare=0))
    reservation.reserve(free, "all", later=free, spare=0)  # instead of those before
    reservation.release()
    check(free, "all", spare=0)


def test_reservation_that_is_refused_reserves_nothing(free: int, reservation: FileDescriptorReservation) -> None:
    with pytest.raises(kclient.TooManyFiles, match="too much"):
        reservation.reserve(free + 1, "too much", later=30, spare=0)
    check(free, "all", spare=0)


def test_reservation_that_is_not_released_lapses(
    free: int, reservation: FileDescriptorReservation, monkeypatch: pytest.MonkeyPatch
) -> None:
    reservation.reserve(30, "one", later=30)
    refusal(free, spare=0)
    later = file_limits.monotonic() + file_limits.LAPSE_S
    monkeypatch.setattr(file_limits, "monotonic", lambda: later)
    check(free, "all", spare=0)


def test_reservation_that_was_dropped_is_over(free: int) -> None:
    reservation = FileDescriptorReservation()
    reservation.reserve(30, "one", later=30)
    refusal(free, spare=0)
    del reservation
    check(free, "all", spare=0)


def test_empty_reservation_is_dropped_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    FileDescriptorReservation()
    kclient.KernelManager()
    assert said == []


def test_forked_child_reserves_nothing_for_its_parent(run_script: Callable[..., str]) -> None:
    code = """
import os
from kclient.concurrency import file_limits
reservation = file_limits.FileDescriptorReservation()
reservation.reserve(30, "one", later=30)
child = os.fork()
if not child:
    os._exit(file_limits.FileDescriptorReservation.total_reserved())
print(file_limits.FileDescriptorReservation.total_reserved(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run_script(code) == "30 0"


def test_whether_a_reservation_is_over_is_asked_only_when_there_are_too_few(free: int) -> None:
    class Client:
        asked = 0

        def __init__(self) -> None:
            self.reservation = FileDescriptorReservation(self.is_connected)

        def is_connected(self) -> bool:
            self.asked += 1
            return self.asked > 1

    client = Client()
    client.reservation.reserve(30, "one", later=30)
    check(free - 30, "the rest", spare=0)
    assert client.asked == 0
    refusal(free, spare=0)
    check(free, "all", spare=0)
    assert client.asked == 2


@over_tcp
def test_client_that_is_connected_reserves_nothing(kernel: kclient.KernelManager) -> None:
    with kclient.KernelClient(kernel.connection_file) as client:
        client.start_channels()
        assert client.stdin_channel.wait_for_peer(WAIT)
        assert FileDescriptorReservation.total_reserved() == 5
        assert FileDescriptorReservation.total_reserved(thoroughly=True) == 0


@over_tcp
@pytest.mark.parametrize("end", ["wait_for_ready", "stop_channels"])
def test_client_has_its_reservation_until_it_is_ready_or_stopped(kernel: kclient.KernelManager, end: str) -> None:
    with kclient.KernelClient(kernel.connection_file) as client:
        client.start_channels()
        assert FileDescriptorReservation.total_reserved() == 5
        getattr(client, end)()
        assert FileDescriptorReservation.total_reserved() == 0


@over_tcp
def test_dropped_client_reserves_nothing(kernel: kclient.KernelManager) -> None:
    client = kclient.KernelClient(kernel.connection_file)
    client.start_channels()
    del client
    gc.collect()
    assert FileDescriptorReservation.total_reserved() == 0


# The needs of a client and of a kernel


def test_client_and_kernel_take_as_many_as_are_reserved_for_them(run_script: Callable[..., str]) -> None:
    """A kernel that starts has its ports held, too, and no channels yet."""
    code = """
from kclient.concurrency.file_limits import (
    CLIENT_DESCRIPTORS, KERNEL_DESCRIPTORS, PORT_DESCRIPTORS, PROCESS_DESCRIPTORS, FileDescriptorReservation
)
before = count()
with kclient.KernelManager() as kernel:
    kernel.start_kernel()
    assert count() == before + PROCESS_DESCRIPTORS + PORT_DESCRIPTORS, (before, count())
    assert FileDescriptorReservation.total_reserved() == CLIENT_DESCRIPTORS
    kernel.start_channels()
    kernel.wait_for_ready(60)
    assert FileDescriptorReservation.total_reserved() == 0
    until(lambda: count() == before + KERNEL_DESCRIPTORS - PORT_DESCRIPTORS)  # it is libzmq's thread that connects
    with kclient.connect(kernel.connection_file, timeout=60):
        until(lambda: count() == before + KERNEL_DESCRIPTORS - PORT_DESCRIPTORS + CLIENT_DESCRIPTORS)
print("ok")
"""
    assert run_script(LIMITED + WARM + code) == "ok"


# At the limit


@over_tcp
def test_process_with_next_to_no_descriptors_left_is_not_aborted(
    kernel: kclient.KernelManager, run_script: Callable[..., str]
) -> None:
    """libzmq ends the process when it cannot open the descriptors of its context."""
    code = """
from kclient.transport.zmq.context import context
from kclient.protocol.session import Session
gevent.get_hub()
limit(count() + 4)
refused(lambda: kclient.connect(sys.argv[1]))
refused(lambda: kclient.ShellChannel(context(), Session(b"k"), ("127.0.0.1", 1)).start())
limit(hard)
with kclient.connect(sys.argv[1], timeout=30) as client:
    shell = kclient.ShellChannel(context(), Session(b"k"), ("127.0.0.1", 1))
    errors = []
    limit(count())
    for call in (shell.start, lambda: kclient.connect(sys.argv[1]), kclient.start_kernel):
        try:
            call()
        except kclient.TooManyFiles as exc:
            errors.append(exc)
    limit(hard)
    assert len(errors) == 3 and all("RLIMIT_NOFILE" in str(exc) for exc in errors), errors
    print(client.run("6 * 7", timeout=30).text)
"""
    with_noise = "import sys; sys.unraisablehook = lambda found: None\n"  # printed by zmq.green
    assert run_script(with_noise + LIMITED + code, str(kernel.connection_file)) == "42"


@over_tcp
def test_clients_up_to_the_limit_answer_and_the_next_is_refused(
    kernel: kclient.KernelManager, run_script: Callable[..., str]
) -> None:
    code = """
path = sys.argv[1]
clients = [kclient.connect(path, timeout=30)]
limit(count() + 16 + 2 * 10 + 9)
clients += [kclient.connect(path, timeout=30) for _ in range(2)]
exc = refused(lambda: kclient.connect(path, timeout=30))
assert exc.needed == 10 and exc.in_use == count(), vars(exc)
assert refused(lambda: kclient.KernelClient(path).start_channels())
assert [client.run(str(n), timeout=30).text for n, client in enumerate(clients)] == ["0", "1", "2"]
before = count()
clients.pop().close()
until(lambda: count() == before - 10)  # libzmq's thread closes them
with kclient.connect(path, timeout=30) as client:
    print(client.run("6 * 7", timeout=30).text)
for client in clients:
    client.close()
"""
    assert run_script(LIMITED + code.replace("16 +", f"{SPARE_DESCRIPTORS} +"), str(kernel.connection_file)) == "42"


@over_tcp
def test_clients_that_are_opened_at_once_answer_or_are_refused(
    kernel: kclient.KernelManager, run_script: Callable[..., str]
) -> None:
    """Two clients must not both count on the last free descriptors: their connections would fail again and again."""
    code = """
path = sys.argv[1]
limit(150)

def open_client(number):
    try:
        return kclient.connect(path, timeout=30)
    except kclient.TooManyFiles:
        return None

jobs = [gevent.spawn(open_client, number) for number in range(40)]
gevent.joinall(jobs, raise_error=True)
clients = [job.value for job in jobs if job.value is not None]
assert 3 <= len(clients) <= 13, len(clients)
for number, client in enumerate(clients):
    assert client.run(str(number), timeout=30).text == str(number)
for client in clients:
    client.close()
print("ok")
"""
    assert run_script(LIMITED + code, str(kernel.connection_file)) == "ok"


def test_kernel_is_refused_before_it_starts_and_the_others_go_on(
    run_script: Callable[..., str], runtime_dir: object
) -> None:
    code = """
before = count()
with kclient.start_kernel(timeout=60) as kernel:
    until(lambda: count() == before + 12)  # it is libzmq's thread that connects
    pid, files = kernel.process.pid, os.listdir(os.environ["JUPYTER_RUNTIME_DIR"])
    limit(150)
    taken = []
    while count() < 120:
        taken.append(os.dup(0))
    exc = refused(kclient.start_kernel)
    assert exc.needed == 17 and "'python3'" in str(exc), exc
    assert os.listdir(os.environ["JUPYTER_RUNTIME_DIR"]) == files
    while count() < 145:
        taken.append(os.dup(0))
    assert "'python3'" in str(refused(kernel.restart_kernel))
    assert kernel.run("import os; os.getpid()", timeout=30).text == str(pid)
    for number in taken[:15]:
        os.close(number)
    kernel.restart_kernel(timeout=60)
    assert kernel.run("import os; os.getpid()", timeout=30).text == str(kernel.process.pid) != str(pid)
    print("ok")
"""
    assert run_script(LIMITED + WARM + code) == "ok"


# ZeroMQ's own limit


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_context_that_has_no_socket_left_is_told_from_a_process_without_descriptors() -> None:
    """zmq.green prints on standard error that it cannot close such a socket."""
    context = zmq.green.Context()
    context.set(zmq.MAX_SOCKETS, 2)
    session = Session(b"key")
    channels = [kclient.ShellChannel(context, session, ("127.0.0.1", 1)) for _ in range(3)]
    try:
        channels[0].start()
        channels[1].start()
        with pytest.raises(kclient.TooManyFiles, match=r"the shell channel.*has its 2 sockets.*MAX_SOCKETS") as caught:
            channels[2].start()
        assert (caught.value.needed, caught.value.in_use, caught.value.limit) == (1, 2, 2)
        assert caught.value.hard_limit == context.get(zmq.SOCKET_LIMIT)
    finally:
        for channel in channels:
            channel.stop()
        context.term()
