"""bequest.Queue against multiprocessing.Queue: the same test bodies for both, then what only ours promises.

What is promised is the face of `multiprocessing.Queue`, so where a body runs over both classes, the original is the
oracle.
"""

from __future__ import annotations

import contextlib
import gc
import multiprocessing
import os
import queue as standard
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bequest as bq
import queue_users as users
from actors import DEADLINE, until
from bequest.limits import INBOX_CELLS
from bequest.runtime.directory import RackDirectory
from racks import RackUnderTest

KINDS = ("multiprocessing", "bequest")
METHODS = ("fork", "spawn")
LARGE = 3 << 20


def make(kind: str, maxsize: int = 0, method: str = "fork") -> Any:
    if kind == "bequest":
        return bq.Queue(maxsize)
    return multiprocessing.get_context(method).Queue(maxsize)


@contextlib.contextmanager
def running(method: str, *targets: tuple[Any, ...]) -> Iterator[list[Any]]:
    """Child processes, which must end well of their own."""
    context = multiprocessing.get_context(method)
    children = [context.Process(target=target, args=arguments) for target, *arguments in targets]
    for child in children:
        child.start()
    try:
        yield children
        for child in children:
            child.join(DEADLINE)
        assert [child.exitcode for child in children] == [0] * len(children)
    finally:
        for child in children:
            if child.is_alive():
                child.kill()
            child.join()
            child.close()


def waiting(queue: Any, count: int) -> None:
    until(lambda: queue.qsize() == count, f"{count} items in the queue, of {queue.qsize()}")


# --- the same for both ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_items_come_out_in_order_and_equal(found_rack: RackUnderTest, kind: str) -> None:
    items = [
        0,
        None,
        "text",
        b"x" * 215,
        b"x" * 216,
        b"x" * 217,
        [1, (2, {"three": 4.0})],
        "é" * 5000,
        bytes(LARGE),
    ]
    queue = make(kind)
    for item in items:
        queue.put(item)
    assert [queue.get(timeout=DEADLINE) for _ in items] == items
    assert queue.empty()


@pytest.mark.parametrize("kind", KINDS)
def test_empty_and_full(found_rack: RackUnderTest, kind: str) -> None:
    queue = make(kind, 2)
    assert queue.empty() and not queue.full() and queue.qsize() == 0
    for get in (
        queue.get_nowait,
        lambda: queue.get(False),
        lambda: queue.get(timeout=0),
        lambda: queue.get(True, -1),
    ):
        with pytest.raises(standard.Empty):
            get()
    queue.put("one")
    queue.put("two", False)
    waiting(queue, 2)
    until(lambda: queue.full() and not queue.empty())
    for put in (queue.put_nowait, lambda x: queue.put(x, False), lambda x: queue.put(x, timeout=0)):
        with pytest.raises(standard.Full):
            put("three")
        with pytest.raises(standard.Full):
            put(bytes(LARGE))
    assert queue.get(timeout=DEADLINE) == "one"
    queue.put("three", timeout=DEADLINE)
    assert [queue.get(timeout=DEADLINE) for _ in range(2)] == ["two", "three"]
    with pytest.raises(standard.Empty):
        queue.get_nowait()


@pytest.mark.parametrize("kind", KINDS)
def test_timeouts_last_as_long_as_they_say(found_rack: RackUnderTest, kind: str) -> None:
    queue = make(kind, 1)
    for seconds in (0.05, 0.7):  # longer than the rack is left unasked whether it lives, too
        started = time.monotonic()
        with pytest.raises(standard.Empty):
            queue.get(timeout=seconds)
        assert seconds <= time.monotonic() - started < seconds + 5
    queue.put(1)
    started = time.monotonic()
    with pytest.raises(standard.Full):
        queue.put(2, timeout=0.7)
    assert 0.7 <= time.monotonic() - started < 5.7
    assert queue.get(timeout=DEADLINE) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_blocked_put_goes_on_when_there_is_room(found_rack: RackUnderTest, kind: str) -> None:
    queue = make(kind, 1)
    queue.put(0)
    putter = threading.Thread(target=lambda: [queue.put(item) for item in (1, 2)])
    putter.start()
    assert [queue.get(timeout=DEADLINE) for _ in range(3)] == [0, 1, 2]
    putter.join(DEADLINE)
    assert not putter.is_alive()


@pytest.mark.parametrize("kind", KINDS)
def test_a_closed_queue(found_rack: RackUnderTest, kind: str) -> None:
    queue = make(kind)
    with pytest.raises(ValueError if kind == "bequest" else AssertionError):
        queue.join_thread()
    queue.put(1)
    queue.close()
    queue.close()
    queue.join_thread()
    with pytest.raises(ValueError, match="is closed"):
        queue.put(2)
    with pytest.raises(ValueError, match="is closed"):
        queue.get()


@pytest.mark.parametrize("kind", KINDS)
def test_a_queue_is_passed_on_only_to_children(found_rack: RackUnderTest, kind: str) -> None:
    import pickle

    with pytest.raises(RuntimeError, match="should only be shared between processes through inheritance"):
        pickle.dumps(make(kind))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_children_answer(found_rack: RackUnderTest, kind: str, method: str) -> None:
    questions, answers = make(kind, method=method), make(kind, method=method)
    with running(method, (users.double, questions, answers)):
        for item in (1, "ab", [1, 2], b"x" * 1000):
            questions.put(item)
            assert answers.get(timeout=DEADLINE) == item * 2
        questions.put(None)


@pytest.mark.parametrize("kind", KINDS)
def test_many_producers_and_consumers_lose_and_double_nothing(found_rack: RackUnderTest, kind: str) -> None:
    queue, results = make(kind, 50), make(kind)
    producers = [(users.produce, queue, who, 200) for who in range(3)]
    consumers = [(users.consume, queue, results) for _ in range(3)]
    with running("fork", *consumers):
        with running("fork", *producers):
            pass
        for _ in consumers:
            queue.put(None)
        taken = [results.get(timeout=DEADLINE) for _ in consumers]
    together = sorted(item for one in taken for item in one)
    assert together == sorted((who, number) for who in range(3) for number in range(200))
    for one in taken:  # what one producer put comes to each consumer in its order
        for who in range(3):
            numbers = [number for producer, number in one if producer == who]
            assert numbers == sorted(numbers)


@pytest.mark.parametrize("kind", KINDS)
def test_five_thousand_items_fit_before_any_is_taken(found_rack: RackUnderTest, kind: str) -> None:
    queue = make(kind)
    for number in range(5000):
        queue.put(number)
    assert [queue.get(timeout=DEADLINE) for _ in range(5000)] == list(range(5000))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_a_child_put_is_there_after_it_has_ended(
    found_rack: RackUnderTest, kind: str, method: str
) -> None:
    """At its end a child waits for its feeder thread; more than a mailbox holds, so that there is one."""
    queue = make(kind, method=method)
    count = INBOX_CELLS + 500
    with running(method, (users.put_all, queue, list(range(count)))):
        assert [queue.get(timeout=DEADLINE) for _ in range(count)] == list(range(count))


@pytest.mark.parametrize("kind", KINDS)
def test_who_cancels_join_thread_does_not_wait_at_its_end(found_rack: RackUnderTest, kind: str) -> None:
    queue = make(kind)
    with running("fork", (users.put_and_leave, queue, [bytes(100)] * (INBOX_CELLS + 5000))) as [child]:
        child.join(DEADLINE)
        assert child.exitcode == 0, "though nobody took anything"
    queue.cancel_join_thread()


@pytest.mark.parametrize("kind", KINDS)
def test_a_consumer_that_is_killed_while_it_waits_blocks_nobody(found_rack: RackUnderTest, kind: str) -> None:
    if kind == "multiprocessing":
        pytest.skip("it dies with the reader's lock, and everybody waits for ever: what Bequest is for")
    queue = make(kind)
    context = multiprocessing.get_context("fork")
    child = context.Process(target=users.take_for_ever, args=(queue, ready := context.Event()))
    child.start()
    assert ready.wait(DEADLINE)
    child.kill()
    child.join()
    child.close()
    for number in range(5):
        queue.put(number)
        assert queue.get(timeout=DEADLINE) == number


# --- ours ----------------------------------------------------------------------------------------------------


def test_large_items_are_not_copied_out(found_rack: RackUnderTest) -> None:
    """The array that get() returns lies in the rack window, is writable, and frees its memory when it goes."""
    queue: bq.Queue[np.ndarray] = bq.Queue()
    queue.put(np.arange(LARGE // 8))
    array = queue.get(timeout=DEADLINE)
    address = array.__array_interface__["data"][0]
    assert 0x2000_0000_0000 <= address < 0x4000_0000_0000
    array[0] = 5
    assert array.sum() == sum(range(LARGE // 8)) + 5
    process = queue._process
    assert process is not None and process.table.holdings(process.id)[1] * 4096 >= LARGE
    del array
    gc.collect()
    assert process.table.holdings(process.id)[1] == 0
    assert process.table.audit() == []


def test_what_a_killed_producer_put_is_kept(found_rack: RackUnderTest) -> None:
    queue: bq.Queue[Any] = bq.Queue()
    context = multiprocessing.get_context("fork")
    child = context.Process(target=users.put_and_hang, args=(queue, done := context.Event()))
    child.start()
    assert done.wait(DEADLINE)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    child.close()
    small, large = queue.get(timeout=DEADLINE), queue.get(timeout=DEADLINE)
    assert small == "small" and large.nbytes == LARGE and set(large) == {7}
    assert queue._process is not None and queue._process.table.audit() == []


def test_a_full_queue_keeps_no_memory_of_what_it_refused(found_rack: RackUnderTest) -> None:
    queue: bq.Queue[Any] = bq.Queue(1)
    queue.put(1)
    process = queue._process
    assert process is not None
    for _ in range(3):
        with pytest.raises(standard.Full):
            queue.put(np.zeros(LARGE, "u1"), block=False)
    gc.collect()
    assert process.table.holdings(process.id)[1] == 0


def test_an_item_that_cannot_be_pickled_is_told_at_once(found_rack: RackUnderTest) -> None:
    queue: bq.Queue[Any] = bq.Queue()
    with pytest.raises((TypeError, AttributeError), match="pickle"):
        queue.put(lambda: 0)
    queue.put("next")
    assert queue.get(timeout=DEADLINE) == "next"


def test_beyond_what_a_mailbox_holds_maxsize_counts_all(found_rack: RackUnderTest) -> None:
    queue: bq.Queue[int] = bq.Queue(INBOX_CELLS + 5)
    for number in range(INBOX_CELLS + 5):
        queue.put(number, timeout=DEADLINE)
    assert queue.full()
    with pytest.raises(standard.Full):
        queue.put(-1, block=False)
    assert [queue.get(timeout=DEADLINE) for _ in range(INBOX_CELLS + 5)] == list(range(INBOX_CELLS + 5))


def test_threads_share_a_queue(found_rack: RackUnderTest) -> None:
    queue: bq.Queue[Any] = bq.Queue(10)
    taken: list[Any] = []

    def take() -> None:
        while (item := queue.get(timeout=DEADLINE)) is not None:
            taken.append(item)

    takers = [threading.Thread(target=take) for _ in range(3)]
    putters = [
        threading.Thread(target=users.put_all, args=(queue, [(who, n) for n in range(100)]))
        for who in range(3)
    ]
    for thread in takers + putters:
        thread.start()
    for thread in putters:
        thread.join(DEADLINE)
    for _ in takers:
        queue.put(None)
    for thread in takers:
        thread.join(DEADLINE)
    assert sorted(taken) == sorted((who, n) for who in range(3) for n in range(100))


@pytest.mark.parametrize("act", ["get", "put", "exit"])
def test_the_rack_ends_under_a_waiting_queue(private_place: Path, act: str) -> None:
    """Who waits is told; a program with items that nobody will ever take ends nevertheless."""
    program = (
        "import os, signal, sys, threading, bequest as bq\n"
        "q = bq.Queue(1 if sys.argv[1] == 'put' else 0)\n"
        "for _ in range({'get': 0, 'put': 1, 'exit': 3000}[sys.argv[1]]): q.put(1)\n"
        "print(q._directory, flush=True)\n"
        "try:\n"
        "    if sys.argv[1] == 'get': q.get()\n"
        "    elif sys.argv[1] == 'put': q.put(2)\n"
        "except bq.RackGone as error: print('RackGone', flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", program, act], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        directory = Path(child.stdout.readline().strip())
        supervisor = RackDirectory(directory).notes().supervisor
        os.kill(supervisor, signal.SIGTERM)
        output, _ = child.communicate(timeout=DEADLINE)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0
    assert output == ("" if act == "exit" else "RackGone\n")


def test_a_fork_while_another_thread_connects_does_not_block_the_child(found_rack: RackUnderTest) -> None:
    """The locks of `connect` and of the queues' attachment may be held by a thread that the child does not have."""
    from bequest import queue as queues
    from bequest.memory import rack as racks

    with queues._seats_lock, racks._starting:
        child = multiprocessing.get_context("fork").Process(target=users.use_a_queue_of_its_own)
        child.start()
        child.join(DEADLINE)
    child.kill()
    child.join()
    assert child.exitcode == 0
    child.close()
