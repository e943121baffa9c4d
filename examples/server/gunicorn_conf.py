"""The service under gunicorn, with a pool in each worker: ``gunicorn -c examples/server/gunicorn_conf.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

pythonpath = str(Path(__file__).parent)

wsgi_app = "wsgi:application"
worker_class = "gevent"
workers = 2
timeout = 30
"""Seconds after which gunicorn kills a worker whose hub stands still. While code runs in a kernel the hub turns."""

MAX_TIME_S = 30.0
graceful_timeout = int(MAX_TIME_S) + 15
"""Seconds for a worker to end: first for the requests under way, then for its kernels. After that it is killed."""


def post_worker_init(worker: Any) -> None:
    """gunicorn calls this in the worker, after gevent has patched it and before it takes requests.

    If it raises, gunicorn ends.
    """
    from app import Limits
    from wsgi import open_pool

    open_pool(Limits(max_time=MAX_TIME_S))


def worker_exit(server: Any, worker: Any) -> None:
    """gunicorn calls this in the worker after its last request, or at once after SIGINT and SIGQUIT."""
    from wsgi import close_pool

    close_pool()
