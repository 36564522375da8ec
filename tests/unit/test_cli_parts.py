"""Parts of the command line that do no I/O: the map of a slab, rates from two looks, numbers as people read them."""

from __future__ import annotations

import pytest

from bequest.cli.rates import Look, rates_between, sparkline
from bequest.cli.slab_map import AWAY, IN_FLIGHT, UNKNOWN, Owners, draw, fragmentation
from bequest.cli.units import format_bytes, format_count, format_seconds, format_share, plural
from bequest.wire import messages as wire

MIB = 1 << 20


def slab(
    pages: int, *runs: tuple[int, str, int], owners: list[tuple[int, int]] | None = None
) -> wire.SlabStatus:
    whose: dict[int, int] = {}
    for count, state, owner in runs:
        if state != "free":
            whose[owner] = whose.get(owner, 0) + count
    free = [count for count, state, _ in runs if state == "free"]
    return wire.SlabStatus(
        slab=1, group="g", element="e", home=1, address=0, pages=pages, huge=False, extents=len(runs),
        free_pages=sum(free), free_runs=len(free), largest_free_run=max(free, default=0),
        owners=sorted(whose.items()) if owners is None else owners,
        runs=[wire.SlabRun(*run) for run in runs],
    )  # fmt: skip


def drawn(status: wire.SlabStatus, width: int) -> str:
    return "".join(cell.letter for cell in draw(status, Owners([status], 4096), width))


@pytest.mark.parametrize(
    ("status", "picture"),
    [
        (slab(16, (8, "owned", 1), (8, "free", 1)), "aaaa····"),
        (slab(16, (4, "owned", 1), (8, "owned", 2), (4, "free", 1)), "bbaaaa··"),
        (slab(16, (8, "in-flight", 2), (8, "away", 1023)), f"{IN_FLIGHT * 4}{AWAY * 4}"),
        (slab(4, (1, "owned", 1), (3, "free", 1)), "aa······"),  # fewer pages than cells
        (slab(800, (1, "owned", 1), (799, "free", 1)), "········"),  # too little to be seen
        # Two runs reported of a slab that goes on: 4 more pages of 2, then 4 that are free.
        (slab(16, (4, "owned", 1), (4, "owned", 2), owners=[(1, 4), (2, 8)]), f"bbaa{UNKNOWN}aa·"),
    ],
)
def test_a_slab_is_drawn_to_scale(status: wire.SlabStatus, picture: str) -> None:
    assert drawn(status, 8) == picture


def test_fragmentation_is_what_lies_outside_the_largest_free_run() -> None:
    assert fragmentation([]) == fragmentation([slab(8, (8, "owned", 1))]) == 0
    assert fragmentation([slab(8, (8, "free", 1))]) == 0
    assert fragmentation([slab(16, (4, "free", 1), (8, "owned", 1), (4, "free", 1))]) == 0.5


def test_rates_are_gains_per_second() -> None:
    def look(at: float, *counts: tuple[int, int]) -> Look:
        processes = [
            wire.ProcessReport(
                id, f"p{id}", "g", "host0", 7, "attached", "process", 0, 0, 0, 0, {"grants": grants}
            )
            for id, grants in counts
        ]
        report = wire.RackReport("r", 0, [], at, "best-fit", 60, False, 1, 1, [], {}, 0, 0, 0, 0)
        return Look(at, report, processes, [])

    rates = rates_between(look(10, (1, 100)), look(12, (1, 300), (2, 50)))
    assert [rate["grants"] for rate in rates] == [100, 25]
    assert [rate["grants"] for rate in rates_between(look(1, (1, 9)), look(2, (1, 3)))] == [0]
    assert sparkline([0, 4, 8]) == "▁▅█" and sparkline([0.0]) == "▁"


def test_numbers_are_short() -> None:
    assert [format_bytes(n) for n in (0, 512, 4096, 1023 * 1024, MIB - 1, 64 * MIB, 3 << 40)] == [
        "0", "512 B", "4.0 KiB", "1023.0 KiB", "1.0 MiB", "64.0 MiB", "3.0 TiB",
    ]  # fmt: skip
    assert [format_count(n) for n in (0, 0.25, 3, 12345, 1.5e6)] == ["0", "0.2", "3", "12,345", "1.5 M"]
    assert [format_seconds(s) for s in (5, 65, 3700, 90_000)] == ["5 s", "1 min", "1 h 1 min", "1 d 1 h"]
    assert [format_share(s) for s in (0, 0.001, 0.5, 0.999, 1)] == ["0 %", "<1 %", "50 %", ">99 %", "100 %"]
    assert [plural(1, "slab"), plural(2, "process"), plural(2, "mailbox")] == [
        "1 slab",
        "2 processes",
        "2 mailboxes",
    ]
