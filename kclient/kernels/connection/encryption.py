"""Which kernels that we start are encrypted, with CurveZMQ (rfc.zeromq.org/spec/26), and by which keys.

The kernel is the server of all five sockets. It reads its key pair from the connection file, as Jupyter's enhancement
proposal 145 has it; who knows the public key may connect.
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
    """One of `MODES`; raises InvalidArgument for anything else."""
    if encryption not in MODES:
        raise InvalidArgument(f"encryption must be 'auto', 'required' or 'off', not {encryption!r}")
    return encryption


def is_wanted(encryption: str, spec: KernelSpec) -> bool:
    """True if a kernel of that spec gets keys; raises InvalidArgument if it must have them and could not use them."""
    if encryption == "off":
        return False
    if spec.supports_curve and has_curve():
        return True
    if encryption == "required":
        lack = _NO_CURVE if spec.supports_curve else "its spec has no 'curve' in metadata.supported_encryption"
        raise InvalidArgument(
            f"the kernel {spec.name!r} cannot be encrypted: {lack}; "
            "choose another, or encryption='auto', which starts it without"
        )
    if spec.supports_curve:
        log().warning("the kernel %r is started without encryption: %s", spec.name, _NO_CURVE)
    return False


def new_keys() -> tuple[bytes, bytes]:
    """A fresh pair, public and secret; raises InvalidState where libzmq has no CurveZMQ."""
    if not has_curve():
        raise InvalidState(f"there can be no keys: {_NO_CURVE}")
    return zmq.curve_keypair()
