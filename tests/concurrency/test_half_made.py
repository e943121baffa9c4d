"""A debugger shows objects before their `__init__` has ended, and after it has raised."""

from __future__ import annotations

import pytest

import kclient
from kclient.kernels.process.local import LocalProcess

CLASSES = [
    *(kclient.KernelClient, kclient.KernelManager, kclient.KernelPool, kclient.ForkServer, LocalProcess),
    *(kclient.ShellChannel, kclient.ControlChannel, kclient.IOPubChannel, kclient.StdInChannel, kclient.HBChannel),
    *(kclient.Session, kclient.Execution, kclient.Comm, kclient.Comms),
]


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_half_made_object_has_a_repr(kind: type) -> None:
    assert repr(kind.__new__(kind)).startswith(f"<{kind.__name__} ")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (kclient.Session, ("key", "hmac-none")),
        (kclient.KernelClient, ("no such file",)),
        (kclient.KernelManager, ("python3", "no such transport")),
        (kclient.ShellChannel, (None, None, ("127.0.0.1", 0))),
    ],
)
def test_object_whose_init_has_raised_has_a_repr(kind: type, arguments: tuple[object, ...]) -> None:
    made = kind.__new__(kind)
    with pytest.raises((kclient.KClientError, TypeError, AttributeError)):
        made.__init__(*arguments)  # type: ignore[misc]
    assert repr(made).startswith(f"<{kind.__name__} ")
