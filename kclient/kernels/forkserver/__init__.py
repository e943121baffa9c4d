"""The launcher that forks Python kernels from a process which has imported what they need. Linux only."""
