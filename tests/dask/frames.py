"""Data that shuffles are tried with."""

from __future__ import annotations

import decimal
from typing import Any

import dask.array
import dask.dataframe
import distributed
import numpy as np
import pandas as pd


def of_all_types(part: int, rows: int = 400) -> pd.DataFrame:
    """A partition with a column of each type that Dask's shuffle takes, and an index of words."""
    rng = np.random.default_rng(part)
    numbers = rng.integers(0, 100, rows)
    words = np.array([f"w{n}" for n in numbers], dtype=object)
    few = numbers % 7 == 0
    days = pd.Timestamp("2026-01-01") + pd.to_timedelta(numbers, unit="D")
    columns: dict[str, Any] = {
        kind: numbers.astype(kind)
        for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8", "bool")
    }
    columns |= {
        "key": rng.integers(0, 1 << 40, rows),
        "holes": np.where(few, np.nan, numbers),
        "moment": days.astype("datetime64[us]"),
        "moment-s": days.astype("datetime64[s]"),
        "moment-zoned": days.tz_localize("Europe/Berlin"),
        "span": pd.to_timedelta(numbers, unit="s"),
        "category": pd.Categorical(words, categories=sorted(f"w{n}" for n in range(100))),
        "text": pd.array(words, dtype="str"),
        "arrow-text": pd.array(words, dtype="string[pyarrow]"),
        "arrow-number": pd.array(numbers, dtype="int64[pyarrow]"),
        "nullable": pd.array(np.where(few, None, numbers), dtype="Int64"),
        "nullable-bool": pd.array(np.where(few, None, numbers > 50), dtype="boolean"),
        "period": pd.PeriodIndex(days, freq="D"),
        "interval": pd.arrays.IntervalArray.from_breaks(np.arange(rows + 1)),
        "decimal": [decimal.Decimal(int(n)) for n in numbers],
        "bytes": [word.encode() for word in words],
    }
    return pd.DataFrame(columns, index=pd.Index(words, name="word"))


def of_numbers(part: int, rows: int = 20_000) -> pd.DataFrame:
    """A partition of plain numbers, with keys that come often."""
    rng = np.random.default_rng(part)
    return pd.DataFrame({"key": rng.integers(0, 500, rows), "x": rng.random(rows), "part": part})


def of_times(part: int, rows: int = 20_000) -> pd.DataFrame:
    """A partition of times and truth values, whose index has a name, values of its own, and no order."""
    rng = np.random.default_rng(part)
    moments = pd.Timestamp("2026-01-01") + pd.to_timedelta(rng.integers(0, 10**6, rows), unit="s")
    columns = {"key": rng.integers(0, 500, rows), "moment": moments, "late": rng.random(rows) < 0.5}
    made = pd.DataFrame(columns | {"small": rng.random(rows).astype("f4")})
    return made.set_index(pd.Index(moments[::-1], name="day"))


def sometimes_of_others(part: int, rows: int = 20_000) -> pd.DataFrame:
    """Partitions of numbers, of which every other one has another type, another name of the index, or more to say."""
    made = of_numbers(part, rows)
    if part % 4 == 1:
        return made.assign(part=made.part.astype("f4"))
    if part % 4 == 2:
        return made.rename_axis(index="row")
    if part % 4 == 3:
        made.attrs["from"] = "elsewhere"
    return made


def of_other_types(part: int, rows: int = 400) -> pd.DataFrame:
    """Partitions that differ in their types: of integers and of others, and with other categories."""
    made = of_numbers(part, rows)
    words = [f"w{part * 10 + n % 7}" for n in range(rows)]
    return made.assign(part=made.part.astype("f4" if part % 2 else "i8"), category=pd.Categorical(words))


def frame(make: Any, parts: int, **arguments: Any) -> dask.dataframe.DataFrame:
    """Of so many partitions, each made where it is wanted."""
    return dask.dataframe.from_map(make, range(parts), meta=make(0, 2), **arguments)


def grants_of(client: distributed.Client) -> dict[str, int]:
    """How often each worker has granted memory, by its address."""

    def of_worker() -> int:
        from bequest.dask.rack_worker import here

        place = here()
        assert place is not None
        return place.process.counters["grants"]

    found: dict[str, int] = client.run(of_worker)
    return found
