"""Transports: they carry messages to a kernel and back. Channels see messages, never frames."""
