"""The five channels: a ZeroMQ socket each, what serves it, and the requests that go over it."""
