"""The messaging protocol, pure: bytes, dicts and bookkeeping. No sockets, no files, no waits."""
