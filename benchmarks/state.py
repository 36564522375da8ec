"""Objects in a heap: how fast they change, beside other stores, and how soon a heap can be used again after a kill.

Every store holds the same million entries, keys of 16 bytes and values of 100, in the same order, and is asked for and
given the same keys in the same random order; every put is a transaction of its own. The stores take turns, a round each
for gets and for puts, so that a drift of the machine meets all of them. A figure is the median of the rounds.

Recovery: a process fills its heap and is killed in the middle of a transaction; another one steals the memory, which is
not timed, and opens the heap, which is.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from . import bequest_side
from .heirs import receive
from .measure import GIB, MIB, Figure, Noise, Outcome, Target, size_name, timed
from .stores import STORES, BequestMap, Lmdb, LmdbOneReader, Pair, Store

ENTRIES, QUICK_ENTRIES = 1_000_000, 100_000
KEY_BYTES, VALUE_BYTES = 16, 100
ROUNDS = 7
OPERATIONS, SLOW_OPERATIONS = 20_000, 2_000
SLOW = ("multiprocessing.Manager().dict",)
SEED = 20200713

TRANSACTIONS = 50_000
RECORDS, BATCH = 500_000, 1_000
REPEATS = 5

RECOVERED_BYTES = (GIB, 16 * MIB)
RECOVERIES, QUICK_RECOVERIES = 15, 3
BLOB_BYTES = 64 << 10

GETS_OVER_LMDB = Target("at most", 1)
PUTS_OVER_LMDB = Target("at least", 3)
PYTHON_TRANSACTION = Target("at most", 3e-6)
NATIVE_TRANSACTION = Target("at most", 0.3e-6)
APPENDS = Target("at least", 1_000_000)
RECOVERED = Target("at most", 1e-3)


# --- beside other stores --------------------------------------------------------------------------------------------


def pairs_of(count: int, chance: random.Random) -> list[Pair]:
    """As many entries, of distinct random keys."""
    return [
        (number.to_bytes(4, "big") + chance.randbytes(KEY_BYTES - 4), chance.randbytes(VALUE_BYTES))
        for number in range(count)
    ]


def get_seconds(store: Store, wanted: list[Pair]) -> float:
    """A get, on average over these; each answer is looked at."""
    keys = [key for key, _ in wanted]
    with store.reading() as get:
        gc.disable()
        started = time.perf_counter()
        found = [get(key) for key in keys]
        seconds = time.perf_counter() - started
        gc.enable()
        assert found == [value for _, value in wanted], f"{store.title} has lost or changed an entry"
        del found  # they may be views of what is there now
    return seconds / len(wanted)


def put_seconds(store: Store, wanted: list[Pair]) -> float:
    """A put of a key that is there, on average."""
    put = store.put
    gc.disable()
    started = time.perf_counter()
    for key, value in wanted:
        put(key, value)
    seconds = time.perf_counter() - started
    gc.enable()
    return seconds / len(wanted)


def stores_of(directory: Path, me: Any) -> tuple[list[Store], dict[str, str]]:
    """Those that can be had here, and why the others cannot."""
    found: list[Store] = []
    absent = {}
    for kind in STORES:
        if kind.package and find_spec(kind.package) is None:
            absent[kind.title] = f"the Python package {kind.package} is not installed"
        else:
            found.append(kind(directory, me))
    return found, absent


def beside(
    me: Any, entries: int, noise: Noise, say: Callable[[str], None]
) -> tuple[list[Figure], dict[str, Any]]:
    """Gets and puts of all stores, in turns."""
    chance = random.Random(SEED)
    pairs = pairs_of(entries, chance)
    with tempfile.TemporaryDirectory(prefix="bequest-bench-") as directory:
        stores, absent = stores_of(Path(directory), me)
        for store in stores:
            say(f"state: filling {store.title}")
            store.fill(pairs)
        say("state: gets and puts")
        seconds: dict[str, dict[str, list[float]]] = {store.title: {"get": [], "put": []} for store in stores}
        for _ in range(ROUNDS):
            wanted = chance.sample(pairs, OPERATIONS)
            for store in stores:
                noise.sample()
                some = wanted[:SLOW_OPERATIONS] if store.title in SLOW else wanted
                seconds[store.title]["get"].append(get_seconds(store, some))
                seconds[store.title]["put"].append(put_seconds(store, some))
            chance.shuffle(stores)
        for store in stores:
            store.close()
    return _store_figures(seconds, absent, entries), seconds


def _store_figures(
    seconds: dict[str, dict[str, list[float]]], absent: dict[str, str], entries: int
) -> list[Figure]:
    what = f"{entries:,} entries"
    figures = []
    for kind in STORES:
        for operation in ("get", "put"):
            name = f"{kind.title}: {operation}, {what}"
            found = seconds.get(kind.title, {}).get(operation, [])
            figures.append(timed(name, found, None, absent.get(kind.title, "")))
    ours = {operation: statistics.median(found) for operation, found in seconds[BequestMap.title].items()}
    for kind in (Lmdb, LmdbOneReader):
        gets = seconds.get(kind.title, {}).get("get")
        ratio = ours["get"] / statistics.median(gets) if gets else None
        why = absent.get(kind.title, "")
        figures.append(Figure(f"get: our time over that of {kind.title}", ratio, "", GETS_OVER_LMDB, why))
    puts = seconds.get(Lmdb.title, {}).get("put")
    ratio = statistics.median(puts) / ours["put"] if puts else None
    why = absent.get(Lmdb.title, "")
    figures.append(Figure(f"put: times faster than {Lmdb.title}", ratio, "times", PUTS_OVER_LMDB, why))
    return figures


# --- a heap's own operations ----------------------------------------------------------------------------------------


def repeated(measure: Callable[[], float], noise: Noise) -> list[float]:
    """Some repeats; the first, which warms up, does not count."""
    measure()
    found = []
    for _ in range(REPEATS):
        noise.sample()
        found.append(measure())
    return found


def transaction_seconds(heap: Any) -> float:
    """Three words of 8 bytes in three places, each snapshot and then written, and the commit."""
    memory = heap.memory("cells", 4096)
    one, two, three = memory[0:8], memory[1024:1032], memory[2048:2056]
    data = bytes(range(8))
    started = time.perf_counter()
    for _ in range(TRANSACTIONS):
        with heap.transaction() as tx:
            tx.snapshot(one)
            one[:] = data
            tx.snapshot(two)
            two[:] = data
            tx.snapshot(three)
            three[:] = data
    return (time.perf_counter() - started) / TRANSACTIONS


def appends_per_second(heap: Any) -> float:
    """Records of 100 bytes, in batches that are appended whole or not at all; then they are dropped."""
    from bequest.objects import Log

    log = Log(heap, "bench")
    batch = [bytes(VALUE_BYTES)] * BATCH
    started = time.perf_counter()
    for _ in range(RECORDS // BATCH):
        log.extend(batch)
    seconds = time.perf_counter() - started
    log.truncate(log.end)
    return RECORDS / seconds


def own_figures(me: Any, noise: Noise) -> list[Figure]:
    """Transactions and logs, from Python and from native code."""
    from bequest.objects import Heap

    region = me.alloc(256 * MIB)
    with Heap.create(region) as heap:
        transactions = repeated(lambda: transaction_seconds(heap), noise)
        appends = repeated(lambda: appends_per_second(heap), noise)
    region.free()
    native = bequest_side.heap_bench()
    return [
        timed("undo-log transaction of 3 small writes, from Python", transactions, PYTHON_TRANSACTION),
        Figure(
            "the same, native",
            native["transaction_of_3_writes_ns"] * 1e-9 if native else None,
            "s",
            NATIVE_TRANSACTION,
            "the least of 5 rounds" if native else bequest_side.NO_HEAP_BENCH,
        ),
        Figure(f"Log: 100 B records in batches of {BATCH:,}", statistics.median(appends), "/s", APPENDS),
    ]


# --- after a kill ---------------------------------------------------------------------------------------------------


def fill_and_hang(orders: Connection, key: str, name: str, nbytes: int) -> None:
    """Fills a heap of that size nearly whole, and waits to be killed in the middle of a transaction."""
    from bequest.objects import Heap, Map

    with bequest_side.join(key).attach(name) as me:
        heap = Heap.create(me.alloc(nbytes), grow=False)
        blobs = Map(heap, "blobs")
        blob = bytes(range(256)) * (BLOB_BYTES // 256)
        number = 0
        while heap.free_bytes > nbytes // 16:
            blobs[number.to_bytes(8, "big")] = blob
            number += 1
        cells = heap.memory("cells", 4096)
        heap.transaction().__enter__()
        for place in range(0, 4096, 64):
            transaction = heap.transaction()
            transaction.__enter__()
            transaction.snapshot(cells[place : place + 8])
            cells[place : place + 8] = b"\xff" * 8
        blobs[b"half"] = blob
        orders.send((os.getpid(), number))
        orders.poll(None)


def recovery_seconds(me: Any, key: str, nbytes: int, number: int) -> tuple[float, float, float]:
    """To open the heap of a killed process; until an entry has been read as well; and until another has been put."""
    from bequest.objects import Heap, Map

    name = f"keeper-{nbytes}-{number}"
    with bequest_side.partner(fill_and_hang, key, name, nbytes, method="forkserver") as orders:
        pid, blobs_put = receive(orders)
        os.kill(pid, signal.SIGKILL)
        estate = me.steal(name)
    region = estate.regions[0]
    memoryview(region)[0]  # its first page is mapped, as the theft's own figures have it
    started = time.perf_counter()
    heap = Heap.open(region, grow=False)
    opened = time.perf_counter()
    blobs = Map(heap, "blobs")
    found = blobs.get((blobs_put // 2).to_bytes(8, "big"))
    read = time.perf_counter()
    blobs[b"new"] = b"entry"
    put = time.perf_counter()
    assert found is not None, "an entry is lost"
    assert heap.recovery.did == "undone", "the kill has left nothing to undo"
    assert heap.memory("cells")[:] == bytes(4096), "a transaction that was cut off has left something"
    heap.close()
    estate.free()
    return opened - started, read - started, put - started


def recovery_figures(me: Any, key: str, count: int, noise: Noise) -> list[Figure]:
    """For a large heap and a small one."""
    figures = []
    medians = []
    for nbytes in RECOVERED_BYTES:
        found = []
        for number in range(count):
            noise.sample()
            found.append(recovery_seconds(me, key, nbytes, number))
        opened, read, put = zip(*found, strict=True)
        name = f"kill -9 in a transaction: the heap of {size_name(nbytes)} is open again, after the steal"
        figures.append(timed(name, opened, RECOVERED))
        figures.append(timed(f"{size_name(nbytes)}: until an entry of a Map has been read", read))
        figures.append(
            timed(f"{size_name(nbytes)}: until another has been put: free space has been looked for", put)
        )
        medians.append(statistics.median(opened))
    figures.insert(
        -1,
        Figure("the heap is open again, large over small", medians[0] / medians[1], "", Target("at most", 2)),
    )
    return figures


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    outcome = Outcome("state")
    rack = bequest_side.connect()
    with rack.attach("keeper") as me:
        figures, seconds = beside(me, QUICK_ENTRIES if quick else ENTRIES, noise, say)
        outcome.figures += figures
        outcome.raw["stores"] = seconds
        say("state: transactions and logs")
        outcome.figures += own_figures(me, noise)
        say("state: recovery")
        count = QUICK_RECOVERIES if quick else RECOVERIES
        outcome.figures += recovery_figures(me, bequest_side.rack_key(rack), count, noise)
    return outcome
