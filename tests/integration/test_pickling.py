"""Objects in regions: what comes out equals what went in, in the memory of the region, in another process too."""

from __future__ import annotations

import gc
import pickle
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import actors
import bequest as bq
from actors import Actor
from pickles import Opaque, load_and_dump
from racks import Yard

WINDOW = range(0x2000_0000_0000, 0x4000_0000_0000)


@pytest.fixture
def peer(yard: Yard, me: bq.Process) -> Iterator[Actor]:
    return yard.actor("peer")


def address_of(array: np.ndarray[Any, Any]) -> int:
    return int(array.__array_interface__["data"][0])


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, np.ndarray):
        return left.dtype == right.dtype and left.shape == right.shape and bool(np.array_equal(left, right))
    if isinstance(left, pd.DataFrame | pd.Series | pa.Table):
        return bool(left.equals(right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return bool(left == right)


def objects() -> dict[str, Any]:
    numbers = np.arange(100_000, dtype="f8")
    frame = pd.DataFrame({"a": numbers, "b": numbers.astype("i4"), "c": ["text"] * len(numbers)})
    read_only = numbers.copy()
    read_only.flags.writeable = False
    shared = [numbers]
    return {
        "nothing": None,
        "number": 5,
        "text": "é" * 100_000,
        "bytes": bytes(range(256)) * 1000,
        "bytearray": bytearray(b"x" * 100_000),
        "buffer": pickle.PickleBuffer(b"x" * 10_000),
        "array": numbers,
        "empty array": np.empty((0, 5)),
        "empty arrays": [np.empty(0, "u1"), numbers, np.empty(0, "f4")],
        "scalar array": np.array(5.0),
        "fortran order": np.asfortranarray(numbers.reshape(100, 1000)),
        "non-contiguous": numbers.reshape(100, 1000)[::3, ::7],
        "reversed": numbers[::-1],
        "read-only": read_only,
        "structured": np.zeros(1000, [("a", "u1"), ("b", "f8", (3,))]),
        "datetimes": np.arange(1000).astype("M8[s]"),
        "objects": np.array([1, "two", None], dtype=object),
        "big endian": numbers.astype(">u4"),
        "frame": frame,
        "series": frame["a"],
        "empty frame": pd.DataFrame(),
        "arrow": pa.table({"a": numbers, "b": pa.array(["x", None, "z"] * 33_333 + ["y"])}),
        "nested": {"a": [numbers, (frame, {"b": numbers.astype("u1")})], "c": "d"},
        "twice the same": [shared, shared],
        "own class": Opaque(numbers, "name"),
    }


@pytest.mark.parametrize("where", ["here", "in another process"])
def test_what_comes_out_equals_what_went_in(me: bq.Process, peer: Actor, where: str) -> None:
    for name, thing in objects().items():
        if where != "here" and name == "buffer":
            continue  # it comes out as a memoryview, which cannot be pickled again
        region = bq.dumps(thing, me)
        if where == "in another process":
            region.grant("peer")
            peer.do(load_and_dump, "me")  # out of the region there, and into one of its own
            region = me.accept(actors.DEADLINE)
        result = bq.loads(region)
        if name == "buffer":
            assert bytes(result) == bytes(thing.raw()), name
        else:
            assert equal(thing, result), name
        del result, region
        gc.collect()
        assert me.table.holdings(me.id)[1] == 0, f"{name}: freed with the last of it, and without a warning"
    assert me.table.audit() == []


def test_large_buffers_lie_in_the_region(me: bq.Process) -> None:
    numbers = np.arange(1_000_000)
    region = bq.dumps({"numbers": numbers, "twice": [numbers]}, me)
    assert region.nbytes < numbers.nbytes + 1000, "an array that occurs twice is kept once"
    result = bq.loads(region)
    for array in (result["numbers"], *result["twice"]):
        assert region.address <= address_of(array) < region.address + region.nbytes
        assert address_of(array) % 64 == 0
    assert np.shares_memory(result["numbers"], result["twice"][0])
    result["numbers"][0] = -1
    assert result["twice"][0][0] == -1


def test_arrow_and_pandas_are_not_copied_either(me: bq.Process) -> None:
    table = pa.table({"a": np.arange(100_000)})
    frame = pd.DataFrame({"a": np.arange(100_000.0), "b": np.arange(100_000.0)})
    result = bq.loads(bq.dumps((table, frame), me))
    assert result[0]["a"].chunk(0).buffers()[1].address in WINDOW
    assert address_of(result[1]["a"].to_numpy()) in WINDOW


def test_what_was_read_only_stays_so(me: bq.Process) -> None:
    array = np.arange(1000)
    array.flags.writeable = False
    result = bq.loads(bq.dumps([array, np.arange(1000)], me))
    assert [one.flags.writeable for one in result] == [False, True]
    with pytest.raises(ValueError, match="read-only"):
        result[0][0] = 1


def test_the_memory_belongs_to_the_object_while_it_lives(yard: Yard, me: bq.Process) -> None:
    yard.attach("peer")
    region = bq.dumps([np.arange(1000), np.arange(5)], me)
    result = bq.loads(region)
    for act in (lambda: region.grant("peer"), region.free):
        with pytest.raises(BufferError):
            act()
    part = result[0][10:20]
    del result
    gc.collect()
    with pytest.raises(BufferError, match="1 view "):
        region.grant("peer")
    assert part.sum() == sum(range(10, 20))
    del part
    gc.collect()
    region.grant("peer")


def test_what_was_loaded_can_be_dumped_while_its_region_lives(me: bq.Process) -> None:
    first = bq.loads(bq.dumps(np.arange(1000), me))
    second = bq.loads(bq.dumps(first, me))
    assert not np.shares_memory(first, second) and np.array_equal(first, second)


def test_the_default_is_the_process_attached_last(yard: Yard, me: bq.Process) -> None:
    other = yard.attach("other")
    with bq.dumps(5) as region:
        assert region.process is other
    other.detach()
    with bq.dumps(5) as region:
        assert region.process is me and bq.loads(region) == 5


def test_a_region_may_be_loaded_from_a_part(me: bq.Process) -> None:
    one, two = bq.dumps([1, 2], me), bq.dumps("next", me)
    whole = one if one.address < two.address else two
    with me.alloc(3 * 4096) as region:
        memoryview(region)[4096 : 4096 + one.nbytes] = memoryview(one)
        assert bq.loads(region[4096:]) == [1, 2]
    whole.free()
    (two if whole is one else one).free()


# --- what is no pickle ---------------------------------------------------------------------------------------


def header(me: bq.Process, content: bytes, nbytes: int | None = None) -> bq.Region:
    region = me.alloc(nbytes or max(1, len(content)))
    memoryview(region)[: len(content)] = content
    return region


def test_other_regions_are_refused_and_unharmed(yard: Yard, me: bq.Process) -> None:
    yard.attach("peer")
    good = bq.dumps([np.arange(100), np.arange(50)], me)
    content = bytes(good)
    good.free()
    magic, version, count = struct.unpack_from("<QII", content)
    bad = {
        "zeros": bytes(4096),
        "text": b"text" * 100,
        "short": content[:31],
        "one byte": content[:1],
        "no pickle": content[:32],
        "cut in the pickle": content[:100],
        "cut in the last buffer": content[:-1],
        "another magic": struct.pack("<Q", magic + 1) + content[8:],
        "another version": struct.pack("<QI", magic, version + 1) + content[12:],
        "too many buffers": struct.pack("<QII", magic, version, 2**32 - 1) + content[16:],
        "a long pickle": struct.pack("<QIIQ", magic, version, count, 2**64 - 1) + content[24:],
        "a buffer outside": content[:32] + struct.pack("<QQ", len(content), 1) + content[48:],
        "a buffer that wraps": content[:32] + struct.pack("<QQ", 2**64 - 1, 2) + content[48:],
        "a long buffer": content[:40] + struct.pack("<Q", 2**63 - 1) + content[48:],
    }
    for name, data in bad.items():
        region = header(me, data)
        with pytest.raises(bq.NotPickled) as caught:
            bq.loads(region)
        assert isinstance(caught.value, pickle.UnpicklingError), name
        assert bytes(region) == data and region.views == 0, f"{name}: though the exception still lives"
        region.grant("peer")


def test_a_broken_pickle_is_the_picklers_error(me: bq.Process) -> None:
    with bq.dumps(["text"], me) as region:
        content = bytearray(region)
    content[-3:] = b"\xff\xff\xff"
    region = header(me, bytes(content))
    with pytest.raises(Exception) as caught:
        bq.loads(region)
    assert not isinstance(caught.value, bq.NotPickled)
    del caught
    gc.collect()
    region.free()


def test_what_cannot_be_pickled_leaves_nothing(me: bq.Process) -> None:
    for thing in (lambda: 0, open("/dev/null"), [np.arange(1000), (n for n in ())]):  # noqa: SIM115
        with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
            bq.dumps(thing, me)
        if hasattr(thing, "close") and not isinstance(thing, list):
            thing.close()
    assert me.table.holdings(me.id)[1] == 0
    with pytest.raises(bq.RackMemoryError):
        bq.dumps(np.empty(300 << 20, "u1"), me)
    assert me.table.holdings(me.id)[1] == 0
