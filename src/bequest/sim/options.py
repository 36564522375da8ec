"""What one seed decides before anything happens: how large the rack is, how slow, and how unlucky."""

from __future__ import annotations

from random import Random

import msgspec

from bequest.limits import MIB
from bequest.protocol.rack_state import ElementInfo, MmuConfig

UID = 1000


class Options(msgspec.Struct, frozen=True):
    elements: int
    element_bytes: int
    computes: int
    members: int
    ids: int  # few, so that they are used again
    groups: int
    inbox_cells: int
    orphan_keep: float
    safety_seconds: float
    think: float  # mean pause between two acts of a member
    slowness: float  # mean time until a daemon or a process gets its turn
    stall_chance: float  # of a turn that comes much later
    kill_every: float  # mean seconds between two kills; likewise the others
    stop_every: float
    hang_up_every: float
    daemon_every: float
    element_trouble: float  # chance that making or copying memory fails
    greed: float  # chance that who may steal does
    breakage: float  # likewise, that memory is made to fail
    has_monitor: bool

    @staticmethod
    def drawn(random: Random) -> Options:
        members = random.randint(2, 5)
        safety_seconds = random.choice((0.2, 1.0, 4.0))

        def often() -> float:
            return safety_seconds / random.choice((12, 5, 2, 0.001))

        return Options(
            elements=random.randint(1, 2),
            element_bytes=random.choice((8, 16, 64)) * MIB,
            computes=random.randint(1, 2),
            members=members,
            groups=random.randint(1, 3),
            inbox_cells=random.choice((1, 2, 8)),
            orphan_keep=random.choice((0.05, 0.5, 2.0)),
            safety_seconds=safety_seconds,
            ids=random.choice((6, 9, 511)),
            think=safety_seconds * members / random.choice((30, 80, 160)),
            slowness=random.choice((20e-6, 100e-6, 1e-3)),
            stall_chance=random.choice((0.0, 0.02, 0.1)),
            kill_every=often(),
            stop_every=often(),
            hang_up_every=often(),
            daemon_every=often(),
            element_trouble=random.choice((0.0, 0.0, 0.1, 0.5)),
            greed=random.choice((0.0, 0.2, 1.0)),
            breakage=random.choice((0.0, 0.0, 0.3)),
            has_monitor=random.random() < 0.05,  # its looks take most of a run's time
        )

    def rack(self) -> MmuConfig:
        names = tuple(f"host{number}" for number in range(self.computes))
        return MmuConfig(
            name="sim",
            uid=UID,
            elements=tuple(
                ElementInfo(n, f"dram{n}", "dram", self.element_bytes, f"element-{n}")
                for n in range(self.elements)
            ),
            computes=names,
            agent_paths=tuple(f"agent-{name}" for name in names),
            orphan_keep=self.orphan_keep,
        )
