"""``bequest audit``: who stole, or tried to: when, from whom, how, and with what outcome.

The Rack MMU remembers the last thousand attempts. Those of a guesser who is barred for a while are one line.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option
from bequest.cli.racks import open_rack, rack_option, rack_report, thefts
from bequest.cli.tables import add_names, add_numbers, fit, name, new_table
from bequest.cli.units import format_bytes, format_seconds, plural

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from bequest.wire.messages import Theft

_STYLES = {"stolen": "green", "refused": "yellow", "barred": "red", "failed": "magenta"}


@click.command("audit")
@rack_option
@json_option
@click.pass_obj
def command(output: Output, rack_name: str | None) -> None:
    """Attempts to steal memory: when, who, from whom, how, and the outcome."""
    with open_rack(rack_name) as rack:
        report, found = rack_report(rack), thefts(rack)
    if output.json:
        now = time.time()
        output.document({"rack": report.name, "thefts": [described_theft(theft, now) for theft in found]})
        return
    from rich.text import Text

    console = output.console
    attempts, successful = sum(theft.times for theft in found), [t for t in found if t.outcome == "stolen"]
    told = f" · {plural(attempts, 'attempt')}, {len(successful)} successful"
    console.print(Text.assemble("Rack ", (report.name, "bold"), (told, "dim")))
    if found:
        console.print(theft_table(found, console.width))


def theft_table(found: list[Theft], width: int) -> Table:
    """One row for each attempt, the oldest first."""
    from rich.text import Text

    groups = len({theft.group for theft in found}) > 1
    table = new_table()
    add_numbers(table, "AGO")
    add_names(table, "THIEF")
    add_numbers(table, "PID")
    if groups:
        add_names(table, "GROUP")
    add_names(table, "VICTIM")
    add_numbers(table, "GOT")
    table.add_column("OUTCOME", no_wrap=True)
    add_names(table, "HOW")
    for theft in found:
        cells: list[str | Text] = [format_seconds(theft.age), name(theft.thief), str(theft.os_pid)]
        cells += [name(theft.group)] * groups + [name(theft.victim)]
        cells += [format_bytes(theft.nbytes), Text(theft.outcome, _STYLES.get(theft.outcome, ""))]
        cells.append(name(theft.how if theft.times == 1 else f"{theft.times} times: {theft.how}"))
        table.add_row(*cells)
    return fit(table, width, ("THIEF", "GROUP", "VICTIM", "HOW"))


def described_theft(theft: Theft, now: float) -> dict[str, Any]:
    """One attempt, as in the JSON document; ``time`` is in seconds since 1970."""
    return {
        "number": theft.number,
        "time": round(now - theft.age, 3),
        "thief": theft.thief,
        "pid": theft.os_pid,
        "user": theft.uid,
        "group": theft.group,
        "victim": {"name": theft.victim, "id": theft.pid, "incarnation": theft.incarnation},
        "outcome": theft.outcome,
        "how": theft.how,
        "extents": theft.extents,
        "bytes": theft.nbytes,
        "times": theft.times,
    }
