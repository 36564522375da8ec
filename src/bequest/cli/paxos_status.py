"""``bequest paxos status``: what every replica of a service says of itself, as a live table.

All replicas are asked at the same time; one that does not answer is shown as such. On a terminal the table is drawn
again every second until ``q`` or Ctrl-C; in a pipe, or with ``--json``, it is printed once.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bequest.cli.output import Output, json_option
from bequest.cli.paxos import config_option, find_service
from bequest.cli.paxos_place import DEFAULT_NAME
from bequest.cli.tables import add_names, add_numbers, fit, new_table
from bequest.cli.top import keys
from bequest.cli.units import format_bytes
from bequest.errors import RackFault

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

    from bequest.paxos.config import Service
    from bequest.paxos.status import Report

_ASK_SECONDS = 1.0
_STYLES = {"leader": "green", "follower": "cyan", "candidate": "yellow", "joining": "yellow"}


@click.command("status")
@click.argument("name", default=DEFAULT_NAME)
@config_option
@click.option("--once", is_flag=True, help="Print one table, also on a terminal.")
@click.option(
    "--interval", metavar="SECONDS", type=click.FloatRange(min=0.05), default=1.0, show_default=True,
    help="Between two looks.",
)  # fmt: skip
@json_option
@click.pass_obj
def command(output: Output, name: str, config_file: Path | None, once: bool, interval: float) -> int:
    """Replicas, leader, ballots, lag, standbys, and who was reincarnated when. Ends with q or Ctrl-C.

    NAME is a service that `bequest paxos up` runs on this machine; of another, give its file by --config. The exit code
    is 1 if no replica answers.
    """
    service = find_service(name, config_file)
    reports = look(service)
    if output.json:
        output.document(_described(service, reports))
    elif once or not output.console.is_terminal:
        output.console.print(_table(reports, output.console.width))
    else:
        _live(output, service, interval)
    return 0 if any(reports.values()) else 1


def look(service: Service) -> dict[str, Report | None]:
    """What each site's replica says; None of one that does not answer."""
    with ThreadPoolExecutor(len(service.sites)) as threads:
        answers = threads.map(lambda site: _ask(service, site.name), service.sites)
        return {site.name: answer for site, answer in zip(service.sites, answers, strict=True)}


def _ask(service: Service, site: str) -> Report | None:
    from bequest.paxos.status import ask

    try:
        return ask(service.name, service.site(site).peers, _ASK_SECONDS)
    except (OSError, RackFault):
        return None


def _live(output: Output, service: Service, interval: float) -> None:
    from rich.live import Live

    with keys() as pressed, Live(console=output.console, screen=True, auto_refresh=False) as live:
        while True:
            live.update(_table(look(service), output.console.width), refresh=True)
            try:
                if pressed(interval):
                    return
            except KeyboardInterrupt:
                return


def _table(reports: dict[str, Report | None], width: int) -> Table:
    from rich.text import Text

    table = new_table()
    add_names(table, "SITE")
    for header in ("ROLE", "BALLOT"):
        table.add_column(header, no_wrap=True)
    for header in ("REPLICA", "CHOSEN", "LAG", "STANDBYS", "CLIENTS", "HEAP"):
        add_numbers(table, header)
    table.add_column("REINCARNATED", no_wrap=True, overflow="ellipsis")
    newest = max((report.chosen for report in reports.values() if report is not None), default=0)
    for site, report in reports.items():
        if report is None:
            table.add_row(Text(site), Text("no answer", "red"), *[""] * 8)
        else:
            table.add_row(Text(site), *_cells(report, newest))
    return fit(table, width, ("SITE", "REINCARNATED"))


def _cells(report: Report, newest: int) -> list[str | Text]:
    from rich.text import Text

    return [
        Text(report.role, _STYLES.get(report.role, "")),
        f"{report.ballot[0]}.{report.ballot[1]}",
        str(report.replica),
        str(report.chosen),
        str(newest - report.applied),
        str(len(report.standbys)),
        str(report.clients),
        format_bytes(report.heap_bytes),
        _lives(report),
    ]


def _lives(report: Report) -> str:
    """How often it was reincarnated, when last, and how long that took."""
    if not report.reincarnations:
        return "never"
    last = report.reincarnations[-1]
    times = "once" if len(report.reincarnations) == 1 else f"{len(report.reincarnations)} times"
    at = time.strftime("%H:%M:%S", time.localtime(last.at))
    return f"{times}, last at {at} in {last.took_ms:.1f} ms"


def _described(service: Service, reports: dict[str, Report | None]) -> dict[str, Any]:
    import msgspec

    leaders = [site for site, report in reports.items() if report is not None and report.role == "leader"]
    return {
        "service": service.name,
        "leader": leaders[0] if len(leaders) == 1 else None,
        "sites": [
            {"site": site, "answers": report is not None}
            | ({} if report is None else msgspec.to_builtins(msgspec.structs.asdict(report), str_keys=True))
            for site, report in reports.items()
        ],
    }
