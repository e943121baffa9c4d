"""Does a program listen at an address? A kernel whose addresses refuse connections is dead."""

from __future__ import annotations


def refuses(address: str) -> bool:
    """True if no program listens at a ZeroMQ `address`; False if one does, or if there is no answer within 1 s."""
    from gevent import socket  # only a silent kernel needs it

    transport, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    # Not `create_connection`: it starts a thread to look up a host, even one given as a number.
    # kclient, too, gives no host names that lead to IPv6 addresses.
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
