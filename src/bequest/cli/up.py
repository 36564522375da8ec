"""``bequest up``: starts a rack, in this very process or detached from the terminal.

In the foreground this process becomes the rack's supervisor, whose log goes to standard error; Ctrl-C, SIGTERM or
``bequest down`` end it cleanly. Flags outrank the lines of a ``--config`` file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option

if TYPE_CHECKING:
    from bequest.runtime.config import RackConfig
    from bequest.runtime.directory import RackDirectory

_EPILOG = """\b
Examples:
  bequest up
  bequest up --detach --element dram0:4GiB --compute host0 --compute host1
  bequest up --name lab --element pmem0:8GiB:file:/mnt/pmem --policy spread"""


@click.command("up", epilog=_EPILOG)
@click.option("--name", metavar="NAME", help="The rack's name [default: default].")
@click.option(
    "--element",
    "elements",
    metavar="NAME:SIZE[:KIND]",
    multiple=True,
    help="A memory element; KIND is dram, huge (reserved huge pages) or file:DIRECTORY. Repeatable "
    "[default: dram0, half of the memory available].",
)
@click.option(
    "--compute",
    "computes",
    metavar="NAME",
    multiple=True,
    help="A compute element. Repeatable [default: host0].",
)
@click.option(
    "--policy", metavar="POLICY", help="Placement: best-fit, worst-fit or spread [default: best-fit]."
)
@click.option(
    "--orphan-keep",
    metavar="SECONDS",
    type=float,
    help="How long a dead process's memory is kept [default: 60].",
)
@click.option(
    "--config",
    "config_file",
    metavar="FILE.toml",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="All of this from a file; flags outrank it.",
)
@click.option("--detach", is_flag=True, help="Leave the rack running in the background.")
@json_option
@click.pass_obj
def command(
    output: Output,
    name: str | None,
    elements: tuple[str, ...],
    computes: tuple[str, ...],
    policy: str | None,
    orphan_keep: float | None,
    config_file: Path | None,
    detach: bool,
) -> int:
    """Start a rack.

    It runs until Ctrl-C, or with --detach until `bequest down`. Programs of yours then find it with
    `bequest.connect()`.
    """
    config = _configure(name, elements, computes, policy, orphan_keep, config_file)
    if detach:
        from bequest.runtime.embedded import start_detached

        directory = start_detached(config)
        _announce(output, config, directory, directory.notes().supervisor, detached=True)
        return 0

    from bequest.runtime.supervisor import run_rack

    code = run_rack(
        config,
        lambda directory: _announce(output, config, directory, os.getpid(), detached=False),
        log_to_stderr=True,
    )
    if not output.json:
        output.console.print(
            f"Rack {config.name} has ended." if code == 0 else f"Rack {config.name} has failed."
        )
    return code


def _configure(
    name: str | None,
    elements: tuple[str, ...],
    computes: tuple[str, ...],
    policy: str | None,
    orphan_keep: float | None,
    config_file: Path | None,
) -> RackConfig:
    from bequest.runtime.config import make_config, parse_element, read_config

    if config_file is None:
        written: dict[str, Any] = {}
    else:
        from_file = read_config(config_file)
        written = {
            "name": from_file.name,
            "memory": [f"{element.name}:{element.size}:{element.kind}" for element in from_file.elements],
            "compute": from_file.computes,
            "policy": from_file.policy,
            "orphan_keep": from_file.orphan_keep,
        }
    for element in elements:
        parse_element(element)  # so that a slip is told before anything else is looked at
    flags = {
        "name": name,
        "memory": elements,
        "compute": computes,
        "policy": policy,
        "orphan_keep": orphan_keep,
    }
    return make_config(**written | {key: value for key, value in flags.items() if value not in (None, ())})


# --- what and where -------------------------------------------------------------------------------------------


def _announce(
    output: Output, config: RackConfig, directory: RackDirectory, pid: int, *, detached: bool
) -> None:
    if output.json:
        output.document(_described(config, directory, pid, detached=detached))
        return
    from rich.table import Table
    from rich.text import Text

    from bequest.cli.units import format_bytes

    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for index, element in enumerate(config.elements):
        label = "memory" if index == 0 else ""
        facts.add_row(label, f"{element.name}  {format_bytes(element.size)}  {element.kind}")
    facts.add_row("compute", ", ".join(config.computes))
    facts.add_row("placement", config.policy)
    facts.add_row("orphans", f"kept {config.orphan_keep:g} s after a process has died")
    facts.add_row("directory", Text(str(directory.path), overflow="fold"))
    facts.add_row("to use it", _how_to_use(config.name))
    named = "" if config.name == "default" else f" {config.name}"
    facts.add_row("to end it", f"bequest down{named}" if detached else f"Ctrl-C, or bequest down{named}")
    console = output.console
    console.print(
        Text.assemble(("● ", "green"), "Rack ", (config.name, "bold"), f" is ready (process {pid})")
    )
    console.print(facts)
    console.file.flush()


def _how_to_use(name: str) -> str:
    if name == "default":
        return "bequest.connect() finds it, or: bequest run -- python program.py"
    return f'bequest.connect("{name}"), or: bequest run --rack {name} -- python program.py'


def _described(config: RackConfig, directory: RackDirectory, pid: int, *, detached: bool) -> dict[str, Any]:
    return {
        "name": config.name,
        "directory": str(directory.path),
        "pid": pid,
        "detached": detached,
        "elements": [
            {"name": element.name, "kind": element.kind, "size_bytes": element.size}
            for element in config.elements
        ],
        "computes": list(config.computes),
        "policy": config.policy,
        "orphan_keep_seconds": config.orphan_keep,
    }
