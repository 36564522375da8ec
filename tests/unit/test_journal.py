"""The journal: every prefix of what was written is a whole number of inputs."""

from __future__ import annotations

import os

import pytest

from bequest.limits import JOURNAL_BYTES_MIN
from bequest.protocol.books import Change
from bequest.runtime.journal import Journal, read


def frame(number: int) -> list[Change]:
    return [
        Change("pets", number, {"name": f"pet {number}", "tag": bytes([number])}),
        Change("pets", -1, None),
    ]


def written(*frames: list[Change]) -> Journal:
    journal = Journal.begin([])
    for changes in frames:
        journal.write(changes)
    return journal


def test_what_was_written_is_read_in_order() -> None:
    journal = written(frame(1), [], frame(2))
    again, changes = Journal.open(os.dup(journal.fd))
    assert changes == frame(1) + frame(2)
    again.write(frame(3))
    assert read(journal.fd)[0] == frame(1) + frame(2) + frame(3)


def test_every_prefix_is_whole_frames() -> None:
    journal = written(frame(1), frame(2), frame(3))
    size = os.fstat(journal.fd).st_size
    ends = [written(*map(frame, range(1, count + 1)))._size for count in range(4)]
    for length in range(size + 1):
        torn = os.memfd_create("torn")
        os.write(torn, os.pread(journal.fd, length, 0))
        whole = sum(end <= length for end in ends[1:])
        again, changes = Journal.open(torn)
        assert changes == [change for number in range(1, whole + 1) for change in frame(number)]
        again.write(frame(9))
        assert read(torn)[0] == changes + frame(9), "what was torn is not in the way"
        again.close()


def test_every_flipped_byte_of_the_last_frame_is_noticed() -> None:
    journal = written(frame(1), frame(2))
    start, size = written(frame(1))._size, os.fstat(journal.fd).st_size
    for place in range(start, size):
        (before,) = os.pread(journal.fd, 1, place)
        os.pwrite(journal.fd, bytes([before ^ 0x40]), place)
        assert read(journal.fd) == (frame(1), start)
        os.pwrite(journal.fd, bytes([before]), place)


def test_a_long_one_is_begun_anew() -> None:
    journal = written()
    change = [Change("pets", 1, {"name": "x" * 1000})]
    while not journal.is_long:
        journal.write(change)
    assert JOURNAL_BYTES_MIN < os.fstat(journal.fd).st_size < JOURNAL_BYTES_MIN + 2000
    fresh = Journal.begin(change)
    assert not fresh.is_long and read(fresh.fd)[0] == change


def test_one_of_a_run_before_does_not_grow_from_run_to_run() -> None:
    journal = written()
    change = [Change("pets", 1, {"name": "x" * 1000})]
    for _ in range(20):  # runs that end before their journal has become long
        journal, _ = Journal.open(os.dup(journal.fd))
        for _ in range(JOURNAL_BYTES_MIN // 2000):
            journal.write(change)
        if journal.is_long:
            journal = Journal.begin(change)
    assert os.fstat(journal.fd).st_size < 2 * JOURNAL_BYTES_MIN


def test_without_room_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    journal = written(frame(1))

    def no_room(fd: int, data: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", no_room)
        with pytest.raises(MemoryError):
            journal.write(frame(2))
    journal.write(frame(3))
    assert read(journal.fd)[0] == frame(1) + frame(3)
