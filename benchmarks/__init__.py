"""The benchmark suite of kclient: each module runs on its own, ``python -m benchmarks.latency`` for one."""
