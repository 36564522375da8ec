"""One run's results, three ways: a table for the terminal, a JSON file, and docs/benchmarks.md.

The JSON file is the record; the page in docs/ is written from the same data, never by hand. What is to be
said about a figure that misses its target stands in `limits.md` beside this file and is copied into the page.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from . import etcd_side
from .measure import Figure, Noise, Outcome, Target, quantity, size_name
from .redis_side import server_version

LIMITS = Path(__file__).with_name("limits.md")
PACKAGES = ("bequest", "numpy", "iceoryx2", "lmdb", "ray", "dask", "distributed", "redis", "grpcio")

METHOD = """\
**Hand-off.** Process A fills a buffer beforehand. Timed: A hands it to process B, B reads one byte of every 4 KiB
(the same code for every peer), A holds B's answer. The answer is the checksum of bytes that A wrote anew before each
hand-off, and it is verified. All peers run in one run, in turns that rotate, each in processes of its own, pinned to
nothing; the noise of the machine is sampled between the turns. Where both sides spin, they do so only during their
own turn; before every other hand-off A pauses for 0.2 ms, so that a receiver which sleeps is asleep. Memory is warm:
what is handed over has been touched before. *Reading alone* is the same reading without any hand-off: the floor under
every other row.

**Stealing and failures.** Times are taken from just before the `kill(2)`, or from the last byte of the failing memory
that could be read, on one clock for all processes; everybody else sleeps until then. An owner's memory has all its page
tables; who steals it is a new process each time that has never mapped it. Beside medians stands the 99th percentile.

**State.** Every store holds the same entries, keys of 16 bytes and values of 100, and is asked for and given the same
keys in the same random order; every put is a transaction of its own. None of them waits for a disk. The stores take
turns, a round of gets and one of puts each; a figure is the median of the rounds. What is opened after a kill -9 was
killed in the middle of a transaction with 64 snapshots.

**Checksums.** Rates are those of one core, in 10^9 bytes a second; beside them stands what a core reads and copies of
the same memory through NumPy. The owner is pinned to a core and reads 128 MiB of its own over and over; the three
states of the rack take turns, and a figure is the median of the rounds' ratios.

**Paxos.** One client writes without end, each key once, to whichever member acknowledges it; all have the same.
Times are from just before the `kill(2)` to the first acknowledgement of an attempt that began later. In the
end every key that was ever acknowledged is asked for. All replicas, their racks, the load and the peers share this one
machine; etcd runs with its defaults on its disk, and its dead member is started again at once. Rates are those of 16
clients with 16 writes under way each: redis-benchmark's for what speaks its protocol, and for etcd Python's over gRPC,
which leaves etcd less of the processors.
"""


@dataclass(frozen=True, slots=True)
class Run:
    """The outcomes of one run, and where and how they came about."""

    command: str
    date: str
    machine: dict[str, str]
    versions: dict[str, str]
    outcomes: Sequence[Outcome]

    @property
    def noise(self) -> Noise:
        """All noise samples of the run."""
        return Noise([sample for outcome in self.outcomes for sample in outcome.noise])


def describe(command: str, outcomes: Sequence[Outcome]) -> Run:
    """The run that has just ended on this machine."""
    now = datetime.datetime.now(datetime.UTC)
    return Run(command, f"{now:%Y-%m-%d %H:%M} UTC", _machine(), _versions(), outcomes)


def _machine() -> dict[str, str]:
    model = platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": f"{model}, {os.cpu_count()} cores",
        "memory": size_name(memory),
        "kernel": f"{platform.system()} {platform.release()}",
        "user": "root" if os.geteuid() == 0 else "not root",
    }


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    versions["redis-server"] = server_version()
    versions["etcd"] = etcd_side.server_version()
    return versions


# --- as text ---


def _target(target: Target | None, unit: str) -> str:
    if target is None:
        return ""
    return f"{'≤' if target.sense == 'at most' else '≥'} {quantity(target.bound, unit)}"


def _figure_cells(figure: Figure) -> tuple[str, str, str, str, str]:
    value = quantity(figure.value, figure.unit)
    return figure.name, value, _target(figure.target, figure.unit), figure.verdict, figure.note


def _handoff_rows(outcome: Outcome) -> tuple[list[str], list[list[str]]]:
    """The matrix of peers and sizes: the median, p90 and minimum; where there is none, the reason, once."""
    seconds: dict[str, dict[str, dict[str, float]]] = outcome.raw.get("seconds", {})
    sizes = sorted({int(size) for by_size in seconds.values() for size in by_size})
    rows = []
    for peer, title in outcome.raw.get("titles", {}).items():
        cells = [title]
        reason = outcome.raw["absent"].get(peer, "")
        for size in sizes:
            found = seconds.get(peer, {}).get(str(size))
            cells.append(_timing(found) if found else reason)
            reason = reason if found else ""
        rows.append(cells)
    return ["peer", *(size_name(size) for size in sizes)], rows


def _timing(found: dict[str, float]) -> str:
    median, p90, minimum = (quantity(found[key], "s") for key in ("median", "p90", "minimum"))
    return f"{median}\np90 {p90}\nmin {minimum}"


# --- the terminal ---


def print_report(run: Run, console: Console) -> None:
    """The whole run as tables."""
    for outcome in run.outcomes:
        if outcome.benchmark == "handoff" and not outcome.failure:
            heads, rows = _handoff_rows(outcome)
            matrix = Table(*heads, title="hand-off of a filled buffer: median, p90, minimum", show_lines=True)
            for row in rows:
                matrix.add_row(*row)
            console.print(matrix)
    table = Table("benchmark", "figure", "measured", "target", "verdict", "note", title="figures and targets")
    for outcome in run.outcomes:
        if outcome.failure:
            table.add_row(outcome.benchmark, "", "", "", "[red]failed[/]", outcome.failure)
        for figure in outcome.figures:
            name, value, target, verdict, note = _figure_cells(figure)
            style = {"met": "green", "": ""}.get(verdict, "red")
            table.add_row(
                outcome.benchmark, name, value, target, f"[{style}]{verdict}[/]" if style else "", note
            )
        table.add_section()
    console.print(table)
    console.print(f"noise: {run.noise.describe()}")


# --- the record ---


def as_json(run: Run) -> str:
    """Everything, verdicts included."""
    document: dict[str, Any] = asdict(run)
    for outcome, written in zip(run.outcomes, document["outcomes"], strict=True):
        for figure, cells in zip(outcome.figures, written["figures"], strict=True):
            cells["verdict"] = figure.verdict
    document["noise"] = run.noise.describe()
    return json.dumps(document, indent=1, default=str, ensure_ascii=False) + "\n"


# --- the page ---


def as_markdown(run: Run) -> str:
    """docs/benchmarks.md."""
    parts = [
        "# Benchmarks",
        "",
        "<!-- Written by `python -m benchmarks --write-docs`; edit nothing here. -->",
        "",
    ]
    parts += [
        f"`{run.command}`, {run.date}. Times compare within this run only; another machine has others.",
        "",
    ]
    parts += [f"- {name}: {value}" for name, value in run.machine.items()]
    parts += ["- versions: " + ", ".join(f"{name} {value}" for name, value in run.versions.items())]
    parts += [f"- noise: {run.noise.describe()}", "", METHOD]
    for outcome in run.outcomes:
        parts += [f"## {outcome.benchmark}", ""]
        if outcome.failure:
            parts += [f"Failed: {outcome.failure}", ""]
            continue
        if outcome.benchmark == "handoff":
            heads, rows = _handoff_rows(outcome)
            parts += [*_markdown_table(heads, rows), ""]
        cells = [_figure_cells(figure) for figure in outcome.figures]
        if cells:
            parts += [*_markdown_table(["figure", "measured", "target", "verdict", "note"], cells), ""]
    if LIMITS.exists():
        parts += [LIMITS.read_text().rstrip(), ""]
    return "\n".join(parts)


def _markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", "<br>") for cell in cells) + " |"

    return [line(heads), "|" + " --- |" * len(heads), *(line(row) for row in rows)]
