"""``bequest mem``: memory elements, their slabs, and who owns what, drawn as a map.

*Used* is what slabs take; *ready* is warm or recycled memory that the element keeps for the next slabs and that a slab
can displace, so it counts as free.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option
from bequest.cli.racks import elements, open_rack, processes, rack_option, rack_report, slabs
from bequest.cli.slab_map import AWAY, FREE, IN_FLIGHT, UNKNOWN, Owners, draw, fragmentation
from bequest.cli.tables import add_names, add_numbers, fit, name, new_table
from bequest.cli.units import format_bytes, format_share, plural

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from bequest.wire.messages import ElementStatus, ProcessReport, RackReport, SlabStatus

_SLABS_SHOWN = 16
_MAP_MAX = 64
_NAME_MAX = 16
_OTHER_COLUMNS = 5 + 9 + 5 + 5 + 5 * 2  # slab, size, pages and fragmentation, and the gaps
_WIDE = 100
_BAR = 32


@click.command("mem")
@rack_option
@click.option(
    "--slabs",
    "limit",
    metavar="N",
    type=click.IntRange(min=0),
    help=f"Show the first N slabs by address [default: {_SLABS_SHOWN}; all as JSON].",
)
@json_option
@click.pass_obj
def command(output: Output, rack_name: str | None, limit: int | None) -> None:
    """Memory elements and slabs of a rack, fragmentation, and who owns what."""
    with open_rack(rack_name) as rack:
        report, members = rack_report(rack), processes(rack)
        all_elements, all_slabs = elements(rack), slabs(rack)
    all_slabs.sort(key=lambda slab: slab.address)
    view = _View(report, members, all_elements, all_slabs)
    if output.json:
        output.document(view.document(limit))
    else:
        for part in view.parts(_SLABS_SHOWN if limit is None else limit, output.console.width):
            output.console.print(part)


class _View:
    """One look at a rack's memory."""

    def __init__(
        self,
        report: RackReport,
        members: list[ProcessReport],
        all_elements: list[ElementStatus],
        all_slabs: list[SlabStatus],
    ) -> None:
        from bequest.limits import PAGE_BYTES

        self.report = report
        self.elements = all_elements
        self.slabs = all_slabs
        self.page_bytes = PAGE_BYTES
        self.members = {member.id: member for member in members}
        self.owners = Owners(all_slabs, PAGE_BYTES)

    def name(self, member: int) -> str:
        """Who bears this id, or did."""
        from bequest.limits import MMU_ID

        if member == MMU_ID:
            return "(its readers)"  # of a frozen region that nobody keeps
        found = self.members.get(member)
        return found.name if found is not None else f"id {member}"

    # --- for people -------------------------------------------------------------------------------------------

    def parts(self, limit: int, width: int) -> list[Text | Table | Group]:
        """What is printed, from top to bottom."""
        from rich.text import Text

        size, used = sum(e.size for e in self.elements), sum(e.used for e in self.elements)
        told = f" · {format_bytes(used)} of {format_bytes(size)} in {plural(len(self.slabs), 'slab')}"
        parts: list[Text | Table | Group] = [
            Text.assemble("Rack ", (self.report.name, "bold"), (told, "dim")),
            Text(),
            element_table(self.elements, width, {e.name: self._fragmentation(e.name) for e in self.elements}),
        ]
        shown = self.slabs[:limit]
        places: dict[tuple[str, str], list[SlabStatus]] = {}
        for slab in shown:
            places.setdefault((slab.element, slab.group), []).append(slab)
        for (element, group), there in places.items():
            title = Text.assemble((element, "bold"), (f" · group {group}", "dim"))
            parts += [Text(), title, self._slab_table(there, width)]
        if len(shown) < len(self.slabs):
            rest = f"{plural(len(self.slabs) - len(shown), 'more slab')}: --slabs {len(self.slabs)} shows all"
            parts.append(Text(rest, "dim"))
        if shown:
            parts += [Text(), self._legend()]
        return parts

    def _fragmentation(self, element: str) -> float:
        return fragmentation(slab for slab in self.slabs if slab.element == element)

    def _slab_table(self, shown: list[SlabStatus], width: int) -> Table:
        """The map: all tables of one view have the same columns."""
        names = min(_NAME_MAX, max(len(self.name(slab.home)) for slab in self.slabs))
        cells = max(16, min(_MAP_MAX, width - _OTHER_COLUMNS - names))
        table = new_table()
        table.add_column("SLAB", justify="right", style="dim", width=5)
        table.add_column("HOME", no_wrap=True, overflow="ellipsis", width=names)
        table.add_column("SIZE", justify="right", width=9)
        table.add_column("PAGES", justify="right", width=5)
        table.add_column("WHO OWNS WHAT", width=cells, no_wrap=True)
        table.add_column("FRAG.", justify="right", width=5)
        for slab in shown:
            row: list[str | Text] = [str(slab.slab), name(self.name(slab.home))]
            row += [format_bytes(slab.pages * self.page_bytes), "2 MiB" if slab.huge else "4 KiB"]
            row += [self._map(slab, cells), format_share(fragmentation([slab])) if slab.free_pages else ""]
            table.add_row(*row)
        return table

    def _map(self, slab: SlabStatus, width: int) -> Text:
        from rich.text import Text

        drawn = Text()
        for cell in draw(slab, self.owners, width):
            if cell.owner is None:
                drawn.append(cell.letter, "dim")
            else:
                drawn.append(cell.letter, f"black on {self.owners.colour(cell.owner)}")
        return drawn

    def _legend(self) -> Group:
        """Every owner's letter, name and bytes, and what the other signs mean."""
        from rich.columns import Columns
        from rich.console import Group
        from rich.text import Text

        entries = []
        for owner in self.owners.by_size:
            style = f"black on {self.owners.colour(owner)}"
            told = f" {format_bytes(self.owners.nbytes[owner])}"
            entries.append(
                Text.assemble((self.owners.letter(owner), style), f" {self.name(owner)}", (told, "dim"))
            )
        signs = f"{FREE} free   {IN_FLIGHT} not yet accepted   {AWAY} being copied"
        if any(sum(run.pages for run in slab.runs) < slab.pages for slab in self.slabs):
            signs += f"   {UNKNOWN} beyond: amounts, not places"
        return Group(*([Columns(entries, padding=(0, 3))] if entries else []), Text(signs, "dim"))

    # --- for programs -----------------------------------------------------------------------------------------

    def document(self, limit: int | None) -> dict[str, Any]:
        """The JSON document; without a limit it has all slabs."""
        return {
            "rack": self.report.name,
            "fragmentation": round(fragmentation(self.slabs), 6),
            "elements": [
                described_element(element) | {"fragmentation": round(self._fragmentation(element.name), 6)}
                for element in self.elements
            ],
            "owners": [
                {"id": owner, "name": self.name(owner), "bytes": self.owners.nbytes[owner]}
                for owner in self.owners.by_size
            ],
            "slab_count": len(self.slabs),
            "slabs": [self._described_slab(slab) for slab in self.slabs[:limit]],
        }

    def _described_slab(self, slab: SlabStatus) -> dict[str, Any]:
        return {
            "slab": slab.slab,
            "group": slab.group,
            "element": slab.element,
            "home": {"id": slab.home, "name": self.name(slab.home)},
            "address": slab.address,
            "bytes": slab.pages * self.page_bytes,
            "pages": slab.pages,
            "huge": slab.huge,
            "extents": slab.extents,
            "free_bytes": slab.free_pages * self.page_bytes,
            "failed_bytes": slab.failed,
            "free_runs": slab.free_runs,
            "largest_free_bytes": slab.largest_free_run * self.page_bytes,
            "fragmentation": round(fragmentation([slab]), 6),
            "owners": [
                {"id": owner, "name": self.name(owner), "bytes": pages * self.page_bytes}
                for owner, pages in slab.owners
            ],
            "runs": [{"pages": run.pages, "state": run.state, "owner": run.owner} for run in slab.runs],
            "runs_complete": sum(run.pages for run in slab.runs) == slab.pages,
        }


# --- memory elements, here and in `bequest top` ---------------------------------------------------------------


def element_table(
    all_elements: list[ElementStatus], width: int, fragmented: dict[str, float] | None = None
) -> Table:
    """One row for each memory element, with a bar."""
    bar = _BAR if width >= _WIDE else _BAR * 2 // 3
    table = new_table()
    add_names(table, "ELEMENT")
    add_names(table, "KIND")
    table.add_column("", width=bar, no_wrap=True)
    for header in ("USED", "READY", "SIZE"):
        add_numbers(table, header)
    if fragmented is not None:
        add_numbers(table, "FRAG.")
    for element in all_elements:
        drawn = _bar(element, bar) if element.state == "well" and not element.failed else _trouble(element)
        row: list[str | Text] = [name(element.name), name(element.kind), drawn]
        row += [format_bytes(element.used), format_bytes(_ready(element)), format_bytes(element.size)]
        if fragmented is not None:
            row.append(format_share(fragmented[element.name]))
        table.add_row(*row)
    return fit(table, width, ("ELEMENT", "KIND"))


def _trouble(element: ElementStatus) -> Text:
    """In place of the bar: what is wrong with it."""
    from rich.text import Text

    if element.state == "well":
        return Text(f"{format_bytes(element.failed)} lost", "yellow")
    return Text({"failed": "all memory lost", "silent": "does not answer"}[element.state], "red")


def described_element(element: ElementStatus) -> dict[str, Any]:
    """One memory element, as in every JSON document."""
    usage = element.usage
    return {
        "name": element.name,
        "kind": element.kind,
        "state": element.state,
        "failed_bytes": element.failed,
        "size_bytes": element.size,
        "used_bytes": element.used,
        "free_bytes": element.free,
        "slabs": element.slabs,
        "warm_bytes": usage.warm_bytes,
        "recycled_bytes": usage.recycled_bytes,
        "huge_bytes": usage.huge_bytes,
        "warm_hits": usage.warm_hits,
        "cold_misses": usage.cold_misses,
        "summed_bytes": usage.summed_bytes,
        "scrubbed_bytes": usage.scrubbed_bytes,
        "mismatched_bytes": usage.mismatched_bytes,
    }


def _ready(element: ElementStatus) -> int:
    return element.usage.warm_bytes + element.usage.recycled_bytes


def _bar(element: ElementStatus, width: int) -> Text:
    """Used, ready and free, to the nearest cell; what is not nothing gets at least one."""
    from rich.text import Text

    used = _cells(element.used, element.size, width)
    ready = min(_cells(_ready(element), element.size, width), width - used)
    style = "red" if element.used > 0.9 * element.size else "green"
    return Text.assemble(("█" * used, style), ("▒" * ready, "cyan"), ("░" * (width - used - ready), "dim"))


def _cells(part: int, whole: int, width: int) -> int:
    return min(width, max(1 if part else 0, round(width * part / whole))) if whole else 0
