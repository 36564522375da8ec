"""Reports for which a whole table is looked through, beside all else that the Rack MMU does."""

from __future__ import annotations

import os
import random

import pytest

from bequest import _core
from bequest.protocol.outputs import LookThrough, Output, Reply
from bequest.protocol.shard import SlabSummary
from bequest.protocol.status_desk import Found
from bequest.wire import messages as wire
from rack_in_a_box import Box
from test_rack_mmu import need, slab_of
from test_theft_table import PAGE, THIEF, VICTIM, Region

BASE = _core.WINDOW_BASE + (VICTIM << _core.PROCESS_SPACE_BITS)


class Look:
    """A question whose table is being looked through."""

    def __init__(self, what: str) -> None:
        self.box = Box()
        self.process, attached = self.box.attach("a")
        self.slabs = [slab_of(need(self.box, self.process)) for _ in range(3)]
        self.shard = self.box.shards[attached.group]
        self.peer = self.box.client()
        (self.asked,) = self.ask(what)

    def ask(self, what: str) -> list[Output]:
        return self.box.mmu.client_message(self.peer, wire.Status(what), self.box.now)

    def answer(self, found: Found) -> wire.Message | None:
        assert isinstance(self.asked, LookThrough)
        answers = self.box.mmu.looked_through(self.asked, found)
        assert all(isinstance(answer, Reply) and answer.peer == self.peer for answer in answers)
        return answers[0].message if answers else None  # type: ignore[union-attr]

    @property
    def group(self) -> int:
        return self.shard.group


def test_what_a_look_has_found_is_looked_at_once_more_before_it_is_told() -> None:
    look = Look("audit")
    on_its_way = look.answer(Found(problems={group: ["a gap"] for group in look.box.shards}))
    assert isinstance(on_its_way, wire.AuditReport) and on_its_way.findings == []


def test_what_is_wrong_is_told_and_nothing_is_looked_at_twice_where_nothing_was_found() -> None:
    look = Look("audit")
    look.shard.audit = lambda: ["a gap"]  # type: ignore[method-assign]
    clean = look.answer(Found(problems={group: [] for group in look.box.shards}))
    assert isinstance(clean, wire.AuditReport) and clean.findings == []
    wrong = look.answer(Found(problems={group: ["a gap"] for group in look.box.shards}))
    assert isinstance(wrong, wire.AuditReport) and [line[-5:] for line in wrong.findings] == ["a gap"]


def summary(slab: int) -> SlabSummary:
    return slab, 1, 0, 0, 0, [(1, 4)], [(4, 3, 1)]


def test_slabs_that_come_and_go_meanwhile_end_no_report_and_prolong_none() -> None:
    look = Look("slabs")
    first, second, third = look.slabs
    later = slab_of(need(look.box, look.process))
    report = look.answer(Found([summary(first), summary(third)]))  # the table does not have the second
    assert isinstance(report, wire.SlabList)
    assert [slab.slab for slab in report.slabs] == [first, third]
    assert report.next_cursor == later > second


def test_who_has_gone_is_told_nothing() -> None:
    look = Look("slabs")
    look.box.leave(look.peer)
    assert look.answer(Found()) is None


@pytest.mark.parametrize("seed", range(5))
def test_the_table_sums_up_what_its_extents_say(seed: int) -> None:
    draw = random.Random(seed)
    table = _core.Table.create(1)
    for id in (VICTIM, THIEF):
        table.admit(id, 1, os.getpid(), f"process-{id}")
    for slab in (1, 2, 3):
        table.add_slab(slab, BASE + slab * 64 * PAGE, 64, 0, False, VICTIM)
    file = os.memfd_create("slab")
    os.ftruncate(file, 64 * PAGE)
    owner = _core.ProcessBase(table, VICTIM, "none", lambda slab: (os.dup(file), []), Region, 0.0)
    kept = []
    for _ in range(60):
        region = owner._alloc(draw.randrange(1, 4) * PAGE, False, _core.ANY_ELEMENT)
        if region is None:
            break
        kept.append(region)
        if draw.random() < 0.3:
            kept.pop(draw.randrange(len(kept)))._free()
    listed = [row[:2] for row in table.stealable(VICTIM)]
    table.steal(draw.sample(listed, len(listed) // 3), VICTIM, THIEF)
    word = table.stealable(VICTIM)[0]
    assert table.withdraw(*word[:2])  # it is away
    for slab in (1, 2, 3):
        check(table, slab, draw.randrange(1, 12))
    assert [row[0] for row in table.summaries([3, 1, 4, 1 + _core.MAX_SLABS], 1)] == [3, 1]
    owner._leave(False)
    os.close(file)


def check(table: _core.Table, slab: int, runs_max: int) -> None:
    runs: list[list[int]] = []
    owners: dict[int, int] = {}
    extents = table.slab_extents(slab)
    for _, pages, state, owner, _ in extents:
        if runs and runs[-1][1:] == [state, owner]:
            runs[-1][0] += pages
        else:
            runs.append([pages, state, owner])
        if state != _core.STATE_FREE and owner != _core.MMU_ID:
            owners[owner] = owners.get(owner, 0) + pages
    free = [pages for pages, state, _ in runs if state == _core.STATE_FREE]
    assert table.summaries([slab], runs_max) == [
        (
            slab, len(extents), sum(free), len(free), max(free, default=0), sorted(owners.items()),
            [tuple(run) for run in runs[:runs_max]],
        )
    ]  # fmt: skip
