"""What child processes do with queues: top-level functions, so that spawned interpreters find them."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import bequest as bq


def double(questions: Any, answers: Any) -> None:
    while (item := questions.get()) is not None:
        answers.put(item * 2)


def produce(queue: Any, who: int, count: int) -> None:
    for number in range(count):
        queue.put((who, number))


def consume(queue: Any, results: Any) -> None:
    taken = []
    while (item := queue.get()) is not None:
        taken.append(item)
    results.put(taken)


def put_all(queue: Any, items: list[Any]) -> None:
    for item in items:
        queue.put(item)


def put_and_leave(queue: Any, items: list[Any]) -> None:
    put_all(queue, items)
    queue.cancel_join_thread()


def take_for_ever(queue: Any, ready: Any) -> None:
    with_timeout = queue.empty()  # opens it
    ready.set()
    while with_timeout:
        queue.get()


def put_and_hang(queue: Any, done: Any) -> None:
    queue.put("small")
    queue.put(np.full(3 << 20, 7, "u1"))
    done.set()
    time.sleep(60)


def use_a_queue_of_its_own() -> None:
    queue: bq.Queue[int] = bq.Queue()
    queue.put(1)
    assert queue.get(timeout=20) == 1
