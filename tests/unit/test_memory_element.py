"""A memory element: who is given a slab's memory, and how the pool keeps its bounds."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bequest.limits import SLAB_FAILED_RUNS_MAX
from bequest.protocol.memory_element import MemoryElement
from bequest.protocol.outputs import (
    CloseFile,
    CopyFile,
    KeepFile,
    KeptFile,
    LoseFile,
    MakeFile,
    Output,
    PunchFile,
    Reply,
    ToMmu,
)
from bequest.wire import messages as wire

MIB = 1 << 20
TICKET, OTHER_TICKET = b"ticket of group1", b"ticket of group2"


class Driver:
    """Carries out what the element wants, with numbers for files."""

    def __init__(self, size: int = 256 * MIB) -> None:
        self.now = 0.0
        self.size = size
        self.element = MemoryElement(size, self.now)
        self.files: dict[int, int] = {}  # open ones, and their bytes
        self.making: list[MakeFile] = []
        self.to_mmu: list[wire.Message] = []
        self.others: list[Output] = []
        self.kept: dict[int, KeptFile] = {}
        self.safe_trouble = ""
        self.tell(wire.AdmitGroup(1, TICKET))
        self.tell(wire.AdmitGroup(2, OTHER_TICKET))
        self.tell(wire.AnnouncementEnds())

    def tell(self, message: wire.Message) -> None:
        self.do(self.element.mmu_message(message, self.now))

    def do(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case MakeFile():
                    self.making.append(output)
                case CloseFile(file):
                    del self.files[file]
                    self.kept.pop(file, None)
                case KeepFile(file, about):
                    self.kept[file] = about
                    self.do(self.element.file_kept(file, about.slab, self.safe_trouble))
                case ToMmu(message):
                    self.to_mmu.append(message)
                case _:
                    self.others.append(output)

    def finish(self, make: MakeFile, message: str = "") -> None:
        self.making.remove(make)
        if message:
            self.do(self.element.file_failed(make.file, message, self.now))
        else:
            self.files[make.file] = make.nbytes
            self.do(self.element.file_made(make.file, make.nbytes if make.huge else 0, self.now))

    def finish_all(self) -> None:
        while self.making:
            self.finish(self.making[0])

    def pass_time(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 1)
            self.do(self.element.tick(self.now))
            self.finish_all()

    def reserve(self, slab: int, nbytes: int = 2 * MIB, group: int = 1, huge: bool = False) -> None:
        self.tell(wire.ReserveSlab(slab, group, nbytes, huge))

    def open(self, ticket: bytes, slab: int) -> Reply:
        (reply,) = self.element.client_message(9, wire.OpenSlab(ticket, slab))
        assert isinstance(reply, Reply) and reply.peer == 9
        return reply

    def is_open_to(self, ticket: bytes, slab: int) -> bool:
        return self.open(ticket, slab).file is not None


def test_only_the_groups_ticket_opens_a_slab() -> None:
    driver = Driver()
    driver.reserve(1)
    assert not driver.is_open_to(TICKET, 1)  # not ready yet
    driver.finish_all()
    assert driver.to_mmu == [wire.SlabReserved(1)]
    assert driver.is_open_to(TICKET, 1)
    for ticket, slab in ((OTHER_TICKET, 1), (b"", 1), (bytes(16), 1), (TICKET, 2)):
        reply = driver.open(ticket, slab)
        assert reply.file is None and isinstance(reply.message, wire.Failed)


def test_a_slab_that_moves_to_another_group_is_theirs_alone() -> None:
    driver = Driver()
    driver.reserve(1)
    driver.finish_all()
    driver.tell(wire.RegroupSlab(1, 2))
    assert driver.to_mmu[-1] == wire.SlabRegrouped(1)
    assert driver.is_open_to(OTHER_TICKET, 1) and not driver.is_open_to(TICKET, 1)
    file = driver.open(OTHER_TICKET, 1).file
    driver.tell(wire.RetireSlab(1, recycle=True))
    assert file not in driver.files  # old members may hold it open: it serves nobody again


def test_retired_memory_serves_its_own_group_again() -> None:
    driver = Driver()
    driver.reserve(1, 64 * MIB)
    driver.finish_all()
    file = driver.open(TICKET, 1).file
    driver.tell(wire.RetireSlab(1, recycle=True))
    assert not driver.is_open_to(TICKET, 1)
    driver.reserve(2, 64 * MIB, group=2)
    driver.finish_all()
    assert driver.open(OTHER_TICKET, 2).file != file
    driver.reserve(3, 64 * MIB)
    assert driver.open(TICKET, 3).file == file  # without waiting
    driver.tell(wire.RetireSlab(3, recycle=True))
    driver.tell(wire.ForgetGroup(1))
    assert file not in driver.files


def test_memory_that_its_allocator_may_still_touch_serves_nobody_again() -> None:
    driver = Driver()
    driver.reserve(1, 64 * MIB)
    driver.finish_all()
    file = driver.open(TICKET, 1).file
    driver.tell(wire.RetireSlab(1, recycle=False))
    assert file not in driver.files


def test_the_pool_starts_small_follows_demand_and_gives_back() -> None:
    driver = Driver(size=4096 * MIB)
    driver.pass_time(2)
    assert driver.element.usage().warm_bytes == 16 * MIB
    for slab in range(4):
        driver.reserve(slab, 32 * MIB, huge=True)
    driver.finish_all()
    assert driver.element.usage().cold_misses >= 2
    driver.pass_time(1)
    assert driver.element.usage().warm_bytes == 16 * MIB + 4 * 32 * MIB
    misses = driver.element.usage().cold_misses
    driver.reserve(5, 32 * MIB, huge=True)
    assert driver.element.usage().cold_misses == misses
    for slab in (0, 1, 2, 3, 5):
        driver.tell(wire.RetireSlab(slab, recycle=True))
    driver.pass_time(75)
    assert driver.element.usage() == wire.ElementUsage(warm_hits=1, cold_misses=misses)
    assert driver.files == {}


def test_a_pool_that_cannot_be_filled_rests() -> None:
    driver = Driver()
    driver.do(driver.element.tick(0.0))
    driver.finish(driver.making[0], "no space")
    assert driver.making == []
    driver.pass_time(5)
    assert driver.files == {}
    driver.pass_time(10)
    assert driver.files


def test_the_pool_yields_before_a_slab_is_refused() -> None:
    driver = Driver()
    driver.pass_time(1)
    assert driver.files
    driver.reserve(1, 128 * MIB)
    (make,) = [make for make in driver.making if make.urgent]
    driver.finish(make, "no space")
    assert driver.files == {}
    (again,) = [make for make in driver.making if make.urgent]
    driver.finish(again, "no space at all")
    assert driver.to_mmu[-1] == wire.SlabRefused(1, "no space at all")
    assert not driver.is_open_to(TICKET, 1)


def test_copies_and_holes() -> None:
    driver = Driver()
    driver.reserve(1)
    driver.reserve(2, group=2)
    driver.finish_all()
    source, target = driver.open(TICKET, 1).file, driver.open(OTHER_TICKET, 2).file
    assert source is not None and target is not None
    driver.others.clear()
    driver.tell(wire.CopyPages(7, 1, 4096, 2, 8192, 100))
    driver.tell(wire.PunchPages(9, 1, 0, 4096))
    assert driver.others == [CopyFile(1, source, 4096, target, 8192, 100), PunchFile(2, source, 0, 4096)]
    driver.tell(wire.CopyPages(8, 1, 4096, 2, 8192, 100))
    driver.do(driver.element.punch_done(2, 0))
    assert driver.to_mmu[-1] == wire.PagesPunched(9)
    driver.do(driver.element.copy_done(1, 0))
    driver.do(driver.element.copy_failed(3, "broken", 0))
    assert driver.to_mmu[-2:] == [wire.PagesCopied(7), wire.CopyFailed(8, "broken")]


# --- a new link, a new server ------------------------------------------------------------------------------


def announce(driver: Driver, *messages: wire.Message) -> None:
    """What the Rack MMU says on a new link."""
    driver.to_mmu.clear()
    driver.element.linked()
    for message in (wire.AdmitGroup(1, TICKET), *messages, wire.AnnouncementEnds()):
        driver.tell(message)


def reborn(driver: Driver) -> Driver:
    """A new server, which finds what the last one kept, and has heard nothing yet."""
    fresh = Driver()
    fresh.files = {file: about.nbytes for file, about in driver.kept.items()}
    fresh.kept = dict(driver.kept)
    fresh.element = MemoryElement(fresh.size, fresh.now, driver.kept)
    return fresh


def test_a_slab_is_promised_only_once_it_is_safe() -> None:
    driver = Driver()
    driver.safe_trouble = "no descriptors left"
    driver.reserve(1)
    driver.finish_all()
    assert driver.to_mmu == [wire.SlabRefused(1, "no descriptors left")]
    assert not driver.is_open_to(TICKET, 1)
    assert driver.kept == {}


def test_a_new_server_has_the_slabs_of_the_last_one_and_no_others() -> None:
    driver = Driver()
    for slab in (1, 2, 3):
        driver.reserve(slab)
    driver.finish_all()
    driver.tell(wire.RetireSlab(2, recycle=True))
    assert len(driver.kept) == 3  # a recycled file is still kept: somebody must free it
    fresh = reborn(driver)
    adopt = [wire.AdoptSlab(slab, 1, 2 * MIB, False) for slab in (1, 4)]
    announce(fresh, *adopt, wire.ReserveSlab(3, 1, 2 * MIB, False))
    assert fresh.to_mmu == [wire.SlabLost(4), wire.SlabReserved(3)]
    assert [fresh.is_open_to(TICKET, slab) for slab in (1, 2, 3, 4)] == [True, False, True, False]
    assert sorted(about.slab for about in fresh.kept.values()) == [1, 3]
    assert fresh.element.usage().slab_bytes == 4 * MIB
    fresh.tell(wire.RetireSlab(4, recycle=True))  # lost: nothing to do
    fresh.reserve(5)
    fresh.finish_all()
    assert fresh.is_open_to(TICKET, 5) and len(fresh.kept) == 3


def test_what_was_adopted_is_never_recycled() -> None:
    """It may have been in another group, whose members hold it open."""
    driver = Driver()
    driver.reserve(1)
    driver.finish_all()
    fresh = reborn(driver)
    announce(fresh, wire.AdoptSlab(1, 1, 2 * MIB, False))
    fresh.tell(wire.RetireSlab(1, recycle=True))
    assert fresh.kept == {} and fresh.files == {}


def test_a_new_server_refuses_nobody_before_it_has_heard_all() -> None:
    driver = Driver()
    driver.reserve(1)
    driver.finish_all()
    fresh = reborn(driver)
    assert fresh.element.client_message(7, wire.OpenSlab(TICKET, 1)) == []
    assert fresh.element.client_message(8, wire.OpenSlab(TICKET, 2)) == []
    announce(fresh, wire.AdoptSlab(1, 1, 2 * MIB, False))
    granted, refused = (output for output in fresh.others if isinstance(output, Reply))
    assert granted.peer == 7 and granted.file is not None
    assert refused.peer == 8 and refused.file is None


def test_a_new_link_takes_back_what_is_not_said_again() -> None:
    driver = Driver()
    for slab in (1, 2):
        driver.reserve(slab)
    driver.finish_all()
    driver.reserve(3, 32 * MIB)
    driver.reserve(4, 32 * MIB)
    driver.tell(wire.RegroupSlab(1, 2))
    announce(driver, wire.AdoptSlab(1, 1, 2 * MIB, False), wire.ReserveSlab(3, 1, 32 * MIB, False))
    driver.finish_all()
    assert driver.to_mmu == [wire.SlabReserved(3)]
    assert driver.is_open_to(TICKET, 1) and not driver.is_open_to(OTHER_TICKET, 1)
    assert sorted(about.slab for about in driver.kept.values()) == [1, 3]
    assert driver.element.usage().slab_bytes == 34 * MIB
    driver.tell(wire.AdmitGroup(2, OTHER_TICKET))


def test_copies_of_an_earlier_link_end_before_anything_is_done_on_a_new_one() -> None:
    driver = Driver()
    for slab in (1, 2):
        driver.reserve(slab)
    driver.finish_all()
    driver.tell(wire.CopyPages(7, 1, 0, 2, 0, 4096))
    driver.others.clear()
    adopt = [wire.AdoptSlab(slab, 1, 2 * MIB, False) for slab in (1, 2)]
    announce(driver, *adopt)
    driver.tell(wire.CopyPages(7, 1, 0, 2, 4096, 4096))  # another copy under an old number
    assert driver.others == []
    driver.do(driver.element.copy_done(1, driver.now))
    assert driver.to_mmu == [] and len(driver.others) == 1
    driver.do(driver.element.copy_done(2, driver.now))
    assert driver.to_mmu == [wire.PagesCopied(7)]


def test_memory_that_is_gone_cannot_be_moved_or_copied() -> None:
    driver = Driver()
    announce(driver, wire.AdoptSlab(1, 1, 2 * MIB, False))
    driver.tell(wire.RegroupSlab(1, 2))
    driver.tell(wire.CopyPages(7, 1, 0, 2, 0, 4096))
    driver.tell(wire.PunchPages(8, 1, 0, 4096))
    assert driver.to_mmu == [
        wire.SlabLost(1),
        wire.SlabLost(1),
        wire.CopyFailed(7, "these pages have lost their memory"),
        wire.PagesPunched(8),
    ]


def test_a_slab_that_fails_in_too_many_places_fails_as_a_whole() -> None:
    driver = Driver()
    driver.reserve(1, 8 * MIB)
    driver.finish_all()
    driver.to_mmu.clear()
    for page in range(SLAB_FAILED_RUNS_MAX):
        driver.tell(wire.FailMemory(1, 1, 2 * page * 4096, 4096, "worn out"))
    assert driver.others[-1] == LoseFile(1, (2 * page * 4096, 4096))
    assert len(driver.open(TICKET, 1).message.failed) == SLAB_FAILED_RUNS_MAX
    driver.tell(wire.FailMemory(1, 1, 4 * MIB, 4096, "worn out"))
    assert driver.others[-1] == LoseFile(1)
    assert driver.to_mmu[-2:] == [wire.MemoryFailed(1, 0, 8 * MIB, "worn out"), wire.FailureMade(1)]
    assert driver.open(TICKET, 1).message.failed == [(0, 8 * MIB)]


def test_what_the_rack_mmu_has_not_heard_of_a_failure_it_is_told_on_the_next_link() -> None:
    driver = Driver()
    driver.reserve(1)
    driver.finish_all()
    driver.tell(wire.FailMemory(1, 1, 0, 4096, "worn out"))
    driver.tell(wire.FailMemory(2, 1, 8192, 4096, "worn out"))
    announce(driver, wire.AdoptSlab(1, 1, 2 * MIB, False, [(0, 4096)]))
    assert driver.to_mmu == [wire.MemoryFailed(1, 8192, 4096, "worn out")]
    announce(driver, wire.AdoptSlab(1, 1, 2 * MIB, False, [(0, 4096), (8192, 4096)]))
    assert driver.to_mmu == []


def test_what_was_to_fail_when_a_server_died_fails_in_the_next_one() -> None:
    driver = Driver()
    driver.reserve(1)
    driver.finish_all()
    for server in (
        driver,
        reborn(driver),
    ):  # it was told in vain; its successor does not know whether it was done
        server.others.clear()
        announce(server, wire.AdoptSlab(1, 1, 2 * MIB, False, [(4096, 4096)], "worn out"))
        assert server.others == [LoseFile(1, (4096, 4096))]
        assert server.to_mmu == [wire.MemoryFailed(1, 4096, 4096, "worn out")]
        assert server.open(TICKET, 1).message.failed == [(4096, 4096)]


class Pool(RuleBasedStateMachine):
    """Whatever is asked in whatever order: the size is kept, and no file serves two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.driver = Driver(size=64 * MIB)
        self.slabs: dict[int, tuple[int, int]] = {}  # (group, bytes), as the Rack MMU counts
        self.served: dict[int, set[int]] = {}  # file -> groups
        self.last = 0

    @rule(nbytes=st.sampled_from([2, 4, 6, 8, 32]), group=st.sampled_from([1, 2]), huge=st.booleans())
    def reserve(self, nbytes: int, group: int, huge: bool) -> None:
        if sum(size for _, size in self.slabs.values()) + nbytes * MIB > self.driver.size:
            return  # the Rack MMU would not ask
        self.last += 1
        self.slabs[self.last] = (group, nbytes * MIB)
        self.driver.reserve(self.last, nbytes * MIB, group, huge)

    @precondition(lambda self: self.driver.making)
    @rule(which=st.integers(0, 9))
    def make(self, which: int) -> None:
        self.driver.finish(self.driver.making[which % len(self.driver.making)])

    @precondition(lambda self: self.slabs)
    @rule(which=st.integers(0, 9))
    def retire(self, which: int) -> None:
        slab = list(self.slabs)[which % len(self.slabs)]
        if wire.SlabReserved(slab) in self.driver.to_mmu:
            del self.slabs[slab]
            self.driver.tell(wire.RetireSlab(slab, recycle=True))

    @rule(seconds=st.sampled_from([1, 5, 40]))
    def wait(self, seconds: int) -> None:
        self.driver.now += seconds
        self.driver.do(self.driver.element.tick(self.driver.now))

    @invariant()
    def size_is_kept(self) -> None:
        held = sum(self.driver.files.values())
        held += sum(make.nbytes for make in self.driver.making if make.urgent)
        assert held <= self.driver.size

    @invariant()
    def files_serve_one_group(self) -> None:
        for slab, (group, _) in self.slabs.items():
            file = self.driver.open((TICKET, OTHER_TICKET)[group - 1], slab).file
            if file is not None:
                assert file in self.driver.files
                self.served.setdefault(file, set()).add(group)
        assert all(len(groups) == 1 for groups in self.served.values())


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
