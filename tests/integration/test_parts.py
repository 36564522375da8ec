"""Parts of regions as context managers."""

from __future__ import annotations

import bequest as bq

PAGE = 4096


def test_a_part_in_a_with_statement_frees_itself_and_nothing_else(me: bq.Process) -> None:
    with me.alloc(4 * PAGE) as region:
        with region[PAGE : 2 * PAGE] as part:
            part.array()[:] = 1
        assert region.remaining == [(0, PAGE), (2 * PAGE, 4 * PAGE)]


def test_a_part_frees_its_own_pages_only(me: bq.Process) -> None:
    """Parts of parts too: `remaining` counts from where the handle begins, and with ends no more than the handle."""
    region = me.alloc(8 * PAGE)
    part = region[2 * PAGE : 6 * PAGE]
    with part[PAGE : 2 * PAGE] as inner:
        assert inner.remaining == [(0, PAGE)]
    assert part.remaining == [(0, PAGE), (2 * PAGE, 4 * PAGE)]
    assert region.remaining == [(0, 3 * PAGE), (4 * PAGE, 8 * PAGE)]
    view = memoryview(region[6 * PAGE :])
    with part:
        pass
    assert part.remaining == []
    assert region.remaining == [(0, 2 * PAGE), (6 * PAGE, 8 * PAGE)]
    view.release()
    with region:
        pass
    assert me.table.holdings(me.id)[1] == 0
