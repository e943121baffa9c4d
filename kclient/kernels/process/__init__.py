"""Kernel processes on this machine: start, output, exit, and the guard that ends orphans."""
