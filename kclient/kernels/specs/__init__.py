"""Kernel specs: the values of a kernel.json, the directories in which Jupyter looks for them, install and remove."""
