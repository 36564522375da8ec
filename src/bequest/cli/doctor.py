"""``bequest doctor``: what this machine offers, what is degraded without it, and what to do about it.

Works without a rack. If one runs, its own examination, the audit of who owns which page, is shown as well. The exit
code is 1 if something is missing without which Bequest does not work, and 0 otherwise, whatever is merely slower.
"""

from __future__ import annotations

import platform
import sys
from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option
from bequest.cli.probes import DEGRADED, MISSING, OK, Check, Finding
from bequest.cli.racks import audit, open_rack, rack_option
from bequest.errors import BequestError, NoRack

if TYPE_CHECKING:
    from bequest.wire.messages import AuditReport

_LINUX_ONLY = "only on Linux"


@click.command("doctor")
@rack_option
@json_option
@click.pass_obj
def command(output: Output, rack_name: str | None) -> int:
    """What this machine offers for Bequest, and what is degraded without it.

    Exit code 1 if something required is missing.
    """
    from bequest.cli.checks import CHECKS

    findings = [(check, _examine(check)) for check in CHECKS]
    works = not any(check.required and finding.status == MISSING for check, finding in findings)
    rack = _audited(rack_name) if works else None
    if output.json:
        output.document(_described(findings, works, rack))
    else:
        _print(output, findings, works, rack)
    return 0 if works else 1


def _examine(check: Check) -> Finding:
    """A probe that cannot even be made has its answer, too."""
    if sys.platform != "linux" and check.id != "platform":
        return Finding(MISSING, _LINUX_ONLY)
    try:
        return check.probe()
    except (OSError, ValueError, AttributeError, ImportError) as error:
        return Finding(MISSING, f"{type(error).__name__}: {error}")


def _audited(rack_name: str | None) -> tuple[str, AuditReport | str] | None:
    """The rack's name and its audit, or why there is none; None if no rack runs and none was asked for."""
    try:
        with open_rack(rack_name) as rack:
            return rack.name, audit(rack)
    except NoRack:
        if rack_name is not None:
            raise
        return None
    except BequestError as error:
        return rack_name or "", str(error)


# --- for people -----------------------------------------------------------------------------------------------

_MARKS = {OK: ("✔", "green"), DEGRADED: ("▲", "yellow"), MISSING: ("✘", "red")}


def _print(
    output: Output,
    findings: list[tuple[Check, Finding]],
    works: bool,
    rack: tuple[str, AuditReport | str] | None,
) -> None:
    from rich.table import Table
    from rich.text import Text

    console = output.console
    console.print(
        Text.assemble(("Bequest", "bold"), f" on {platform.node()}, Python {platform.python_version()}\n")
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column()
    for check, finding in findings:
        mark, style = _MARKS[finding.status]
        if finding.status == MISSING and not check.required:
            mark, style = "○", "yellow"
        told = Text(finding.found)
        if finding.status != OK:
            told.append(f"\n{check.affects}", "default")
            told.append(f"\n{check.remedy}", "cyan")
        table.add_row(
            Text(mark, style), Text(check.name, "" if finding.status == OK else f"bold {style}"), told
        )
    console.print(table)
    console.print()
    _print_audit(output, rack)
    console.print(_verdict(findings, works))


def _print_audit(output: Output, rack: tuple[str, AuditReport | str] | None) -> None:
    from rich.text import Text

    from bequest.cli.units import plural

    if rack is None:
        output.console.print(Text("No rack is running that could be audited.", "dim"))
        return
    name, report = rack
    if isinstance(report, str):
        output.console.print(Text.assemble(("✘ ", "red"), f"The audit failed: {report}"))
    elif report.findings:
        told = plural(len(report.findings), "finding")
        output.console.print(
            Text.assemble(("✘ ", "red"), "Rack ", (name, "bold"), f": the audit has {told}:")
        )
        for line in report.findings:
            output.console.print(Text(f"    {line}"))
    else:
        where = f"{plural(report.slabs, 'slab')} of {plural(report.groups, 'group')}"
        told = f": audited, every page of {where} has exactly one owner"
        output.console.print(Text.assemble(("✔ ", "green"), "Rack ", (name, "bold"), told))


def _verdict(findings: list[tuple[Check, Finding]], works: bool) -> str:
    from bequest.cli.units import plural

    if not works:
        lacking = [check.name for check, finding in findings if check.required and finding.status == MISSING]
        if sys.platform != "linux":
            return f"[bold red]Bequest runs on Linux only, not on {platform.system() or sys.platform}.[/]"
        return f"[bold red]Bequest cannot work here: it lacks {', '.join(lacking)}.[/]"
    worse = sum(finding.status != OK for _, finding in findings)
    told = "" if not worse else f" {plural(worse, 'thing')} could be better, as said above."
    return f"[bold green]Bequest works here.[/]{told}"


# --- for programs ---------------------------------------------------------------------------------------------


def _described(
    findings: list[tuple[Check, Finding]], works: bool, rack: tuple[str, AuditReport | str] | None
) -> dict[str, Any]:
    return {
        "works": works,
        "python": platform.python_version(),
        "system": platform.system(),
        "checks": [
            {
                "id": check.id,
                "name": check.name,
                "status": finding.status,
                "required": check.required,
                "found": finding.found,
                "affects": check.affects,
                "remedy": check.remedy,
            }
            for check, finding in findings
        ],
        "audit": None if rack is None else _described_audit(*rack),
    }


def _described_audit(name: str, report: AuditReport | str) -> dict[str, Any]:
    if isinstance(report, str):
        return {"rack": name, "error": report, "findings": [], "groups": 0, "slabs": 0}
    return {
        "rack": name,
        "error": None,
        "findings": report.findings,
        "groups": report.groups,
        "slabs": report.slabs,
    }
