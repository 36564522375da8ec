"""Touching memory that is gone raises an exception, in the thread that touched it, and the interpreter goes on."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import hashlib
import os
import pathlib
import sys
import threading
import zlib
from collections.abc import Callable

import numpy as np
import pytest

import bequest as bq
import soaking
from losses import PAGE, close_from_outside, cut_off

MIB = 1 << 20
TIMES = soaking.size(10_000, 100_000)


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
    _region, view = failed
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


# --- threads ------------------------------------------------------------------------------------------------


def test_numpy_without_the_gil_raises_in_the_thread_that_touched(
    failed: tuple[bq.Region, memoryview],
) -> None:
    """Large loops let go of the GIL; the main thread is busy with other things and gets nothing of it."""
    caught: list[object] = [None] * 4
    # Each has its own part: of those who touch the same page in the same moment, one alone may be told.
    parts = np.split(np.frombuffer(failed[1], np.float64), len(caught))

    def work(number: int) -> None:
        for _ in range(10):
            try:
                np.add(parts[number], 1.0, out=parts[number])
            except bq.MemoryFailure as error:
                caught[number] = error
            else:
                caught[number] = "no exception"
                return

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(caught))]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        sum(range(1000))
    for error in caught:
        assert isinstance(error, bq.MemoryFailure)
        assert error.region is failed[0]


def test_a_thread_that_python_does_not_know_raises_in_the_main_thread(
    failed: tuple[bq.Region, memoryview],
) -> None:
    libc = ctypes.CDLL(None)
    thread = ctypes.c_ulong()
    address = ctypes.c_void_p(failed[0].address)
    with pytest.raises(bq.MemoryFailure) as caught:
        # int strlen-like: any C function of one pointer will do for a thread's main
        assert libc.pthread_create(ctypes.byref(thread), None, libc.strlen, address) == 0
        libc.pthread_join(thread, None)
        for _ in range(1000):
            sum(range(100))
    assert caught.value.region is failed[0]


def test_each_fault_of_such_threads_is_told(me: bq.Process) -> None:
    """Their ids are used again at once, and each has its exception."""
    libc = ctypes.CDLL(None)
    for _ in range(4):
        region = me.alloc(4 * PAGE)
        cut_off(me, region)
        thread = ctypes.c_ulong()
        with pytest.raises(bq.MemoryFailure) as caught:
            address = ctypes.c_void_p(region.address)
            assert libc.pthread_create(ctypes.byref(thread), None, libc.strlen, address) == 0
            libc.pthread_join(thread, None)
            for _ in range(1000):
                sum(range(100))
        assert caught.value.address == region.address


def test_an_asyncio_program_goes_on(failed: tuple[bq.Region, memoryview]) -> None:
    _, view = failed

    async def touch() -> int:
        await asyncio.sleep(0)
        return view[0]

    async def program() -> list[object]:
        in_thread = asyncio.to_thread(bytes, view[-PAGE:])  # of two who touch one page at once, one is told
        return list(
            await asyncio.gather(touch(), touch(), in_thread, asyncio.sleep(0, 5), return_exceptions=True)
        )

    *errors, five = asyncio.run(program())
    assert all(isinstance(error, bq.MemoryFailure) for error in errors)
    assert five == 5


def test_an_exception_leaves_a_with_block_and_frees(me: bq.Process) -> None:
    with pytest.raises(bq.MemoryFailure), me.alloc(PAGE) as region:
        cut_off(me, region)
        region.array()[0] = 1
    with pytest.raises(bq.BequestError):
        region.array()


def test_a_debugger_keeps_its_trace_function(failed: tuple[bq.Region, memoryview]) -> None:

    def trace(frame: object, event: str, argument: object) -> object:
        return trace

    sys.settrace(trace)
    try:
        result = returns_an_item(failed[1])
        kept = sys.gettrace()
    finally:
        sys.settrace(None)
    assert isinstance(result, bq.MemoryFailure)
    assert kept is trace


def test_a_system_call_fails_instead(failed: tuple[bq.Region, memoryview]) -> None:
    with open("/dev/zero", "rb", buffering=0) as zeros, pytest.raises(OSError) as caught:
        zeros.readinto(failed[1])
    assert caught.value.errno == errno.EFAULT
    assert not isinstance(caught.value, bq.MemoryFailure)


# --- endurance ----------------------------------------------------------------------------------------------


def resources() -> tuple[int, int, int, int]:
    """Resident KiB, mappings, descriptors and threads of this process."""
    status = dict(
        line.split(":", 1)
        for line in pathlib.Path("/proc/self/status").read_text().splitlines()
        if ":" in line
    )
    mappings = len(pathlib.Path("/proc/self/maps").read_text().splitlines())
    descriptors = len(os.listdir("/proc/self/fd"))
    return int(status["VmRSS"].split()[0]), mappings, descriptors, int(status["Threads"])


@pytest.mark.soak
@pytest.mark.timeout(soaking.timeout(600))
def test_one_interpreter_survives_ten_thousand_failures(
    failed: tuple[bq.Region, memoryview], record_property: Callable[[str, object], None]
) -> None:
    _region, view = failed
    array = np.frombuffer(view, np.uint8)

    def fail(times: int) -> None:
        for number in range(times):
            with pytest.raises(bq.MemoryFailure):
                if number % 10:
                    array[number % len(array)] = 1
                else:
                    np.add(array[: 16 * PAGE], 1, out=array[: 16 * PAGE])

    fail(200)
    gc.collect()
    before = resources()
    fail(TIMES)
    record_property("failures in a row", TIMES)
    gc.collect()
    after = resources()
    assert after[0] - before[0] < 2048
    assert after[1] - before[1] < 10
    assert after[2:] == before[2:]
