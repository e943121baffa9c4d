"""A command line of Python, taken apart: the interpreter, its options, and the program. See python(1)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Final

import attrs

from kclient.errors import InvalidArgument

_INTERPRETER: Final = re.compile(r"python[\d.]*[td]?")

_FLAGS: Final = frozenset("bBdEIOPqRsSuvx")
"""Options without a value. A forked process inherits their effect."""

_VALUED: Final = frozenset("WX")
"""Options with a value. A forked process inherits their effect, too."""


@attrs.frozen
class PythonCommand:
    """``interpreter options [-m module | -c code | script] arguments``; `kind` is "module", "code" or "script"."""

    interpreter: str
    options: tuple[str, ...]
    kind: str
    target: str
    arguments: tuple[str, ...]


def read_python_command(argv: Sequence[str]) -> PythonCommand:
    """Take `argv` apart; raises InvalidArgument if it does not run a Python program."""
    words = [os.fspath(word) for word in argv]
    if words and _INTERPRETER.fullmatch(os.path.basename(words[0])):
        options: list[str] = []
        rest = words[1:]
        while rest:
            word = rest.pop(0)
            if not word.startswith("-"):
                return PythonCommand(words[0], tuple(options), "script", word, tuple(rest))
            flags = word[1:].rstrip()
            plain = flags[: len(flags) - len(flags.lstrip("".join(_FLAGS)))]
            letter, value = flags[len(plain) : len(plain) + 1], flags[len(plain) + 1 :]
            if (letter and letter not in {"m", "c"} | _VALUED) or not flags:
                break
            if plain:
                options.append(f"-{plain}")
            if letter and not value:
                if not rest:
                    break
                value = rest.pop(0)
            if letter in _VALUED:
                options += [f"-{letter}", value]
            elif letter:
                return PythonCommand(
                    words[0], tuple(options), "module" if letter == "m" else "code", value, tuple(rest)
                )
    raise InvalidArgument(
        f"a ForkServer runs python with -m module, -c code or script.py, not {list(argv)!r}; "
        "leave out launcher= for this kernel"
    )
