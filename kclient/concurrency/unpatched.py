"""The standard library as it was before ``monkey.patch_all()``, for code that must not wait in the hub.

`close` and `waitpid`: after patching, gevent's `os.close` closes some time later and its `os.waitpid` waits in the hub.
`socket`: after patching, a socket of the module `socket` waits in the hub, and brings watchers and threads along.
"""

from __future__ import annotations

import _socket as socket
import os
import select
import sys
from functools import cache
from posix import close, waitpid
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import subprocess

__all__ = [
    "allocate_lock",
    "close",
    "get_ident",
    "is_patched",
    "new_local",
    "new_poll",
    "new_rlock",
    "popen_class",
    "socket",
    "start_new_thread",
    "waitpid",
]


def is_patched(module: str, name: str) -> bool:
    """True if gevent has patched that object of the standard library."""
    monkey = _monkey()
    return monkey is not None and bool(monkey.is_object_patched(module, name))


def allocate_lock() -> Any:
    """A lock of threads."""
    return _original("_thread", "allocate_lock")()


def get_ident() -> int:
    """The number of this thread of the operating system."""
    ident: int = _original("_thread", "get_ident")()
    return ident


def new_local() -> Any:
    """Storage of which each thread of the operating system has its own."""
    return _original("_thread", "_local")()


def new_rlock() -> Any:
    """A lock of threads that its holder may take again."""
    return _original("_thread", "RLock")()


def start_new_thread(function: Any, args: tuple[Any, ...]) -> None:
    """Run `function(*args)` in a thread of the operating system."""
    _original("_thread", "start_new_thread")(function, args)


def new_poll() -> Any:
    """A poll object of the operating system, which stops the whole thread while it waits."""
    return select.poll() if _monkey() is None else _original("select", "poll")()


def popen_class() -> type[subprocess.Popen[Any]]:
    """A Popen that works in any thread, whether or not gevent has patched the program."""
    import subprocess  # few programs need it before a kernel starts

    if is_patched("subprocess", "Popen") or is_patched("os", "close"):
        return _private_popen_class()
    return subprocess.Popen


@cache
def _private_popen_class() -> type[subprocess.Popen[Any]]:
    """Popen of a private copy of the standard module, with an `os` as it was.

    gevent's own Popen fails off the main thread, and the patched module's original one everywhere. gevent's os.close
    (25.8.1 and later) closes at the next turn of the loop, but Popen waits for the end of a pipe that it has closed.
    """
    from importlib.util import find_spec, module_from_spec

    spec = find_spec("subprocess")
    if spec is None or spec.loader is None:
        raise ImportError("the standard module subprocess cannot be found")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    original_os = ModuleType("os")
    vars(original_os).update(vars(os), close=close, waitpid=waitpid)
    vars(module)["os"] = original_os
    popen: type[subprocess.Popen[Any]] = module.Popen
    return popen


def _monkey() -> Any:
    """gevent.monkey, if it was imported: to import it takes 2 ms, and without it nothing is patched."""
    return sys.modules.get("gevent.monkey")


def _original(module: str, name: str) -> Any:
    monkey = _monkey()
    if monkey is None:
        __import__(module)
        return getattr(sys.modules[module], name)
    return monkey.get_original(module, name)
