"""For a script: run code in a kernel, use its results, and handle its errors."""

import kclient


def main() -> None:
    with kclient.start_kernel("python3") as kernel:
        kernel.run("import statistics; numbers = [3, 1, 4, 1, 5, 9, 2, 6]", check=True)
        mean = kernel.run("statistics.mean(numbers)", timeout=10)
        print("mean:", mean.text)

        failed = kernel.run("statistics.mean([])")
        if failed.error is not None:
            print("the code failed:", failed.error.ename)

        try:
            kernel.run("while True: pass", timeout=0.5)
        except kclient.KernelTimeout as exc:
            print("took too long:", exc.timeout, "s")

        # The endless loop was interrupted. The kernel still works.
        print("numbers are still there:", kernel.run("len(numbers)", timeout=10).text)


if __name__ == "__main__":
    main()
