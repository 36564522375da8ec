"""``bequest top``: what happens in a rack now.

It looks at the rack again and again, and shows what the counters have gained in between. On a terminal it redraws in
place until ``q`` or Ctrl-C; in a pipe it prints one table after another; with ``--json`` one sample on each line.
"""

from __future__ import annotations

import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from bequest.cli.mem import described_element, element_table
from bequest.cli.output import Output, json_option
from bequest.cli.ps import STATE_STYLES, described_process, headline
from bequest.cli.racks import elements, open_rack, processes, rack_option, rack_report
from bequest.cli.rates import Look, not_copied, rates_between, sparkline, total
from bequest.cli.tables import add_names, add_numbers, fit, name, new_table
from bequest.cli.units import format_bytes, format_count

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from bequest.memory.rack import Rack
    from bequest.wire.messages import ProcessReport

_HISTORY = 24
_WIDE = 100
_WIDER = 120  # where there are rare things to tell besides
Rates = list[dict[str, float]]
_Column = tuple[str, Callable[[dict[str, float]], str]]
_COLUMNS: tuple[_Column, ...] = (
    ("GRANTS/S", lambda rate: format_count(rate["grants"])),
    ("NOT COPIED/S", lambda rate: format_bytes(not_copied(rate))),
)
_MORE_COLUMNS: tuple[_Column, ...] = (
    ("READS/S", lambda rate: format_count(rate["reads"])),
    ("ACCEPTS/S", lambda rate: format_count(rate["accepts"])),
    ("ALLOCS/S", lambda rate: format_count(rate["allocs"])),
    ("FREES/S", lambda rate: format_count(rate["frees"])),
)
_RARE = (("STEALS", "steals"), ("RESUMED", "resumes"))  # counted since the process attached


@click.command("top")
@rack_option
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(min=0.05),
    default=1.0,
    show_default=True,
    help="Between samples.",
)
@click.option("--count", metavar="N", type=click.IntRange(min=1), help="End after N samples.")
@click.option("--once", is_flag=True, help="End after one.")
@json_option
@click.pass_obj
def command(output: Output, rack_name: str | None, interval: float, count: int | None, once: bool) -> int:
    """Grants and bytes not copied per second, steals and resumptions, live, by process. Ends with q or Ctrl-C."""
    count = 1 if once else count
    with open_rack(rack_name) as rack:
        try:
            if output.json:
                for earlier, later in _looks(rack, count, lambda: _sleep(interval)):
                    output.line(_described(earlier, later))
            elif output.console.is_terminal:
                _live(output, rack, interval, count)
            else:
                for earlier, later in _looks(rack, count, lambda: _sleep(interval)):
                    output.console.print(
                        _screen(later, rates_between(earlier, later), (), output.console.width)
                    )
                    output.console.file.flush()
        except KeyboardInterrupt:
            return 0
    return 0


def _looks(rack: Rack, count: int | None, wait: Callable[[], bool]) -> Iterator[tuple[Look, Look]]:
    """Neighbouring looks, until there were so many, or ``wait`` says no."""
    earlier, told = _look(rack), 0
    while (count is None or told < count) and wait():
        later = _look(rack)
        yield earlier, later
        earlier, told = later, told + 1


def _look(rack: Rack) -> Look:
    return Look(time.monotonic(), rack_report(rack), processes(rack), elements(rack))


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return True


# --- on a terminal --------------------------------------------------------------------------------------------


def _live(output: Output, rack: Rack, interval: float, count: int | None) -> None:
    from rich.live import Live

    history: deque[float] = deque([0.0] * _HISTORY, maxlen=_HISTORY)
    first = _look(rack)
    with keys() as pressed, Live(console=output.console, screen=True, auto_refresh=False) as live:
        live.update(_screen(first, None, (), output.console.width), refresh=True)
        for earlier, later in _looks(rack, count, lambda: not pressed(interval)):
            rates = rates_between(earlier, later)
            history.append(not_copied(total(rates)))
            live.update(_screen(later, rates, history, output.console.width), refresh=True)


@contextmanager
def keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds, and says whether ``q`` was pressed meanwhile."""
    if not sys.stdin.isatty():
        yield lambda seconds: not _sleep(seconds)
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)

    def pressed(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", ""):
                return True
        return False

    tty.setcbreak(sys.stdin)
    try:
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _screen(look: Look, rates: Rates | None, history: Sequence[float], width: int) -> Group:
    """Everything at one moment; no rates are known at the first."""
    from rich.console import Group
    from rich.text import Text

    present = [process for process in look.processes if process.state != "gone"]
    parts: list[Text | Table] = [
        headline(look.report, present),
        Text(),
        element_table(look.elements, width),
        Text(),
    ]
    if rates is not None:
        sums = total(rates)
        told = Text.assemble((format_count(sums["grants"]), "bold"), " grants/s   ")
        told.append(f"{format_bytes(not_copied(sums))}/s", "bold green")
        told.append(" handed over or read in place, not copied")
        if history:
            told.append(f"   {sparkline(history)}", "green")
        parts += [told, Text()]
    parts.append(_table(look, rates, width))
    return Group(*parts)


def _table(look: Look, rates: Rates | None, width: int) -> Table:
    """One row for each process, those that hand over most first."""
    from rich.text import Text

    rare = [
        (header, counter)
        for header, counter in _RARE
        if any(process.counters.get(counter) for process in look.processes)
    ]
    shown = [*_COLUMNS, *(_MORE_COLUMNS if width >= (_WIDER if rare else _WIDE) else ())]
    table = new_table()
    add_names(table, "NAME")
    table.add_column("STATE", no_wrap=True)
    add_numbers(table, "OWNS")
    add_numbers(table, "INBOX")
    for header, _ in (*shown, *rare):
        add_numbers(table, header)
    rows: list[tuple[ProcessReport, dict[str, float]]] = [
        (process, {} if rates is None else rates[index])
        for index, process in enumerate(look.processes)
        if process.state != "gone"
    ]
    rows.sort(key=lambda row: (-not_copied(row[1]) if row[1] else 0.0, row[0].id))
    for process, rate in rows:
        state = "mailbox" if process.kind == "mailbox" else process.state
        cells: list[str | Text] = [name(process.name), Text(state, STATE_STYLES.get(state, "cyan"))]
        cells += [format_bytes(process.owned_bytes), str(process.inbox_depth or "")]
        cells += [formatted(rate) if rate else "-" for _, formatted in shown]
        cells += [str(process.counters.get(counter) or "") for _, counter in rare]
        table.add_row(*cells)
    return fit(table, width, ("NAME",))


# --- for programs ---------------------------------------------------------------------------------------------


def _described(earlier: Look, later: Look) -> dict[str, Any]:
    rates = rates_between(earlier, later)
    return {
        "time": round(time.time(), 3),
        "interval_seconds": round(later.at - earlier.at, 6),
        "rack": later.report.name,
        **_per_second(total(rates)),
        "processes": [
            described_process(process) | _per_second(rate)
            for process, rate in zip(later.processes, rates, strict=True)
        ],
        "elements": [described_element(element) for element in later.elements],
    }


def _per_second(rate: dict[str, float]) -> dict[str, float]:
    return {
        "grants_per_second": round(rate["grants"], 3),
        "reads_per_second": round(rate["reads"], 3),
        "bytes_not_copied_per_second": round(not_copied(rate), 3),
        "accepts_per_second": round(rate["accepts"], 3),
        "allocs_per_second": round(rate["allocs"], 3),
        "frees_per_second": round(rate["frees"], 3),
    }
