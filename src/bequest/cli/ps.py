"""``bequest ps``: who is in the rack, and what each holds.

A column appears only if it tells something: the group if there are several, the compute element likewise. Processes
that have gone but whose addresses others still use own nothing; ``--all`` shows them too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option
from bequest.cli.racks import open_rack, processes, rack_option, rack_report
from bequest.cli.tables import add_names, add_numbers, fit, name, new_table
from bequest.cli.units import format_bytes, format_count, format_seconds, plural

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from bequest.wire.messages import ProcessReport, RackReport

_WIDE = 100
STATE_STYLES = {"attached": "green", "lost": "yellow", "orphaned": "magenta", "gone": "dim"}


@click.command("ps")
@rack_option
@click.option(
    "-a",
    "--all",
    "everybody",
    is_flag=True,
    help="Also those that have gone but left their addresses in use.",
)
@json_option
@click.pass_obj
def command(output: Output, rack_name: str | None, everybody: bool) -> None:
    """Processes and mailboxes of a rack: state, memory held, grants."""
    with open_rack(rack_name) as rack:
        report, found = rack_report(rack), processes(rack)
    if output.json:
        output.document(
            {
                "rack": described_rack(report),
                "processes": [described_process(process) for process in found],
            }
        )
        return
    shown = [process for process in found if everybody or process.state != "gone"]
    console = output.console
    console.print(headline(report, shown))
    if shown:
        console.print(process_table(report, shown, console.width))
    elif not found:
        console.print("[dim]Nobody is attached.[/]")
    if len(shown) < len(found):
        console.print(
            f"[dim]{len(found) - len(shown)} gone, whose addresses are still in use: --all shows them[/]"
        )


# --- for people -----------------------------------------------------------------------------------------------


def headline(report: RackReport, members: list[ProcessReport]) -> Text:
    """One line about the rack and how many are in it."""
    from rich.text import Text

    count = sum(member.kind == "process" for member in members)
    parts = [plural(count, "process")]
    if count < len(members):
        parts.append(plural(len(members) - count, "mailbox"))
    if len(report.groups) > 1:
        parts.append(plural(len(report.groups), "group"))
    parts.append(f"up {format_seconds(report.uptime)}")
    restarts = sum(daemon.restarts for daemon in report.daemons)
    if restarts:
        parts.append(plural(restarts, "restart") + " of its daemons")
    return Text.assemble("Rack ", (report.name, "bold"), (f" · {' · '.join(parts)}", "dim"))


def process_table(report: RackReport, members: list[ProcessReport], width: int) -> Table:
    """One row for each process; the totals below."""
    groups = len({member.group for member in members}) > 1
    computes = len(report.computes) > 1
    cached = width >= _WIDE or not (groups and computes)
    table = new_table(footer=len(members) > 1)
    add_numbers(table, "ID", style="dim")
    add_names(table, "NAME")
    if groups:
        add_names(table, "GROUP")
    if computes:
        add_names(table, "COMPUTE")
    add_numbers(table, "PID")
    table.add_column("STATE", no_wrap=True)
    add_numbers(table, "OWNS", format_bytes(sum(member.owned_bytes for member in members)))
    if cached:
        add_numbers(table, "CACHED", format_bytes(sum(member.free_bytes for member in members)), style="dim")
    add_numbers(table, "INBOX")
    add_numbers(table, "GRANTS", format_count(sum(member.counters.get("grants", 0) for member in members)))
    for member in members:
        cells: list[str | Text] = [str(member.id), name(member.name)]
        cells += [name(member.group)] * groups + [name(member.compute)] * computes
        cells += [str(member.os_pid or ""), _state(member)]
        cells += [format_bytes(member.owned_bytes), *[format_bytes(member.free_bytes)] * cached]
        cells += [str(member.inbox_depth or ""), format_count(member.counters.get("grants", 0))]
        table.add_row(*cells)
    return fit(table, width, ("NAME", "GROUP", "COMPUTE"))


def _state(member: ProcessReport) -> Text:
    from rich.text import Text

    if member.kind == "mailbox":
        return Text("mailbox", "cyan")
    left = "" if member.freed_in is None else f", {format_seconds(member.freed_in)} left"
    return Text(member.state + left, STATE_STYLES.get(member.state, ""))


# --- for programs ---------------------------------------------------------------------------------------------


def described_rack(report: RackReport) -> dict[str, Any]:
    """The rack, as in every JSON document."""
    return {
        "name": report.name,
        "daemons": [
            {"kind": d.kind, "name": d.name, "pid": d.os_pid, "restarts": d.restarts} for d in report.daemons
        ],
        "uptime_seconds": round(report.uptime, 3),
        "policy": report.policy,
        "orphan_keep_seconds": report.orphan_keep,
        "embedded": report.embedded,
        "groups": report.groups,
        "computes": report.computes,
    }


def described_process(process: ProcessReport) -> dict[str, Any]:
    """One process or mailbox, as in every JSON document."""
    return {
        "id": process.id,
        "name": process.name,
        "kind": process.kind,
        "group": process.group,
        "compute": process.compute,
        "pid": process.os_pid,
        "state": process.state,
        "extents": process.extents,
        "owned_bytes": process.owned_bytes,
        "cached_bytes": process.free_bytes,
        "inbox": process.inbox_depth,
        "grants": process.counters.get("grants", 0),
        "granted_bytes": process.counters.get("granted_bytes", 0),
        "accepts": process.counters.get("accepts", 0),
        "allocs": process.counters.get("allocs", 0),
        "frees": process.counters.get("frees", 0),
        "reads": process.counters.get("reads", 0),
        "read_bytes": process.counters.get("read_bytes", 0),
        "steals": process.counters.get("steals", 0),
        "resumes": process.counters.get("resumes", 0),
        "freed_in_seconds": None if process.freed_in is None else round(process.freed_in, 3),
    }
