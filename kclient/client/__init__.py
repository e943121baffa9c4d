"""One client of one kernel: its channels, and everything that is asked of the kernel through them."""
