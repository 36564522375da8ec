"""The ledger of a slab's checksums, and CRC-32C itself, against a plain Python one."""

from __future__ import annotations

import mmap
import os
import random
import select
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bequest._core import SealLedger, Sweeper, sum_pages

PAGE = 4096
PAGES = 600  # more than one 2 MiB page


def plain_crc32c(data: bytes) -> int:
    """RFC 3720, appendix B.4, bit by bit."""
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
        table.append(crc)
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ table[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


class Slab:
    """A file, its ledger, and the plain sums of what was in it when it was marked."""

    def __init__(self, pages: int = PAGES) -> None:
        self.fd = os.memfd_create("slab")
        os.ftruncate(self.fd, pages * PAGE)
        self.file = SealLedger.make_file(pages * PAGE)
        self.pages = pages
        self.ledger = self.reopened()

    def reopened(self) -> SealLedger:
        return SealLedger(self.fd, self.file, self.pages * PAGE)

    def write(self, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, offset)

    def flip(self, offset: int, mask: int = 1) -> None:
        self.write(offset, bytes([os.pread(self.fd, 1, offset)[0] ^ mask]))


@pytest.fixture
def slab() -> Iterator[Slab]:
    one = Slab()
    yield one
    os.close(one.fd)
    os.close(one.file)


def test_it_is_the_crc32c_of_the_standards() -> None:
    assert plain_crc32c(b"123456789") == 0xE3069283  # and of ours: heap/checksum.hpp, tests/crash
    assert sum_pages(bytes(PAGE)) == [plain_crc32c(bytes(PAGE))]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 9), st.integers(0, 63), st.integers(0, 1 << 32))
def test_sums_are_those_of_plain_python(count: int, misplaced: int, seed: int) -> None:
    """Of any number of pages, wherever they lie."""
    data = random.Random(seed).randbytes(count * PAGE + misplaced + 64)
    pages = memoryview(data)[misplaced : misplaced + count * PAGE]
    expected = [plain_crc32c(pages[at : at + PAGE]) for at in range(0, len(pages), PAGE)]
    assert sum_pages(pages) == expected


@settings(max_examples=40, deadline=None)
@given(st.integers(0, PAGES * PAGE - 1), st.integers(0, 7), st.booleans())
def test_any_bit_that_flips_is_found(offset: int, bit: int, unasked: bool) -> None:
    slab = Slab()
    number = slab.ledger.mark(0, PAGES * PAGE)
    assert slab.ledger.check(0, PAGES * PAGE, number) == (PAGES * PAGE, 0, [])
    slab.flip(offset, 1 << bit)
    found = [(offset // PAGE * PAGE, PAGE, number)]
    if unasked:
        assert slab.ledger.sweep(0, PAGES * PAGE, PAGES * PAGE, False) == (
            PAGES * PAGE, 0, PAGES * PAGE, found,
        )  # fmt: skip
    else:
        assert slab.ledger.check(0, PAGES * PAGE, number) == ((PAGES - 1) * PAGE, 0, found)
    os.close(slab.fd)
    os.close(slab.file)


def test_only_what_bears_the_number_is_vouched_for(slab: Slab) -> None:
    first = slab.ledger.mark(2 * PAGE, 3 * PAGE)
    second = slab.ledger.mark(4 * PAGE, 2 * PAGE)
    assert second != first
    assert slab.ledger.check(0, 8 * PAGE, first) == (2 * PAGE, 6 * PAGE, [])
    assert slab.ledger.check(0, 8 * PAGE, second) == (2 * PAGE, 6 * PAGE, [])
    slab.ledger.forget(0, 8 * PAGE, first)
    assert slab.ledger.check(0, 8 * PAGE, first) == (0, 8 * PAGE, [])
    assert slab.ledger.check(4 * PAGE, 2 * PAGE, second) == (2 * PAGE, 0, [])
    slab.ledger.forget(4 * PAGE, PAGE)
    assert slab.ledger.sealed_bytes() == PAGE


def test_what_changes_before_it_is_summed_is_not_noticed_and_after_it_is(slab: Slab) -> None:
    number = slab.ledger.mark(0, 2 * PAGE)
    slab.flip(5)
    assert slab.ledger.sweep(0, PAGES * PAGE, PAGE, True) == (PAGE, PAGE, 0, [])  # no more than it may
    slab.flip(5)
    slab.flip(PAGE)
    assert slab.ledger.check(0, 2 * PAGE, number) == (PAGE, 0, [(0, PAGE, number)])
    assert slab.ledger.sweep(PAGE, PAGES * PAGE, PAGES * PAGE, True) == (PAGES * PAGE, 0, 0, [])


def test_neighbours_are_one_run_and_no_more_are_named_than_fit(slab: Slab) -> None:
    number = slab.ledger.mark(0, PAGES * PAGE)
    slab.ledger.check(0, PAGES * PAGE, number)
    for page in (7, 8, 9, *range(100, 400, 2)):
        slab.flip(page * PAGE + page)
    verified, unknown, runs = slab.ledger.check(0, PAGES * PAGE, number)
    assert runs[:2] == [(7 * PAGE, 3 * PAGE, number), (100 * PAGE, PAGE, number)]
    assert len(runs) == 64 and unknown == 0 and verified == (PAGES - 153) * PAGE


def test_it_survives_whoever_opened_it(slab: Slab) -> None:
    number = slab.ledger.mark(0, 4 * PAGE)
    slab.ledger.sweep(0, 2 * PAGE, PAGES * PAGE, True)
    del slab.ledger
    slab.flip(PAGE)
    slab.ledger = slab.reopened()
    assert slab.ledger.sweep(0, PAGES * PAGE, PAGES * PAGE, True)[1] == 2 * PAGE  # what was left unsummed
    assert slab.ledger.check(0, 4 * PAGE, number) == (3 * PAGE, 0, [(PAGE, PAGE, number)])
    assert slab.ledger.mark(0, PAGE) == number + 1


def test_a_file_of_another_slab_is_no_ledger_of_this_one(slab: Slab) -> None:
    with pytest.raises(ValueError, match="no ledger"):
        SealLedger(slab.fd, SealLedger.make_file((PAGES + 1) * PAGE), PAGES * PAGE)


def test_a_slab_that_is_cut_short_meanwhile_differs_and_kills_nobody() -> None:
    program = """if True:
        import os
        from bequest._core import SealLedger, Sweeper
        fd = os.memfd_create("slab")
        os.ftruncate(fd, 8 * 4096)
        ledger = SealLedger(fd, SealLedger.make_file(8 * 4096), 8 * 4096)
        number = ledger.mark(0, 8 * 4096)
        ledger.check(0, 8 * 4096, number)
        os.ftruncate(fd, 5 * 4096)
        for _ in range(3):
            print(ledger.check(0, 8 * 4096, number) == (5 * 4096, 0, [(5 * 4096, 3 * 4096, number)]))
        import ctypes
        ctypes.string_at(0)  # what is none of its business still kills
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True"] * 3 and done.returncode < 0, done.stderr


def test_the_sweeper_works_beside_who_asks(slab: Slab) -> None:
    """While pages are sealed anew and verified, nothing is reported that is well."""
    sweeper = Sweeper()
    swept = 0
    for round_ in range(40):
        slab.write(0, bytes([round_]) * PAGE * 64)
        number = slab.ledger.mark(0, 64 * PAGE)
        sweeper.start(slab.ledger, 0, PAGES * PAGE, PAGES * PAGE, round_ % 2 == 0)
        assert slab.ledger.check(0, 64 * PAGE, number) == (64 * PAGE, 0, [])
        select.select([sweeper.fileno()], [], [], 20)
        found = sweeper.collect()
        assert found is not None and found[0] == PAGES * PAGE and found[3] == []
        swept += found[1] + found[2]
    assert sweeper.collect() is None and swept > 0


def test_two_who_ask_at_once_are_both_told_of_every_page() -> None:
    """Each page is summed by one of them, and compared by the other."""
    slab = Slab(16_384)
    everything = 16_384 * PAGE
    for _ in range(5):
        number = slab.ledger.mark(0, everything)
        answers = []
        ready = threading.Barrier(2)

        def ask(number: int = number, ready: threading.Barrier = ready, answers: list = answers) -> None:
            ready.wait()
            answers.append(slab.ledger.check(0, everything, number))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [(everything, 0, [])] * 2
    os.close(slab.fd)
    os.close(slab.file)


def test_a_ledger_that_is_stopped_reads_nothing_more(slab: Slab) -> None:
    slab.ledger.mark(0, 4 * PAGE)
    slab.ledger.stop()
    assert slab.ledger.check(0, 4 * PAGE, 1) == (0, 4 * PAGE, [])
    assert slab.ledger.sweep(0, PAGES * PAGE, PAGES * PAGE, False)[1:] == (0, 0, [])


def test_the_sweeper_goes_behind_everybody() -> None:
    sweeper = Sweeper()
    slab = Slab(8)
    sweeper.start(slab.ledger, 0, PAGE, PAGE, False)
    select.select([sweeper.fileno()], [], [], 20)
    sweeper.collect()
    policies = [os.sched_getscheduler(int(thread)) for thread in os.listdir("/proc/self/task")]
    assert os.SCHED_IDLE in policies


def test_a_page_is_read_where_it_lies() -> None:
    """Mapped memory, as the owner has it, has the same sums as its file."""
    slab = Slab(5)
    with mmap.mmap(slab.fd, 5 * PAGE) as pages:
        pages[:] = os.urandom(5 * PAGE)
        number = slab.ledger.mark(0, 5 * PAGE)
        slab.ledger.check(0, 5 * PAGE, number)
        words = os.pread(slab.file, 5 * 8, PAGE)
        sums = [int.from_bytes(words[at + 4 : at + 8], "little") for at in range(0, 40, 8)]
        assert sums == sum_pages(pages)
