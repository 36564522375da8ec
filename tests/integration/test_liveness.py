"""Lifelines: the end of a process is noticed at once, its leaving in good order told apart; it beats when watched."""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import bequest as bq
import fork_users
from actors import DEADLINE, until
from bequest import _core
from bequest.memory.vigil import Vigil
from losses import LIBC
from racks import RackUnderTest, Yard

DIED, LEFT = True, False


class Hints:
    """What the ends of lines have told, by a vigil for each."""

    def __init__(self) -> None:
        self.told: dict[int, bool] = {}
        self.vigils: list[_core.Vigil] = []

    def watch(self, key: int, table: _core.Table, id: int) -> _core.Vigil:
        vigil = _core.Vigil()
        bearer = id, table.life(id)[1]
        vigil.keep(table, *bearer)
        self.vigils.append(vigil)
        threading.Thread(target=self._wait, args=(vigil, key, bearer), daemon=True).start()
        return vigil

    def _wait(self, vigil: _core.Vigil, key: int, bearer: tuple[int, int]) -> None:
        while self.vigils:
            end = vigil.wait()
            if end is not None:
                assert end[:2] == bearer
                assert key not in self.told
                self.told[key] = end[2]

    def after(self, seconds: float) -> dict[int, bool]:
        time.sleep(seconds)
        return self.told

    def expect(self, told: dict[int, bool]) -> None:
        until(lambda: self.told == told, f"{told}, not {self.told}")

    def close(self) -> None:
        vigils, self.vigils = self.vigils, []
        for vigil in vigils:
            vigil.nudge()


@pytest.fixture
def hints() -> Iterator[Hints]:
    one = Hints()
    yield one
    one.close()


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
    keeper = Keeper(table, [1], pause)
    for key in range(5):  # the kernel wakes one of them
        hints.watch(key, table, 1)
    assert hints.after(0.05) == {}
    assert not table.is_broken(1)
    keeper.end()
    hints.expect(dict.fromkeys(range(5), DIED))
    assert table.is_broken(1)


def test_who_leaves_in_good_order_has_not_died(table: _core.Table, hints: Hints) -> None:
    admit(table, [1, 2])
    keeper = Keeper(table, [1, 2], leave)
    hints.watch(1, table, 1)
    hints.watch(2, table, 2)
    keeper.release()
    hints.expect({1: LEFT, 2: LEFT})
    keeper.end()
    assert hints.after(0.05) == {1: LEFT, 2: LEFT}
    assert not table.is_broken(1)


def test_a_line_is_watched_before_it_begins_and_after_it_broke(table: _core.Table, hints: Hints) -> None:
    admit(table, [1])
    hints.watch(1, table, 1)
    assert hints.after(0.05) == {}
    Keeper(table, [1], pause).end()
    hints.expect({1: DIED})
    hints.watch(2, table, 1)
    hints.expect({1: DIED, 2: DIED})


def test_a_vigil_that_is_kept_over_another_tells_of_that_one_alone(table: _core.Table, hints: Hints) -> None:
    table.admit(1, 10, 1, "one")
    table.admit(2, 20, 1, "two")
    first, second = Keeper(table, [1], pause), Keeper(table, [2], pause)
    vigil = _core.Vigil()
    told = []

    def wait() -> None:
        while len(told) < 2:
            if (end := vigil.wait()) is not None:
                told.append(end)

    vigil.keep(table, 1, 10)
    waiting = threading.Thread(target=wait)
    waiting.start()
    time.sleep(0.05)
    vigil.keep(table, 2, 20)  # while it waits for the first
    first.end()
    time.sleep(0.05)
    assert told == []
    second.end()
    until(lambda: told == [(2, 20, DIED)], "the end of the second")
    time.sleep(0.05)
    assert told == [(2, 20, DIED)], "an end is told once"
    vigil.keep(table, 2, 20)
    waiting.join(DEADLINE)
    assert told == [(2, 20, DIED)] * 2


def test_a_nudge_has_a_vigil_return_whether_it_waits_yet_or_not(table: _core.Table) -> None:
    vigil = _core.Vigil()
    vigil.nudge()
    assert vigil.wait() is None
    nudger = threading.Timer(0.05, vigil.nudge)
    nudger.start()
    assert vigil.wait() is None  # though it is kept over nobody
    nudger.join()


def test_a_vigil_keeps_the_table_it_looks_at(hints: Hints) -> None:
    table = _core.Table.create(1)
    admit(table, [1])
    keeper = Keeper(table, [1], pause)
    hints.watch(1, table, 1)
    fd = os.dup(table.fileno())
    del table
    gc.collect()
    keeper.end()
    hints.expect({1: DIED})
    os.close(fd)


def test_an_exec_is_a_hint_of_a_death(table: _core.Table, hints: Hints) -> None:
    admit(table, [1])
    keeper = Keeper(table, [1], lambda lines: os.execv("/bin/sleep", ["sleep", "60"]))
    hints.watch(1, table, 1)
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
    hints.watch(1, table, 1)
    keeper.release()
    assert hints.after(0.1) == {}
    keeper.end()
    hints.expect({1: DIED})


def test_a_thread_that_is_woken_while_the_interpreter_ends_does_no_harm() -> None:
    program = """if True:
        import time
        from bequest.memory.vigil import Vigil
        vigil = Vigil("vigil", print)
        vigil.start()
        time.sleep(0.01)
        vigil.run(lambda: None)
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
    """
    for _ in range(5):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_jobs_that_come_while_a_vigil_is_told_to_end_still_run() -> None:
    ran = []
    vigil = Vigil("vigil", print)
    vigil.run(partial(ran.append, "late"))
    vigil.close()
    vigil.start()
    until(lambda: ran == ["late"], "the job")


def test_a_vigil_does_nothing_in_a_child_that_a_callback_has_forked() -> None:
    """And the child, of which it is the only thread, ends."""
    vigil = Vigil("vigil", print)
    children, (read_end, write_end) = [], os.pipe()
    vigil.run(lambda: children.append(os.fork()))
    vigil.run(lambda: os.write(write_end, b"x"))
    vigil.start()
    until(lambda: children, "the fork")
    try:
        until(lambda: os.waitpid(children[0], os.WNOHANG) != (0, 0), "the end of the child")
    except BaseException:
        os.kill(children[0], signal.SIGKILL)
        raise
    until(lambda: os.read(read_end, 2) == b"x", "the next callback, once")
    vigil.close()
    os.close(read_end)
    os.close(write_end)


def test_a_thread_may_ask_for_short_slices() -> None:
    """Its niceness and its policy stay. Kernels before 6.12 say of every slice that it is 0."""
    found = []

    def ask() -> None:
        before = attributes_of_this_thread()
        _core.ask_for_short_slices()
        found.extend((before, attributes_of_this_thread()))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    before, after = found
    assert after.policy == before.policy == os.SCHED_OTHER and after.nice == before.nice
    assert after.flags == before.flags | SCHED_FLAG_RESET_ON_FORK
    assert after.runtime == (SHORTEST_SLICE_NS if before.runtime else 0)


SCHED_FLAG_RESET_ON_FORK, SHORTEST_SLICE_NS = 1, 100_000
SYS_SCHED_GETATTR = 315  # on x86-64


class SchedulingAttributes(ctypes.Structure):
    """The kernel's struct sched_attr."""

    _fields_ = [
        ("size", ctypes.c_uint32), ("policy", ctypes.c_uint32), ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32), ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64), ("deadline", ctypes.c_uint64), ("period", ctypes.c_uint64),
    ]  # fmt: skip


def attributes_of_this_thread() -> SchedulingAttributes:
    found = SchedulingAttributes()
    assert LIBC.syscall(SYS_SCHED_GETATTR, 0, ctypes.byref(found), ctypes.sizeof(found), 0) == 0
    return found


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
    hints.watch(1, me.table, alice.id)
    hints.watch(2, me.table, bob.id)
    alice.kill()
    hints.expect({1: DIED})
    assert bob.close() == 0
    hints.expect({1: DIED, 2: LEFT})


def test_an_exec_of_an_attached_process_is_a_hint_of_its_death(
    me: bq.Process, yard: Yard, rack: RackUnderTest, hints: Hints
) -> None:
    alice = yard.actor("alice")
    hints.watch(1, me.table, alice.id)
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
