"""How large the V2P table is per GiB mapped, beside the page table that x86 needs for the same GiB.

A page table has 8 bytes for each 4 KiB page, whatever lies on it: 2 MiB per GiB. The V2P table has one
descriptor for each extent, so its size depends on how finely memory is cut: it is counted here for regions of
several sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from . import bequest_side
from .measure import GIB, KIB, MIB, PAGE_BYTES, Figure, Noise, Outcome, Target, size_name

X86_ENTRY_BYTES = 8
MAPPED_BYTES = 256 * MIB
REGION_SIZES = (64 * MIB, 1 * MIB, 64 * KIB)


def native_core() -> Any:
    """The native module, whose layout is what is counted."""
    return import_module("bequest._core")


def descriptors_for(rack: Any, region_bytes: int, mapped_bytes: int) -> int:
    """How many descriptors the table gains when a process fills `mapped_bytes` with regions of that size."""
    with rack.attach(f"cutter-{region_bytes}") as me:
        before = bequest_side.extents(rack)
        regions = [me.alloc(region_bytes) for _ in range(mapped_bytes // region_bytes)]
        added = bequest_side.extents(rack) - before
        for region in regions:
            region.free()
    return added


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    say("table_size: counting descriptors")
    mapped = MAPPED_BYTES // 4 if quick else MAPPED_BYTES
    x86 = GIB // PAGE_BYTES * X86_ENTRY_BYTES
    outcome = Outcome("table_size")
    rack = bequest_side.connect()
    counts = {size: descriptors_for(rack, size, mapped) for size in REGION_SIZES}
    outcome.raw.update(descriptors={str(size): count for size, count in counts.items()}, mapped_bytes=mapped)
    per_extent: int = native_core().DESCRIPTOR_BYTES
    outcome.figures.append(
        Figure("bytes of V2P table per extent", per_extent, "bytes", Target("at most", 64))
    )
    for size, count in counts.items():
        per_gib = count * per_extent * (GIB // mapped)
        note = f"{count * size / mapped:.2f} descriptors a region; x86 page table: {size_name(x86)}"
        outcome.figures.append(
            Figure(f"V2P table per GiB in regions of {size_name(size)}", per_gib, "bytes", None, note)
        )
    return outcome
