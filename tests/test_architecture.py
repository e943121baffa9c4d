"""The rooms of kclient, read from its source: the imports that each room may have, and those that none may have."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "kclient"

MAX_LINES = 350
"""A longer module is two modules."""

MAX_ROOMS = 16
"""Folders and loose modules of kclient/, and benchmarks/."""

MAX_FLOORS = 11
"""Rooms on the longest way from one import to the next."""

BOTTOM = {"errors", "concurrency", "protocol"}

ROOMS = {
    "errors": set(),
    "concurrency": {"errors"},
    "protocol": {"errors"},
    "transport": BOTTOM,
    "channels": BOTTOM | {"transport"},
    "kernels": BOTTOM | {"transport"},
    # Of `kernels` connection files only. A client learns of its process by the Protocol client.process.Kernel.
    "client": BOTTOM | {"transport", "channels", "kernels"},
    "manager": BOTTOM | {"transport", "channels", "kernels", "client"},
    "testing": BOTTOM | {"transport", "kernels"},
    "pool": BOTTOM | {"kernels", "client", "manager"},
    # All that it exports. Type hints included, it is in no circle.
    "kclient": BOTTOM | {"channels", "kernels", "client", "manager", "pool"},
    "bench": {"transport"},  # for the versions of ZeroMQ; bench times the kernel that it is given
    "cli": BOTTOM | {"channels", "kernels", "client", "manager", "pool", "kclient", "bench"},
    "__main__": {"cli"},
}
"""The rooms from the ground up, and what each may import of kclient besides itself, type hints included.

A room is a folder, or a module beside the folders; "kclient" is `kclient/__init__`. Each imports only from rooms that
are named before it: they stand below it.
"""

PACKAGES = {
    "errors": set(),
    "concurrency": {"gevent"},
    "protocol": {"attrs", "orjson"},
    "transport": {"gevent", "zmq"},
    "channels": {"attrs", "gevent"},
    "kernels": {"attrs", "gevent", "jupyter_core", "zmq"},
    "client": {"attrs", "gevent"},
    "manager": {"attrs", "gevent"},
    "testing": {"attrs", "gevent", "zmq"},
    "pool": {"attrs", "gevent"},
    "kclient": set(),
    "bench": {"attrs", "hdrh", "matplotlib", "rich"},
    "cli": {"attrs", "click", "gevent", "rich"},
    "__main__": set(),
}
"""The packages outside the standard library that each room may import."""

KNOWS_ZMQ = ("kclient.transport.zmq", "kclient.kernels.connection", "kclient.testing")
"""Where zmq may be imported: the transport over it, keys and the handshake, and the fake kernel."""

IMPURE = {
    *("asyncio", "concurrent", "fcntl", "glob", "http", "io", "mmap", "multiprocessing", "os", "pathlib", "queue"),
    *("sched", "select", "selectors", "shutil", "signal", "socket", "socketserver", "ssl", "subprocess", "tempfile"),
    *("threading", "urllib"),
}
"""The modules that `protocol`, and other modules that do no I/O and never wait, do not import."""

PURE = {
    *("kclient.pool.scheduler", "kclient.pool.events", "kclient.manager.backoff", "kclient.manager.phases"),
    "kclient.kernels.forkserver.states",
}
"""Modules outside `protocol` that decide and do nothing else."""

NEVER = {"asyncio", "tornado"}

UNWANTED_AT_IMPORT = [
    *("asyncio", "tornado", "jupyter_core", "jupyter_client", "ipykernel", "IPython", "click", "rich"),
    *("hdrh", "matplotlib", "numpy", "kclient.client.comm", "kclient.client.comms"),
]


@pytest.fixture(autouse=True)
def no_leaks() -> None:
    """Not looked for: these tests only read, and a look takes longer than each of them."""


class Module:
    """One source file and its imports, those in functions and for type hints, too."""

    def __init__(self, path: Path) -> None:
        parts = [PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts]
        self.is_package = parts[-1] == "__init__"
        self.name = ".".join(parts[:-1] if self.is_package else parts)
        self.room = room_of(self.name)
        self.text = path.read_text(encoding="utf-8")
        self.tree = ast.parse(self.text, str(path))

    def imports(self) -> Iterator[tuple[int, str]]:
        """The line and the full name of each import.

        Exempt is `kclient/__init__`: what it has for type checkers only is imported when it is asked for.
        """
        for node in running_code(self.tree) if self.name == PACKAGE.name else ast.walk(self.tree):
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

    def modules(self) -> set[str]:
        """The modules of kclient that it imports."""
        found = set()
        for _, name in self.imports():
            module = name if name in NAMES else name.rpartition(".")[0]
            if module in NAMES - {self.name}:
                found.add(module)
        return found


def room_of(name: str) -> str:
    """The room of a name: "channels" for ``kclient.channels.shell``, "kclient" for a public name of `kclient`."""
    for second in name.split(".")[1:2]:
        if (PACKAGE / second).is_dir() or (PACKAGE / f"{second}.py").is_file():
            return second
    return PACKAGE.name


def running_code(tree: ast.AST) -> Iterator[ast.AST]:
    """All nodes except those under ``if TYPE_CHECKING:``."""
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

NAMES = {module.name for module in MODULES}

each_module = pytest.mark.parametrize("module", [pytest.param(module, id=module.name) for module in MODULES])


def test_rooms_are_those_of_the_table() -> None:
    assert {module.room for module in MODULES} == set(ROOMS) == set(PACKAGES)
    assert len({*ROOMS, "benchmarks"}) <= MAX_ROOMS


def test_no_module_stands_outside_the_rooms() -> None:
    loose = {path.stem for path in PACKAGE.glob("*.py")}
    assert loose == {"errors", "__init__", "__main__"}


def test_table_points_up_only() -> None:
    below: set[str] = set()
    for room, allowed in ROOMS.items():
        assert allowed <= below, f"{room} may import {', '.join(sorted(allowed - below))}, which is no room below it"
        below.add(room)


def test_floors_are_few() -> None:
    floors: dict[str, int] = {}
    for room in ROOMS:
        others = {room_of(name) for module in MODULES if module.room == room for name in module.modules()} - {room}
        floors[room] = 1 + max((floors[other] for other in others), default=0)
    assert max(floors.values()) < MAX_FLOORS, floors  # benchmarks/ stands on top


@each_module
def test_module_imports_only_from_rooms_below(module: Module) -> None:
    allowed = ROOMS[module.room] | {module.room}
    wrong = [
        f"line {line}: {module.name} ({module.room}) imports {name} ({room_of(name)})"
        for line, name in module.imports()
        if name.split(".")[0] == PACKAGE.name and room_of(name) not in allowed
    ]
    assert not wrong, "\n".join([*wrong, f"{module.room} may import {', '.join(sorted(allowed))}"])


@each_module
def test_module_imports_only_the_packages_of_its_room(module: Module) -> None:
    allowed = PACKAGES[module.room] | {PACKAGE.name} | sys.stdlib_module_names
    wrong = [
        f"line {line}: {module.name} imports {name}"
        for line, name in module.imports()
        if name.split(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(
        [*wrong, f"{module.room} may import {', '.join(sorted(PACKAGES[module.room])) or 'none'}"]
    )


@each_module
def test_module_knows_zmq_only_where_it_may(module: Module) -> None:
    wrong = [f"line {line}: imports {name}" for line, name in module.imports() if name.split(".")[0] == "zmq"]
    assert not wrong or module.name.startswith(KNOWS_ZMQ), "\n".join([module.name, *wrong])


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
    "module", [pytest.param(m, id=m.name) for m in MODULES if m.room == "protocol" or m.name in PURE]
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
    try:
        graphlib.TopologicalSorter({module.name: module.modules() for module in MODULES}).prepare()
    except graphlib.CycleError as exc:
        pytest.fail("imports in a circle: " + " imports ".join(reversed(exc.args[1])), pytrace=False)


def test_there_are_modules_to_read() -> None:
    assert {"protocol", "channels", "kernels"} <= {module.room for module in MODULES}, f"no package in {PACKAGE}"


def test_importing_kclient_brings_in_nothing_it_can_do_without() -> None:
    code = f"import sys, kclient; print(*[name for name in {UNWANTED_AT_IMPORT} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [], "imported by `import kclient`; import it where it is used"


# Rules 3 and 4 of the house: no mixins, no callbacks that wait to be set, no hands in another object's pockets


PUBLIC_CALLBACKS = {
    ("FakeKernel", "lose"),  # a user of the fake sets it
    ("InputRequests", "on_input"),  # a user of the client sets it
    ("Slot", "on_settled"),  # `Requests` sets it while a call awaits the reply
    ("Slot", "error"),  # makes the error in the place of the reply
}
"""Callbacks that are None until they are set, and why."""

CALLABLES = {"Callable", "OnInput", "OnOutput", "OnMessage", "OnClose", "OnOpen", "OnSettled", "OnRestart", "OnGiveUp"}

INTERFACES = {"ShellRequests", "ControlRequests"}
"""Classes that others inherit beside their own base: request methods over one abstract `request`."""

CLASSES = {node.name: node for module in MODULES for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)}


def names_in(node: ast.AST | None) -> set[str]:
    return set() if node is None else {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


@cache
def own_and_inherited(name: str) -> frozenset[str]:
    """The private attributes that a class, and the classes of kclient that it inherits, set on `self`."""
    node = CLASSES.get(name)
    if node is None:
        return frozenset()
    found = frozenset(
        target.attr
        for target in ast.walk(node)
        if isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and ast.unparse(target.value) == "self"
    )
    return found.union(*(own_and_inherited(ast.unparse(base)) for base in node.bases))


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_class_inherits_one_class_of_kclient_and_interfaces(name: str) -> None:
    assert not name.endswith("Mixin")
    bases = [ast.unparse(base).partition("[")[0] for base in CLASSES[name].bases]
    is_protocol = "Protocol" in bases
    ours = [base for base in bases if base in CLASSES and base not in INTERFACES]
    assert is_protocol or len(ours) <= 1, f"{name} inherits {', '.join(ours)}: hand in what it uses instead"


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_no_callback_waits_to_be_set_from_outside(name: str) -> None:
    waiting = {
        node.target.attr
        for node in ast.walk(CLASSES[name])
        if isinstance(node, ast.AnnAssign)
        and isinstance(node.target, ast.Attribute)
        and not node.target.attr.startswith("_")
        and isinstance(node.value, ast.Constant)
        and node.value.value is None
        and names_in(node.annotation) & CALLABLES
    }
    wrong = {attribute for attribute in waiting if (name, attribute) not in PUBLIC_CALLBACKS}
    assert not wrong, f"{name}: hand in {', '.join(sorted(wrong))} at construction, by a Protocol"


@each_module
def test_module_uses_no_private_attribute_of_another_object(module: Module) -> None:
    wrong = []
    for holder in [node for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)] or [module.tree]:
        allowed = own_and_inherited(holder.name) if isinstance(holder, ast.ClassDef) else frozenset()
        wrong += [
            f"line {node.lineno}: {ast.unparse(node)}"
            for node in ast.walk(holder)
            if isinstance(node, ast.Attribute)
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
            and node.attr not in allowed
            and ast.unparse(node.value) not in {"self", "cls", "super()", "os", "sys", "runpy"}
        ]
    assert not wrong, "\n".join([module.name, *wrong])
