"""State of 1 GB after the death of its process: restarted from disk by Redis, and taken over by a standby.

Redis holds a million values of 1,000 bytes and has saved them; it is killed, started again at once, and asked for one
until it answers. Its file lies in the page cache: no disk holds it up. A standby of Bequest steals a region of as many
bytes from a process that is killed, and reads its first byte.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

from . import bequest_side
from .heirs import Line
from .measure import MIB, Figure, Noise, Outcome, timed
from .redis_side import RedisServer, missing

VALUES = 1_000_000
VALUE_BYTES = 1_000
RESTARTS, QUICK_RESTARTS = 3, 1
THEFTS, QUICK_THEFTS = 20, 3


def restarts(values: int, count: int, noise: Noise) -> list[float]:
    """Seconds that each restart of Redis took."""
    with tempfile.TemporaryDirectory(prefix="bequest-bench-") as directory:
        server = RedisServer(Path(directory))
        try:
            server.fill(values, VALUE_BYTES)
            found = []
            for _ in range(count):
                noise.sample()
                found.append(server.restart_seconds())
        finally:
            server.close()
    return found


def thefts(nbytes: int, count: int, noise: Noise) -> list[float]:
    """Seconds from each kill until the standby has read the first byte."""
    rack = bequest_side.connect()
    with rack.attach("host"):
        line = Line(bequest_side.rack_key(rack), nbytes)
        found = []
        for _ in range(count + 1):
            noise.sample()
            killed, heir = line.kill()
            found.append(heir.read - killed)
        line.close()
    return found[1:]


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    outcome = Outcome("restart")
    values = VALUES // 10 if quick else VALUES
    nbytes = values * VALUE_BYTES // MIB * MIB
    say("restart: stealing")
    stolen = thefts(nbytes, QUICK_THEFTS if quick else THEFTS, noise)
    absent = missing()
    restarted: list[float] = []
    if not absent:
        say("restart: Redis")
        restarted = restarts(values, QUICK_RESTARTS if quick else RESTARTS, noise)
    amount = f"{values * VALUE_BYTES / 1e9:.3g} GB"
    outcome.figures += [
        timed(f"Redis with {amount}: SIGKILL until the first GET is answered", restarted, None, absent),
        timed(f"Bequest, {amount} stolen by a standby: SIGKILL until the first byte is read", stolen),
    ]
    ratio = statistics.median(restarted) / statistics.median(stolen) if restarted else None
    outcome.figures.append(Figure("times faster than restarting Redis", ratio, "times", None, absent))
    outcome.raw.update(redis=restarted, bequest=stolen)
    return outcome
