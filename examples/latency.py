"""For measurements: how long each part of a call takes, by the times at which the kernel's messages arrive."""

import statistics
from time import perf_counter

import kclient

CALLS = 200


def main() -> None:
    spans: dict[str, list[float]] = {}
    with kclient.start_kernel(transport="ipc") as kernel:
        for _ in range(CALLS):
            execution = kernel.submit("print(1)")
            first = next(iter(execution))
            execution.result(timeout=10)
            times = execution.times
            for name, moment in [
                ("busy", times.busy),
                ("first output", first.received),
                ("reply", times.reply),
                ("idle", times.idle),
            ]:
                spans.setdefault(f"sent to {name}", []).append(moment - times.sent)

            start = perf_counter()
            reply = kernel.kernel_info(timeout=10)
            end = perf_counter()
            spans.setdefault("kernel_info: call to reply", []).append(reply.received - start)
            spans.setdefault("kernel_info: reply to caller", []).append(end - reply.received)
    for name, seconds in spans.items():
        microseconds = sorted(span * 1e6 for span in seconds)
        p99 = microseconds[int(len(microseconds) * 0.99)]
        print(f"{name:28}  median {statistics.median(microseconds):7.0f} us  p99 {p99:7.0f} us")


if __name__ == "__main__":
    main()
