"""The transport over ZeroMQ: sockets, frames, signatures, encryption, and whether the kernel listens."""
