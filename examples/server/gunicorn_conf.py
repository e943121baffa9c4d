"""The service under gunicorn, a pool for each worker: ``gunicorn -c examples/server/gunicorn_conf.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

pythonpath = str(Path(__file__).parent)

wsgi_app = "wsgi:application"
worker_class = "gevent"
workers = 2
timeout = 30
"""Seconds of silence after which a worker is killed. Code that runs in a kernel is no silence: the hub turns."""

MAX_TIME = 30.0
graceful_timeout = int(MAX_TIME) + 15
"""Seconds for what is under way when a worker is to end, and then for its kernels; after that it is killed."""


def post_worker_init(worker: Any) -> None:
    """In the worker, which gevent has patched; it takes requests when this returns, and if it raises, gunicorn ends."""
    from app import Limits
    from wsgi import open_pool

    open_pool(Limits(max_time=MAX_TIME))


def worker_exit(server: Any, worker: Any) -> None:
    """In the worker, when its last request is answered; also after SIGINT and SIGQUIT, which wait for none."""
    from wsgi import close_pool

    close_pool()
