"""``bequest ls``: what is published in the rack's namespaces, how large it is, and whose it is now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option
from bequest.cli.ps import STATE_STYLES
from bequest.cli.racks import names, open_rack, rack_option, rack_report
from bequest.cli.tables import add_names, add_numbers, fit, name, new_table
from bequest.cli.units import format_bytes
from bequest.errors import UnknownName

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from bequest.wire.messages import Published


@click.command("ls")
@click.argument("path", default="/")
@rack_option
@json_option
@click.pass_obj
def command(output: Output, rack_name: str | None, path: str) -> None:
    """Names published at PATH or below: size, offset and owner of what they lead to."""
    with open_rack(rack_name) as rack:
        report, found = rack_report(rack), names(rack, path)
    if not found and path.strip("/"):
        raise UnknownName(f"nothing is published at {path} or below")
    if output.json:
        output.document({"rack": report.name, "names": [described_name(each) for each in found]})
    elif found:
        output.console.print(name_table(found, output.console.width))
    else:
        output.console.print("[dim]Nothing is published.[/]")


def name_table(found: list[Published], width: int) -> Table:
    """One row for each name."""
    from rich.text import Text

    groups = len({each.group for each in found}) > 1
    offsets = any(each.offset for each in found)
    table = new_table()
    add_names(table, "PATH")
    if groups:
        add_names(table, "GROUP")
    add_numbers(table, "SIZE")
    if offsets:
        add_numbers(table, "OFFSET")
    add_names(table, "OWNER")
    table.add_column("STATE", no_wrap=True)
    for each in found:
        state = "in flight" if each.in_flight else each.owner_state
        cells: list[str | Text] = [name(each.path), *[name(each.group)] * groups, format_bytes(each.nbytes)]
        cells += [str(each.offset)] * offsets
        cells += [name(each.owner_name), Text(state, STATE_STYLES.get(state, "cyan"))]
        table.add_row(*cells)
    return fit(table, width, ("PATH", "GROUP", "OWNER"))


def described_name(each: Published) -> dict[str, Any]:
    """One name, as in the JSON document."""
    return {
        "path": each.path,
        "group": each.group,
        "address": each.address,
        "bytes": each.nbytes,
        "offset": each.offset,
        "publisher": each.publisher,
        "owner": {"id": each.owner, "name": each.owner_name, "state": each.owner_state},
        "in_flight": each.in_flight,
    }
