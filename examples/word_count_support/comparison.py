"""The same text counted three ways, in one process, by grants and over pipes: do they agree, and what did each take?"""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bequest._examples.word_count_support import corpus, over_pipes
from bequest._examples.word_count_support.crew import Tally

MIB = 1 << 20

Reports: TypeAlias = Generator[int | Tally | dict[bytes, int], None, None]
Job: TypeAlias = Callable[[list[list[corpus.Piece]], int], Reports]


@dataclass
class Outcome:
    """One way of doing it. ``seconds`` run from when all processes are ready until all counts are here."""

    way: str
    counts: Counter[bytes] = field(default_factory=Counter)
    tally: Tally = field(default_factory=Tally)
    seconds: float = 0.0


@dataclass
class Comparison:
    """All three, over so many bytes of text."""

    nbytes: int
    alone: Outcome = field(default_factory=lambda: Outcome("one process"))
    granted: Outcome = field(default_factory=lambda: Outcome("granted"))
    piped: Outcome = field(default_factory=lambda: Outcome("over pipes"))

    @property
    def wrong(self) -> list[Outcome]:
        """What does not agree with the single process."""
        return [way for way in (self.granted, self.piped) if way.counts != self.alone.counts]


def show(
    files: list[Path],
    shares: list[list[corpus.Piece]],
    granted_job: Job,
    reducers: int,
    top: int,
    as_json: bool,
) -> int:
    """Does it all, prints it, and returns the exit code: 1 if the ways disagree."""
    console = Console(stderr=as_json)
    compared = Comparison(sum(piece.nbytes for share in shares for piece in share))
    columns = TextColumn("{task.description:<22}"), BarColumn(), DownloadColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console, disable=as_json) as progress:
        for outcome, reports in (
            (compared.alone, corpus.count_in_one_process(files)),
            (compared.granted, granted_job(shares, reducers)),
            (compared.piped, over_pipes.run(shares, reducers)),
        ):
            prefix = "" if outcome is compared.alone else "MapReduce, "
            bar = progress.add_task(prefix + outcome.way, total=compared.nbytes)
            with closing(reports):
                follow(reports, outcome, partial(progress.advance, bar))
            progress.update(bar, completed=compared.nbytes)
    if as_json:
        print(json.dumps(as_data(compared, top)))
    else:
        draw(console, compared, top)
    for outcome in compared.wrong:
        print(
            f"word_count: the words {outcome.way} were counted WRONG: they differ from one process's",
            file=sys.stderr,
        )
    return 1 if compared.wrong else 0


def follow(reports: Reports, outcome: Outcome, moved_on: Callable[[int], None]) -> None:
    """Waits for the job, which begins with its first report, and fills in its outcome."""
    start = 0.0
    for report in reports:
        start = start or time.perf_counter()
        match report:
            case int():
                moved_on(report)
            case Tally():
                outcome.tally += report
            case dict():
                outcome.counts.update(report)
    outcome.seconds = time.perf_counter() - start


# --- telling ----------------------------------------------------------------------------------------------------------


def draw(console: Console, compared: Comparison, top: int) -> None:
    """The top words and the table."""
    alone, granted, piped = compared.alone, compared.granted, compared.piped
    words = Table(title=f"The {top} commonest of {alone.counts.total():,} words", show_header=False)
    for word, count in alone.counts.most_common(top):
        words.add_row(word.decode(errors="replace"), f"{count:,}")
    console.print(words)

    table = Table(title="The same job, three ways")
    table.add_column("", no_wrap=True)
    for heading in ("granted", "over pipes", "one process"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_row("seconds in total", *(f"{way.seconds:.2f}" for way in (granted, piped, alone)))
    pair = granted.tally, piped.tally
    table.add_row("seconds in handing over", *(f"{tally.handing_over:.3f}" for tally in pair), "-")
    table.add_row("times handed over", *(f"{tally.hand_overs:,}" for tally in pair), "-")
    table.add_row("bytes handed over", *(f"{tally.nbytes:,}" for tally in pair), "-")
    table.add_row("… in pages, by the rack's count", f"{granted.tally.rack_bytes:,}", "-", "-")
    table.add_row("bytes copied between processes", *(f"{tally.copied:,}" for tally in pair), "-")
    console.print(table)
    if not compared.wrong:
        console.print(f"All three agree on every one of {len(alone.counts):,} different words.")
    console.print(remark(compared), soft_wrap=True)


def remark(compared: Comparison) -> str:
    """What the figures mean and do not mean."""
    granted, piped = compared.granted.tally, compared.piped.tally
    said = (
        f"Handing over took {granted.handing_over / granted.working:.1%} of the workers' time granted and "
        f"{piped.handing_over / piped.working:.1%} over pipes, where a mapper also waits while the reducer is busy. "
        "The rest is reading, cutting and counting words: it is the same work both ways and dominates the total."
    )
    if compared.alone.seconds < compared.granted.seconds:
        cores = len(os.sched_getaffinity(0))
        said += f" One process is faster at it here: MapReduce cuts each word out twice, and there are {cores} cores."
    return said


def as_data(compared: Comparison, top: int) -> dict[str, object]:
    """All of it, for ``--json``."""
    return {
        "input_bytes": compared.nbytes,
        "words": compared.alone.counts.total(),
        "distinct_words": len(compared.alone.counts),
        "top": [
            [word.decode(errors="replace"), count] for word, count in compared.alone.counts.most_common(top)
        ],
        "exact": not compared.wrong,
        "ways": {
            outcome.way: {"seconds": outcome.seconds, **asdict(outcome.tally)}
            for outcome in (compared.granted, compared.piped, compared.alone)
        },
    }
