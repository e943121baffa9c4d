"""Where a kernel listens: ports, keys, connection files, and the handshake by which a kernel reports its own ports."""
