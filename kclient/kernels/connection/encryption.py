"""Whether a kernel that kclient starts is encrypted with CurveZMQ (rfc.zeromq.org/spec/26), and with which keys.

On all five sockets the kernel is the CurveZMQ server. It reads its key pair from the connection file, as Jupyter's
enhancement proposal 145 says. Any client that knows the public key may connect.
"""

from __future__ import annotations

from typing import Final

import zmq

from kclient.concurrency.log import log
from kclient.errors import InvalidArgument, InvalidState
from kclient.kernels.specs.spec import KernelSpec

MODES: Final = ("auto", "required", "off")

_NO_CURVE: Final = "this libzmq was built without CurveZMQ"


def has_curve() -> bool:
    """True if libzmq was built with CurveZMQ."""
    return bool(zmq.has("curve"))


def check_encryption(encryption: str) -> str:
    """Return `encryption` if it is one of `MODES`; raises InvalidArgument if not."""
    if encryption not in MODES:
        raise InvalidArgument(f"encryption must be 'auto', 'required' or 'off', not {encryption!r}")
    return encryption


def is_wanted(encryption: str, spec: KernelSpec) -> bool:
    """True if a kernel of that spec gets keys. Raises InvalidArgument if keys are required and it cannot use them."""
    if encryption == "off":
        return False
    if spec.supports_curve and has_curve():
        return True
    if encryption == "required":
        lack = _NO_CURVE if spec.supports_curve else "its spec has no 'curve' in metadata.supported_encryption"
        raise InvalidArgument(
            f"the kernel {spec.name!r} cannot be encrypted: {lack}; "
            "choose another kernel, or pass encryption='auto' to start it without encryption"
        )
    if spec.supports_curve:
        log().warning("the kernel %r is started without encryption: %s", spec.name, _NO_CURVE)
    return False


def new_keys() -> tuple[bytes, bytes]:
    """A new key pair: public, secret. Raises InvalidState if libzmq has no CurveZMQ."""
    if not has_curve():
        raise InvalidState(f"cannot make encryption keys: {_NO_CURVE}; pass encryption='off'")
    return zmq.curve_keypair()
