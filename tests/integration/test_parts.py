"""Parts of regions as context managers."""

from __future__ import annotations

import bequest as bq

PAGE = 4096


def test_a_part_in_a_with_statement_frees_itself_and_nothing_else(me: bq.Process) -> None:
    with me.alloc(4 * PAGE) as region:
        with region[PAGE : 2 * PAGE] as part:
            part.array()[:] = 1
        assert region.remaining == [(0, PAGE), (2 * PAGE, 4 * PAGE)]
