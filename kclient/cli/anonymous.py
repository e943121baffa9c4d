"""A report without the name of its user and of the machine, so that it can be shown to strangers."""

from __future__ import annotations

import os
import platform
import pwd
import re
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

NAME_VARIABLES: Final = ("LOGNAME", "USER", "LNAME", "USERNAME", "SUDO_USER")
"""The environment variables that hold a login name: those of getpass.getuser(), and that of sudo."""

SHORT_NAME_LETTERS: Final = 3
"""A name of fewer letters is part of many words: it is replaced only where it stands alone."""

WORDS_OF_JUPYTER: Final = frozenset({"ipython", "jupyter", "kclient", "kernel", "python"})
"""Login names in containers that tell of no person. A report without these words cannot be read."""

_HOMES: Final = re.compile(r"(?:(?<=/home/)|(?<=/home\d/)|(?<=/Users/))[^/\s'\"]+")
"""The folder of any user, where the homes are."""


class Anonymizer:
    """Replaces the home folders by ``~``, the login names by ``USER`` and the host name by ``HOST``."""

    def __init__(self, homes: Iterable[str], names: Iterable[str], host: str) -> None:
        names = {name for name in names if name and name.lower() not in WORDS_OF_JUPYTER}
        replaced = [(_home_pattern(home), "~") for home in sorted(homes, key=len, reverse=True) if home.strip("/")]
        replaced.append((_HOMES, "USER"))
        replaced += [(_name_pattern(name), "USER") for name in sorted(names, key=len, reverse=True)]
        replaced += [(_name_pattern(name), "HOST") for name in (host, host.partition(".")[0]) if name]
        self._replaced = replaced

    @classmethod
    def of_this_user(cls) -> Anonymizer:
        """One for the user and the machine that this process runs on."""
        homes = {os.path.expanduser("~")}
        names = {os.environ.get(variable, "") for variable in NAME_VARIABLES}
        with suppress(KeyError):  # a number without a user, as containers have it
            entry = pwd.getpwuid(os.getuid())
            homes.add(entry.pw_dir)
            names.add(entry.pw_name)
        return cls(homes | {os.path.realpath(home) for home in homes}, names, platform.node())

    def clean(self, value: Any) -> Any:
        """`value`, of JSON's types, with every text in it cleaned."""
        if isinstance(value, dict):
            return {key: self.clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.clean(item) for item in value]
        if isinstance(value, str):
            for pattern, replacement in self._replaced:
                value = pattern.sub(replacement, value)
        return value


def _home_pattern(home: str) -> re.Pattern[str]:
    """The path `home`, as a whole or with more behind it."""
    return re.compile(rf"(?<![\w.~/-]){re.escape(home.rstrip('/'))}(?![\w.-])")


def _name_pattern(name: str) -> re.Pattern[str]:
    pattern = re.escape(name)
    return re.compile(pattern if len(name) >= SHORT_NAME_LETTERS else rf"(?<![a-z]){pattern}(?![a-z])", re.IGNORECASE)
