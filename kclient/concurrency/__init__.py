"""How kclient waits: one hub, one owner, one budget. Nothing here knows of kernels or messages."""
