"""For someone who measures: where the time of a call goes, by the kernel's own messages."""

import statistics

import kclient

CALLS = 200


def main() -> None:
    with kclient.start_kernel(transport="ipc") as kernel:
        executions = []
        for _ in range(CALLS):
            execution = kernel.submit("1")
            execution.result(timeout=10)
            executions.append(execution.times)
        for name in ("busy", "reply", "idle"):
            spans = sorted((getattr(times, name) - times.sent) * 1e6 for times in executions)
            p99 = spans[int(len(spans) * 0.99)]
            print(f"sent to {name:5}  median {statistics.median(spans):7.0f} us  p99 {p99:7.0f} us")


if __name__ == "__main__":
    main()
