"""Thousands of small racks, each decided by one seed, in which everything goes wrong that may.

A failure names its seed and the command that replays it with its trace. More seeds: `make soak`, or
BEQUEST_SIM_SEEDS=100000 make test ARGS=tests/sim; others than last time: BEQUEST_SIM_FIRST=$RANDOM.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import msgspec
import pytest

import soaking
from bequest.protocol.address_plan import AddressPlan
from bequest.protocol.cross_grant import CrossGrants
from bequest.protocol.lifts import EVERYWHERE, Lifts
from bequest.protocol.notice_desk import NoticeDesk
from bequest.protocol.process_table import State
from bequest.protocol.rack_mmu import RackMmu
from bequest.protocol.slab_supply import SlabSupply
from bequest.protocol.steal_desk import StealDesk
from bequest.protocol.watch_desk import WatchDesk
from bequest.sim import World
from bequest.sim.options import Options
from checkers import all_checkers

REPLAY = Path(__file__).with_name("replay.py")
FIRST = int(os.environ.get("BEQUEST_SIM_FIRST", "0"))
SEEDS = int(os.environ.get("BEQUEST_SIM_SEEDS") or soaking.size(ci=500, soak=5000))
WORKERS = min(os.cpu_count() or 1, 8)


def start(seed: int, count: int, *options: str, hash_seed: str = "0") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(REPLAY), str(seed), "--count", str(count), *options],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
    )


@pytest.mark.slow
@pytest.mark.soak
@pytest.mark.timeout(60 + SEEDS // 4)
def test_no_seed_finds_anything() -> None:
    share = -(-SEEDS // WORKERS)
    runs = [start(FIRST + worker * share, share) for worker in range(WORKERS)]
    found = "".join(run.communicate()[0] for run in runs)
    assert not found, f"\n{found}"
    assert [run.returncode for run in runs] == [0] * WORKERS


def test_a_seed_decides_everything() -> None:
    """Also what Python's own hashing, which differs from run to run, has no part in."""
    runs = [start(0, 12, "--digest", hash_seed=hash_seed) for hash_seed in ("1", "2")]
    first, second = (run.communicate()[0] for run in runs)
    assert first == second and len(first.strip()) == 64


def test_the_world_is_not_kind() -> None:
    """What the checkers are there for does happen."""
    seen: Counter[str] = Counter()

    def count(line: str) -> None:
        for word in MET:
            seen[word] += word in line

    for seed in range(30):
        World(seed, all_checkers(), count).run()
    for seed in range(6):
        drawn = Options.drawn(Random(seed))
        watched = msgspec.structs.replace(drawn, groups=1, **WATCHED)
        World(seed, all_checkers(), count, watched).run()
        World(seed, all_checkers(), count, msgspec.structs.replace(drawn, groups=1, **GREEDY)).run()
    assert not [word for word in MET if seen[word] < 3], dict(seen)


WATCHED = {"has_monitor": True, "safety_seconds": 2.0, "stop_every": 0.1, "stall_chance": 0.0, "think": 0.01}
GREEDY = {
    "greed": 1.0, "safety_seconds": 2.0, "think": 0.01, "has_monitor": False,
    "kill_every": 2e3, "daemon_every": 2e3, "hang_up_every": 2e3,
}  # fmt: skip
MET = (
    "killed", "stopped", "is cut off", "SlabRefused", "inbox-full", "CrossGranted(copied_bytes=0)", "CopyPages",
    "PunchPages", "RegroupSlab", "name-taken", "MailboxOpened", "CloseMailbox", "kind='dead'",
    "ProcessLost", "ProcessExited", "Detach", "FenceProcess", "how='protected'", "how='dead'", "heir=True",
    "lost Handle", "NoticeDied", "NoticeContact", "MemoryBroken", "Found(", "DeathHint", "Suspicion", "ContactsCalled",
    "LiftFence", "waits for the lifting",
)  # fmt: skip


# --- every safety check that is deleted is missed -----------------------------------------------------------------


def frees_the_lost(self, process) -> None:
    self._exited(process, 0.0)


def delivers_before_the_copy(self, grant) -> None:
    real_copy(self, grant)
    self.copied(self._last_job)


real_copy = CrossGrants.copy


def recycles_always(self, slab) -> bool:
    return False


def forgets_pins(self, grant, step) -> None: ...


def restores_nothing(self, grant) -> None:
    self._hold(grant, -1)
    self.state.refuse(grant.peer, grant.trouble)


def never_sweeps(self) -> int:
    return 0


def forgets_addresses(self, home) -> bool:
    return False


def forgets_orphans(self, process, now) -> None:
    process.become(State.ORPHANED)


def takes_unfenced(self, job, listed, doubts, now) -> None:
    job.passes += 1
    self._take(job, [(descriptor, word) for descriptor, word, _, _ in listed])


def tells_once(self, compute) -> None: ...


def leaves_fences(self, target) -> None: ...


def lifts_from_others_too(self, target, runs):
    return [EVERYWHERE]


def forgets_contacts(self, key, contacts) -> None: ...


def ends_attempts_never(self) -> None: ...


@pytest.mark.parametrize(
    ("where", "name", "deletion"),
    [
        (StealDesk, "_fence", takes_unfenced),
        (StealDesk, "restore", ends_attempts_never),
        (Lifts, "lift", leaves_fences),
        (Lifts, "_own", lifts_from_others_too),
        (WatchDesk, "agent_linked", tells_once),
        (NoticeDesk, "restore", forgets_contacts),
        (RackMmu, "_lost", frees_the_lost),
        (RackMmu, "_exited", forgets_orphans),
        (CrossGrants, "copy", delivers_before_the_copy),
        (CrossGrants, "_hold", forgets_pins),
        (CrossGrants, "_restore", restores_nothing),
        (SlabSupply, "_home_may_touch", recycles_always),
        (SlabSupply, "sweep", never_sweeps),
        (AddressPlan, "in_use", forgets_addresses),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_deleted_check_is_missed(monkeypatch: pytest.MonkeyPatch, where, name: str, deletion) -> None:
    monkeypatch.setattr(where, name, deletion)
    for seed in range(300):
        try:
            World(seed, all_checkers()).run()
        except Exception:
            return
    pytest.fail(f"300 seeds did not notice that {name} does nothing for safety any more")
