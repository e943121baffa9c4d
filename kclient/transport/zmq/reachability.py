"""Is anybody listening at an address? A kernel whose addresses refuse connections is dead."""

from __future__ import annotations


def refuses(address: str) -> bool:
    """True if nobody listens at a ZeroMQ `address`; False if somebody does, or if it can't be told within 1 s."""
    from gevent import socket  # only a silent kernel needs it

    transport, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    # Not `create_connection`, which starts a thread to look up even the number of a host; ours, too, use no IPv6 names.
    family = socket.AF_UNIX if transport == "ipc" else socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.settimeout(1.0)
            probe.connect(where if transport == "ipc" else (host.strip("[]"), int(port)))
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except OSError:
        return False
    return False
