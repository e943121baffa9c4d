"""The entry point of the `kclient` command. It names the missing packages if the extra ``cli`` is not installed."""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command line and exit with its code."""
    missing = [name for name in ("click", "rich") if find_spec(name) is None]
    if missing:
        sys.exit(_say_what_is_missing(missing))
    try:
        from kclient.cli.commands import run_command_line

        sys.exit(run_command_line())
    except KeyboardInterrupt:
        sys.exit(130)


def _say_what_is_missing(names: list[str]) -> int:
    needed = " and ".join(names)
    sys.stderr.write(f"kclient: the command line needs {needed}: pip install 'kclient[cli]'\n")
    return 2
