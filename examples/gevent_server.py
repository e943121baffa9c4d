"""For a gevent server: many greenlets share one kernel. If it dies, each call raises an error and none hangs."""

import gevent

import kclient


def handle(kernel: kclient.KernelManager, request: int) -> str:
    """The work of a server's request handler."""
    try:
        result = kernel.run(f"print('working on {request}'); {request} * 2", timeout=30)
    except kclient.DeadKernelError as exc:
        return f"request {request}: the kernel is gone, exit code {exc.exit_code}"
    return f"request {request}: {result.text}"


def main() -> None:
    with kclient.start_kernel() as kernel:
        handlers = [gevent.spawn(handle, kernel, request) for request in range(5)]
        gevent.joinall(handlers)
        print(*[handler.value for handler in handlers], sep="\n")

        handlers = [gevent.spawn(handle, kernel, request) for request in range(2)]
        kernel.submit("import os; os._exit(7)")
        doomed = gevent.spawn(handle, kernel, 99)
        gevent.joinall([*handlers, doomed])
        print(doomed.value)

        kernel.restart_kernel()
        print(handle(kernel, 100))


if __name__ == "__main__":
    main()
