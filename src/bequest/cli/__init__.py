"""The command line: ``bequest VERB``.

Each verb lives in a module of its own, which is imported when the verb is used: `bequest --help` and a mistyped verb
answer at once, and `bequest doctor` works where nothing else of Bequest can be imported. A verb raises what went wrong;
`main` alone turns that into one line, or with ``--json`` one document, and an exit code: 0 done, 1 not done, 2 the
command line was wrong, 130 interrupted. ``bequest run`` ends as its command did.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

import click

from bequest.cli.output import Output
from bequest.errors import BequestError

# Verb: (module, what `bequest --help` says of it), in the order in which one needs them.
_VERBS: dict[str, tuple[str, str]] = {
    "up": ("bequest.cli.up", "Start a rack, here or in the background."),
    "down": ("bequest.cli.down", "End a rack and everything in it."),
    "run": ("bequest.cli.run", "Run a program on a compute element of the rack."),
    "ps": ("bequest.cli.ps", "Processes: state, memory held, grants."),
    "mem": ("bequest.cli.mem", "Memory elements and slabs, and who owns what."),
    "ls": ("bequest.cli.ls", "Names that are published, and who owns what they lead to."),
    "audit": ("bequest.cli.audit", "Attempts to steal memory, and how they went."),
    "top": ("bequest.cli.top", "Grants and bytes not copied per second, live."),
    "standby": ("bequest.cli.standby", "Wait for a process to die, then run a program."),
    "run-actor": ("bequest.cli.run_actor", "Run an actor, and a standby that goes on when it dies."),
    "paxos": ("bequest.cli.paxos", "A replicated lock and key-value service."),
    "fault": ("bequest.cli.fault", "Make a part of the rack fail, to test a program."),
    "doctor": ("bequest.cli.doctor", "What this machine offers, and what is degraded without it."),
    "demo": ("bequest.cli.demo", "MapReduce over real text, handed over without a copy."),
    "bench": ("bequest.cli.bench", "Bequest beside its peers, in one run."),
}
_INTERRUPTED = 130


class _Verbs(click.Group):
    """A group that knows its commands by name and imports them on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = import_module(_VERBS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Verbs"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _VERBS.items()])


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        click.echo(f"bequest {version('bequest')}")
        ctx.exit()


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Say it and exit.",
)
def _bequest() -> None:
    """Bequest: memory that moves between processes, without a copy.

    A rack is memory elements, compute elements and the Rack MMU that gives the memory out. Programs join one with
    `bequest.connect()`; without a running rack, that starts one of its own.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs the command line, and ends the program with its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows '?' where we draw
    output = Output()
    try:
        code = _run(given, output)
        sys.stdout.flush()
    except BrokenPipeError:  # `bequest ps | head`: nobody wants the rest
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code)


def _run(arguments: list[str], output: Output) -> int:
    try:
        code = _bequest.main(arguments, prog_name="bequest", obj=output, standalone_mode=False)
    except click.ClickException as error:
        if "--json" in arguments and not isinstance(error, click.exceptions.NoArgsIsHelpError):
            output.json = True
            output.error("UsageError", error.format_message())
        else:
            error.show()
        return error.exit_code
    except BequestError as error:
        output.error(type(error).__name__, str(error))
        return 1
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    return code if isinstance(code, int) else 0
