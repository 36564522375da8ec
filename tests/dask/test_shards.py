"""How shards lie in regions, when their memory is freed, and how a worker's inbox is shared."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from itertools import pairwise

import pytest

import bequest as bq
from bequest.dask import post
from bequest.dask.post import Post
from bequest.dask.shards import (
    LARGE_CHUNK_BYTES,
    STRIP_INPUTS,
    Chunk,
    Shard,
    Strips,
    grant_shards,
    read_tag,
    tag_of,
)
from bequest.limits import PAGE_BYTES
from bequest.memory.process import Process
from bequest.memory.region import Region

DEADLINE = 20
FREE = 2  # State in native/layout.hpp


@pytest.fixture
def me() -> Iterator[Process]:
    with bq.connect() as rack, rack.attach("shards") as process:
        yield process


def chunk(number: int, nbytes: int) -> Chunk:
    return Chunk(
        (number,), nbytes, lambda room: room.__setitem__(slice(None), bytes([number]) * nbytes), b"about"
    )


def write(me: Process, *sizes: int) -> list[Region]:
    chunks = [chunk(number, nbytes) for number, nbytes in enumerate(sizes)]
    strips = Strips(me)
    written = strips.write((3, 4), {"one": chunks}, {one.place: number for number, one in enumerate(chunks)})
    strips.close()
    return written["one"]


def shard_of(me: Process, *sizes: int) -> tuple[Region, Shard]:
    (region,) = write(me, *sizes)
    return region, Shard(region)


def test_a_tag_names_the_run() -> None:
    assert read_tag(tag_of("shuffle", 7)) == ("shuffle", 7)


@pytest.mark.parametrize("sizes", [(1, 70, 4097, 0, 100), (9,), (LARGE_CHUNK_BYTES,)])
def test_what_is_written_is_read_and_freed(me: Process, sizes: tuple[int, ...]) -> None:
    region, shard = shard_of(me, *sizes)
    assert shard.source == (3, 4)
    assert shard.places == [(number,) for number in range(len(sizes))]
    for number, nbytes in enumerate(sizes):
        with shard.read((number,)) as (about, view):
            assert (about, bytes(view), view.readonly) == (b"about", bytes([number]) * nbytes, True)
            del view
    assert not region.remaining


def test_large_chunks_are_shards_of_their_own(me: Process) -> None:
    sizes = (LARGE_CHUNK_BYTES, 3 * LARGE_CHUNK_BYTES + 1, 5, PAGE_BYTES)
    regions = write(me, *sizes)
    assert len(regions) == len(sizes)
    for shard in map(Shard, regions):
        ((number,),) = shard.places
        with shard.read((number,)) as (_, view):
            assert bytes(view) == bytes([number]) * sizes[number]
            del view
    assert not any(region.remaining for region in regions)


def addresses(written: dict[str, list[Region]]) -> list[tuple[int, int]]:
    """From where to where each chunk's region goes, ascending."""
    return sorted(
        (region.address, region.address + region.nbytes) for its in written.values() for region in its
    )


def are_neighbours(spans: list[tuple[int, int]]) -> bool:
    return all(before[1] == after[0] for before, after in pairwise(spans))


def test_what_is_used_at_the_same_turn_lies_side_by_side(me: Process) -> None:
    """Of several inputs, for each of two receivers; and beside it what is used next."""
    strips = Strips(me)
    chunks = [chunk(number, 2 * LARGE_CHUNK_BYTES - PAGE_BYTES // 2) for number in range(3)]
    turns = {one.place: turn for turn, one in enumerate(chunks)}
    written = [
        strips.write((source,), {"one": chunks, "two": chunks}, turns) for source in range(STRIP_INPUTS)
    ]
    strips.close()
    held: dict[tuple[str, int], list[Region]] = {}
    for each in written:
        for receiver, regions in each.items():
            for region in regions:
                ((turn,),) = Shard(region).places
                held.setdefault((receiver, turn), []).append(region)
    assert all(are_neighbours(addresses({"": regions})) for regions in held.values())
    free = []  # what becomes free, turn by turn, is one run
    for turn in range(3):
        for receiver in ("one", "two"):
            free += held.pop((receiver, turn))
        gaps = [after[0] - before[1] for before, after in pairwise(addresses({"": free}))]
        assert max(gaps) <= STRIP_INPUTS * LARGE_CHUNK_BYTES // 8  # what is to spare in a strip


def test_strips_begin_anew_when_they_are_too_short(me: Process) -> None:
    strips = Strips(me)
    for nbytes in (LARGE_CHUNK_BYTES, 9 * LARGE_CHUNK_BYTES, LARGE_CHUNK_BYTES):
        (region,) = strips.write((0,), {"one": [chunk(1, nbytes)]}, {(1,): 0})["one"]
        with Shard(region).read((1,)) as (_, view):
            assert len(view) == nbytes
            del view
    (region,) = strips.write((0,), {"one": [chunk(2, LARGE_CHUNK_BYTES)]}, {(2,): 8})["one"]
    region.free()
    strips.close()
    assert me.counters["allocs"] == 3 and owned_bytes(me) == 0


def test_without_room_for_several_inputs_there_is_room_for_one(
    me: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    alloc = me.alloc

    def little(nbytes: int, *, packed: bool) -> Region:
        if nbytes > 2 * LARGE_CHUNK_BYTES:
            raise bq.RackMemoryError("no room")
        return alloc(nbytes, packed=packed)

    monkeypatch.setattr(me, "alloc", little)
    (region,) = Strips(me).write((0,), {"one": [chunk(1, LARGE_CHUNK_BYTES)]}, {(1,): 0})["one"]
    region.free()
    with pytest.raises(bq.RackMemoryError, match="no room"):
        Strips(me).write(
            (0,), {"one": [chunk(n, LARGE_CHUNK_BYTES) for n in range(3)]}, {(n,): n for n in range(3)}
        )
    assert owned_bytes(me) == 0


def test_what_a_writer_raises_leaves_nothing(me: Process) -> None:
    def refuse(room: memoryview) -> None:
        raise ValueError("no")

    for nbytes in (10, LARGE_CHUNK_BYTES):
        strips = Strips(me)
        with pytest.raises(ValueError, match="no"):
            strips.write((0,), {"one": [chunk(1, nbytes), Chunk((2,), nbytes, refuse)]}, {(1,): 0, (2,): 1})
        strips.close()
        assert owned_bytes(me) == 0


def owned_bytes(me: Process) -> int:
    gc.collect()
    return sum(
        extent[1] * PAGE_BYTES
        for slab in me.table.slabs()
        for extent in me.table.slab_extents(slab[0])
        if extent[2] != FREE
    )


def test_small_chunks_are_freed_together(me: Process) -> None:
    region, shard = shard_of(me, 10, 10)
    with shard.read((0,)):
        pass
    assert region.owned
    with shard.read((1,)):
        pass
    assert not region.remaining


@pytest.mark.parametrize("sizes", [(10, 10), (LARGE_CHUNK_BYTES,)])
def test_what_is_abandoned_while_it_is_read_is_freed_by_its_reader(
    me: Process, sizes: tuple[int, ...]
) -> None:
    region, shard = shard_of(me, *sizes)
    with shard.read((0,)) as (_, view):
        shard.abandon()
        assert bytes(view) == bytes(sizes[0])
        del view
    assert not region.remaining


def test_who_looks_longer_keeps_the_memory_until_then(me: Process) -> None:
    region, shard = shard_of(me, 10)
    with shard.read((0,)) as (_, view):
        pass
    assert bytes(view) == bytes(10)
    del region, shard
    before = me.counters["frees"]
    del view
    assert me.counters["frees"] > before


def test_a_grant_waits_until_nobody_looks(me: Process) -> None:
    region, shard = shard_of(me, 10)
    view = memoryview(region)
    granting = threading.Thread(target=grant_shards, args=([region], me.name, b"tag"))
    granting.start()
    granting.join(0.05)
    assert region.owned
    view.release()
    granting.join(DEADLINE)
    assert not region.owned
    me.accept(DEADLINE).free()
    del shard


def test_the_post_delivers_by_kind_in_order_and_then_passes_the_fence(me: Process) -> None:
    came: list[bytes] = []
    passed = threading.Event()
    mine = Post(me)
    mine.route(b"mine", lambda region: came.append(region.tag))
    for number in range(5):
        me.send(me.name, b"mine%d" % number)
    me.alloc(1).grant(me.name, tag=b"????")  # nobody's: it is freed
    mine.fence(lambda: (came.append(b"fence"), passed.set()))  # type: ignore[func-returns-value]
    mine.start()
    assert passed.wait(DEADLINE)
    mine.close()
    assert came == [*(b"mine%d" % number for number in range(5)), b"fence"]
    assert me.counters["frees"] == 1
    late = threading.Event()
    mine.fence(late.set)  # nobody is to wait for what comes no more
    assert late.is_set() and not mine.alive


def test_what_cannot_be_delivered_does_not_stop_the_post(
    me: Process, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(_: Region) -> None:
        raise ValueError("no")

    came = threading.Event()
    mine = Post(me)
    mine.route(post.SHARD, refuse)
    mine.route(b"good", lambda _: came.set())
    mine.start()
    me.send(me.name, post.SHARD)
    me.send(me.name, b"good")
    assert came.wait(DEADLINE)
    mine.close()
    assert "could not be taken in" in caplog.text
