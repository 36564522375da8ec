"""The physical proof: what B holds after a grant is the same memory, not a copy of it.

Four witnesses, none of which is Bequest: the page frames in /proc/PID/pagemap (root only) before the grant in
A and after it in B; the protection in /proc/PID/maps of both; the resident memory of both processes, which
must not grow over many hand-offs; and a chain of absolute pointers that A writes through the region and B
follows with plain loads.
"""

from __future__ import annotations

import array
import ctypes
import os
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from . import bequest_side
from .bequest_side import PATIENCE_SECONDS
from .measure import MIB, PAGE_BYTES, Figure, Noise, Outcome, Target
from .peers.peer import as_bytes, checksum

NBYTES = 64 * MIB
HAND_OFFS = 50
LINK_BYTES = 3 * PAGE_BYTES + 64
"""The distance of two links of the chain, so that they fall all over the pages."""
PRESENT = 1 << 63
FRAME_MASK = (1 << 55) - 1


def page_frames(address: int, nbytes: int) -> tuple[int, ...] | None:
    """The frame number of each page of this process; None unless the kernel shows them (to root)."""
    with Path("/proc/self/pagemap").open("rb") as pagemap:
        pagemap.seek(address // PAGE_BYTES * 8)
        entries = array.array("Q", pagemap.read(nbytes // PAGE_BYTES * 8))
    frames = tuple(entry & FRAME_MASK if entry & PRESENT else 0 for entry in entries)
    return frames if all(frames) else None


def protection(address: int) -> str:
    """The letters in /proc/self/maps of the mapping at that address, such as `rw-s`; empty if none."""
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            span, letters, *_ = line.split()
            start, end = (int(bound, 16) for bound in span.split("-"))
            if start <= address < end:
                return letters
    return ""


def write_chain(region: Any) -> int:
    """Writes absolute pointers into the region, each to the next; returns how many. The last is null."""
    addresses = range(region.address, region.address + region.nbytes - LINK_BYTES, LINK_BYTES)
    view = as_bytes(region)
    for address in addresses:
        following = address + LINK_BYTES if address != addresses[-1] else 0
        offset = address - region.address
        view[offset : offset + 8] = np.frombuffer(following.to_bytes(8, "little"), np.uint8)
    return len(addresses)


def follow_chain(address: int) -> int:
    """Follows the pointers with plain loads; returns how many there were."""
    links = 0
    while address:
        address = ctypes.c_uint64.from_address(address).value
        links += 1
    return links


def resident_bytes() -> int:
    """All memory of this process, shared or not: any copy would have to be in there."""
    return bequest_side.memory_of(os.getpid()).get("Rss", 0)


def witness(orders: Connection, key: str, sender: str) -> None:
    """Process B: reports what it finds in what it accepted, then lets the region go back and forth."""
    with bequest_side.join(key).attach("witness") as me:
        orders.send("ready")
        region = me.accept(PATIENCE_SECONDS)
        checksum(region)  # touches every page
        orders.send(
            (
                follow_chain(region.address),
                page_frames(region.address, region.nbytes),
                protection(region.address),
            )
        )
        region.grant(sender)
        weights = []
        for _ in range(HAND_OFFS):
            region = me.accept(PATIENCE_SECONDS)
            checksum(region)
            weights.append(resident_bytes())
            region.grant(sender)
        orders.send(weights)


def hand_over(me: Any, orders: Connection) -> dict[str, Any]:
    """Process A: all that both have seen."""
    orders.recv()
    region = me.alloc(NBYTES)
    as_bytes(region)[:] = 1
    address = region.address
    seen: dict[str, Any] = {"chain_written": write_chain(region), "frames_a": page_frames(address, NBYTES)}
    region.grant("witness")
    seen["protection_a"] = protection(address)
    seen["chain_followed"], seen["frames_b"], seen["protection_b"] = orders.recv()
    weights = []
    for _ in range(HAND_OFFS):
        region = me.accept(PATIENCE_SECONDS)
        seen["same_address"] = region.address == address
        weights.append(resident_bytes())
        region.grant("witness")
    me.accept(PATIENCE_SECONDS).free()
    seen["weights_a"], seen["weights_b"] = weights, orders.recv()
    return seen


def growth(weights: list[int]) -> int:
    """How much heavier a process was at the end than after the first few hand-offs, when all was warm."""
    return max(0, weights[-1] - weights[len(weights) // 5])


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    say("proof: handing 64 MiB back and forth")
    rack = bequest_side.connect()
    with (
        rack.attach("sender") as me,
        bequest_side.partner(witness, bequest_side.rack_key(rack), "sender") as orders,
    ):
        seen = hand_over(me, orders)
    frames_a, frames_b = seen.pop("frames_a"), seen.pop("frames_b")
    outcome = Outcome("proof", raw=seen)
    moved = sum(a != b for a, b in zip(frames_a, frames_b, strict=True)) if frames_a and frames_b else None
    chain_lost = seen["chain_written"] - seen["chain_followed"]
    outcome.figures += [
        Figure(
            "page frames that differ after a grant of 64 MiB",
            moved,
            "",
            Target("at most", 0),
            f"{NBYTES // PAGE_BYTES:,} pages compared"
            if moved is not None
            else "page frames are shown to root only",
        ),
        Figure(
            "pointers inside that B could not follow",
            chain_lost,
            "",
            Target("at most", 0),
            f"{seen['chain_written']:,} absolute pointers, same address: {seen['same_address']}",
        ),
        Figure(
            "growth of A's RSS over 40 hand-offs",
            growth(seen["weights_a"]),
            "bytes",
            Target("at most", MIB),
        ),
        Figure(
            "growth of B's RSS over 40 hand-offs",
            growth(seen["weights_b"]),
            "bytes",
            Target("at most", MIB),
        ),
        Figure(
            "A may still touch what it granted",
            int(seen["protection_a"][:2] not in ("--", "")),
            "",
            Target("at most", 0),
            f"A's mapping: {seen['protection_a'] or 'none'}",
        ),
        Figure(
            "B may read and write it",
            int(seen["protection_b"][:2] == "rw"),
            "",
            Target("at least", 1),
            f"B's mapping: {seen['protection_b'] or 'none'}",
        ),
    ]
    return outcome
