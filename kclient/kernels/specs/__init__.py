"""Kernel specs: what a kernel.json says, where Jupyter looks for them, how they are installed and removed."""
