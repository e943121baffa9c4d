"""The service for a server that forks its workers: `open_pool` makes the pool in the worker, not at import."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack

from app import LOCAL_HOSTS, MAX_MESSAGE_BYTES, NO_HISTORY, Application, Environ, Limits, StartResponse

import kclient

SIZE = int(os.environ.get("POOL_SIZE", "4"))
"""Kernels that each worker keeps warm."""

PRELOAD = os.environ.get("POOL_PRELOAD", "").split()
"""Modules that each kernel imports before its first code. If there are any, kernels are forked (Linux only)."""

HOSTS = os.environ.get("ALLOW_HOSTS", "").split()
"""Host names by which browsers may reach the service, besides those of this machine."""

WARM_UP_S = 20.0
"""Seconds for the first kernels to start: less than gunicorn's `timeout`, after which it kills the worker."""

_application: Application | None = None
_resources = ExitStack()


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    if _application is None:
        raise RuntimeError("there is no pool; call open_pool() in the worker first, as gunicorn_conf.py does")
    return _application(environ, start_response)


def open_pool(limits: Limits) -> None:
    """Make the pool of this process. If its kernels do not start, the error says why."""
    global _application
    with ExitStack() as stack:
        pool = stack.enter_context(
            kclient.KernelPool(
                size=SIZE,
                extra_arguments=NO_HISTORY,
                launcher=stack.enter_context(kclient.ForkServer(PRELOAD)) if PRELOAD else None,
                warm_up="\n".join(f"import {module}" for module in PRELOAD) or None,
                transport="ipc",
                orphan_guard=True,
                max_message_bytes=MAX_MESSAGE_BYTES,
            )
        )
        pool.wait_until_warm(timeout=WARM_UP_S)
        _resources.push(stack.pop_all())
    _application = Application(pool, limits, {*LOCAL_HOSTS, *HOSTS})


def close_pool() -> None:
    """End the kernels of this process and the code that still runs in them."""
    _resources.close()
