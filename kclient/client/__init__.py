"""One client of one kernel: its channels, and every request that goes over them."""
