"""A program that gives SIGINT and SIGTERM their defaults, and then becomes another program.

`spawn` runs this file by its path, in an isolated Python. This file imports very little, so that it takes less time.
The arguments: the number of a pipe; 1 if LC_CTYPE is to be kept, else 0; the command. If the command cannot be
executed, the number of the error goes into the pipe.
"""

import os
import sys
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIG_UNBLOCK,
    SIGINT,
    SIGPIPE,
    SIGTERM,
    SIGXFSZ,
    pthread_sigmask,
    signal,
)


def main() -> None:
    pipe = int(sys.argv[1])
    os.set_inheritable(pipe, False)
    if sys.argv[2] == "0":
        os.environ.pop("LC_CTYPE", None)
    for signum in (SIGINT, SIGTERM, SIGPIPE, SIGXFSZ):  # Python has set the last two for itself
        signal(signum, SIG_DFL)
    pthread_sigmask(SIG_UNBLOCK, [SIGINT, SIGTERM])
    try:
        os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606
    except OSError as exc:
        os.write(pipe, str(exc.errno).encode())


if __name__ == "__main__":
    main()
    os._exit(127)
