"""A user in the storm: takes memory, hands it round, and checks that nobody else ever wrote to what it owns.

Every word of a region that is handed over is its own address times a constant, so that a page in the wrong place, or
in two hands, shows. The first words are a header: where the region lies, how large it is, and the number that its
tag bears too. Before a region is freed its header is wiped, so that its next owner can only find what was sent to it.

Who takes part stands in a file, one name a line, which the test replaces as it kills and starts users; an empty file
ends the storm.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from pathlib import Path

import numpy as np

import actors
import bequest as bq

PAGE = 4096
SMALLEST, LARGEST = PAGE, 2 << 20
MAGIC = np.uint64(0x6D72_6F74_735F_7162)
FACTOR = np.uint64(0x9E37_79B9_7F4A_7C15)
HEADER_WORDS = 4
HELD_MOST = 10  # regions a user keeps; beyond that it gives some away or frees them
STEPS = np.arange(LARGEST // 8, dtype="u8") * np.uint64(8) * FACTOR

# What a grant may end in while others die; each leaves the region with the sender.
REFUSALS = (bq.UnknownProcess, bq.ProcessDead, bq.InboxFull, bq.RackMemoryError)


class Corrupt(Exception):
    """A region does not hold what its owner put there."""


class StormUser:
    def __init__(self, seat: actors.Seat, population: Path, seed: int) -> None:
        self.me = seat.me
        self.population = population
        self.random = random.Random(seed)
        self.held: list[bq.Region] = []
        self.done: Counter[str] = Counter()
        self._number = 0

    def run(self) -> dict[str, int]:
        acts = [self.alloc] * 5 + [self.grant] * 8 + [self.accept] * 6 + [self.free] * 3
        acts += [self.split, self.split, self.merge, self.grant_part, self.send, self.look]
        while peers := self.population.read_text().split():
            self.peers = [name for name in peers if name != self.me.name]
            for _ in range(8):
                self.random.choice(acts)()
                while len(self.held) > HELD_MOST:
                    self.free()
        while self.held:
            self.free()
        return dict(self.done)

    # --- acts ---------------------------------------------------------------------------------------------

    def alloc(self) -> None:
        nbytes = int(2 ** self.random.uniform(12, 21)) if self.random.random() < 0.9 else LARGEST
        try:
            region = self.me.alloc(nbytes // 64 * 64)  # so that the least last part has room for a header
        except bq.RackMemoryError:
            self.done["refused allocs"] += 1
            self.free()
            return
        self.fill(region)
        self.held.append(region)
        self.done["allocs"] += 1

    def grant(self) -> None:
        region = self.take() if self.peers else None
        if region is None:
            return
        peer = self.random.choice(self.peers)
        tag = self.check(region).to_bytes(8, "little")
        try:
            copied = region.grant(peer, tag=tag, timeout=self.random.choice((0, 0.002)))
        except REFUSALS as refusal:
            self.refused(refusal)
            self.check(region)
            self.held.append(region)
            return
        if copied not in (0, -(-region.nbytes // PAGE) * PAGE):
            raise Corrupt(f"{copied} bytes of {region} were copied")
        self.done["copied grants" if copied else "grants"] += 1

    def grant_part(self) -> None:
        """Gives a middle page away, and what is left back to where it came from."""
        region = self.take() if self.peers else None
        if region is None:
            return
        if region.nbytes < 3 * PAGE:
            self.held.append(region)
            return
        number = self.check(region)
        with region:
            part = region[PAGE : 2 * PAGE]
            self.fill(part)
            tag = self._number.to_bytes(8, "little")
            try:
                part.grant(self.random.choice(self.peers), tag=tag, timeout=0)
            except REFUSALS as refusal:
                self.refused(refusal)
                if self.check(part) != int.from_bytes(tag, "little"):
                    raise Corrupt(f"{part} has changed under a refused grant") from refusal
                part.free()
            else:
                self.done["parts"] += 1
            first = region[0:PAGE]
            words = first.array("u8")
            if int(words[3]) != number or (words[HEADER_WORDS:] != expected(first)[HEADER_WORDS:]).any():
                raise Corrupt(f"{region} lost more than the part that was granted")
            words[:HEADER_WORDS] = 0
            del words  # a view: the region could not be freed

    def accept(self) -> None:
        try:
            regions = self.me.accept_all(8, timeout=self.random.choice((0, 0.001)))
        except bq.AcceptTimeout:
            return
        for region in regions:
            if region.nbytes == 0:
                if region.tag != b"from " + region.sender.encode():
                    raise Corrupt(f"a message from {region.sender} reads {region.tag!r}")
                self.done["messages"] += 1
                continue
            number = self.check(region)
            if region.tag != number.to_bytes(8, "little"):
                raise Corrupt(f"{region} from {region.sender} bears number {number}")
            self.held.append(region)
            self.done["accepts"] += 1

    def free(self) -> None:
        region = self.take()
        if region is None:
            return
        self.check(region)
        region.array("u8")[:HEADER_WORDS] = 0
        region.free()
        self.done["frees"] += 1

    def split(self) -> None:
        region = self.take()
        if region is None:
            return
        pages = -(-region.nbytes // PAGE)
        if pages < 2:
            self.held.append(region)
            return
        self.check(region)
        cuts = sorted(self.random.sample(range(1, pages), self.random.randint(1, min(2, pages - 1))))
        for part in region.split(*(cut * PAGE for cut in cuts)):
            self.fill(part)
            self.held.append(part)
        self.done["splits"] += 1

    def merge(self) -> None:
        """Joins two that happen to be neighbours, if there are such."""
        ends = {region.address + region.nbytes: region for region in self.held if region.nbytes % PAGE == 0}
        for right in self.held:
            left = ends.get(right.address)
            if left is None or left.nbytes + right.nbytes > LARGEST:
                continue
            self.check(left)
            self.check(right)
            try:
                merged = left.merge(right)
            except ValueError:  # neighbours in memory, but of two slabs
                return
            self.held = [region for region in self.held if region is not left and region is not right]
            self.fill(merged)
            self.held.append(merged)
            self.done["merges"] += 1
            return

    def send(self) -> None:
        if self.peers:
            try:
                self.me.send(self.random.choice(self.peers), b"from " + self.me.name.encode(), timeout=0)
            except REFUSALS as refusal:
                self.refused(refusal)

    def look(self) -> None:
        """All that it keeps is still as it was left."""
        for region in self.held:
            self.check(region)

    # --- regions ------------------------------------------------------------------------------------------

    def take(self) -> bq.Region | None:
        return self.held.pop(self.random.randrange(len(self.held))) if self.held else None

    def refused(self, refusal: Exception) -> None:
        self.done[f"refused: {type(refusal).__name__}"] += 1

    def fill(self, region: bq.Region) -> None:
        self._number += 1
        words = region.array("u8")
        words[:] = expected(region)
        words[:HEADER_WORDS] = (MAGIC, region.address, region.nbytes, self._number)

    def check(self, region: bq.Region) -> int:
        """The number in its header. Raises `Corrupt` if anything in it is not as it was filled."""
        words = region.array("u8")
        magic, address, nbytes, number = (int(word) for word in words[:HEADER_WORDS])
        if (magic, address, nbytes) != (int(MAGIC), region.address, region.nbytes):
            raise Corrupt(f"{region}: header {magic:#x}, address {address:#x}, {nbytes} bytes")
        wrong = np.flatnonzero(words[HEADER_WORDS:] != expected(region)[HEADER_WORDS:])
        if len(wrong):
            at = (int(wrong[0]) + HEADER_WORDS) * 8
            raise Corrupt(f"{region}: {len(wrong)} words are wrong, the first at {at}")
        return number


def expected(region: bq.Region) -> np.ndarray:
    with np.errstate(over="ignore"):
        return STEPS[: region.nbytes // 8] + np.uint64(region.address) * FACTOR


def storm(seat: actors.Seat, population: str, seed: int) -> dict[str, int]:
    """Takes part until the storm is over; what was done how often."""
    user = StormUser(seat, Path(population), seed)
    try:
        return user.run()
    except BaseException as error:
        error.add_note("".join(traceback.format_tb(error.__traceback__)))  # tracebacks are not sent
        raise
