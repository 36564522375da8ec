"""What the actors do in the tests of the paper's sentences, and what the kernel says of any process's memory."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

from actors import DEADLINE, Seat

POINTER = ctypes.sizeof(ctypes.c_uint64)
OPEN, CLOSED = "rw-s", "---s"


def protection_in(pid: int, address: int) -> str:
    """Of the mapping that holds this address in that process, as the kernel has it: ``rw-s``."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        span, flags = line.split()[:2]
        start, end = (int(bound, 16) for bound in span.split("-"))
        if start <= address < end:
            return flags
    return "none"


def who_may_touch(pids: Sequence[int], address: int) -> list[int]:
    """Those of these processes in which the page is readable or writable."""
    return [pid for pid in pids if protection_in(pid, address)[:2] != "--"]


def accept_and_look(seat: Seat, sender_pid: int, rounds: int) -> list[str]:
    """What the kernel lets the sender do with each page at the moment at which we are told that it is ours."""
    seen = []
    for _ in range(rounds):
        with seat.me.accept(DEADLINE) as region:
            seen.append(protection_in(sender_pid, region.address))
    return seen


# --- a list whose links are absolute addresses ---------------------------------------------------------------


def write_links(nodes: Sequence[int]) -> None:
    """Makes a list: at each node the address of the next and a value, its index. The last leads nowhere."""
    for value, (node, following) in enumerate(zip(nodes, [*nodes[1:], 0], strict=True)):
        ctypes.c_uint64.from_address(node).value = following
        ctypes.c_uint64.from_address(node + POINTER).value = value


def follow_links(first: int) -> list[int]:
    """The values along the list, reached by its raw pointers and by nothing else."""
    values = []
    node = first
    while node:
        values.append(ctypes.c_uint64.from_address(node + POINTER).value)
        node = ctypes.c_uint64.from_address(node).value
    return values


def build_list(seat: Seat, nodes: Sequence[int]) -> None:
    write_links(nodes)


def walk_list(seat: Seat, first: int) -> list[int]:
    return follow_links(first)
