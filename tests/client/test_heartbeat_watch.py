"""Whether anybody listens at the addresses of a kernel that nobody here started."""

from __future__ import annotations

import socket
from pathlib import Path

import gevent
import pytest

from kclient.channels.heartbeat import HBChannel
from kclient.client import heartbeat_watch
from kclient.client.heartbeat_watch import HeartbeatWatch
from kclient.protocol.session import Session
from kclient.transport.zmq.context import context
from kclient.transport.zmq.reachability import refuses


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_tcp_address_refuses_when_nobody_listens(host: str) -> None:
    with socket.socket(socket.AF_INET6 if host == "[::1]" else socket.AF_INET) as server:
        try:
            server.bind((host.strip("[]"), 0))
        except OSError:
            pytest.skip(f"no {host} here")
        address = f"tcp://{host}:{server.getsockname()[1]}"
        assert refuses(address)
        server.listen()
        assert not refuses(address)


def test_ipc_address_refuses_when_nobody_listens(folder: Path) -> None:
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


@pytest.mark.parametrize("is_stopped", [False, True])
def test_watch_that_is_stopped_while_it_looks_buries_nobody(monkeypatch: pytest.MonkeyPatch, is_stopped: bool) -> None:
    """Whoever stops it may have run in the same turn of the loop, before the prober could be killed."""
    buried: list[object] = []
    hb = HBChannel(context(), Session(), "tcp://127.0.0.1:1")
    watch = HeartbeatWatch(hb, "tcp://127.0.0.1:2", None, buried.append)

    def refuses(address: str) -> bool:
        if is_stopped and address == "tcp://127.0.0.1:2":
            watch.stop()
        return True

    monkeypatch.setattr(heartbeat_watch, "RESTART", 0)
    monkeypatch.setattr(heartbeat_watch, "refuses", refuses)
    assert hb.on_miss is not None
    hb.on_miss()
    prober = watch._prober
    assert prober is not None
    prober.join()
    assert len(buried) == (not is_stopped)
