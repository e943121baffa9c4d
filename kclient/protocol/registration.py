"""The handshake of protocol 5.6: a kernel chooses its ports itself, reports them and gets a receipt.

Both messages are shorter than a full message: ``[identities..., <IDS|MSG>, signature, content]``, where the content is
one dict or one word ("Kernel startup handshake" in "Messaging in Jupyter", and JEP 66).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import attrs
import orjson

from kclient.errors import BadMessage, InvalidArgument, RemoteProtocolError
from kclient.protocol.connection import CHANNELS, ConnectionInfo, digest_of, make_address
from kclient.protocol.framing import DELIMITER
from kclient.protocol.signing import Signer

RECEIPT: Final = b"ACK"
"""The content of a receipt. The launcher may choose it; this is the one of xeus."""


@attrs.frozen
class Registration:
    """The registration file of one start of a kernel, and the messages that go with it, for both sides.

    `info` says where and how the kernel is to listen; its ports are not used. `host` and `port` are those of the socket
    that the kernel reports to. `kernel_id` is new for each start, so that the report of an earlier start is ignored.
    """

    info: ConnectionInfo
    kernel_id: str
    host: str
    port: int

    @classmethod
    def from_dict(cls, values: Any) -> Registration:
        """Parse a registration file, as a kernel does; raises InvalidArgument and ConnectionFileError."""
        if not isinstance(values, dict):
            raise InvalidArgument(f"a registration file holds an object, not a {type(values).__name__}")
        try:
            kernel_id, host, port = (str(values[name]) for name in _OWN)
            number = int(port)
        except (KeyError, ValueError) as exc:
            raise InvalidArgument(f"not a registration file: {exc}") from None
        others = {name: value for name, value in values.items() if name not in _OWN}
        return cls(ConnectionInfo.from_dict(_without_ports(others) | _NO_PORTS), kernel_id, host, number)

    def to_dict(self) -> dict[str, Any]:
        """The content of the registration file: a connection file without ports, and the address to report them to."""
        # The port is a string: xeus (6.0.5) accepts only a string, though the documentation shows a number.
        own = dict(zip(_OWN, (self.kernel_id, self.host, str(self.port)), strict=True))
        return _without_ports(self.info.to_dict()) | own

    @property
    def address(self) -> str:
        """The ZeroMQ address to report to."""
        return make_address((self.host, self.port))

    def read_report(self, frames: Sequence[bytes]) -> tuple[list[bytes], list[int]]:
        """The identities of the kernel that sent `frames`, and its ports in the order of CHANNELS.

        Raises BadMessage for frames that are to be ignored, and RemoteProtocolError for a report of this kernel with
        ports that no client can connect to.
        """
        identities, content = self._read(frames)
        try:
            values = orjson.loads(content)
        except ValueError as exc:
            raise BadMessage("json", f"a registration that is not JSON: {exc}") from None
        if not isinstance(values, dict):
            raise BadMessage("json", f"a registration that is a {type(values).__name__}, not an object")
        if values.get("kernel_id") != self.kernel_id:
            raise BadMessage("replay", "a registration of another kernel, or of an earlier start")
        return identities, _ports(values)

    def receipt(self, identities: Sequence[bytes]) -> list[bytes]:
        """The frames that tell the kernel with those identities that it has registered."""
        return [*identities, *self._signed(RECEIPT)]

    def report(self, info: ConnectionInfo) -> list[bytes]:
        """The frames by which a kernel reports the ports of `info`."""
        ports = {f"{channel}_port": str(info.port(channel)) for channel in CHANNELS}
        return self._signed(orjson.dumps({"kernel_id": self.kernel_id, **ports}))

    def read_receipt(self, frames: Sequence[bytes]) -> None:
        """Check that `frames` are a receipt; raises BadMessage."""
        self._read(frames)

    def _signer(self) -> Signer:
        return Signer(self.info.key, str(digest_of(self.info.signature_scheme)))

    def _signed(self, content: bytes) -> list[bytes]:
        return [DELIMITER, self._signer().sign([content]), content]

    def _read(self, frames: Sequence[bytes]) -> tuple[list[bytes], bytes]:
        """The identities and the content; the signature is checked before anything is parsed."""
        if len(frames) < 3 or frames[-3] != DELIMITER:
            raise BadMessage("layout", f"no {DELIMITER.decode()} delimiter before the last two of {len(frames)} frames")
        *identities, _, signature, content = frames
        if not self._signer().has_signed(signature, [content]):
            raise BadMessage("signature", "a wrong signature: another key, or a forged registration")
        return identities, content


_OWN: Final = ("kernel_id", "registration_ip", "registration_port")
_NO_PORTS: Final = {f"{channel}_port": 0 for channel in CHANNELS}


def _without_ports(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in _NO_PORTS}


def _ports(values: Mapping[str, Any]) -> list[int]:
    """The five ports, from strings or numbers; raises RemoteProtocolError."""
    ports: list[int] = []
    for name in _NO_PORTS:
        value = values.get(name)
        number = int(value) if isinstance(value, str) and _is_number(value) else value
        if not isinstance(number, int) or isinstance(number, bool) or not 0 < number <= 65535:
            what = f"{name} is {value!r}" if name in values else f"{name} is missing"
            raise RemoteProtocolError(f"registered ports that cannot be used: {what}, not a number from 1 to 65535")
        if number in ports:
            raise RemoteProtocolError(f"registered ports that cannot be used: two channels have {number}")
        ports.append(number)
    return ports


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 5
