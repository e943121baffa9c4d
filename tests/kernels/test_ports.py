import os
import resource
import socket
import subprocess
import sys

import pytest
import zmq

from kclient.errors import InvalidArgument, LaunchError
from kclient.kernels.connection import port_conflicts
from kclient.kernels.connection import ports as ports_module
from kclient.kernels.connection.port_conflicts import taken_ports
from kclient.kernels.connection.ports import PortReservation, is_local, local_addresses
from kclient.protocol.connection import ConnectionInfo

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a listener bind a port that is held")


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.fixture
def no_look_up(monkeypatch):
    def fail(host, *args):
        raise AssertionError(f"{host} was looked up")

    monkeypatch.setattr(ports_module, "look_up", fail)


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context


@pytest.mark.parametrize("ip", ["", "*", "localhost", "0.0.0.0", "127.0.0.1", "127.5.6.7"])
def test_addresses_of_this_machine_are_local(no_look_up, ip):
    assert is_local(ip)


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here")
@pytest.mark.parametrize("ip", ["::1", "::", "[::1]", "0:0:0:0:0:0:0:1"])
def test_ipv6_addresses_of_this_machine_are_local(no_look_up, ip):
    assert is_local(ip)


@pytest.mark.parametrize("ip", ["192.0.2.1", "8.8.8.8", "2001:db8::1", "[2001:db8::1]"])
def test_other_addresses_are_not_local_and_not_looked_up(no_look_up, ip):
    assert not is_local(ip)


@pytest.mark.parametrize("ip", ["no such host", "a\0b", "x" * 70 + ".org", "..", "fe80::1%nosuch0"])
def test_invalid_host_is_not_local(ip):
    assert not is_local(ip)


def test_host_name_is_looked_up(monkeypatch):
    monkeypatch.setattr(ports_module, "look_up", lambda host, *args: socket.getaddrinfo("127.0.0.1", 0))
    assert is_local("myhost.example")
    with PortReservation("myhost.example") as reservation:
        assert len(reservation.ports) == 5


def test_local_addresses_are_all_local_and_none_comes_twice():
    addresses = local_addresses()
    assert {"127.0.0.1", "0.0.0.0"} <= set(addresses)
    assert len(addresses) == len(set(addresses))
    assert all(map(is_local, addresses))


@pytest.mark.parametrize(
    "ip", ["127.0.0.1", "*", "localhost", pytest.param("::1", marks=pytest.mark.skipif("not has_ipv6()"))]
)
def test_reservation_holds_different_ports(ip):
    with PortReservation(ip) as reservation:
        assert len(set(reservation.ports)) == 5
        assert all(reservation.ports)


@linux_only
@pytest.mark.parametrize("ip", ["127.0.0.1", "*"])
@pytest.mark.parametrize("bind_ip", ["127.0.0.1", "*"])
def test_libzmq_binds_and_serves_a_port_that_is_held(context, ip, bind_ip):
    with PortReservation(ip) as reservation:
        for port in reservation.ports:
            with context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
                client.linger = 0
                server.bind(f"tcp://{bind_ip}:{port}")
                client.connect(f"tcp://127.0.0.1:{port}")
                client.send(b"hello")
                assert server.poll(10_000)
                assert server.recv_multipart()[1] == b"hello"


@linux_only
def test_listener_outlives_the_reservation(context):
    reservation = PortReservation("127.0.0.1", 1)
    with context.socket(zmq.ROUTER) as server, context.socket(zmq.DEALER) as client:
        client.linger = 0
        server.bind(f"tcp://127.0.0.1:{reservation.ports[0]}")
        reservation.release()
        client.connect(f"tcp://127.0.0.1:{reservation.ports[0]}")
        client.send(b"hello")
        assert server.poll(10_000)


@linux_only
def test_held_ports_are_given_to_no_one_who_asks_for_any_port(context):
    first = PortReservation("127.0.0.1", 300)
    with first, PortReservation("127.0.0.1", 300) as second, PortReservation("*", 300) as third:
        held = first.ports + second.ports + third.ports
        assert len(set(held)) == 900
        others = []
        for _ in range(300):
            with socket.socket() as sock, context.socket(zmq.ROUTER) as server:
                sock.bind(("127.0.0.1", 0))
                server.bind("tcp://127.0.0.1:*")
                others += [sock.getsockname()[1], int(server.last_endpoint.rpartition(b":")[2])]
        assert not set(others) & set(held)


@linux_only
def test_held_ports_are_not_used_for_outgoing_connections():
    with PortReservation("127.0.0.1", 500) as reservation, socket.create_server(("127.0.0.1", 0)) as server:
        for _ in range(300):
            with socket.create_connection(server.getsockname()) as client:
                assert client.getsockname()[1] not in reservation.ports
                server.accept()[0].close()


@linux_only
def test_held_port_refuses_a_plain_bind_and_a_connection():
    with PortReservation("127.0.0.1", 1) as reservation:
        address = ("127.0.0.1", reservation.ports[0])
        with socket.socket() as sock, pytest.raises(OSError, match="in use"):
            sock.bind(address)
        with socket.socket() as sock, pytest.raises(ConnectionRefusedError):
            sock.connect(address)


def test_release_lets_the_ports_go_and_can_be_repeated():
    reservation = PortReservation("127.0.0.1", 2)
    reservation.release()
    reservation.release()
    for port in reservation.ports:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", port))


@linux_only
def test_given_ports_are_held_again():
    with PortReservation("127.0.0.1", 3) as first:
        ports = first.ports
    with PortReservation.of("127.0.0.1", ports) as again:
        assert again.ports == ports
        for port in ports:
            with socket.socket() as sock, pytest.raises(OSError, match="in use"):
                sock.bind(("127.0.0.1", port))


@linux_only
def test_given_ports_that_are_taken_are_left_alone():
    with socket.create_server(("127.0.0.1", 0)) as server, PortReservation("127.0.0.1", 1) as free:
        taken, port = server.getsockname()[1], free.ports[0]
        free.release()
        with PortReservation.of("127.0.0.1", [taken, port, 0]) as reservation:
            assert reservation.ports == [taken, port, 0]
            with socket.create_connection(("127.0.0.1", taken)):
                server.accept()[0].close()
            with socket.socket() as sock, pytest.raises(OSError, match="in use"):
                sock.bind(("127.0.0.1", port))


@pytest.mark.parametrize("ip", ["192.0.2.1", "no such host", "2001:db8::1", "a\0b"])
def test_reservation_on_an_address_of_another_machine_is_refused_with_our_addresses(ip):
    with pytest.raises(InvalidArgument) as caught:
        PortReservation(ip)
    assert repr(ip) in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_reservation_without_an_fd_left_is_an_error_and_leaves_none_open():
    before = os.listdir("/proc/self/fd")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, before)) + 3
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limits[1]))
    try:
        with pytest.raises(LaunchError, match="Too many open files"):
            PortReservation("127.0.0.1", limit)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert os.listdir("/proc/self/fd") == before


def test_ports_are_held_after_monkey_patching_too():
    script = """
from gevent import monkey; monkey.patch_all()
import os, socket, gevent
from kclient.kernels.connection.ports import PortReservation, is_local
assert is_local("127.0.0.1") and is_local("*") and not is_local("192.0.2.1")
with PortReservation("127.0.0.1") as reservation:
    try:
        socket.socket().bind(("127.0.0.1", reservation.ports[0]))
    except OSError as exc:
        print(exc.strerror)
assert len(os.listdir("/proc/self/task")) == 1, "a thread was started"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout == "Address already in use\n"


def test_ports_are_let_go_at_once_where_a_listener_could_not_bind_them(monkeypatch):
    monkeypatch.setattr(sys, "platform", "other")
    reservation = PortReservation("127.0.0.1", 1)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", reservation.ports[0]))


@pytest.mark.skipif(not os.path.exists("/proc/self/net/tcp"), reason="needs /proc to see the listening sockets")
def test_ports_of_a_kernel_are_not_called_taken_where_the_table_of_sockets_may_not_be_read(monkeypatch):
    """Nothing tells then whether it is the kernel itself that listens."""

    def refuse():
        raise PermissionError(13, "Permission denied", "/proc/net/tcp")

    with socket.create_server(("127.0.0.1", 0)) as server:
        info = ConnectionInfo(transport="tcp", ip="127.0.0.1", key=b"", shell_port=server.getsockname()[1])
        assert taken_ports(info) == [info.shell_port]
        assert taken_ports(info, kernel=os.getpgrp()) == []
        monkeypatch.setattr(port_conflicts, "tcp_listeners", refuse)
        assert taken_ports(info, kernel=os.getpgrp()) == []
