"""Counts the words of real text by MapReduce, and hands them from mappers to reducers without copying them.

    python examples/word_count.py [--input PATH]... [--mappers 4] [--reducers 2]         or: bequest demo

Four mapper processes read the text, by default the source of the Python standard library, and cut it into words. A
word belongs to one of two reducers. For each of them the mapper puts its words into a *region* of memory and *grants*
it: from then on the region is the reducer's, at the same address, and the mapper could not touch it any more. The
reducer accepts it, counts the words where they lie, and frees the region, whose memory goes home to the mapper for its
next round. At the end each reducer grants its counts to this process.

`mapper` and `reducer` are the whole of it. The rest starts them, counts once in a single process to check, does the
same job over pipes, and draws a table. There is no combiner, so that the shuffle is about as large as the text itself.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path

import bequest as bq
from bequest._examples.word_count_support import corpus
from bequest._examples.word_count_support.crew import Crew, Tally, Wire, WorkerDied

THE_END = b"the end"  # a mapper's last message to each reducer


# --- the job ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seat:
    """Where a worker attaches: the rack, the job's group, and the worker's name in the rack."""

    rack: str
    group: bytes
    name: str


def mapper(wire: Wire, seat: Seat, reducers: list[str], pieces: list[corpus.Piece]) -> None:
    """Reads its share of the text and grants each reducer its words."""
    with bq.connect(seat.rack) as rack, rack.attach(seat.name, group=seat.group) as me:
        tally = Tally()
        wire.ready()
        for text in corpus.rounds(pieces):
            parts = corpus.partition(corpus.words_of(text), len(reducers))
            for reducer, words in zip(reducers, parts, strict=True):
                if words:
                    with tally.hand_over(len(words)):
                        region = me.alloc(len(words))
                        memoryview(region)[:] = words
                        tally.copied += region.grant(reducer)
            wire.progress(len(text))
        for reducer in reducers:
            me.send(reducer, THE_END)
        tally.rack_bytes = me.counters["granted_bytes"]
        wire.done(tally)


def reducer(wire: Wire, seat: Seat, mappers: int, collector: str) -> None:
    """Accepts regions of words, counts them in place, and grants the counts to the collector."""
    with bq.connect(seat.rack) as rack, rack.attach(seat.name, group=seat.group) as me:
        tally = Tally()
        counts: Counter[bytes] = Counter()
        wire.ready()
        while mappers:
            try:
                region = me.accept(timeout=0.5)
            except bq.AcceptTimeout:
                wire.check_master()
                continue
            if region.tag == THE_END:
                mappers -= 1
                continue
            with region, memoryview(region) as words:  # at the end of which it is freed
                counts.update(corpus.words_of(words))
        result = bq.dumps(dict(counts), me)
        with tally.hand_over(result.nbytes):
            tally.copied += result.grant(collector)
        tally.rack_bytes = me.counters["granted_bytes"]
        wire.done(tally)


def run(
    shares: list[list[corpus.Piece]], reducers: int
) -> Generator[int | Tally | dict[bytes, int], None, None]:
    """Runs the job. Yields the bytes of text done as they are, the workers' tallies, and each reducer's counts."""
    job = f"word-count-{os.getpid()}"
    names = [f"{job}-reducer-{number}" for number in range(reducers)]
    with bq.connect() as rack:
        group = rack.create_group(job)
        where = str(rack.directory)
        with rack.attach(f"{job}-collector", group=group) as me, Crew() as crew:
            for number, share in enumerate(shares):
                seat = Seat(where, group.secret, f"{job}-mapper-{number}")
                crew.start(f"mapper-{number}", mapper, seat, names, share)
            for number, name in enumerate(names):
                crew.start(
                    f"reducer-{number}", reducer, Seat(where, group.secret, name), len(shares), me.name
                )
            crew.go()
            yield from crew.reports()
            for _ in names:
                yield bq.loads(me.accept(timeout=10))


# --- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The command. Its exit code is 1 if the counts differ or something failed, 2 for bad input, 130 for Ctrl-C."""
    # The workers need none of what this imports.
    from bequest._examples.word_count_support import comparison

    options = parse(arguments)
    try:
        files = corpus.files_of(options.input) if options.input else corpus.standard_library()
        shares = corpus.shared_out(corpus.pieces_of(files), options.mappers)
        return comparison.show(files, shares, run, options.reducers, options.top, options.json)
    except KeyboardInterrupt:
        return 130
    except corpus.NoText as error:
        print(f"word_count: {error}", file=sys.stderr)
        return 2
    except (WorkerDied, bq.BequestError, OSError) as error:
        print(f"word_count: {error}", file=sys.stderr)
        return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        "word_count", description="Counts words by MapReduce, over granted memory."
    )
    parser.add_argument(
        "--input",
        type=Path,
        action="append",
        default=[],
        metavar="PATH",
        help="a file or directory of text; may be given several times (default: the source of Python's library)",
    )
    parser.add_argument(
        "--mappers", type=number, default=4, metavar="N", help="mapper processes (default: 4)"
    )
    parser.add_argument(
        "--reducers", type=number, default=2, metavar="N", help="reducer processes (default: 2)"
    )
    parser.add_argument("--top", type=number, default=10, metavar="N", help="words to show (default: 10)")
    parser.add_argument(
        "--json", action="store_true", help="print the outcome as JSON, without progress bars"
    )
    return parser.parse_args(arguments)


def number(text: str) -> int:
    """From 1 to 100: argparse says what is wrong with others."""
    if not 1 <= int(text) <= 100:
        raise ValueError
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
