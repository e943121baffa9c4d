"""``kclient kernels``: list the kernels that are installed, install and remove some, as ``jupyter kernelspec`` does."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, Final

import click

from kclient.cli.run import ExitCode
from kclient.cli.say import complain, printable, say, warnings_shown
from kclient.errors import KClientError, KernelSpecExists
from kclient.kernels.specs.install import install_kernel_spec, place_to_remove, remove_kernel_spec
from kclient.kernels.specs.search import ALLOWED_KERNELS, list_kernel_specs, places_of
from kclient.kernels.specs.spec import KernelSpec

WIDTH_COLUMNS: Final = 100_000
"""Columns of a table: so many that no cell is cut."""


@click.group(invoke_without_command=True)
@click.pass_context
def kernels(context: click.Context) -> int:
    """List the kernels that can be started, install and remove some."""
    return ExitCode.OK if context.invoked_subcommand is not None else list_kernels(as_json=False)


@kernels.command("list")
@click.option("--json", "as_json", is_flag=True, help="In the form of `jupyter kernelspec list --json`.")
def list_command(as_json: bool) -> int:
    """List the kernels that can be started.

    If several kernels have one name, the list shows the one that `kclient run` starts. The environment variable
    KCLIENT_ALLOWED_KERNELS, names separated by commas, limits which kernels may be started.
    """
    return list_kernels(as_json=as_json)


def list_kernels(*, as_json: bool) -> int:
    with warnings_shown():
        specs = sorted(list_kernel_specs().values(), key=lambda spec: spec.name)
    if as_json:
        entries = {spec.name: {"resource_dir": spec.resource_dir, "spec": spec.to_dict()} for spec in specs}
        say(json.dumps(_finite({"kernelspecs": entries}), indent=2))
    elif specs:
        say(table_of(specs))
    elif os.environ.get(ALLOWED_KERNELS):
        complain(f"none of the kernels that {ALLOWED_KERNELS} allows is installed")
    else:
        complain("there is no kernel yet: pip install ipykernel")
    return ExitCode.OK


def _finite(values: Any) -> Any:
    """`values` with null for NaN and infinities: Python reads them from a kernel.json, but they are not JSON."""
    return json.loads(json.dumps(values), parse_constant=lambda sign: None)


def table_of(specs: Iterable[KernelSpec]) -> str:
    """A table as wide as its cells, so that no name or path is cut; a terminal wraps long lines."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=WIDTH_COLUMNS, markup=False, highlight=False, emoji=False)
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="none")  # a header style would apply to spaces too
    for title in ("name", "display name", "language", "encrypted", "where"):
        table.add_column(Text.assemble((title, "bold")))
    for spec in specs:
        encrypted = "yes" if spec.supports_curve else "no"
        cells = (spec.name, spec.display_name, spec.language, encrypted, spec.resource_dir)
        table.add_row(*map(printable, cells))
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


@kernels.command("install", short_help="Install the kernel in a directory.")
@click.argument("directory", metavar="DIRECTORY")
@click.option("--name", metavar="NAME", help="The kernel's name.  [default: the directory's name]")
@click.option("--user", is_flag=True, help="Install it for this user.")
@click.option("--sys-prefix", is_flag=True, help="Install it in the environment of this Python.")
@click.option("--prefix", metavar="PREFIX", help="Install it in this environment: in PREFIX/share/jupyter/kernels.")
@click.option("--replace", is_flag=True, help="Replace a kernel of that name that is installed there.")
@click.pass_context
def install_command(
    context: click.Context,
    directory: str,
    name: str | None,
    user: bool,
    sys_prefix: bool,
    prefix: str | None,
    replace: bool,
) -> int:
    """Install a kernel: copy the DIRECTORY with its kernel.json to where Jupyter finds it.

    It is installed for all users of the machine, unless --user, --sys-prefix or --prefix is given.
    """
    if user + sys_prefix + (prefix is not None) > 1:
        raise click.UsageError("Give only one of --user, --sys-prefix and --prefix.", context)
    try:
        with warnings_shown():
            path = install_kernel_spec(
                directory, name, user=user, prefix=sys.prefix if sys_prefix else prefix, replace=replace
            )
    except KernelSpecExists as exc:
        complain(printable(f"a kernel is installed already in {exc.path}; --replace replaces it"))
        return ExitCode.NOT_DONE
    except KClientError as exc:
        complain(printable(str(exc)))
        return ExitCode.NOT_DONE
    say(f"installed {printable(path)}")
    return ExitCode.OK


@kernels.command("remove")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("-f", "-y", "--yes", is_flag=True, help="Do not ask.")
def remove_command(names: tuple[str, ...], yes: bool) -> int:
    """Remove kernels, after asking whether to.

    If several kernels have one name, the one that `kclient run` starts is removed.
    """
    try:
        places = {name: place_to_remove(name) for name in sorted({name.lower() for name in names})}
        if not yes:
            if sys.stdin is None or not sys.stdin.isatty():
                complain("nothing was removed: there is no terminal to ask for confirmation; give --yes")
                return ExitCode.NOT_DONE
            if not confirmed(places):
                return ExitCode.OK
        for name in places:
            path = remove_kernel_spec(name)
            say(f"removed {printable(path)}")
            for other in places_of(name)[:1]:
                complain(printable(f"the kernel {name} is found in {other} from now on"))
    except KClientError as exc:
        complain(printable(str(exc)))
        return ExitCode.NOT_DONE
    return ExitCode.OK


def confirmed(places: dict[str, str]) -> bool:
    """Ask whether to remove the kernels; `places` holds the directory of each, by name."""
    width = max(map(len, places))
    for name, path in places.items():
        say(f"  {printable(name):{width}}  {printable(path)}")
    return click.confirm(f"Remove {len(places)} kernel{'s' if len(places) > 1 else ''}?")
