"""The word count once more, over `multiprocessing` pipes: the same work, with words copied from process to process.

Each mapper has a pipe to each reducer. What it sends is copied into the kernel, a pipe's 64 KiB at a time, and copied
out of it into the reducer's memory; while a reducer is busy counting, the mapper waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from multiprocessing import connection

from bequest._examples.word_count_support import corpus
from bequest._examples.word_count_support.crew import Crew, Tally, Wire

COPIES = 2  # of each byte that goes through a pipe: into the kernel, and out of it


def mapper(wire: Wire, reducers: list[connection.Connection], pieces: list[corpus.Piece]) -> None:
    """Reads its share of the text and sends each reducer its words."""
    tally = Tally()
    wire.ready()
    for text in corpus.rounds(pieces):
        for reducer, words in zip(
            reducers, corpus.partition(corpus.words_of(text), len(reducers)), strict=True
        ):
            send(reducer, words, tally)
        wire.progress(len(text))
    for reducer in reducers:
        reducer.close()
    wire.done(tally)


def reducer(wire: Wire, mappers: list[connection.Connection]) -> None:
    """Counts the words that it is sent, and sends the counts to the master."""
    tally = Tally()
    counts: Counter[bytes] = Counter()
    wire.ready()
    while mappers:
        for ready in connection.wait(mappers):
            assert isinstance(ready, connection.Connection)
            try:
                words = ready.recv_bytes()
            except EOFError:
                mappers.remove(ready)
                continue
            counts.update(corpus.words_of(words))
    with tally.hand_over(0):
        size = wire.result(dict(counts))
    tally.nbytes += size
    tally.copied += COPIES * size
    wire.done(tally)


def send(pipe: connection.Connection, data: bytes, tally: Tally) -> None:
    """Sends words to a reducer; returns when the last of them are in the kernel."""
    with tally.hand_over(len(data)):
        pipe.send_bytes(data)
        tally.copied += COPIES * len(data)


def run(
    shares: list[list[corpus.Piece]], reducers: int
) -> Generator[int | Tally | dict[bytes, int], None, None]:
    """Runs the job. Yields the bytes of text done as they are, the workers' tallies, and each reducer's counts."""
    with Crew() as crew:
        lines = [[crew.pipe() for _ in shares] for _ in range(reducers)]  # [reducer][mapper]
        for number, share in enumerate(shares):
            crew.start(f"mapper-{number}", mapper, [line[number][1] for line in lines], share)
        for number, line in enumerate(lines):
            crew.start(f"reducer-{number}", reducer, [receive for receive, _ in line])
        for line in lines:  # only the workers hold them now
            for receive, send_end in line:
                receive.close()
                send_end.close()
        crew.go()
        yield from crew.reports()
