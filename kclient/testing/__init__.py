"""FakeKernel: a scripted kernel, for tests of programs that use kclient and of kclient itself.

::

    with FakeKernel(script={"6 * 7": [result("42")]}) as fake, kclient.connect(fake.connection_info) as client:
        assert client.run("6 * 7").text == "42"

Its sockets, frames and order of messages are those of a real kernel: busy, output, reply, idle.
"""

from kclient.testing.kernel import FakeKernel
from kclient.testing.script import Request, Step, display, error, result, stream

__all__ = ["FakeKernel", "Request", "Step", "display", "error", "result", "stream"]
