"""A memory element's checksums of sealed memory (paper, section 3.1: deferred to memory elements).

Theory of operation. The owner of a region *seals* it: it closes its pages for writing, asks the element for a number,
and writes that into the region's extent in the table; from there it goes wherever the memory goes. The element marks
the pages with the number in the slab's *ledger*, and answers at once; sums are made later (native/seal_ledger.hpp).
There are three who work on a ledger: the *sweeper*, a thread that runs while nothing else wants a processor, makes the
sums; as the *scrubber* it then reads everything again and again, both at a limited rate; and whoever asks for a
verification has it done by a worker, at once, which makes the sums that it finds lacking.

What the element knows of seals is in the ledger alone, page by page. The ledger is made when a slab is first sealed,
and kept in the safe with the slab's file: a server that is started anew sums what is unsummed there, and has forgotten
nothing.

It is not told what the table says. So when a page differs, it asks the Rack MMU: either the page is still owned under
that number, and then its memory fails (protocol/memory_failure.py), or it was unsealed, freed or put to another use,
and then the sum is forgotten. In between, the page may be reported by nobody else: it was found once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from bequest.limits import (
    FLIPS_KEPT_MAX,
    PAGE_BYTES,
    SCRUB_INTERVAL,
    SCRUB_RATE,
    SCRUB_SLICE_BYTES,
    SUM_RATE,
    SUM_SLICE_BYTES,
)
from bequest.protocol.failed_runs import Run, common, overlap
from bequest.protocol.outputs import (
    CheckPages,
    DropLedger,
    FlipBitOfFile,
    ForgetPages,
    KeepLedger,
    KeptFile,
    MarkPages,
    Output,
    PeerId,
    Reply,
    SweepPages,
    ToMmu,
)
from bequest.protocol.refusal import Refusal
from bequest.wire import messages as wire

if TYPE_CHECKING:
    from bequest.protocol.held_slab import HeldSlab

SealedRun = tuple[int, int, int]  # offset, bytes, number
Request = wire.SealPages | wire.VerifyPages | wire.UnsealPages


class Checked(NamedTuple):
    """What `CheckPages` found, in bytes."""

    verified: int
    unknown: int
    different: list[SealedRun]


class Swept(NamedTuple):
    """What `SweepPages` did: where to go on, and bytes."""

    next: int
    summed: int
    checked: int
    different: list[SealedRun]


class Ledger(msgspec.Struct):
    """What is known of the ledger of one slab."""

    is_kept: bool = False
    waiting: list[tuple[PeerId, wire.SealPages]] = []  # until it is kept
    unsummed_from: int | None = None  # pages from here on may be unsummed
    taken: list[SealedRun] = []  # pages that differed, and have lost their memory for it


class Sweep(msgspec.Struct):
    slab: int
    output: SweepPages


class Job(msgspec.Struct):
    peer: PeerId
    slab: int
    run: SealedRun  # number 0: it is to get one


class SealDesk:
    def __init__(self, slabs: Mapping[int, HeldSlab], now: float, say: Callable[[Output], None]) -> None:
        self._slabs = slabs
        self._say = say
        self._jobs: dict[int, Job] = {}
        self._last_job = 0
        self._sweep: Sweep | None = None
        self._place = (0, 0)  # where the scrubber is: slab and offset
        self._round_began = now
        self._scrub_at = self._sum_at = now
        self._reported: dict[tuple[int, int, int, int], None] = {}  # slab, offset, bytes, number
        self._flips: dict[bytes, None] = {}
        self.summed_bytes = self.scrubbed_bytes = self.mismatched_bytes = 0

    # --- requests ------------------------------------------------------------------------------------------

    def request(self, peer: PeerId, slab: HeldSlab, message: Request) -> None:
        """Of one who has shown the ticket of the slab's group."""
        try:
            _check_run(slab, message)
            match message:
                case wire.SealPages():
                    self._seal(peer, slab, message)
                case wire.VerifyPages():
                    self._verify(peer, slab, message)
                case wire.UnsealPages():
                    self._forget(slab, (message.offset, message.nbytes), message.number)
                    self._say(Reply(peer, wire.Done()))
        except Refusal as refusal:
            self._say(Reply(peer, refusal.reply()))

    def _seal(self, peer: PeerId, slab: HeldSlab, message: wire.SealPages) -> None:
        if any(overlap((message.offset, message.nbytes), failed) for failed in slab.failed):
            raise Refusal("memory", "these pages have lost their memory")
        if slab.ledger is None:
            slab.ledger = Ledger()
            file = slab.file
            about = KeptFile(slab.id, file.nbytes, file.huge, file.huge_bytes, has_ledger=True)
            self._say(KeepLedger(file.id, about))
        if slab.ledger.is_kept:
            job = self._job(peer, slab, (message.offset, message.nbytes, 0))
            self._say(MarkPages(job, slab.file.id, message.offset, message.nbytes))
        else:
            slab.ledger.waiting.append((peer, message))

    def _verify(self, peer: PeerId, slab: HeldSlab, message: wire.VerifyPages) -> None:
        run = (message.offset, message.nbytes, message.number)
        if not _is_kept(slab):
            self._answer(peer, slab, run, Checked(0, message.nbytes, []))
            return
        self._say(CheckPages(self._job(peer, slab, run), slab.file.id, *run))

    def _answer(self, peer: PeerId, slab: HeldSlab, run: SealedRun, checked: Checked) -> None:
        """With what was found different before, too."""
        offset, nbytes, number = run
        taken = [] if slab.ledger is None else slab.ledger.taken
        different = [*checked.different, *(old for old in taken if old[2] == number)]
        runs = [both for *old, _ in different if (both := common((offset, nbytes), (old[0], old[1])))]
        failed = [both for old in slab.failed if (both := common((offset, nbytes), old))]
        self._say(Reply(peer, wire.PagesVerified(checked.verified, checked.unknown, sorted(runs), failed)))

    def _job(self, peer: PeerId, slab: HeldSlab, run: SealedRun) -> int:
        self._last_job += 1
        self._jobs[self._last_job] = Job(peer, slab.id, run)
        return self._last_job

    def _sealed(self, slab: int) -> HeldSlab | None:
        """Unless it has gone."""
        held = self._slabs.get(slab)
        return held if held is not None and held.ledger is not None else None

    # --- what was done -------------------------------------------------------------------------------------

    def ledger_kept(self, file: int, slab: int, trouble: str) -> None:
        """It is safe, or there is none: ``trouble`` says why."""
        held = self._sealed(slab)
        if held is None or held.ledger is None:
            return
        waiting, held.ledger.waiting = held.ledger.waiting, []
        if trouble:
            held.ledger = None
            self._say(DropLedger(file))
        else:
            held.ledger.is_kept = True
        for peer, message in waiting:
            if trouble:
                text = f"the memory element cannot keep checksums of it: {trouble}"
                self._say(Reply(peer, Refusal("memory", text).reply()))
            else:
                self.request(peer, held, message)

    def pages_marked(self, job: int, number: int) -> None:
        done = self._jobs.pop(job)
        slab = self._sealed(done.slab)
        if slab is None or slab.ledger is None:
            self._say(Reply(done.peer, _gone().reply()))
            return
        slab.ledger.unsummed_from = _least(slab.ledger.unsummed_from, done.run[0])
        self._say(Reply(done.peer, wire.PagesSealed(number)))

    def pages_checked(self, job: int, checked: Checked) -> None:
        done = self._jobs.pop(job)
        slab = self._sealed(done.slab)
        if slab is None:
            self._say(Reply(done.peer, _gone().reply()))
            return
        self._answer(done.peer, slab, done.run, checked)
        self._report(slab, checked.different)

    def pages_swept(self, swept: Swept, now: float) -> None:
        sweep, self._sweep = self._sweep, None
        assert sweep is not None
        slab = self._sealed(sweep.slab)
        self.summed_bytes += swept.summed
        self.scrubbed_bytes += swept.checked
        is_at_end = swept.next >= sweep.output.end
        if sweep.output.only_unsummed:
            self._sum_at = max(self._sum_at, now) + swept.summed / SUM_RATE
            if slab is not None and slab.ledger is not None and not is_at_end:
                slab.ledger.unsummed_from = _least(slab.ledger.unsummed_from, swept.next)
        else:
            self._place = (sweep.slab + 1, 0) if is_at_end else (sweep.slab, swept.next)
            self._scrub_at = max(self._scrub_at, now) + (swept.checked + swept.summed) / SCRUB_RATE
        if slab is not None:
            self._report(slab, swept.different)

    # --- the sweeper ---------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """The sweeper goes on, if its time has come: what is not summed goes before what is to be read again."""
        if self._sweep is not None:
            return
        if (unsummed := self._unsummed()) is not None:
            if now >= self._sum_at:
                ledger = unsummed.ledger
                assert ledger is not None and ledger.unsummed_from is not None
                offset, ledger.unsummed_from = ledger.unsummed_from, None
                self._start(unsummed, offset, SUM_SLICE_BYTES, only_unsummed=True)
        elif now >= self._scrub_at and (slab := self._next_to_scrub(now)) is not None:
            offset = self._place[1] if self._place[0] == slab.id else 0
            self._start(slab, offset, SCRUB_SLICE_BYTES, only_unsummed=False)

    def next_deadline(self) -> float:
        """When the sweeper wants to go on."""
        if self._sweep is None and self._unsummed() is not None:
            return self._sum_at
        has_work = self._sweep is None and any(_is_kept(slab) for slab in self._slabs.values())
        return self._scrub_at if has_work else float("inf")

    def _unsummed(self) -> HeldSlab | None:
        for slab in self._slabs.values():
            if slab.ledger is not None and slab.ledger.is_kept and slab.ledger.unsummed_from is not None:
                return slab
        return None

    def _next_to_scrub(self, now: float) -> HeldSlab | None:
        """By number, from where it is; then a round has ended, and the next begins in its time."""
        kept = sorted(slab.id for slab in self._slabs.values() if _is_kept(slab))
        ahead = [slab for slab in kept if slab >= self._place[0]]
        if ahead:
            return self._slabs[ahead[0]]
        self._place = (0, 0)
        self._scrub_at = max(now, self._round_began + SCRUB_INTERVAL)
        self._round_began = self._scrub_at
        return None

    def _start(self, slab: HeldSlab, offset: int, bytes_max: int, only_unsummed: bool) -> None:
        order = SweepPages(slab.file.id, offset, slab.file.nbytes, bytes_max, only_unsummed)
        self._sweep = Sweep(slab.id, order)
        self._say(order)

    def adopted(self, slab: HeldSlab) -> None:
        """From an earlier server, which may have left some of it unsummed."""
        if slab.file.has_ledger:
            slab.ledger = Ledger(is_kept=True, unsummed_from=0)

    # --- mismatches ----------------------------------------------------------------------------------------

    def linked(self) -> None:
        """To a new Rack MMU, perhaps, which has heard nothing: what differs is found again."""
        self._reported.clear()

    def _report(self, slab: HeldSlab, different: list[SealedRun]) -> None:
        for run in different:
            if (slab.id, *run) not in self._reported:
                self._reported[slab.id, *run] = None
                self._say(ToMmu(wire.PagesDiffer(slab.id, *run)))

    def forget(self, message: wire.ForgetSums) -> None:
        """It is not sealed any more."""
        self._reported.pop((message.slab, message.offset, message.nbytes, message.number), None)
        slab = self._slabs.get(message.slab)
        if slab is not None:
            self._forget(slab, (message.offset, message.nbytes), message.number)

    def lost(self, slab: HeldSlab, run: Run) -> None:
        """Its memory is gone, for that reason or another; whatever lies there next is not what was summed."""
        for reported in list(self._reported):
            _, offset, nbytes, _ = reported
            if reported[0] == slab.id and overlap(run, (offset, nbytes)):
                del self._reported[reported]
                self.mismatched_bytes += nbytes
                if slab.ledger is not None:
                    slab.ledger.taken.append(reported[1:])
        self._forget(slab, run)

    def punched(self, slab: HeldSlab, run: Run) -> None:
        """Its contents have gone elsewhere."""
        self._forget(slab, run)

    def retired(self, slab: HeldSlab) -> None:
        """Its file may serve again."""
        if slab.ledger is not None:
            for peer, _ in slab.ledger.waiting:
                self._say(Reply(peer, _gone().reply()))
            slab.ledger = None
            self._say(DropLedger(slab.file.id))
        for reported in list(self._reported):
            if reported[0] == slab.id:
                del self._reported[reported]

    def _forget(self, slab: HeldSlab, run: Run, number: int = 0) -> None:
        if _is_kept(slab):
            self._say(ForgetPages(slab.file.id, *run, number))

    # --- for tests of programs -----------------------------------------------------------------------------

    def flip(self, message: wire.FlipBitOf) -> None:
        slab = self._slabs.get(message.slab)
        if slab is not None and slab.is_ready and message.nonce not in self._flips:
            self._say(FlipBitOfFile(slab.file.id, message.offset))
            if message.nonce:
                self._flips[message.nonce] = None
            while len(self._flips) > FLIPS_KEPT_MAX:
                del self._flips[next(iter(self._flips))]
        self._say(ToMmu(wire.BitFlipped(message.job)))


def _is_kept(slab: HeldSlab) -> bool:
    return slab.ledger is not None and slab.ledger.is_kept


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _gone() -> Refusal:
    return Refusal("memory", "this slab is not here any more")


def _check_run(slab: HeldSlab, message: Request) -> None:
    offset, nbytes = message.offset, message.nbytes
    if offset < 0 or nbytes <= 0 or (offset | nbytes) % PAGE_BYTES or offset + nbytes > slab.file.nbytes:
        raise Refusal("size", f"slab {slab.id} has no such pages: {nbytes} bytes at {offset:#x}")
    number = getattr(message, "number", 1)
    if not 0 < number < 1 << 30:
        raise Refusal("size", f"no seal has the number {number}")
