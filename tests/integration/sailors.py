"""One process in a storm: allocates, splits, merges, grants, accepts and frees at random, and trusts nobody.

Every page that a process owns bears the process's own mark and the page's address. A page that two processes own, or
that was lost and given out again, shows by a mark that is not the owner's.
"""

from __future__ import annotations

import contextlib
import os
import random

import actors
import bequest as bq

PAGE = 4096
KEPT_MAX = 40
WORDS = PAGE // 8


class Trouble(AssertionError):
    """A page was not what its owner had made it."""


class Sailor:
    def __init__(self, seat: actors.Seat, seed: int, peers: list[str]) -> None:
        self.me = seat.me
        self.random = random.Random(seed)
        self.mark = os.getpid() << 32 | seed & 0xFFFF_FFFF
        self.peers = peers
        self.kept: list[bq.Region] = []
        self.over = False

    def sail(self) -> None:
        acts = [
            self.alloc,
            self.grant,
            self.grant,
            self.grant_part,
            self.grant_many,
            self.accept,
            self.accept,
        ]
        acts += [self.free, self.free_part, self.split, self.merge, self.send]
        while not self.over:
            with contextlib.suppress(bq.ProcessDead, bq.UnknownProcess, bq.InboxFull, bq.RackMemoryError):
                self.random.choice(acts)()
        for region in self.kept:
            self.check(region)
            region.free()

    # --- marks -----------------------------------------------------------------------------------------------

    def write(self, region: bq.Region) -> None:
        words = region.array("u8")
        for start, stop in region.remaining:
            for at in range(start // 8, stop // 8, WORDS):
                words[at : at + 2] = self.mark, region.address + at * 8

    def check(self, region: bq.Region) -> None:
        self._check(region, {self.mark})

    def _check(self, region: bq.Region, marks: set[int] | None) -> None:
        words = region.array("u8")
        for at in range(0, len(words), WORDS):
            mark, address = int(words[at]), int(words[at + 1])
            if address != region.address + at * 8 or (marks is not None and mark not in marks):
                raise Trouble(f"{self.mark:#x} finds {mark:#x} and {address:#x} in {region!r} + {at * 8:#x}")

    def pick(self) -> bq.Region | None:
        if not self.kept:
            return None
        region = self.kept.pop(self.random.randrange(len(self.kept)))
        self.check(region)
        return region

    # --- acts ------------------------------------------------------------------------------------------------

    def alloc(self) -> None:
        if len(self.kept) < KEPT_MAX:
            pages = self.random.choice([1, 1, 2, 5, 16, 100, 512])
            self.keep(self.me.alloc(pages * PAGE))

    def keep(self, region: bq.Region) -> None:
        self.write(region)
        self.kept.append(region)

    def grant(self) -> None:
        if region := self.pick():
            self._grant([region])

    def grant_many(self) -> None:
        self._grant([region for region in (self.pick() for _ in range(5)) if region])

    def _grant(self, regions: list[bq.Region]) -> None:
        try:
            self.me.grant_all(regions, self.random.choice(self.peers), tag=b"storm", timeout=0.01)
        finally:
            self.kept += [region for region in regions if region.owned]

    def grant_part(self) -> None:
        if (region := self.pick()) is None:
            return
        pages = region.nbytes // PAGE
        start = self.random.randrange(pages)
        part = region[start * PAGE : self.random.randint(start + 1, pages) * PAGE]
        try:
            part.grant(self.random.choice(self.peers), timeout=0.01)
        finally:
            if region.owned:
                self.kept.append(region)
            else:
                self.kept += [region[slice(*span)] for span in region.remaining]

    def accept(self) -> None:
        with contextlib.suppress(bq.AcceptTimeout):
            for region in self.me.accept_all(
                self.random.randint(1, 20), timeout=self.random.choice([0, 0, 0.005])
            ):
                if region.nbytes == 0:
                    self.over |= region.tag == b"over"
                elif len(self.kept) >= KEPT_MAX:
                    self._check(region, None)
                    region.free()
                else:
                    self._check(region, None)
                    self.keep(region)

    def free(self) -> None:
        if region := self.pick():
            region.free()

    def free_part(self) -> None:
        if (region := self.pick()) is None:
            return
        region[: self.random.randint(1, region.nbytes // PAGE) * PAGE].free()
        self.kept += [region[slice(*span)] for span in region.remaining]

    def split(self) -> None:
        if region := self.pick():
            pages = region.nbytes // PAGE
            cuts = sorted(self.random.sample(range(1, pages), min(pages - 1, 2)))
            self.kept += region.split(*(cut * PAGE for cut in cuts))

    def merge(self) -> None:
        self.kept.sort(key=lambda region: region.address)
        for left, right in zip(self.kept, self.kept[1:], strict=False):
            if left.address + left.nbytes == right.address:
                with contextlib.suppress(ValueError):  # in different slabs, or of different kinds
                    merged = left.merge(right)
                    self.kept = [region for region in self.kept if region is not left and region is not right]
                    self.kept.append(merged)
                return

    def send(self) -> None:
        with contextlib.suppress(bq.UnknownProcess):
            self.me.send(self.random.choice(self.peers), b"hello", timeout=0)


def sail(seat: actors.Seat, seed: int, peers: list[str]) -> None:
    Sailor(seat, seed, peers).sail()


def split_in_two(seat: actors.Seat) -> None:
    seat.kept["parts"] = seat.kept.pop("region").split(PAGE)
