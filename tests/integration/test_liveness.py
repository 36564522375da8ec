"""Lifelines: the end of a process is noticed at once, its leaving in good order told apart; it beats when watched."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import bequest as bq
import fork_users
from actors import DEADLINE, until
from bequest import _core
from racks import RackUnderTest, Yard

DIED, LEFT = True, False


class Hints:
    """What a watch has told."""

    def __init__(self, use: int = _core.LIFELINE_OF_MONITOR) -> None:
        self.watch = _core.DeathWatch(use)
        self.told: dict[int, bool] = {}

    def drain(self, seconds: float = 0.0) -> dict[int, bool]:
        if select.select([self.watch], [], [], seconds)[0]:
            for key, died in self.watch.drain():
                assert key not in self.told
                self.told[key] = died
        return self.told

    def expect(self, told: dict[int, bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while self.told != told and time.monotonic() < deadline:
            self.drain(deadline - time.monotonic())
        assert self.told == told


@pytest.fixture
def hints() -> Iterator[Hints]:
    one = Hints()
    yield one
    one.watch.close()


@pytest.fixture
def table() -> Iterator[_core.Table]:
    yield _core.Table.create(1)
    while _keepers:
        _keepers[-1].end()


class Keeper:
    """A child that keeps lifelines, and does what it is told by a byte."""

    def __init__(
        self, table: _core.Table, ids: list[int], then: Callable[[list[_core.Lifeline]], None]
    ) -> None:
        read_end, self.go = os.pipe()
        ready_end, ready = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                lines = [_core.Lifeline(table, id) for id in ids]
                os.write(ready, b"x")
                os.read(read_end, 1)
                then(lines)
            finally:
                os._exit(0)
        assert os.read(ready_end, 1)
        for fd in (read_end, ready_end, ready):
            os.close(fd)
        _keepers.append(self)

    def release(self) -> None:
        os.write(self.go, b"x")

    def end(self) -> None:
        _keepers.remove(self)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.go)


_keepers: list[Keeper] = []


def pause(lines: list[_core.Lifeline]) -> None:
    signal.pause()


def leave(lines: list[_core.Lifeline]) -> None:
    for line in lines:
        line.leave()
    signal.pause()


def admit(table: _core.Table, ids: list[int]) -> None:
    for id in ids:
        table.admit(id, 1, 1, f"p{id}")


def test_a_kill_is_a_hint_of_a_death_for_each_who_watches(table: _core.Table, hints: Hints) -> None:
    admit(table, [1])
    others = [Hints(use) for use in (_core.LIFELINE_OF_MONITOR, *[_core.LIFELINE_OF_STANDBYS] * 3)]
    keeper = Keeper(table, [1], pause)
    for one in (hints, *others):
        one.watch.add(1, table, 1)
    assert hints.drain(0.05) == {}
    keeper.end()
    for one in (hints, *others):
        one.expect({1: DIED})
    for one in others:
        one.watch.close()


def test_who_leaves_in_good_order_has_not_died(table: _core.Table, hints: Hints) -> None:
    admit(table, [1, 2])
    keeper = Keeper(table, [1, 2], leave)
    hints.watch.add(1, table, 1)
    hints.watch.add(2, table, 2)
    keeper.release()
    hints.expect({1: LEFT, 2: LEFT})
    keeper.end()
    assert hints.drain(0.05) == {1: LEFT, 2: LEFT}


def test_a_line_is_watched_before_it_begins_and_after_it_broke(table: _core.Table, hints: Hints) -> None:
    admit(table, [1])
    hints.watch.add(1, table, 1)
    assert hints.drain(0.05) == {}
    Keeper(table, [1], pause).end()
    hints.expect({1: DIED})
    hints.watch.add(2, table, 1)
    hints.expect({1: DIED, 2: DIED})


def test_more_lines_than_one_thread_can_wait_for_added_and_removed_at_any_time(
    table: _core.Table, hints: Hints
) -> None:
    ids = list(range(1, 401))
    admit(table, ids)
    first, second = Keeper(table, ids[:200], pause), Keeper(table, ids[200:], pause)
    for id in ids:
        hints.watch.add(id, table, id)
    assert len(statuses("bequest-watch")) == 4  # 127 each
    for id in ids[::2]:
        hints.watch.remove(id)
    second.end()
    hints.expect(dict.fromkeys((id for id in ids[200:] if id % 2 == 0), DIED))
    for id in ids[:200:2]:
        hints.watch.add(id, table, id)
    first.end()
    hints.expect(dict.fromkeys([*(id for id in ids[200:] if id % 2 == 0), *ids[:200]], DIED))


def test_a_line_that_is_added_to_a_watch_asleep_is_watched(table: _core.Table, hints: Hints) -> None:
    admit(table, [1, 2])
    first, second = Keeper(table, [1], pause), Keeper(table, [2], pause)
    hints.watch.add(1, table, 1)
    assert hints.drain(0.05) == {}
    hints.watch.add(2, table, 2)
    second.end()
    hints.expect({2: DIED})
    first.end()
    hints.expect({2: DIED, 1: DIED})


def test_an_exec_is_a_hint_of_a_death(table: _core.Table, hints: Hints) -> None:
    admit(table, [1])
    keeper = Keeper(table, [1], lambda lines: os.execv("/bin/sleep", ["sleep", "60"]))
    hints.watch.add(1, table, 1)
    keeper.release()
    hints.expect({1: DIED})
    assert os.waitpid(keeper.pid, os.WNOHANG) == (0, 0)
    keeper.end()


def test_the_child_of_a_fork_neither_keeps_nor_breaks_the_line(table: _core.Table, hints: Hints) -> None:
    admit(table, [1])

    def fork_and_leave(lines: list[_core.Lifeline]) -> None:
        child = os.fork()
        if child == 0:
            for line in lines:
                line.leave()
            os._exit(0)
        os.waitpid(child, 0)
        signal.pause()

    keeper = Keeper(table, [1], fork_and_leave)
    hints.watch.add(1, table, 1)
    keeper.release()
    assert hints.drain(0.1) == {}
    keeper.end()
    hints.expect({1: DIED})


def test_a_watch_in_the_child_of_a_fork_is_closed_without_its_threads(
    table: _core.Table, hints: Hints
) -> None:
    admit(table, [1])
    hints.watch.add(1, table, 1)
    child = os.fork()
    if child == 0:
        hints.watch.close()
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_beats_come_while_somebody_watches_and_stop_with_the_process(table: _core.Table) -> None:
    admit(table, [1])
    keeper = Keeper(table, [1], pause)
    assert table.beats(1) == 0
    table.watch(1, 1)
    until(lambda: table.beats(1) >= 5, "five beats")
    os.kill(keeper.pid, signal.SIGSTOP)
    until(lambda: state(keeper.pid) == "T", "the stop")
    stopped_at = table.beats(1)
    time.sleep(3 * _core.BEAT_INTERVAL)
    assert table.beats(1) == stopped_at
    os.kill(keeper.pid, signal.SIGCONT)
    until(lambda: table.beats(1) > stopped_at, "a beat after the stop")
    table.watch(1, 0)
    until(lambda: sleeps(table), "no beat for a while")
    keeper.end()


def sleeps(table: _core.Table) -> bool:
    before = table.beats(1)
    time.sleep(3 * _core.BEAT_INTERVAL)
    return table.beats(1) == before


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


# --- in a rack ---------------------------------------------------------------------------------------------------


def test_an_attached_process_has_a_lifeline_until_it_detaches(
    me: bq.Process, yard: Yard, hints: Hints
) -> None:
    alice, bob = yard.actor("alice"), yard.actor("bob")
    hints.watch.add(1, me.table, alice.id)
    hints.watch.add(2, me.table, bob.id)
    alice.kill()
    hints.expect({1: DIED})
    assert bob.close() == 0
    hints.expect({1: DIED, 2: LEFT})


def test_an_exec_of_an_attached_process_is_a_hint_of_its_death(
    me: bq.Process, yard: Yard, rack: RackUnderTest, hints: Hints
) -> None:
    alice = yard.actor("alice")
    hints.watch.add(1, me.table, alice.id)
    alice.start(fork_users.become_a_sleeper)
    hints.expect({1: DIED})
    alice.kill()


def test_signals_are_not_taken_by_the_thread_of_the_lifeline(me: bq.Process) -> None:
    (mask,) = (
        next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
        for status in statuses("bequest-life")
    )
    cannot_be_blocked = 1 << (signal.SIGKILL - 1) | 1 << (signal.SIGSTOP - 1)
    of_the_c_library = 0x3_8000_0000
    assert int(mask, 16) | cannot_be_blocked | of_the_c_library == (1 << 64) - 1


def statuses(name: str) -> list[str]:
    """Of this process's threads of that name."""
    found = [path.read_text() for path in Path("/proc/self/task").glob("*/status")]
    return [status for status in found if status.split("\n", 1)[0] == f"Name:\t{name}"]
