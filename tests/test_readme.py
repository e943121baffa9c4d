"""The README's code runs, and its commands are ones that this project has.

Each python block is a script of its own, unless the line before it is ``<!-- continues -->``: then it runs after
the block before. A text block right after a python block is what that script prints.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

ROOT = Path(__file__).resolve().parent.parent

BLOCK_TIME = 45
"""Seconds for one script or command, which may start several kernels."""

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)

CONTINUES = "<!-- continues -->"

SHELL = {"bash", "console", "sh", "shell"}


@attrs.frozen
class Block:
    line: int
    language: str
    code: str
    prints: str | None = None

    def __str__(self) -> str:
        return f"line {self.line}"


def blocks(text: str) -> list[Block]:
    """The fenced blocks of `text`. A python block that continues also holds the code of the blocks before it."""
    found: list[Block] = []
    end = 0
    for match in FENCE.finditer(text):
        between, end = text[end : match.start()], match.end()
        language, code = match["language"], match["code"]
        line = text.count("\n", 0, match.start()) + 1
        if language == "text" and found and found[-1].language == "python" and not between.strip():
            found[-1] = attrs.evolve(found[-1], prints=code)
            continue
        if between.rstrip().endswith(CONTINUES):
            before = [block for block in found if block.language == "python"]
            code = before[-1].code + code if before and language == "python" else f"raise SystemExit({CONTINUES!r})"
        found.append(Block(line, language, code))
    return found


def commands(block: Block) -> list[str]:
    """The command lines of a shell block, without prompts, comments and output."""
    lines = block.code.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def simple_commands(line: str) -> list[list[str]]:
    """The simple commands of ``a && b``, each a list of words."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if word in {"&&", ";"}:
            parts.append([])
        else:
            parts[-1].append(word)
    return [words for words in parts if words]


README = ROOT / "README.md"
TEXT = README.read_text(encoding="utf-8") if README.is_file() else ""
BLOCKS = blocks(TEXT)
PYTHON = [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == "python"]
LINES = [
    pytest.param(line, id=f"{block}-{number}")
    for block in BLOCKS
    if block.language in SHELL
    for number, line in enumerate(commands(block), 1)
]


def config(name: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / name, encoding="utf-8")
    return parser


def ci_command() -> str:
    """The last command of .ci/run. The others prepare for it."""
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith(("#", "set ", "cd "))][-1]


def run(argv: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])}
    return subprocess.run(
        argv,
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BLOCK_TIME,
        check=False,
    )


def check_command(words: list[str], tmp_path: Path) -> None:
    """Fail unless `words` is a command that works with the files of this project. A `kclient` command is run."""
    program, arguments = Path(words[0]).name, words[1:]
    options = [word for word in arguments if word.startswith("-")]
    if program == "python3" and arguments[:2] == ["-m", "venv"]:
        assert len(arguments) == 3
    elif program == "pip":
        check_pip(arguments)
    elif program == "tox":
        envs = arguments[arguments.index("-e") + 1].split(",") if "-e" in arguments else []
        assert set(envs) <= tox_envs(), f"tox.ini has no {set(envs) - tox_envs()}"
        assert set(options) <= {"-e", "-p"}, f"teach this test the options of {words}"
    elif program == "kclient":
        done = run([str(Path(sys.executable).parent / "kclient"), *arguments], tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    elif program == "pytest":
        check_pytest(arguments)
    elif program == "python3" and arguments and arguments[0].startswith(("examples/", "benchmarks/")):
        assert (ROOT / arguments[0]).is_file()
    elif program == "python" and arguments[0] == "-m" and arguments[1].startswith("benchmarks."):
        done = run([sys.executable, "-m", arguments[1], "--help"], ROOT)
        assert done.returncode == 0, done.stderr
        assert [option for option in options[1:] if option not in done.stdout] == []
    else:
        assert program in {"cd", "git"}, f"teach this test what {words} does"


def check_pip(arguments: list[str]) -> None:
    """Fail unless ``pip install`` installs tox, or this project with extras that it has."""
    assert arguments[0] == "install"
    for target in (word for word in arguments[1:] if not word.startswith("-")):
        match = re.fullmatch(r"(\.|kclient|tox)(?:\[([\w,]+)\])?", target)
        assert match, f"teach this test why the README installs {target!r}"
        extras = set(match[2].split(",")) if match[2] else set()
        have = set(config("setup.cfg")["options.extras_require"])
        assert extras <= have, f"setup.cfg has no extra {extras - have}"


def check_pytest(arguments: list[str]) -> None:
    """Fail unless ``pytest`` gets files, folders and tests that exist, or marks of setup.cfg."""
    marks = arguments[arguments.index("-m") + 1].split() if "-m" in arguments else []
    have = {line.partition(":")[0] for line in config("setup.cfg")["tool:pytest"]["markers"].split("\n")}
    assert set(marks) <= have | {"not"}
    for target in arguments if not marks else []:
        path, _, test = target.partition("::")
        assert (ROOT / path).exists(), f"there is no {path}"
        assert f"def {test}(" in ((ROOT / path).read_text(encoding="utf-8") if test else f"def {test}("), target


def tox_envs() -> set[str]:
    parser = config("tox.ini")
    named = {section.partition(":")[2] for section in parser.sections() if section.startswith("testenv:")}
    listed = {name.strip() for name in parser["tox"]["env_list"].replace("\n", ",").split(",") if name.strip()}
    return named | listed | {"py310", "py311", "py312", "py313"}


@pytest.mark.kernel
@pytest.mark.timeout(BLOCK_TIME + 10)
@pytest.mark.parametrize("block", PYTHON)
def test_python_block_runs(block: Block, tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text(block.code, encoding="utf-8")
    done = run([sys.executable, "-W", "error::ResourceWarning", str(script)], tmp_path)
    shown = f"README.md, {block}:\n{block.code}\nstdout:\n{done.stdout}\nstderr:\n{done.stderr}"
    assert done.returncode == 0, shown
    assert "Traceback" not in done.stderr, shown
    assert "ResourceWarning" not in done.stderr, shown
    if block.prints is not None:
        assert done.stdout == block.prints, shown


@pytest.mark.kernel
@pytest.mark.timeout(BLOCK_TIME + 10)
@pytest.mark.parametrize("line", LINES)
def test_command_is_one_that_works(line: str, tmp_path: Path) -> None:
    for words in simple_commands(line):
        check_command(words, tmp_path)


def test_readme_has_code_to_run() -> None:
    assert TEXT, f"{README} is missing"
    assert PYTHON, "README.md has no ```python block"
    assert LINES, "README.md has no command in a ```bash or ```console block"


def test_every_block_says_its_language() -> None:
    assert [str(block) for block in BLOCKS if not block.language] == []


def test_readme_test_command_is_what_ci_runs() -> None:
    lines = [line for block in BLOCKS if block.language in SHELL for line in commands(block)]
    assert ci_command() in lines, f".ci/run runs {ci_command()!r}, which README.md does not say"


def test_block_that_continues_runs_after_the_one_before() -> None:
    text = "```python\na = 1\n```\nThen\n<!-- continues -->\n```python\nprint(a)\n```\n```text\n1\n```\n"
    assert blocks(text) == [Block(1, "python", "a = 1\n"), Block(6, "python", "a = 1\nprint(a)\n", prints="1\n")]


def test_commands_of_a_console_block_are_those_after_a_prompt() -> None:
    assert commands(Block(1, "console", "$ tox \\\n  -e lint\nlint: OK\n")) == ["tox    -e lint"]
    assert simple_commands("a 'b && c' && d -e x,y") == [["a", "b && c"], ["d", "-e", "x,y"]]
