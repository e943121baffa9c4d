"""The five channels of a kernel: what each means, and the requests that go over it. They know no sockets."""
