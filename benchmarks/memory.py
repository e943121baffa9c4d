"""The memory and file descriptors of one more client: ``python -m benchmarks.memory kclient CHECKOUT``.

Standard input is a JSON list of connections. The process imports no other client library, kclient from that checkout,
and connects five channels to each kernel, one after the other.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from collections.abc import Callable
from typing import Any

from benchmarks.build_process import use_build

PATIENCE = 30


def connect_kclient(connection: dict[str, Any]) -> object:
    import kclient

    return kclient.connect(connection, timeout=PATIENCE)


def connect_jupyter_client(connection: dict[str, Any]) -> object:
    from jupyter_client.blocking import BlockingKernelClient

    client = BlockingKernelClient()
    client.load_connection_info(connection)
    client.start_channels()
    client.kernel_info(reply=True, timeout=PATIENCE)
    return client


CONNECT: dict[str, Callable[[dict[str, Any]], object]] = {
    "kclient": connect_kclient,
    "jupyter_client": connect_jupyter_client,
}


def resident_kib() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def main() -> None:
    connect = CONNECT[sys.argv[1]]
    if connect is connect_kclient:
        use_build(sys.argv[2])
    connections = json.load(sys.stdin)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    opened, counts = [], []
    for connection in connections:
        opened.append(connect(connection))
        counts.append((resident_kib(), descriptors()))
    (first_kib, first_fds), *_, (last_kib, last_fds) = counts
    more = len(opened) - 1
    found = {
        "n": len(opened),
        "kib": (last_kib - first_kib) / more,
        "kib_at_one": first_kib,
        "kib_at_all": last_kib,
        "descriptors": (last_fds - first_fds) / more,
    }
    sys.stdout.write(json.dumps(found))
    sys.stdout.flush()
    os._exit(0)  # what ends with the process need not be closed first


if __name__ == "__main__":
    main()
