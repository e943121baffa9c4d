"""`connect`: attach to a kernel that runs, and wait until it is ready."""

from __future__ import annotations

from kclient.client.kernel_client import Connection, KernelClient
from kclient.concurrency.deadline import Deadline
from kclient.concurrency.file_limits import CLIENT_DESCRIPTORS, check
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
    a ConnectionInfo. With `watch` the heartbeat runs, so the kernel's death wakes every call that waits;
    `KernelClient.watch` explains `dead_after`. Use it in a `with` statement, which disconnects and leaves the kernel
    running. Raises KernelTimeout, ConnectionFileError, and TooManyFiles, which comes before anything is opened.

    A connection file whose kernel cannot answer is told of at once, before anything is sent: DeadKernelError if no
    program listens at its addresses on this machine any more, ConnectionFileError if its host is not known, another
    program listens there, or only one side encrypts.

    `spin`, 1 s at most, is busy polling: a call that waits for a reply first looks at its sockets again and again, for
    at most so many seconds. Only then it yields to the hub. This is faster than a blocking receive, since no greenlet
    has to be woken. Meanwhile it uses a whole processor, and all other greenlets stand still. 0.0003 is enough for a
    kernel that answers at once. Use more only if the process has nothing else to do.
    """
    check(CLIENT_DESCRIPTORS, "a client")  # before the connection file, which takes a descriptor, too
    client = KernelClient(connection, spin=spin)
    deadline = Deadline(timeout)
    try:
        with Owner().call():
            client.kernel_connection.readiness.check_reachable(deadline)
            client.start_channels()
            if watch and client.has_heartbeat:
                client.watch(dead_after)
            client.wait_for_ready(deadline)
        return client
    except BaseException:
        client.close()
        raise
