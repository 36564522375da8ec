"""Tasks that note each of their runs, and what a test does to workers."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import distributed
import numpy as np


def noted(notes: Path, number: int, nbytes: int) -> np.ndarray[Any, Any]:
    """An array of this many bytes that only this number gives. Notes that it has run."""
    with notes.open("a") as out:
        out.write(f"{number}\n")
    return np.full(nbytes // 8, number, dtype=np.int64)


def runs(notes: Path) -> Counter[int]:
    """How often each number has been run."""
    return Counter(map(int, notes.read_text().split()))


def total(arrays: list[np.ndarray[Any, Any]]) -> int:
    return sum(int(array.sum()) for array in arrays)


def pid_of(client: distributed.Client, worker: str) -> int:
    pid: int = client.run(os.getpid, workers=[worker])[worker]
    return pid


def kill(client: distributed.Client, worker: str, how: int = signal.SIGKILL) -> None:
    os.kill(pid_of(client, worker), how)


def keepers(client: distributed.Client, futures: list[distributed.Future]) -> set[str]:
    """Who has any of these."""
    return {worker for holders in client.who_has(futures).values() for worker in holders}
