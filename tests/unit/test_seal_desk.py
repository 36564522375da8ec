"""A memory element's seals: who is answered what, what is summed and checked when, and what differs."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from bequest.limits import PAGE_BYTES, SCRUB_INTERVAL, SCRUB_RATE, SUM_RATE, SUM_SLICE_BYTES
from bequest.protocol.memory_element import MemoryElement
from bequest.protocol.outputs import (
    CheckPages,
    CloseFile,
    DropLedger,
    FlipBitOfFile,
    ForgetPages,
    KeepFile,
    KeepLedger,
    KeptFile,
    LoseFile,
    MakeFile,
    MarkPages,
    Output,
    PunchFile,
    Reply,
    SweepPages,
    ToMmu,
)  # fmt: skip
from bequest.protocol.seal_desk import Checked, Swept
from bequest.wire import messages as wire

MIB = 1 << 20
TICKET = b"t" * 16
SLAB = 2 * MIB
PEER = 9


@dataclass
class Driver:
    """Keeps files and ledgers at once; says what else the element wants."""

    element: MemoryElement = field(default_factory=lambda: MemoryElement(512 * MIB, 0.0))
    now: float = 0.0
    outputs: list[Output] = field(default_factory=list)
    keeps: bool = True

    def run(self, outputs: list[Output]) -> list[Output]:
        """All that comes of it."""
        rest = list(outputs)
        while rest:
            output = rest.pop(0)
            match output:
                case MakeFile(file):
                    rest += self.element.file_made(file, 0, self.now)
                case KeepFile(file, about):
                    rest += self.element.file_kept(file, about.slab, "")
                case KeepLedger(file, about) if self.keeps:
                    rest += self.element.ledger_kept(file, about.slab, "")
            self.outputs.append(output)
        return self.outputs

    def of(self, kind: type) -> list:
        """Those of this kind, which are taken out."""
        found = [output for output in self.outputs if isinstance(output, kind)]
        self.outputs = [output for output in self.outputs if not isinstance(output, kind)]
        return found

    def mmu(self, *messages: wire.Message) -> None:
        for message in messages:
            self.run(self.element.mmu_message(message, self.now))

    def ask(self, message: wire.Message) -> None:
        self.run(self.element.client_message(PEER, message))

    def replies(self) -> list[wire.Message]:
        return [reply.message for reply in self.of(Reply)]

    def tick(self, seconds: float = 0.0) -> None:
        self.now += seconds
        self.run(self.element.tick(self.now))

    def swept(self, *what: object) -> SweepPages:
        """It has done this of what it wanted to do next, in its own time."""
        self.tick(1.0)
        (sweep,) = self.of(SweepPages)
        self.run(self.element.pages_swept(Swept(*what), self.now))
        return sweep

    def seal(self, offset: int = 0, nbytes: int = SLAB, slab: int = 1) -> int:
        self.ask(wire.SealPages(TICKET, slab, offset, nbytes))
        (mark,) = self.of(MarkPages)
        assert (mark.offset, mark.nbytes) == (offset, nbytes)
        self.run(self.element.pages_marked(mark.job, 5))
        assert self.replies() == [wire.PagesSealed(5)]
        return mark.file


@pytest.fixture
def driver() -> Driver:
    one = Driver()
    one.mmu(
        wire.AdmitGroup(1, TICKET),
        wire.ReserveSlab(1, 1, SLAB, False),
        wire.ReserveSlab(2, 1, 3 * SUM_SLICE_BYTES, False),
        wire.AnnouncementEnds(),
    )
    one.outputs.clear()
    return one


def test_the_first_seal_has_a_ledger_kept_and_later_ones_do_not(driver: Driver) -> None:
    driver.keeps = False
    driver.ask(wire.SealPages(TICKET, 1, 0, PAGE_BYTES))
    (keep,) = driver.of(KeepLedger)
    assert keep.about.has_ledger and keep.about.slab == 1
    driver.ask(wire.SealPages(TICKET, 1, PAGE_BYTES, PAGE_BYTES))
    assert driver.of(MarkPages) == [] and driver.replies() == []  # both wait for it
    driver.run(driver.element.ledger_kept(keep.file, 1, ""))
    assert [mark.offset for mark in driver.of(MarkPages)] == [0, PAGE_BYTES]
    driver.ask(wire.SealPages(TICKET, 1, 0, PAGE_BYTES))
    assert driver.of(KeepLedger) == [] and len(driver.of(MarkPages)) == 1


def test_nothing_is_sealed_whose_ledger_is_not_safe(driver: Driver) -> None:
    driver.keeps = False
    driver.ask(wire.SealPages(TICKET, 1, 0, PAGE_BYTES))
    (keep,) = driver.of(KeepLedger)
    driver.run(driver.element.ledger_kept(keep.file, 1, "no descriptors left"))
    (reply,) = driver.replies()
    assert isinstance(reply, wire.Failed) and reply.kind == "memory" and "descriptors" in reply.message
    assert driver.of(DropLedger) == [DropLedger(keep.file)]
    driver.ask(wire.SealPages(TICKET, 1, 0, PAGE_BYTES))  # and it may be tried again
    assert len(driver.of(KeepLedger)) == 1


@pytest.mark.parametrize(
    ("offset", "nbytes"), [(1, PAGE_BYTES), (0, 100), (0, 0), (-PAGE_BYTES, PAGE_BYTES), (PAGE_BYTES, SLAB)]
)
def test_what_are_no_pages_of_the_slab_are_refused(driver: Driver, offset: int, nbytes: int) -> None:
    for request in (
        wire.SealPages(TICKET, 1, offset, nbytes),
        wire.VerifyPages(TICKET, 1, offset, nbytes, 5),
        wire.UnsealPages(TICKET, 1, offset, nbytes, 5),
    ):
        driver.ask(request)
        (reply,) = driver.replies()
        assert isinstance(reply, wire.Failed) and reply.kind == "size"
    assert driver.outputs == []


@pytest.mark.parametrize("number", [0, -1, 1 << 30])
def test_no_seal_has_such_a_number(driver: Driver, number: int) -> None:
    driver.seal()
    driver.of(SweepPages)
    driver.ask(wire.UnsealPages(TICKET, 1, 0, PAGE_BYTES, number))
    assert isinstance(driver.replies()[0], wire.Failed) and driver.of(ForgetPages) == []


def test_who_has_no_ticket_seals_nothing(driver: Driver) -> None:
    driver.ask(wire.SealPages(b"wrong", 1, 0, PAGE_BYTES))
    (reply,) = driver.replies()
    assert isinstance(reply, wire.Failed) and driver.outputs == []


def test_what_was_never_sealed_is_unknown(driver: Driver) -> None:
    driver.ask(wire.VerifyPages(TICKET, 1, 0, SLAB, 5))
    assert driver.replies() == [wire.PagesVerified(0, SLAB)]


# --- the sweeper ---------------------------------------------------------------------------------------------------


def test_what_is_sealed_is_summed_in_slices_until_all_is(driver: Driver) -> None:
    driver.seal(PAGE_BYTES, 2 * SUM_SLICE_BYTES, slab=2)
    sweep = driver.swept(SUM_SLICE_BYTES + PAGE_BYTES, SUM_SLICE_BYTES, 0, [])
    assert (sweep.offset, sweep.bytes_max, sweep.only_unsummed) == (PAGE_BYTES, SUM_SLICE_BYTES, True)
    sweep = driver.swept(sweep.end, SUM_SLICE_BYTES, 0, [])
    assert sweep.offset == SUM_SLICE_BYTES + PAGE_BYTES and sweep.only_unsummed
    assert driver.element.usage().summed_bytes == 2 * SUM_SLICE_BYTES
    driver.tick(1.0)
    assert [sweep.only_unsummed for sweep in driver.of(SweepPages)] == [False]  # the scrubber's turn


def test_it_is_summed_at_a_limited_rate(driver: Driver) -> None:
    driver.seal(0, 3 * SUM_SLICE_BYTES, slab=2)
    driver.tick()
    (sweep,) = driver.of(SweepPages)
    swept = Swept(SUM_SLICE_BYTES, SUM_SLICE_BYTES, 0, [])
    driver.run(driver.element.pages_swept(swept, driver.now))
    pause = SUM_SLICE_BYTES / SUM_RATE
    assert driver.element.next_deadline() == pytest.approx(pause)
    driver.tick(pause * 0.9)
    assert driver.of(SweepPages) == []
    driver.tick(pause * 0.2)
    (sweep,) = driver.of(SweepPages)
    assert sweep.only_unsummed and sweep.offset == SUM_SLICE_BYTES


def test_what_is_sealed_meanwhile_is_summed_after_that(driver: Driver) -> None:
    driver.seal(SUM_SLICE_BYTES, PAGE_BYTES, slab=2)
    driver.seal(0, PAGE_BYTES, slab=2)
    assert driver.swept(0, 0, 0, []).offset == 0
    driver.tick(1.0)
    (sweep,) = driver.of(SweepPages)
    assert sweep.only_unsummed
    driver.seal(0, PAGE_BYTES, slab=2)  # before where it is
    driver.run(driver.element.pages_swept(Swept(3 * SUM_SLICE_BYTES, 1, 0, []), driver.now))
    assert driver.swept(3 * SUM_SLICE_BYTES, 1, 0, []).offset == 0


def test_the_scrubber_keeps_to_its_rate_and_its_interval(driver: Driver) -> None:
    driver.seal()
    driver.swept(SLAB, SLAB, 0, [])
    read = 0
    for _ in range(int(10 / 0.01)):
        driver.tick(0.01)
        if driver.of(SweepPages):
            read += SLAB
            driver.run(driver.element.pages_swept(Swept(SLAB, 0, SLAB, []), driver.now))
    rounds = read // SLAB
    assert 9 / SCRUB_INTERVAL <= rounds <= 10 / SCRUB_INTERVAL + 1
    assert driver.element.usage().scrubbed_bytes == read
    driver.mmu(wire.ReserveSlab(3, 1, 256 * MIB, False))  # more than can be read in that time
    driver.seal(0, 256 * MIB, slab=3)
    driver.swept(256 * MIB, 0, 0, [])
    began, read = driver.now, 0
    for _ in range(int(10 / 0.01)):
        driver.tick(0.01)
        for sweep in driver.of(SweepPages):
            step = min(sweep.bytes_max, sweep.end - sweep.offset)
            read += step
            driver.run(driver.element.pages_swept(Swept(sweep.offset + step, 0, step, []), driver.now))
    assert SCRUB_RATE * 0.6 < read / (driver.now - began) <= SCRUB_RATE * 1.05


def test_an_element_without_seals_has_nothing_to_wait_for(driver: Driver) -> None:
    driver.tick(0.5)
    assert driver.element.next_deadline() > driver.now
    assert driver.of(SweepPages) == []


# --- mismatches ----------------------------------------------------------------------------------------------------


def differs(offset: int = PAGE_BYTES, nbytes: int = PAGE_BYTES) -> list[tuple[int, int, int]]:
    return [(offset, nbytes, 5)]


def test_what_differs_is_reported_once_and_fails_when_the_mmu_says_so(driver: Driver) -> None:
    file = driver.seal()
    driver.swept(SLAB, SLAB, 0, [])
    driver.of(ToMmu)
    for _ in range(2):
        driver.ask(wire.VerifyPages(TICKET, 1, 0, SLAB, 5))
        (check,) = driver.of(CheckPages)
        driver.run(driver.element.pages_checked(check.job, Checked(SLAB - PAGE_BYTES, 0, differs())))
        (reply,) = driver.replies()
        assert reply == wire.PagesVerified(SLAB - PAGE_BYTES, 0, [(PAGE_BYTES, PAGE_BYTES)])
    assert driver.of(ToMmu) == [ToMmu(wire.PagesDiffer(1, PAGE_BYTES, PAGE_BYTES, 5))]
    assert driver.of(LoseFile) == []  # not of its own accord
    driver.mmu(wire.FailMemory(3, 1, 0, 4 * PAGE_BYTES, "checksum"))
    assert driver.of(LoseFile) == [LoseFile(file, (0, 4 * PAGE_BYTES))]
    assert driver.of(ForgetPages) == [ForgetPages(file, 0, 4 * PAGE_BYTES)]
    assert driver.element.usage().mismatched_bytes == PAGE_BYTES
    driver.ask(wire.VerifyPages(TICKET, 1, 0, SLAB, 5))  # who asks later is told what it was
    (check,) = driver.of(CheckPages)
    checked = Checked(SLAB - 4 * PAGE_BYTES, 4 * PAGE_BYTES, [])
    driver.run(driver.element.pages_checked(check.job, checked))
    (reply,) = driver.replies()
    assert isinstance(reply, wire.PagesVerified)
    assert reply.different == [(PAGE_BYTES, PAGE_BYTES)] and reply.failed == [(0, 4 * PAGE_BYTES)]
    driver.ask(wire.SealPages(TICKET, 1, 0, SLAB))
    assert isinstance(driver.replies()[0], wire.Failed)


def test_what_was_unsealed_meanwhile_is_forgotten(driver: Driver) -> None:
    file = driver.seal()
    driver.swept(SLAB, 0, SLAB, differs())
    assert driver.of(ToMmu)[-1] == ToMmu(wire.PagesDiffer(1, PAGE_BYTES, PAGE_BYTES, 5))
    driver.mmu(wire.ForgetSums(1, PAGE_BYTES, PAGE_BYTES, 5))
    assert driver.of(ForgetPages) == [ForgetPages(file, PAGE_BYTES, PAGE_BYTES, 5)]
    assert driver.element.usage().mismatched_bytes == 0 and driver.of(LoseFile) == []


def test_a_new_rack_mmu_hears_of_it_again(driver: Driver) -> None:
    driver.seal()
    driver.swept(SLAB, 0, SLAB, differs())
    driver.of(ToMmu)
    driver.element.linked()
    driver.swept(SLAB, 0, SLAB, differs())
    assert ToMmu(wire.PagesDiffer(1, PAGE_BYTES, PAGE_BYTES, 5)) in driver.of(ToMmu)


def test_a_slab_that_goes_takes_its_ledger_along(driver: Driver) -> None:
    file = driver.seal()
    driver.ask(wire.VerifyPages(TICKET, 1, 0, SLAB, 5))
    (check,) = driver.of(CheckPages)
    driver.tick()
    assert len(driver.of(SweepPages)) == 1
    driver.mmu(wire.RetireSlab(1, recycle=True))
    assert driver.of(DropLedger) == [DropLedger(file)] and driver.of(CloseFile) == []
    swept = Swept(SLAB, 0, SLAB, differs())  # what was under way is of no interest
    driver.run(driver.element.pages_swept(swept, driver.now))
    driver.run(driver.element.pages_checked(check.job, Checked(0, 0, differs())))
    assert isinstance(driver.replies()[0], wire.Failed)
    assert not [told for told in driver.of(ToMmu) if isinstance(told.message, wire.PagesDiffer)]
    driver.mmu(wire.ReserveSlab(7, 1, SLAB, False))  # the same file again
    driver.ask(wire.VerifyPages(TICKET, 7, 0, SLAB, 5))
    assert driver.replies()[-1] == wire.PagesVerified(0, SLAB)


def test_pages_whose_contents_have_gone_elsewhere_are_not_checked_any_more(driver: Driver) -> None:
    file = driver.seal()
    driver.mmu(wire.PunchPages(4, 1, 0, PAGE_BYTES))
    assert driver.of(ForgetPages) == [ForgetPages(file, 0, PAGE_BYTES)] and len(driver.of(PunchFile)) == 1


# --- a new server --------------------------------------------------------------------------------------------------


def test_a_server_that_follows_goes_on_with_what_is_unsummed(driver: Driver) -> None:
    kept = {3: KeptFile(1, SLAB, False, 0, has_ledger=True), 4: KeptFile(2, SLAB, False, 0)}
    fresh = Driver(MemoryElement(512 * MIB, 0.0, kept))
    fresh.mmu(
        wire.AdmitGroup(1, TICKET),
        wire.AdoptSlab(1, 1, SLAB, False),
        wire.AdoptSlab(2, 1, SLAB, False),
        wire.AnnouncementEnds(),
    )
    sweep = fresh.swept(SLAB, PAGE_BYTES, 0, [])
    assert (sweep.file, sweep.offset, sweep.only_unsummed) == (3, 0, True)
    fresh.ask(wire.VerifyPages(TICKET, 1, 0, SLAB, 5))
    assert len(fresh.of(CheckPages)) == 1
    fresh.ask(wire.VerifyPages(TICKET, 2, 0, SLAB, 5))
    assert fresh.replies() == [wire.PagesVerified(0, SLAB)]


def test_who_asks_before_all_is_announced_waits() -> None:
    fresh = Driver(MemoryElement(512 * MIB, 0.0, {3: KeptFile(1, SLAB, False, 0, has_ledger=True)}))
    fresh.ask(wire.VerifyPages(TICKET, 1, 0, SLAB, 5))
    assert fresh.outputs == []
    fresh.mmu(wire.AdmitGroup(1, TICKET), wire.AdoptSlab(1, 1, SLAB, False), wire.AnnouncementEnds())
    assert len(fresh.of(CheckPages)) == 1


# --- for tests of programs -----------------------------------------------------------------------------------------


def test_a_bit_is_flipped_once_however_often_it_is_asked_for(driver: Driver) -> None:
    for job, nonce in ((1, b"a"), (2, b"a"), (3, b"b")):
        driver.mmu(wire.FlipBitOf(job, 1, 77, nonce))
    assert [flip.offset for flip in driver.of(FlipBitOfFile)] == [77, 77]
    assert [told.message for told in driver.of(ToMmu)][-3:] == [wire.BitFlipped(job) for job in (1, 2, 3)]
