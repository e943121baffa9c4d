"""The pipe that wakes the loop of the main thread's hub when a signal comes.

Without it a signal that comes just before the loop goes to sleep is not seen until something else wakes the loop.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Final

from gevent.hub import Hub

_READ_BYTES: Final = 4096


class _WakeupPipe:
    """A pipe whose read end the loop of `hub` watches. Python writes a byte for each signal into `fd`."""

    def __init__(self, hub: Hub) -> None:
        self.hub = hub
        self._out, self.fd = os.pipe()
        for end in (self._out, self.fd):
            os.set_blocking(end, False)
        self._watcher = hub.loop.io(self._out, 1, ref=False)
        self._watcher.start(self._empty)

    def _empty(self) -> None:
        with suppress(BlockingIOError):  # a forked child, which has the pipe as well, has read the bytes
            os.read(self._out, _READ_BYTES)

    def close(self) -> None:
        """Close the pipe: the main thread has a new hub."""
        os.close(self._out)
        os.close(self.fd)


_pipe: _WakeupPipe | None = None


def wakeup_fd(hub: Hub) -> int:
    """The descriptor for `signal.set_wakeup_fd`. The pipe is made when it is first needed.

    Returns -1 if no descriptor is left for it: a Ctrl-C is then seen with the next event.
    """
    global _pipe
    if _pipe is None or _pipe.hub is not hub:
        if _pipe is not None:
            _pipe.close()
            _pipe = None
        try:
            _pipe = _WakeupPipe(hub)
        except OSError:
            return -1
    return _pipe.fd
