"""How long until Bequest can be used, and what its daemons weigh.

Imports and embedded racks are timed in fresh interpreters, each from its own first line, so that the start of
Python itself does not count. "Usable" means: attached, a region allocated, and a byte of it written.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from . import bequest_side
from .measure import MIB, Figure, Noise, Outcome, Target

REPEATS = 11
QUICK_REPEATS = 3
LARGEST_WAIT_SECONDS = 60
UNWANTED = {"BEQUEST_RACK", "PYTHONDONTWRITEBYTECODE"}  # modules are compiled once, as pip does

IMPORT = """
import sys, time
started = time.perf_counter()
import bequest
print(time.perf_counter() - started, int("numpy" in sys.modules))
"""
EMBEDDED = """
import time
import bequest
started = time.perf_counter()
with bequest.connect().attach("first") as me:
    view = memoryview(me.alloc(65536))
    view[0] = 1
    print(time.perf_counter() - started)
    view.release()
"""


def fresh_interpreter(program: str) -> list[float]:
    """Runs the program in a Python of its own, without the user's rack; returns the numbers it prints."""
    environment = {name: value for name, value in os.environ.items() if name not in UNWANTED}
    with tempfile.TemporaryDirectory() as elsewhere:  # where no rack of the user runs
        environment["XDG_RUNTIME_DIR"] = elsewhere
        command = [sys.executable, "-c", program]
        finished = subprocess.run(
            command,
            env=environment,
            check=False,
            capture_output=True,
            text=True,
            timeout=LARGEST_WAIT_SECONDS,
        )
    if finished.returncode:
        raise RuntimeError(f"a fresh interpreter failed: {finished.stderr.strip().splitlines()[-1]}")
    return [float(word) for word in finished.stdout.split()]


def attach_seconds(rack: Any, repeats: int, noise: Noise) -> list[float]:
    """Attaching to a running rack, again and again, under new names; the first does not count."""
    timings = []
    for number in range(repeats + 1):
        noise.sample()
        started = time.perf_counter()
        process = rack.attach(f"guest-{number}")
        timings.append(time.perf_counter() - started)
        process.detach()
    return timings[1:]


def weight(pids: set[int]) -> dict[str, int]:
    """The bytes of these daemons together: PSS shares out what they share, RSS counts it for each."""
    of_each = [bequest_side.memory_of(pid) for pid in pids]
    return {
        "daemons": len(of_each),
        "pss": sum(memory.get("Pss", 0) for memory in of_each),
        "rss": sum(memory.get("Rss", 0) for memory in of_each),
    }


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    repeats = QUICK_REPEATS if quick else REPEATS
    outcome = Outcome("startup")
    say("startup: import")
    imports = []
    for _ in range(repeats):
        noise.sample()
        imports.append(fresh_interpreter(IMPORT))
    say("startup: embedded rack")
    embedded = [fresh_interpreter(EMBEDDED)[0] for _ in range(repeats)]
    say("startup: attach")
    other_racks = bequest_side.daemons()
    rack = bequest_side.connect()
    with rack.attach("host") as me:
        me.alloc(1 * MIB).free()
        memory = weight(bequest_side.daemons() - other_racks)
        attach = attach_seconds(rack, repeats, noise)
    outcome.raw.update(imports=imports, embedded=embedded, attach=attach, memory=memory)
    import_seconds = statistics.median(seconds for seconds, _ in imports)
    numpy_loaded = max(loaded for _, loaded in imports)
    note = f"{memory['daemons']} daemons"
    found_daemons = memory["daemons"] > 0
    outcome.figures += [
        Figure("import bequest", import_seconds, "s", Target("at most", 0.120)),
        Figure("modules of NumPy it loads", numpy_loaded, "", Target("at most", 0)),
        Figure("attach", statistics.median(attach), "s", Target("at most", 0.005)),
        Figure(
            "embedded rack, connect() to usable", statistics.median(embedded), "s", Target("at most", 0.400)
        ),
        Figure(
            "memory of all daemons, PSS",
            memory["pss"] if found_daemons else None,
            "bytes",
            Target("at most", 100 * MIB),
            note,
        ),
        Figure(
            "memory of all daemons, RSS (shared pages counted once for each)",
            memory["rss"] if found_daemons else None,
            "bytes",
            None,
            note,
        ),
    ]
    return outcome
