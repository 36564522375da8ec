"""`DataFrame.shuffle` by a 40-bit key, in Dask's own way and on a rack, over the same rows.

The rows have the key and three columns of eight bytes each, and lie in the workers' memory when a round begins; it ends
when all outputs do. After each round outputs of both sides are compared, row by row in their order, by digests.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

from .dask_side import Side, both_sides, take_turns
from .measure import Figure, Noise, Outcome, Target, timed

ROWS = 16_000_000
PARTITIONS = 32
ROW_BYTES = 4 * 8
ROUNDS = 5


def make_partition(number: int, rows: int) -> Any:
    """The rows of one partition, the same whoever makes it."""
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(number)
    return pd.DataFrame({
        "key": rng.integers(0, 1 << 40, rows),
        "a": rng.random(rows),
        "b": rng.integers(0, 1 << 60, rows),
        "c": rng.random(rows),
    })  # fmt: skip


def digest(part: Any) -> Any:
    """Of a partition: its types, its rows, and their order."""
    import pandas as pd

    rows = pd.util.hash_pandas_object(part, index=True).to_numpy()
    text = f"{list(part.dtypes.items())} {hashlib.blake2b(rows.tobytes()).hexdigest()}"
    return pd.DataFrame({"digest": [text], "rows": [len(part)]})


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    import dask.dataframe as dd

    import dask

    rows, rounds = (ROWS // 16, 2) if quick else (ROWS, ROUNDS)
    dask.config.set({"dataframe.shuffle.method": "p2p"})
    outcome = Outcome("dask_shuffle")
    say(f"dask_shuffle: {rows:,} rows")
    with both_sides() as sides:
        inputs = {}
        for side in sides:
            frame = dd.from_map(
                make_partition, range(PARTITIONS), rows=rows // PARTITIONS, meta=make_partition(0, 2)
            )
            inputs[side.name] = side.keep(frame)

        def shuffle(side: Side) -> Any:
            return side.keep(inputs[side.name].shuffle("key"))

        outputs = take_turns(
            sides, shuffle, 0, noise, say
        )  # only to be compared: what is kept fills the memory
        equal = _digests(sides[0], outputs) == _digests(sides[1], outputs)
        outputs.clear()
        take_turns(sides, lambda side: shuffle(side) is None, rounds, noise, say)
    _report(outcome, sides, rows, equal)
    return outcome


def _digests(side: Side, outputs: dict[str, list[Any]]) -> list[tuple[str, int]]:
    meta = {"digest": object, "rows": int}
    with side.client.as_current():
        found = outputs[side.name][0].map_partitions(digest, meta=meta).compute()
    return list(zip(found["digest"], found["rows"], strict=True))


def _report(outcome: Outcome, sides: list[Side], rows: int, equal: bool) -> None:
    stock, ours = sides
    what = f"shuffle of {rows:,} rows"
    for side in sides:
        outcome.figures.append(timed(f"{what}, {side.name}", side.seconds))
        outcome.raw[side.name] = {
            "seconds": side.seconds, "peak_bytes": side.peak_bytes, "socket_bytes": side.socket_bytes,
        }  # fmt: skip
    data = rows * ROW_BYTES
    sent = max(ours.socket_bytes) / data
    outcome.figures += [
        Figure(f"{what}, times faster on a rack", stock.median / ours.median, "x", Target("at least", 3)),
        Figure(
            f"{what}, peak memory, {stock.name}",
            max(stock.peak_bytes),
            "bytes",
            note="inputs and outputs included",
        ),
        Figure(
            f"{what}, peak memory, {ours.name}",
            max(ours.peak_bytes),
            "bytes",
            Target("at most", max(stock.peak_bytes)),
        ),
        Figure(
            f"{what}, bytes through sockets, {stock.name}",
            max(stock.socket_bytes) / data * 100,
            "% of the data",
        ),
        Figure(
            f"{what}, bytes through sockets, {ours.name}", sent * 100, "% of the data", Target("at most", 0.1)
        ),
        Figure(
            f"{what}, outputs equal", float(equal), "", Target("at least", 1), "types, rows, and their order"
        ),
    ]
