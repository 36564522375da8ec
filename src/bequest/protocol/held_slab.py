"""What a memory element holds: files, and the slabs whose memory they are."""

from __future__ import annotations

import msgspec

from bequest.limits import POOL_DEMAND_WINDOW
from bequest.protocol.failed_runs import Run
from bequest.protocol.outputs import KeptFile
from bequest.protocol.seal_desk import Ledger

Kind = tuple[int, bool]  # (bytes, on huge pages): what makes files interchangeable


class File(msgspec.Struct):
    id: int
    nbytes: int
    huge: bool
    huge_bytes: int = 0  # really on huge pages
    since: float = 0.0  # warm or recycled since
    has_ledger: bool = False  # found so: an earlier server has kept checksums of it

    @property
    def kind(self) -> Kind:
        return self.nbytes, self.huge

    @classmethod
    def found(cls, file: int, about: KeptFile) -> File:
        """That an earlier server has kept."""
        return cls(file, about.nbytes, about.huge, about.huge_bytes, has_ledger=about.has_ledger)


class HeldSlab(msgspec.Struct):
    id: int
    group: int
    file: File
    is_ready: bool = False
    was_regrouped: bool = False
    retried: bool = False
    failed: tuple[Run, ...] = ()  # (offset, bytes)
    cause: str = ""  # of the last of these
    ledger: Ledger | None = None  # of its checksums, from the first seal on


class Announced(msgspec.Struct):
    """What the Rack MMU has named since the link began."""

    groups: dict[int, bool] = msgspec.field(default_factory=dict)
    slabs: dict[int, bool] = msgspec.field(default_factory=dict)


class Demand(msgspec.Struct):
    """What was asked for of one kind lately."""

    asked_at: list[float] = msgspec.field(default_factory=list)

    def note(self, now: float) -> None:
        self.asked_at = [then for then in self.asked_at if now - then < POOL_DEMAND_WINDOW] + [now]

    def lately(self, now: float) -> int:
        return sum(now - then < POOL_DEMAND_WINDOW for then in self.asked_at)
