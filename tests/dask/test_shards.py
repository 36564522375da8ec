"""How shards lie in regions, when their memory is freed, and how a worker's inbox is shared."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import bequest as bq
from bequest.dask import post
from bequest.dask.post import Post
from bequest.dask.shards import OWN_PAGES_BYTES, Chunk, Shard, grant_shard, read_tag, write_shards
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


def shard_of(me: Process, *sizes: int) -> tuple[Region, Shard]:
    chunks = [chunk(number, nbytes) for number, nbytes in enumerate(sizes)]
    ((region, tag),) = write_shards(me, "shuffle", 7, (3, 4), [chunks])
    shuffle, run, directory_bytes = read_tag(tag)
    assert (shuffle, run) == ("shuffle", 7)
    return region, Shard(region, directory_bytes)


@pytest.mark.parametrize(
    "sizes", [(1, 70, 4097, 0, 100), (OWN_PAGES_BYTES, 3 * OWN_PAGES_BYTES + 1, 5), (9,)]
)
def test_what_is_written_is_read_and_freed(me: Process, sizes: tuple[int, ...]) -> None:
    region, shard = shard_of(me, *sizes)
    assert shard.source == (3, 4)
    assert shard.places == [(number,) for number in range(len(sizes))]
    for number, nbytes in enumerate(sizes):
        with shard.read((number,)) as (about, view):
            assert (about, bytes(view), view.readonly) == (b"about", bytes([number]) * nbytes, True)
            del view
    assert not region.remaining


def test_what_two_receivers_use_first_lies_side_by_side(me: Process) -> None:
    sizes = [2 * OWN_PAGES_BYTES, OWN_PAGES_BYTES, OWN_PAGES_BYTES]
    chunks = [chunk(number, nbytes) for number, nbytes in enumerate(sizes)]
    shards = []
    for region, tag in write_shards(me, "shuffle", 7, (3,), [chunks, chunks]):
        shards.append(Shard(region, read_tag(tag)[2]))
    holes = []
    for shard in shards:
        with shard.read((0,)) as (_, view):
            holes.append(np.frombuffer(view, "u1").__array_interface__["data"][0])
            assert bytes(view) == bytes(sizes[0])
            del view
    assert holes[1] == holes[0] + sizes[0] + PAGE_BYTES  # the second one's directory is between them
    for address in range(holes[0], holes[1] + sizes[0], PAGE_BYTES):
        extent = me.table.find_extent(address, 0)
        assert extent is not None
        assert extent[3] == FREE
    for shard in shards:
        shard.abandon()


def test_large_chunks_are_freed_when_they_have_been_read(me: Process) -> None:
    region, shard = shard_of(me, *[OWN_PAGES_BYTES] * 4)
    with shard.read((1,)):
        pass
    assert sum(end - start for start, end in region.remaining) == region.nbytes - OWN_PAGES_BYTES - PAGE_BYTES
    shard.abandon()
    assert not region.remaining


def test_small_chunks_are_freed_together(me: Process) -> None:
    region, shard = shard_of(me, 10, 10)
    with shard.read((0,)):
        pass
    assert region.owned
    with shard.read((1,)):
        pass
    assert not region.remaining


@pytest.mark.parametrize("size", [10, OWN_PAGES_BYTES])
def test_what_is_abandoned_while_it_is_read_is_freed_by_its_reader(me: Process, size: int) -> None:
    region, shard = shard_of(me, size, size)
    with shard.read((0,)) as (_, view):
        shard.abandon()
        assert bytes(view) == bytes(size)
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
    granting = threading.Thread(target=grant_shard, args=(region, me.name, b"tag"))
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
