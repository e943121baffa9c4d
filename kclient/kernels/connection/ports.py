"""The addresses of this machine, and reservations of tcp ports for a kernel that is about to bind them."""

from __future__ import annotations

import errno
import socket
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any, Final

from gevent.socket import getaddrinfo as look_up

from kclient.concurrency import unpatched
from kclient.errors import InvalidArgument, LaunchError

_SIOCGIFADDR: Final = 0x8915
"""The IPv4 address of an interface; see netdevice(7)."""

_ADDRESS_IN_IFREQ: Final = slice(20, 24)
"""struct ifreq: 16 bytes of name, then a sockaddr_in with its family and port, 2 bytes each, and the address."""

_ANYWHERE: Final = ("192.0.2.1", 9)
"""An address for documentation (RFC 5737). Connecting a UDP socket sends nothing, but picks the interface."""

_NOT_OURS: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""The errors of bind for an address of another machine, and for IPv6 on a machine without it."""

_Address = tuple[int, tuple[Any, ...]]
"""Family and socket address."""


def is_local(ip: str) -> bool:
    """True if a kernel on this machine can listen on `ip`: a socket can be bound to it."""
    try:
        _bind(_resolve(ip)).close()
    except (OSError, ValueError):  # ValueError: no valid host name, for example a NUL or a label of 64 letters
        return False
    return True


def numeric_address(ip: str) -> str:
    """The numeric address by which a process on this machine connects to a listener on `ip`.

    Raises InvalidArgument if `ip` is not an address of this machine. libzmq needs a number, since it does not look up
    the host name that it is to listen on.
    """
    try:
        _, (host, *_) = _resolve(ip)
    except (OSError, ValueError) as exc:
        raise _not_local(ip) from exc
    return "127.0.0.1" if host == "0.0.0.0" else str(host)


def can_bind(ip: str, port: int) -> bool:
    """True unless another program has that port. A port of another machine's address counts as free."""
    try:
        _bind(_resolve(ip), port).close()
    except OSError as exc:
        return exc.errno != errno.EADDRINUSE
    except ValueError:
        return True
    return True


def local_addresses() -> list[str]:
    """IPv4 addresses on which a kernel on this machine can listen, for error messages."""
    found = ["127.0.0.1", "0.0.0.0"]
    for address in [*_interface_addresses(), *_outgoing_address()]:
        if address not in found:
            found.append(address)
    return found


class PortReservation:
    """Free tcp ports, reserved for a kernel that starts, until `release`.

    Each port has a socket that is bound and never listens. Linux does not give such a port to a program that binds to
    port 0. It lets a program that sets SO_REUSEADDR, as libzmq does, bind the port by number and listen. Other systems
    do not; there the ports are chosen and released at once.
    """

    def __init__(self, ip: str, count: int = 5) -> None:
        """Reserve `count` ports of `ip`.

        Raises InvalidArgument if `ip` is not an address of this machine, and LaunchError if there are not enough ports.
        """
        self._sockets: list[unpatched.socket.socket] = []
        try:
            address = _resolve(ip)
        except (OSError, ValueError) as exc:
            raise _not_local(ip) from exc
        try:
            for _ in range(count):
                self._sockets.append(_bind(address))
        except OSError as exc:
            self.release()
            if exc.errno in _NOT_OURS:
                raise _not_local(ip) from exc
            raise LaunchError(f"cannot reserve {count} tcp ports on {ip!r}: {exc.strerror or exc}") from exc
        self.ports: list[int] = [sock.getsockname()[1] for sock in self._sockets]
        self._keep_or_release()

    @classmethod
    def of(cls, ip: str, ports: Iterable[int]) -> PortReservation:
        """Reserve those of these ports that are free, for a kernel that restarts."""
        self = cls(ip, 0)
        self.ports = list(ports)
        address = _resolve(ip)
        for port in self.ports:
            if port:
                with suppress(OSError):  # still taken, perhaps by the old kernel, which is about to end
                    self._sockets.append(_bind(address, port))
        self._keep_or_release()
        return self

    def release(self) -> None:
        """End the reservation. A second call does nothing."""
        while self._sockets:
            self._sockets.pop().close()

    def __enter__(self) -> PortReservation:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def _keep_or_release(self) -> None:
        if sys.platform != "linux":
            self.release()


def _resolve(ip: str) -> _Address:
    """The address to bind for `ip`. Only a host name is looked up, by gevent; other greenlets run meanwhile."""
    if ip in ("", "*"):
        return socket.AF_INET, ("0.0.0.0", 0)
    if ip == "localhost":  # IPv4, as in libzmq
        return socket.AF_INET, ("127.0.0.1", 0)
    host = ip[1:-1] if ip.startswith("[") and ip.endswith("]") else ip
    found: Sequence[tuple[Any, ...]]
    try:
        found = unpatched.socket.getaddrinfo(host, 0, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    except socket.gaierror:
        found = look_up(host, 0, socket.AF_INET, socket.SOCK_STREAM)
    family, _, _, _, address = found[0]
    return family, address


def _bind(address: _Address, port: int = 0) -> unpatched.socket.socket:
    family, (host, _, *scope) = address
    sock = unpatched.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port, *scope))
    except BaseException:
        sock.close()
        raise
    return sock


def _not_local(ip: str) -> InvalidArgument:
    return InvalidArgument(f"ip {ip!r} is not an address of this machine; it has {', '.join(local_addresses())}")


def _interface_addresses() -> Iterator[str]:
    """The first IPv4 address of each interface that has one (Linux)."""
    if sys.platform != "linux":
        return
    import fcntl

    with closing(unpatched.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # EADDRNOTAVAIL: an interface without an address
                ifreq = fcntl.ioctl(sock.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()))
                yield socket.inet_ntoa(ifreq[_ADDRESS_IN_IFREQ])


def _outgoing_address() -> Iterator[str]:
    """The address that packets to other machines come from, if there is a route."""
    with suppress(OSError), closing(unpatched.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        sock.connect(_ANYWHERE)
        yield sock.getsockname()[0]
