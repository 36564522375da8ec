"""Ray: `put` into the object store, an actor gets it as its argument and answers.

`put` copies the array into shared memory; the actor reads it there, read-only. The actor's process is warm.
"""

from __future__ import annotations

import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from ..measure import GIB
from .peer import Pattern, Peer, checksum

PACKAGE_PARENT = Path(__file__).parents[2]
"""Ray's workers must find this package; they do not inherit sys.path."""


class Reader:
    """The actor."""

    def read(self, array: Any) -> int:
        return checksum(array)


class RayTransfer(Peer):
    title = "Ray put + actor get"
    requires = ("ray",)

    def __init__(self) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(PACKAGE_PARENT), os.environ.get("PYTHONPATH")])
        )
        self.ray: Any = import_module("ray")
        self.ray.init(
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=4 * GIB,
            log_to_driver=False,
            logging_level="ERROR",
            configure_logging=True,
        )
        self.reader = self.ray.remote(Reader).remote()

    def prepare(self, nbytes: int) -> None:
        self.array = np.ones(nbytes, np.uint8)
        self.pattern = Pattern(nbytes)

    def round(self) -> float:
        self.pattern.write(self.array)
        started = time.perf_counter()
        answer = self.ray.get(self.reader.read.remote(self.ray.put(self.array)))
        elapsed = time.perf_counter() - started
        self.pattern.verify(answer)
        return elapsed

    def close(self) -> None:
        self.ray.shutdown()
