"""What is at an address? A kernel whose addresses refuse connections is dead; another program sends no greeting."""

from __future__ import annotations

from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Final, NamedTuple

from kclient.concurrency.deadline import Deadline

if TYPE_CHECKING:
    from gevent import socket

CONNECT_S: Final = 1.0
"""Seconds to wait for a connection. A host that is gone answers nothing."""

GREETING_S: Final = 0.05
"""Seconds to wait for the greeting. libzmq's own thread sends it, however busy the kernel is, within 1 ms."""

_SIGNATURE: Final = b"\xff" + bytes(7) + b"\x01\x7f"
"""The first ten bytes of a greeting (rfc.zeromq.org/spec/23); only the first and the last are fixed."""

_VERSION_3: Final = b"\x03"
_GREETING_BYTES: Final = 64
_MECHANISM: Final = slice(12, 32)


class Met(Enum):
    """What a connection to an address has met."""

    REFUSAL = "refusal"
    """No program listens there."""

    NO_ROUTE = "no route"
    """The connection could not be made for another reason, or not in time."""

    SILENCE = "silence"
    """A program listens there and sends nothing, or closes the connection."""

    OTHER_PROGRAM = "other program"
    """A program listens there that does not speak ZeroMQ."""

    GREETING = "greeting"
    """A program listens there that speaks ZeroMQ."""


class Encounter(NamedTuple):
    """What a connection has met. `text` is the mechanism of a greeting, the words of another program, or an error."""

    met: Met
    text: str = ""


def refuses(address: str) -> bool:
    """True if no program listens at a ZeroMQ `address`; False if one does, or if there is no answer within 1 s."""
    return meet(address, Deadline(0)).met is Met.REFUSAL


def meet(address: str, greeting: Deadline, *, connect_s: float = CONNECT_S) -> Encounter:
    """Connect to a ZeroMQ `address` for a moment. Wait for the greeting of the program there until that deadline.

    The part of the greeting that is sent is the same for every mechanism, so no program takes the connection for one
    with wrong keys.
    """
    from gevent import socket  # only a first contact, and a silent kernel, needs it

    transport, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    # Not `create_connection`: it starts a thread to look up a host, even one given as a number.
    # kclient, too, gives no host names that lead to IPv6 addresses.
    family = socket.AF_UNIX if transport == "ipc" else socket.AF_INET6 if host.startswith("[") else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.settimeout(connect_s)
            probe.connect(where if transport == "ipc" else (host.strip("[]"), int(port)))
            return _greeting(probe, greeting)
    except (ConnectionRefusedError, FileNotFoundError):
        return Encounter(Met.REFUSAL)
    except OSError as exc:
        return Encounter(Met.NO_ROUTE, str(exc))


def _greeting(probe: socket.socket, deadline: Deadline) -> Encounter:
    received = b""
    with suppress(OSError):  # it sends nothing in time, or closes the connection
        probe.sendall(_SIGNATURE + _VERSION_3)
        while len(received) < _GREETING_BYTES and not deadline.is_over:
            probe.settimeout(deadline.left())
            part: bytes = probe.recv(_GREETING_BYTES - len(received))
            if not part:
                break
            received += part
            if not _may_be_greeting(received):
                return Encounter(Met.OTHER_PROGRAM, ascii(received.decode("latin-1")))
    if len(received) < len(_SIGNATURE):
        return Encounter(Met.SILENCE)
    return Encounter(Met.GREETING, received[_MECHANISM].rstrip(b"\0").decode("latin-1"))


def _may_be_greeting(received: bytes) -> bool:
    ends_well = len(received) < len(_SIGNATURE) or received[len(_SIGNATURE) - 1] == _SIGNATURE[-1]
    return received.startswith(_SIGNATURE[:1]) and ends_well


def is_number(host: str) -> bool:
    """True for a host that is given as an IPv4 or IPv6 address, not by name."""
    from gevent import socket

    for family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError, ValueError):
            socket.inet_pton(family, host.partition("%")[0])
            return True
    return False


def is_here(host: str) -> bool:
    """True if `host`, an IPv4 or IPv6 address, is one of this machine: only such an address can be bound."""
    from gevent import socket

    with (
        suppress(OSError, ValueError),
        socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM) as trial,
    ):
        trial.bind((host, 0))
        return True
    return False


def look_up(host: str, deadline: Deadline) -> list[str]:
    """The IPv4 addresses of a host name; raises OSError if it has none, or is not known in time."""
    import gevent
    from gevent import socket

    host.encode("idna")  # a UnicodeError comes here: gevent's thread would print it
    with gevent.Timeout(deadline.left(), TimeoutError("the look-up took too long")):
        found = socket.getaddrinfo(host, None, socket.AF_INET, socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]
