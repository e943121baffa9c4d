"""Where a kernel listens: ports, keys, connection files, and the handshake in which a kernel chooses its ports."""
