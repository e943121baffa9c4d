"""`refuses`: true if nothing listens at an address."""

from __future__ import annotations

import socket
from pathlib import Path

import gevent
import pytest

from kclient.transport.zmq.reachability import refuses


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_tcp_address_refuses_until_a_socket_listens(host: str) -> None:
    with socket.socket(socket.AF_INET6 if host == "[::1]" else socket.AF_INET) as server:
        try:
            server.bind((host.strip("[]"), 0))
        except OSError:
            pytest.skip(f"no {host} here")
        address = f"tcp://{host}:{server.getsockname()[1]}"
        assert refuses(address)
        server.listen()
        assert not refuses(address)


def test_ipc_address_refuses_until_a_socket_listens(folder: Path) -> None:
    path = folder / "t" / "s-1"
    assert refuses(f"ipc://{path}")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        assert refuses(f"ipc://{path}")
        server.listen()
        assert not refuses(f"ipc://{path}")
    path.unlink()


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
def test_number_of_a_host_is_looked_up_without_a_thread(host: str) -> None:
    pool = gevent.get_hub().threadpool
    refuses(f"tcp://{host}:1")
    assert pool.size == 0
