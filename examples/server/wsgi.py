"""The service for a server that forks its workers: the pool is made in the worker, and nothing at the import."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack

from app import LOCAL_HOSTS, NO_HISTORY, Application, Environ, Limits, StartResponse

import kclient

SIZE = int(os.environ.get("POOL_SIZE", "4"))
"""Kernels that each worker keeps warm."""

PRELOAD = os.environ.get("POOL_PRELOAD", "").split()
"""Modules to import before the code comes; if there are any, kernels are forked (on Linux)."""

HOSTS = os.environ.get("ALLOW_HOSTS", "").split()
"""Names by which browsers may reach this, besides those of this machine itself."""

WARM_UP = 20.0
"""Seconds for the first kernels: less than the silence that gets a worker of gunicorn's killed."""

_application: Application | None = None
_resources = ExitStack()


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    if _application is None:
        raise RuntimeError("call open_pool() in the worker first: gunicorn_conf.py does")
    return _application(environ, start_response)


def open_pool(limits: Limits) -> None:
    """Make the pool of this process; raises why its kernels do not start."""
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
            )
        )
        pool.wait_until_warm(timeout=WARM_UP)
        _resources.push(stack.pop_all())
    _application = Application(pool, limits, {*LOCAL_HOSTS, *HOSTS})


def close_pool() -> None:
    """End the kernels of this process, and whatever still runs in them."""
    _resources.close()
