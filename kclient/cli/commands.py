"""The commands of `kclient`: their arguments, their options and their help."""

from __future__ import annotations

import math
import sys
from typing import Final

import click

import kclient
from kclient.cli.bench import BenchJob, run_bench
from kclient.cli.doctor import run_doctor
from kclient.cli.kernels import kernels
from kclient.cli.run import READY_TIMEOUT_S, ExitCode, Job, run_job
from kclient.cli.say import complain, drop_unwritten
from kclient.kernels.connection.encryption import MODES
from kclient.kernels.specs.search import NATIVE_KERNEL

EXIT_CODES: Final = """\b
Exit codes:
  0    the code ran to its end
  1    the code failed and its traceback was shown, or the kernel died
  2    kclient could not do what was asked: a wrong option, no such
       file or kernel, a kernel that does not start or answer
  124  --timeout, or the 60 s that a kernel has to start, ran out
  130  ended by Ctrl-C;  143  by SIGTERM
  141  the reader of the output has gone
"""

BENCH_EXIT_CODES: Final = """\b
Exit codes:
  0    the table is complete
  1    the code failed, or a kernel died
  2    kclient could not do what was asked: a wrong option, no such
       kernel, a file that cannot be written
  124  --timeout, or the 60 s that a kernel has to start, ran out
  130  ended by Ctrl-C;  143  by SIGTERM
  141  the reader of the output has gone
"""

DOCTOR_EXIT_CODES: Final = """\b
Exit codes:
  0    nothing was found that stops kclient
  1    something was: the report has a "problem" for each
  2    a wrong option, or the report cannot be written
  130  ended by Ctrl-C;  143  by SIGTERM
  141  the reader of the output has gone
"""


def run_command_line() -> int:
    """Run the command line and return the exit code; a mistake in it is reported in one line."""
    try:
        return main.main(prog_name="kclient", standalone_mode=False) or ExitCode.OK
    except SystemExit:  # click raises it when the reader of its output has gone
        drop_unwritten()
        return ExitCode.UNREAD
    except OSError as exc:
        drop_unwritten()
        complain(f"cannot write: {exc.strerror or exc}")
        return ExitCode.NOT_DONE
    except click.Abort:  # Ctrl-C before a kernel is started
        return ExitCode.INTERRUPTED
    except click.ClickException as exc:
        hint = f" (see {exc.ctx.command_path} --help)" if isinstance(exc, click.UsageError) and exc.ctx else ""
        complain(f"{exc.format_message()}{hint}")
        return ExitCode.NOT_DONE


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(kclient.__version__, message="%(prog)s %(version)s")
@click.pass_context
def main(context: click.Context) -> None:
    """Run code in Jupyter kernels."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def check_timeout(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """`value`, if it is a number of seconds."""
    if value is not None and (math.isnan(value) or value < 0):
        raise click.BadParameter(f"{value:g} is not a number of seconds, 0 or more.")
    return value


encryption_option = click.option(
    "--encryption",
    type=click.Choice(MODES),
    help="Whether to encrypt the connection; auto: if the kernel can.  [default: auto]",
)


def check_existing(context: click.Context, existing: str | None, *choices: str | None) -> None:
    """Refuse --existing together with one of `choices`: options that say how to start a kernel."""
    if existing is not None and any(choice is not None for choice in choices):
        raise click.UsageError(
            "--existing uses a running kernel; leave out --kernel, --transport and --encryption.", context
        )


@main.command(epilog=EXIT_CODES)
@click.argument("file", required=False)
@click.option("-c", "code", metavar="CODE", help="Run this code.")
@click.option(
    "--kernel",
    metavar="NAME",
    help=f"The kernel to start, one of those that `kclient kernels` lists.  [default: {NATIVE_KERNEL}]",
)
@click.option(
    "--existing",
    metavar="CONNECTION_FILE",
    help="Use a kernel that runs, and leave it running: its connection file, or its id.",
)
@click.option("--transport", type=click.Choice(["tcp", "ipc"]), help="How to talk to the kernel.  [default: tcp]")
@encryption_option
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    callback=check_timeout,
    help="How long the start of the kernel and the code may take together.",
)
@click.pass_context
def run(
    context: click.Context,
    file: str | None,
    code: str | None,
    kernel: str | None,
    existing: str | None,
    transport: str | None,
    encryption: str | None,
    timeout: float | None,
) -> int:
    """Run FILE, or standard input if FILE is -, or CODE, in a kernel.

    Output appears as it is printed; results and displays appear as plain text. The code may ask for input if standard
    input is a terminal. Ctrl-C interrupts the code, which may catch that and go on. A second Ctrl-C ends the command
    and the kernel; a kernel given by --existing goes on.
    """
    if (file is None) == (code is None):
        raise click.UsageError("Give either a FILE (- is standard input) or -c CODE.", context)
    check_existing(context, existing, kernel, transport, encryption)
    return run_job(
        Job(
            code=check_code(code) if code is not None else read_code(file or ""),
            kernel=kernel or NATIVE_KERNEL,
            transport=transport or "tcp",
            encryption=encryption or "auto",
            existing=existing,
            timeout=timeout,
            may_ask=file != "-" and sys.stdin is not None and sys.stdin.isatty(),
        )
    )


class CannotRead(click.ClickException):
    exit_code = ExitCode.NOT_DONE


def read_code(file: str) -> str:
    """The text of `file`; raises CannotRead."""
    is_stdin = file == "-"
    name = "standard input" if is_stdin else repr(file)
    try:
        with open(0 if is_stdin else file, encoding="utf-8-sig", closefd=not is_stdin) as source:
            return source.read()
    except OSError as exc:
        raise CannotRead(f"cannot read {name}: {exc.strerror or exc}") from exc
    except UnicodeDecodeError as exc:
        raise CannotRead(f"{name} is not UTF-8 text: {exc.reason} at byte {exc.start}") from exc


def check_code(code: str) -> str:
    """`code`, which must be UTF-8 on the command line; else raises CannotRead."""
    try:
        code.encode()
    except UnicodeEncodeError as exc:
        raise CannotRead("the code after -c is not UTF-8 text") from exc
    return code


@main.command(epilog=BENCH_EXIT_CODES)
@click.option("--kernel", metavar="NAME", help=f"The kernel to start and measure.  [default: {NATIVE_KERNEL}]")
@click.option(
    "--existing",
    metavar="CONNECTION_FILE",
    help="Measure a kernel that runs, and leave it running: its connection file, or its id.",
)
@click.option("--transport", type=click.Choice(["tcp", "ipc", "both"]), help="Start it on this.  [default: both]")
@encryption_option
@click.option("--calls", metavar="N", type=click.IntRange(1), default=2000, help="Calls of each kind.  [default: 2000]")
@click.option(
    "--warm-up", metavar="N", type=click.IntRange(0), default=100, help="Untimed calls first.  [default: 100]"
)
@click.option("--code", metavar="CODE", default="", help="The code that `run` runs.  [default: nothing]")
@click.option(
    "--spin",
    metavar="SECONDS",
    type=float,
    default=0.0,
    callback=check_timeout,
    help="How long a call polls before it waits.  [default: 0]",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    callback=check_timeout,
    help="How long the start of the kernels and all of the calls may take together.",
)
@click.option("--plot", metavar="FILE.png", help="Draw latency by percentile there.")
@click.option("--json", "json_file", metavar="FILE", help="Write the figures there.")
@click.pass_context
def bench(
    context: click.Context,
    kernel: str | None,
    existing: str | None,
    transport: str | None,
    encryption: str | None,
    calls: int,
    warm_up: int,
    code: str,
    spin: float,
    timeout: float | None,
    plot: str | None,
    json_file: str | None,
) -> int:
    """Measure the round trips of a kernel.

    kernel_info is a request and its reply; run is the code, until its reply and all of its output have come. Batches
    of both, over tcp and over ipc, take turns, so that a disturbance of the machine affects all alike.
    """
    check_existing(context, existing, kernel, transport, encryption)
    return run_bench(
        BenchJob(
            kernel=kernel or NATIVE_KERNEL,
            existing=existing,
            transports=("tcp", "ipc") if transport in (None, "both") else (transport,),
            encryption=encryption or "auto",
            calls=calls,
            warm_up=warm_up,
            code=check_code(code),
            spin=spin,
            timeout=timeout,
            plot=plot,
            json=json_file,
        )
    )


@main.command(epilog=DOCTOR_EXIT_CODES)
@click.option("--start", "starts", is_flag=True, help="Start each kernel, one after the other, and shut it down.")
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=float,
    callback=check_timeout,
    help=f"How long each kernel may take to start.  [default: {READY_TIMEOUT_S:g}]",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@click.pass_context
def doctor(context: click.Context, starts: bool, timeout: float | None, as_json: bool) -> int:
    """Report versions, limits and kernels, and what is wrong with them.

    The report is for a bug report: no key, no name of a user or of a machine is in it. A home folder is shown as ~, a
    login name as USER.
    """
    if timeout is not None and not starts:
        raise click.UsageError("--timeout is for --start.", context)
    return run_doctor(starts=starts, timeout=READY_TIMEOUT_S if timeout is None else timeout, as_json=as_json)


main.add_command(kernels)
