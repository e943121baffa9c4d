"""`connect`: attach to a kernel that runs, and wait until it is ready."""

from __future__ import annotations

from kclient.client.kernel_client import Connection, KernelClient
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.file_limits import CLIENT, check
from kclient.concurrency.owner import Owner


def connect(
    connection: Connection,
    *,
    timeout: float | None = 60,
    watch: bool = True,
    dead_after: float | None = None,
    spin: float = 0.0,
) -> KernelClient:
    """Connect to a running kernel and return its client when it is ready, within `timeout` seconds.

    `connection` is the path of a connection file, its name or kernel id in Jupyter's runtime directory, its values, or
    a ConnectionInfo. `watch` runs the heartbeat, so that the kernel's death wakes whoever waits; `KernelClient.watch`
    explains `dead_after`. Use it in a `with` statement, which disconnects and leaves the kernel running. Raises
    KernelTimeout, ConnectionFileError, and TooManyFiles, with which nothing was opened.

    `spin`, 1 s at most, is busy polling: a call that waits for a reply first looks at its sockets again and again, for
    so many seconds at most, and only then yields to the hub. It beats a blocking receive, since nobody has to be
    woken, and it costs a whole processor and every other greenlet meanwhile, which stand still. 0.0003 is enough for
    a kernel that answers at once; a longer one is worth it where nothing else goes on in the process.
    """
    check(CLIENT, "a client")  # or the connection file could not even be read
    client = KernelClient(connection, spin=spin)
    deadline = Deadline(timeout)
    try:
        with Owner().call():
            client.start_channels()
            if watch and client.has_heartbeat:
                client.watch(dead_after)
            client.wait_for_ready(deadline)
        return client
    except BaseException:
        client.close()
        raise
