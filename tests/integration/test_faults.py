"""Touching memory that is gone raises an exception, in the thread that touched it, and the interpreter goes on."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import sys
import zlib
from collections.abc import Callable

import numpy as np
import pytest

import bequest as bq
from losses import PAGE, close_from_outside, cut_off

MIB = 1 << 20


@pytest.fixture
def failed(me: bq.Process) -> tuple[bq.Region, memoryview]:
    region = me.alloc(4 * MIB)
    view = memoryview(region)
    view[:] = bytes([7]) * len(view)
    cut_off(me, region)
    return region, view


def test_an_index_raises_inside_of_its_try(failed: tuple[bq.Region, memoryview]) -> None:
    region, view = failed
    caught = None
    try:
        view[5000]
    except bq.MemoryFailure as error:
        caught = error
    assert caught is not None
    assert caught.errno == errno.EIO
    assert caught.address == region.address + 5000
    assert caught.region is region
    assert caught.nbytes == region.nbytes
    assert caught.cause == "has failed"


@pytest.mark.parametrize(
    "touch",
    [
        lambda view: bytes(view),
        lambda view: np.frombuffer(view, np.uint8).sum(),
        lambda view: np.add(np.frombuffer(view, np.float64), 1.0),
        lambda view: np.frombuffer(view, np.uint8).__setitem__(slice(None), 3),
        lambda view: zlib.crc32(view),
        lambda view: hashlib.sha256(view).digest(),
        lambda view: ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(view)), 0, len(view)),
        lambda view: view[:PAGE] == view[PAGE : 2 * PAGE],
        lambda view: view.__setitem__(slice(0, PAGE), bytes(PAGE)),
    ],
)
def test_every_way_of_touching_raises(failed: tuple[bq.Region, memoryview], touch) -> None:
    for _ in range(3):
        with pytest.raises(bq.MemoryFailure) as caught:
            touch(failed[1])
        assert caught.value.region is failed[0]


def test_memory_that_is_closed_from_outside_was_revoked(me: bq.Process) -> None:
    region = me.alloc(4 * PAGE)
    view = memoryview(region)
    close_from_outside(region)
    with pytest.raises(bq.MemoryRevoked) as caught:
        view[0]
    assert isinstance(caught.value, BufferError)
    assert caught.value.region is region


def test_the_handle_of_failed_memory_raises_and_can_be_freed(
    me: bq.Process, failed: tuple[bq.Region, memoryview]
) -> None:
    region, view = failed
    with pytest.raises(bq.MemoryFailure):
        view[0]
    for use in (
        region.array,
        lambda: memoryview(region),
        lambda: region.grant(me.name),
        lambda: region[:PAGE],
    ):
        with pytest.raises(bq.MemoryFailure) as caught:
            use()
        assert caught.value.region is region
    assert not region.owned
    view.release()
    address = region.address
    region.free()
    others = [me.alloc(4 * MIB) for _ in range(8)]
    for other in others:
        assert other.address != address
        other.array()[:] = 1
        other.free()
    assert me.table.audit() == []


def test_a_store_at_the_end_of_a_block_raises_inside_of_it(failed: tuple[bq.Region, memoryview]) -> None:
    region, view = failed
    array = np.frombuffer(view, np.uint8)
    with pytest.raises(bq.MemoryFailure):
        view[PAGE] = 1
    with pytest.raises(bq.MemoryFailure):
        array[:] = 1
    with pytest.raises(bq.MemoryFailure):
        array += 1


def returns_an_item(view: memoryview) -> object:
    try:
        return view[0]
    except bq.MemoryFailure as error:
        return error


def returns_in_a_loop(view: memoryview) -> object:
    for _ in range(3):
        try:
            view[0] = 1
        except ValueError:
            return "the wrong handler"
        except bq.MemoryFailure as error:
            return error
        else:
            return "no exception"
    return "the loop has ended"


def falls_between_two_blocks(view: memoryview) -> object:
    try:
        view[0] = 1
        try:
            return "behind it"
        except bq.MemoryFailure:
            return "the wrong handler"
    except bq.MemoryFailure as error:
        return error


@pytest.mark.parametrize("touch", [returns_an_item, returns_in_a_loop, falls_between_two_blocks])
def test_the_handler_is_that_of_the_instruction_that_touched(
    failed: tuple[bq.Region, memoryview], touch: Callable[[memoryview], object]
) -> None:
    table = touch.__code__.co_exceptiontable
    for _ in range(50):  # often enough for the interpreter to specialise the code
        assert isinstance(touch(failed[1]), bq.MemoryFailure)
    assert touch.__code__.co_exceptiontable == table
    assert sys.gettrace() is None


def test_what_the_touching_call_raises_itself_becomes_the_context(
    failed: tuple[bq.Region, memoryview],
) -> None:
    with pytest.raises(bq.MemoryFailure) as caught:
        zlib.decompress(failed[1])
    assert isinstance(caught.value.__context__, zlib.error)
