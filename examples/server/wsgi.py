"""The service for a server that forks its workers: the pool is made in the worker, and nothing at the import."""

from __future__ import annotations

import os
from collections.abc import Iterable

from app import Application, Environ, Limits, StartResponse

import kclient

SIZE = int(os.environ.get("POOL_SIZE", "4"))
"""Kernels that each worker keeps warm."""

WARM_UP = 20.0
"""Seconds for the first kernels: less than the silence that gets a worker of gunicorn's killed."""

_application: Application | None = None


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    if _application is None:
        raise RuntimeError("call open_pool() in the worker first: gunicorn_conf.py does")
    return _application(environ, start_response)


def open_pool(limits: Limits) -> None:
    """Make the pool of this process; raises why its kernels do not start."""
    global _application
    pool = kclient.KernelPool(size=SIZE, transport="ipc", orphan_guard=True)
    try:
        pool.wait_until_warm(timeout=WARM_UP)
    except BaseException:
        pool.close()
        raise
    _application = Application(pool, limits)


def close_pool() -> None:
    """End the kernels of this process, and whatever still runs in them."""
    if _application is not None:
        _application.pool.close()
