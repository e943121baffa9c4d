"""Where a kernel listens: the values of a connection file, checked, and the addresses they make.

The keys are those of the page "Connection files" in jupyter_client's documentation of kernels.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Final

import attrs

from kclient.errors import ConnectionFileError, InvalidArgument, InvalidPortNumber

CHANNELS: Final = ("shell", "iopub", "stdin", "control", "hb")
"""The five channels, in the order of a connection file."""

MAX_IPC_PATH_BYTES: Final = 107
"""Bytes of an ipc path: sockaddr_un has 108, one of them the final NUL (unix(7))."""

CURVE_KEYS: Final = ("curve_publickey", "curve_secretkey")
"""The key pair of a kernel that encrypts its sockets with CurveZMQ, in Z85 (rfc.zeromq.org/spec/32)."""

CURVE_KEY: Final = "a key of CurveZMQ: 40 characters that are Z85 for 32 bytes"

_Z85: Final = string.digits + string.ascii_letters + ".-:+=^!/*?&<>()[]{}@%$#"

_KNOWN: Final = frozenset(
    [
        *(f"{channel}_port" for channel in CHANNELS),
        *("transport", "ip", "key", "signature_scheme", "kernel_name"),
        *CURVE_KEYS,
    ]
)


@attrs.frozen
class ConnectionInfo:
    """Addresses and keys of one kernel. A port of 0 means: not chosen yet, or the kernel has no such channel.

    `ip` is a host for tcp and a path prefix for ipc. The curve keys are empty unless the kernel encrypts; a client
    needs the public one only. `extra` keeps the keys of a connection file that kclient does not know, so that writing
    it again loses nothing. `path` is the file that the values were read from, for error messages.
    """

    transport: str = "tcp"
    ip: str = "127.0.0.1"
    shell_port: int = 0
    iopub_port: int = 0
    stdin_port: int = 0
    control_port: int = 0
    hb_port: int = 0
    key: bytes = attrs.field(default=b"", repr=False)
    signature_scheme: str = "hmac-sha256"
    kernel_name: str = ""
    curve_publickey: bytes = attrs.field(default=b"", repr=False)
    curve_secretkey: bytes = attrs.field(default=b"", repr=False)
    extra: Mapping[str, Any] = attrs.field(factory=dict, repr=False)
    path: str | None = attrs.field(default=None, repr=False, eq=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, path: str | None = None) -> ConnectionInfo:
        """Check the values of a connection file.

        Raises ConnectionFileError, which names `path` if given, and says which value is wrong.
        """
        where = f"connection file {path}" if path else "connection info"

        def wrong(what: str) -> ConnectionFileError:
            return ConnectionFileError(f"{where}: {what}", path=path)

        if not isinstance(values, Mapping):
            raise wrong(f"expected an object with ports and a key, got {type(values).__name__}")
        transport = values.get("transport", "tcp")
        if transport not in ("tcp", "ipc"):
            raise wrong(f"transport must be 'tcp' or 'ipc', not {transport!r}")
        ip = values.get("ip", "127.0.0.1" if transport == "tcp" else "kernel-ipc")
        if not isinstance(ip, str) or not ip:
            raise wrong(f"ip must be a non-empty string, not {ip!r}")
        ports: dict[str, int] = {}
        for channel in CHANNELS:
            name = f"{channel}_port"
            port = values.get(name, 0)
            if name not in values and channel in ("shell", "iopub"):
                raise wrong(f"{name} is missing")
            if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
                raise wrong(f"{name} must be a port number from 0 to 65535, not {port!r}")
            ports[name] = port
        key = values.get("key", b"")
        if not isinstance(key, (str, bytes)):
            raise wrong(f"key must be a string, not {type(key).__name__}")
        scheme = values.get("signature_scheme", "hmac-sha256")
        if digest_of(scheme) is None:
            raise wrong(f"signature_scheme must be hmac- and the name of a hash, not {scheme!r}")
        try:
            key = key.encode("utf-8", "surrogateescape") if isinstance(key, str) else key
        except UnicodeEncodeError:
            raise wrong("key is not valid Unicode") from None
        public, secret = _curve_keys(values, wrong)
        return cls(
            transport=transport,
            ip=ip,
            **ports,
            key=key,
            signature_scheme=canonical_scheme(scheme),
            kernel_name=str(values.get("kernel_name") or ""),
            curve_publickey=public,
            curve_secretkey=secret,
            extra={name: value for name, value in values.items() if name not in _KNOWN},
            path=path,
        )

    @classmethod
    def from_json(cls, text: str | bytes, *, path: str | None = None) -> ConnectionInfo:
        """Parse the text of a connection file; raises ConnectionFileError."""
        where = f"connection file {path}" if path else "connection info"
        if not text.strip():
            raise ConnectionFileError(f"{where}: it is empty (is the kernel still starting?)", path=path)
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as exc:
            raise ConnectionFileError(f"{where}: not valid JSON: {exc}", path=path) from None
        return cls.from_dict(values, path=path)

    def to_dict(self) -> dict[str, Any]:
        """The content of a connection file, its keys as strings; the curve keys only if there are any."""
        values: dict[str, Any] = {f"{channel}_port": self.port(channel) for channel in CHANNELS}
        values |= {
            "transport": self.transport,
            "ip": self.ip,
            "key": self.key.decode("utf-8", "surrogateescape"),
            "signature_scheme": canonical_scheme(self.signature_scheme),
            "kernel_name": self.kernel_name,
        }
        if self.curve_publickey:
            values |= {name: getattr(self, name).decode() for name in CURVE_KEYS}
        return values | dict(self.extra)

    def with_ports(self, ip: str, ports: Sequence[int]) -> ConnectionInfo:
        """The same kernel at another `ip`, with five ports in the order of `CHANNELS`."""
        values = {f"{channel}_port": port for channel, port in zip(CHANNELS, ports, strict=True)}
        return ConnectionInfo.from_dict(self.to_dict() | values | {"ip": ip}, path=self.path)

    def port(self, channel: str) -> int:
        """The port of ``"shell"``, ``"iopub"``, ``"stdin"``, ``"control"`` or ``"hb"``; 0 if there is none."""
        port: int = getattr(self, f"{channel}_port")
        return port

    def address(self, channel: str) -> str:
        """The ZeroMQ address to connect to; raises InvalidPortNumber for port 0, and ConnectionFileError."""
        try:
            return make_address((self.ip, self.port(channel)), transport=self.transport)
        except InvalidPortNumber as exc:
            raise InvalidPortNumber(f"{self.where}{channel}_port: {exc}") from None
        except ConnectionFileError as exc:
            raise ConnectionFileError(f"{self.where}{exc}", path=self.path or exc.path) from None

    @property
    def where(self) -> str:
        """The beginning of an error message about these values; empty if they are of no file."""
        return f"connection file {self.path}: " if self.path else ""

    def ipc_paths(self) -> list[str]:
        """The socket files of an ipc kernel; none for tcp."""
        if self.transport != "ipc":
            return []
        return [f"{self.ip}-{self.port(channel)}" for channel in CHANNELS if self.port(channel)]


def _curve_keys(values: Mapping[str, Any], wrong: Callable[[str], ConnectionFileError]) -> tuple[bytes, bytes]:
    """The public and the secret key, or two empty ones. One key alone is an error (enhancement proposal 145)."""
    given = {name: values[name] for name in CURVE_KEYS if not _is_left_out(values.get(name))}
    missing = [name for name in CURVE_KEYS if name not in given]
    if given and missing:
        raise wrong(f"{missing[0]} is missing, and without it the kernel cannot encrypt")
    keys = []
    for name, key in given.items():
        checked = curve_key(key)
        if checked is None:
            raise wrong(f"{name} must be {CURVE_KEY}")
        keys.append(checked)
    public, secret = keys or (b"", b"")
    return public, secret


def _is_left_out(key: object) -> bool:
    """True for None and an empty key. `python -bb` forbids to compare text and bytes."""
    return key is None or (isinstance(key, (str, bytes)) and not key)


def curve_key(key: object) -> bytes | None:
    """`key`, text or bytes, as bytes; None if it is not a CurveZMQ key."""
    text = key.decode("latin-1") if isinstance(key, bytes) else key
    return text.encode() if isinstance(text, str) and _is_z85_key(text) else None


def _is_z85_key(text: str) -> bool:
    if len(text) != 40 or not set(text) <= set(_Z85):
        return False
    digits = [_Z85.index(char) for char in text]
    numbers = (
        reduce(lambda number, digit: number * 85 + digit, digits[start : start + 5]) for start in range(0, 40, 5)
    )
    return max(numbers) < 2**32  # five characters stand for four bytes


def make_address(address: str | tuple[str, int], *, transport: str = "tcp") -> str:
    """The ZeroMQ address to connect to, from a URL or an (ip, port) pair.

    Raises InvalidPortNumber for a port of 0 and ConnectionFileError for an ipc path that is too long.
    A kernel that binds to the ip ``"*"`` or ``"0.0.0.0"`` is reached at 127.0.0.1.
    """
    if isinstance(address, str):
        return _check_url(address)
    if not isinstance(address, tuple) or len(address) != 2 or not isinstance(address[0], str):
        raise InvalidArgument(f"an address is a ZeroMQ URL or a pair of ip and port, not {address!r}")
    ip, port = address
    check_host(ip)
    if isinstance(port, bool) or not isinstance(port, int) or not 0 < port <= 65535:
        raise InvalidPortNumber(
            f"the port of a channel must be a number from 1 to 65535, not {port!r}; "
            "start_kernel() and write_connection_file() choose ports"
        )
    if transport == "ipc":
        return "ipc://" + _check_ipc_path(f"{ip}-{port}")
    host = "127.0.0.1" if ip in ("*", "0.0.0.0", "") else ip
    return f"tcp://[{host}]:{port}" if ":" in host and not host.startswith("[") else f"tcp://{host}:{port}"


def check_host(host: str) -> None:
    """Raise ConnectionFileError for a host or path that no system call accepts."""
    try:
        host.encode()
    except UnicodeEncodeError:
        raise ConnectionFileError(f"ip {host!r} is not valid Unicode; choose another") from None
    if "\0" in host:
        raise ConnectionFileError(f"ip {host!r} holds a null character; choose another")


def _check_url(url: str) -> str:
    check_host(url)
    transport, separator, where = url.partition("://")
    if not separator or not where:
        raise InvalidArgument(f"an address is a ZeroMQ URL such as 'tcp://127.0.0.1:5555', not {url!r}")
    if transport == "tcp":
        port = where.rpartition(":")[2]
        if not port.isdecimal() or not 0 < int(port) <= 65535:
            raise InvalidPortNumber(f"{url!r} has no port that can be connected to, from 1 to 65535")
    elif transport == "ipc":
        _check_ipc_path(where)
    return url


def _check_ipc_path(path: str) -> str:
    size = len(path.encode())
    if size > MAX_IPC_PATH_BYTES:
        raise ConnectionFileError(
            f"ipc path of {size} bytes: {path!r}; a Unix socket allows {MAX_IPC_PATH_BYTES}, so choose a shorter ip",
            path=path,
        )
    return path


def canonical_scheme(scheme: str) -> str:
    """A signature_scheme as hashlib spells it, and so other Jupyter programs: "hmac-sha3-256" is "hmac-sha3_256"."""
    digest = digest_of(scheme)
    return scheme if digest is None else f"hmac-{digest}"


def digest_of(scheme: object) -> str | None:
    """``"sha256"`` for the signature_scheme ``"hmac-sha256"``; None for a value that is no such scheme."""
    if not isinstance(scheme, str) or not scheme.startswith("hmac-"):
        return None
    import hmac

    digest = scheme.removeprefix("hmac-").replace("-", "_").lower()
    try:
        hmac.new(b"", digestmod=digest)
    except (ValueError, TypeError):  # TypeError: the name is empty
        return None
    return digest
