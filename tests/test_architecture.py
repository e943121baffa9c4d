"""The layers of kclient, read from its source: who may import whom, and what none may import."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "kclient"

MAX_LINES = 350
"""A longer module is two modules."""

BOTTOM = {"context", "errors", "hub", "log", "protocol"}
CLIENT = BOTTOM | {"channels", "result", "interruption", "execution", "probe", "watch", "support", "prompts"}
CLIENT |= {"comm", "comms", "link", "runner"}
MANAGER = CLIENT | {"client", "deathwatch", "kernels", "goodbye", "connection_file", "backoff"}

LAYERS = {
    "errors": set(),
    "sigint": set(),
    "log": set(),
    "context": set(),
    "hub": {"errors", "sigint"},
    "protocol": {"errors"},
    "channels": BOTTOM | {"sigint"},
    "kernels": BOTTOM,
    "testing": BOTTOM | {"channels", "kernels"},
    "result": {"errors", "protocol"},
    "interruption": BOTTOM | {"channels"},
    "execution": BOTTOM | {"channels", "result", "interruption"},
    "probe": BOTTOM | {"channels"},
    "watch": BOTTOM | {"channels", "result", "execution", "probe"},
    "support": BOTTOM | {"channels", "result", "execution", "probe"},
    "deathwatch": BOTTOM | {"channels"},
    "prompts": BOTTOM | {"channels", "result", "execution"},
    "comm": BOTTOM | {"channels"},
    "comms": BOTTOM | {"channels", "comm"},
    "link": CLIENT - {"runner"},
    "goodbye": CLIENT - {"runner"},
    "runner": CLIENT,
    # Of `kernels` for connection files only; of processes it is told through link.Kernel.
    "client": CLIENT | {"deathwatch", "kernels"},
    "connection_file": {"errors", "hub", "protocol", "kernels"},
    "backoff": {"errors", "hub"},
    "manager": MANAGER,
    "start": MANAGER | {"manager"},
    "pool": MANAGER | {"manager", "start"},
    "kclient": MANAGER | {"manager", "start", "pool"},
    "bench": set(),  # it times what it is given
    "cli": MANAGER | {"manager", "start", "pool", "kclient", "bench"},
}
"""What each layer may import of kclient besides itself. A layer is a module, or a folder; "kclient" is its __init__."""

PACKAGES = {
    "errors": set(),
    "sigint": {"gevent"},
    "log": {"gevent"},
    "context": {"zmq"},
    "hub": {"gevent"},
    "protocol": {"attrs", "orjson"},
    "channels": {"attrs", "gevent", "zmq"},
    "kernels": {"attrs", "gevent", "jupyter_core", "orjson", "zmq"},
    "testing": {"attrs", "gevent", "zmq"},
    "result": {"attrs"},
    "interruption": set(),
    "execution": {"attrs", "gevent"},
    "probe": set(),
    "watch": {"attrs", "gevent"},
    "support": {"gevent"},
    "deathwatch": {"gevent"},
    "prompts": {"gevent"},
    "comm": set(),
    "comms": set(),
    "link": {"attrs", "gevent"},
    "goodbye": set(),
    "connection_file": set(),
    "backoff": set(),
    "runner": {"attrs", "gevent"},
    "client": {"attrs", "gevent"},
    "manager": {"attrs", "gevent"},
    "start": set(),
    "pool": {"attrs", "gevent"},
    "kclient": set(),
    "bench": {"attrs", "hdrh", "matplotlib", "rich", "zmq"},
    "cli": {"attrs", "click", "gevent", "rich"},
}
"""What each layer may import from outside the standard library.

Only `channels`, and `kernels` for the handshake, may know what a ZeroMQ socket is.
"""

IMPURE = {
    *("asyncio", "concurrent", "fcntl", "glob", "http", "io", "mmap", "multiprocessing", "os", "pathlib", "queue"),
    *("sched", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess", "tempfile"),
    *("threading", "urllib"),
}
"""What `protocol`, and others that do no I/O and never wait, have no use for."""

PURE = {"kclient.pool.roster", "kclient.pool.records", "kclient.backoff"}
"""Modules outside `protocol` that decide and do nothing else."""

NEVER = {"asyncio", "tornado"}

UNWANTED_AT_IMPORT = [
    *("asyncio", "tornado", "jupyter_core", "jupyter_client", "ipykernel", "IPython", "click", "rich"),
    *("hdrh", "matplotlib", "numpy", "kclient.comm", "kclient.comms"),
]


class Module:
    """One source file, and what it imports when it runs."""

    def __init__(self, path: Path) -> None:
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.layer = layer_of(self.name)
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text, str(path))

    def imports(self) -> Iterator[tuple[int, str]]:
        """The line and the full name of everything imported, in functions too; not what is for type checkers only."""
        for node in running_code(self.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    yield node.lineno, alias.name
            elif isinstance(node, ast.ImportFrom):
                base = self.absolute(node)
                for alias in node.names:
                    yield node.lineno, f"{base}.{alias.name}"
            elif isinstance(node, ast.Call) and called(node) in {"__import__", "import_module"}:
                for argument in node.args[:1]:
                    if isinstance(argument, ast.Constant):
                        yield node.lineno, str(argument.value)

    def absolute(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        parents = self.name.split(".")[
            : None if self.is_package and node.level == 1 else -(node.level - self.is_package)
        ]
        return ".".join([*parents, *filter(None, [node.module])])


def layer_of(name: str) -> str:
    """``kclient.channels.shell`` is of "channels"; a public name that `kclient` itself holds is of "kclient"."""
    for second in name.split(".")[1:2]:
        if second == "__main__":
            return "cli"
        if (PACKAGE / second).is_dir() or (PACKAGE / f"{second}.py").is_file():
            return second
    return PACKAGE.name


def running_code(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those under ``if TYPE_CHECKING:``."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for other in node.orelse:
                yield other
                yield from running_code(other)
            continue
        yield node
        yield from running_code(node)


def called(node: ast.Call) -> str:
    return ast.unparse(node.func).rpartition(".")[2]


MODULES = [Module(path) for path in sorted(PACKAGE.rglob("*.py"))]

each_module = pytest.mark.parametrize("module", [pytest.param(module, id=module.name) for module in MODULES])


@each_module
def test_module_has_a_layer(module: Module) -> None:
    assert module.layer in LAYERS, f"{module.name}: give the layer {module.layer!r} a place in LAYERS"
    assert module.layer in PACKAGES, f"{module.name}: say in PACKAGES what the layer {module.layer!r} may import"


@each_module
def test_module_imports_only_from_layers_below(module: Module) -> None:
    allowed = LAYERS[module.layer] | {module.layer}
    wrong = [
        f"line {line}: {module.name} ({module.layer}) imports {name} ({layer_of(name)})"
        for line, name in module.imports()
        if name.split(".")[0] == PACKAGE.name and layer_of(name) not in allowed
    ]
    assert not wrong, "\n".join([*wrong, f"{module.layer} may import {', '.join(sorted(allowed))}"])


@each_module
def test_module_imports_only_the_packages_of_its_layer(module: Module) -> None:
    allowed = PACKAGES[module.layer] | {PACKAGE.name} | sys.stdlib_module_names
    wrong = [
        f"line {line}: {module.name} imports {name}"
        for line, name in module.imports()
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(
        [*wrong, f"{module.layer} may import {', '.join(sorted(PACKAGES[module.layer])) or 'none'}"]
    )


@each_module
def test_module_never_imports_another_event_loop(module: Module) -> None:
    wrong = [f"line {line}: imports {name}" for line, name in module.imports() if name.split(".")[0] in NEVER]
    assert not wrong, "\n".join([module.name, *wrong])


@each_module
def test_module_never_monkey_patches(module: Module) -> None:
    import gevent.monkey

    patches = {name for name in dir(gevent.monkey) if name.startswith("patch_")}
    wrong = [
        f"line {line}: imports {name}"
        for line, name in module.imports()
        if name.startswith("gevent.monkey.") and name.rpartition(".")[2] in patches | {"*"}
    ] + [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Attribute) and node.attr in patches
    ]
    assert not wrong, "\n".join([f"{module.name} patches what is not ours", *wrong])


@pytest.mark.parametrize(
    "module", [pytest.param(m, id=m.name) for m in MODULES if m.layer == "protocol" or m.name in PURE]
)
def test_what_decides_does_no_io(module: Module) -> None:
    wrong = [f"line {line}: imports {name}" for line, name in module.imports() if name.split(".")[0] in IMPURE]
    wrong += [
        f"line {node.lineno}: calls {called(node)}"
        for node in running_code(module.tree)
        if isinstance(node, ast.Call) and called(node) in {"open", "print", "input", "sleep"}
    ]
    assert not wrong, "\n".join([f"{module.name} is bytes, dicts and bookkeeping", *wrong])


@each_module
def test_module_is_not_two(module: Module) -> None:
    length = len(module.text.splitlines())
    assert length <= MAX_LINES, f"{module.name} has {length} lines, more than {MAX_LINES}: split it by what it owns"


def test_modules_import_each_other_one_way() -> None:
    names = {module.name for module in MODULES}
    graph = {
        module.name: {
            found
            for _, name in module.imports()
            for found in [name if name in names else name.rpartition(".")[0]]
            if found in names - {module.name}
        }
        for module in MODULES
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as exc:
        pytest.fail("imports in a circle: " + " imports ".join(reversed(exc.args[1])), pytrace=False)


def test_there_are_modules_to_read() -> None:
    assert {"protocol", "channels", "kernels"} <= {module.layer for module in MODULES}, f"no package in {PACKAGE}"


def test_importing_kclient_brings_in_nothing_it_can_do_without() -> None:
    code = f"import sys, kclient; print(*[name for name in {UNWANTED_AT_IMPORT} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "imported by `import kclient`; import it where it is used"
