"""How soon another process has the memory of one that was killed, or that hangs.

A process owns the memory; another stands by for it. Timed from just before the `kill(2)`: until the standby's callback
runs, until it has stolen everything, until it has loaded the first byte. And for an owner that was stopped with
SIGSTOP, which could go on at any time and therefore has to be fenced: how long `steal` takes.

Beside it stand what the kernel and the machine take for the parts: the proof that nobody runs in a killed process's
address space, and a request and its answer between two sleeping Python processes, of which stealing needs at least one.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from . import bequest_side
from .heirs import REST_SECONDS, Inheritance, Line, receive
from .measure import GIB, MIB, Figure, Noise, Outcome, Target, size_name, summarize, timed
from .peers.peer import as_bytes

KILLED_BYTES = (GIB, MIB)
STOPPED_BYTES = 64 * MIB
KILLS, QUICK_KILLS = 100, 10
STOPS, QUICK_STOPS = 60, 6
PROOFS, QUICK_PROOFS = 20, 3
TRIPS = 500

FIRST_BYTE = Target("at most", 1e-3)
SIZE_RATIO = Target("at most", 2.0)
CALLBACK = Target("at most", 2e-3)
STOPPED = Target("at most", 5e-3)

Kill = tuple[float, Inheritance]


def kills(key: str, nbytes: int, count: int, noise: Noise) -> list[Kill]:
    """Owners of so many bytes are killed, one after another."""
    line = Line(key, nbytes)
    found = []
    for _ in range(count + 1):
        noise.sample()
        found.append(line.kill())
    line.close()
    return found[1:]


def stops(key: str, nbytes: int, count: int, noise: Noise) -> list[Inheritance]:
    """Owners of so many bytes are stopped and robbed, one after another."""
    line = Line(key, nbytes)
    found = []
    for _ in range(count + 1):
        noise.sample()
        found.append(line.stop())
    line.close()
    return found[1:]


# --- what the kernel and the machine take ---------------------------------------------------------------------------


def own_and_give_fence(orders: Connection, key: str, name: str, nbytes: int) -> None:
    """A process with memory, by whose userfaultfd it can be seen from outside whether anybody runs in it."""
    from bequest._core import open_fence

    with bequest_side.join(key).attach(name) as me:
        region = me.alloc(nbytes)
        as_bytes(region)[:] = 1
        fence = open_fence()
        line = socket.socket(fileno=os.dup(orders.fileno()))
        socket.send_fds(line, [os.getpid().to_bytes(4, "little")], [fence])
        orders.poll(None)


def proof_seconds(me: Any, key: str, name: str, nbytes: int) -> float:
    """From the kill of such a process until the kernel says that nobody runs in its address space."""
    from bequest._core import wait_until_gone

    with bequest_side.partner(own_and_give_fence, key, name, nbytes, method="forkserver") as orders:
        line = socket.socket(fileno=os.dup(orders.fileno()))
        data, (fence,), _, _ = socket.recv_fds(line, 4, 1)
        line.close()
        time.sleep(REST_SECONDS)
        started = time.perf_counter()
        os.kill(int.from_bytes(data, "little"), signal.SIGKILL)
        if not wait_until_gone(fence, 10.0):
            raise TimeoutError("a killed process has not gone within 10 s")
        seconds = time.perf_counter() - started
        os.close(fence)
    me.steal(name).free()  # or it would be kept for an heir, as much again each time
    return seconds


def echo(orders: Connection) -> None:
    """Sends back what comes, from a blocking socket, as daemons and clients have it."""
    line = socket.socket(fileno=os.dup(orders.fileno()))
    orders.send("ready")
    while data := line.recv(4096):
        line.send(data)


def trip_seconds(count: int) -> list[float]:
    """A packet of a request's size, there and back; both sides sleep while they wait."""
    timings = []
    with bequest_side.partner(echo) as orders:
        receive(orders)
        line = socket.socket(fileno=os.dup(orders.fileno()))
        for _ in range(count):
            time.sleep(0.001)
            started = time.perf_counter()
            line.send(b"x" * 100)
            line.recv(4096)
            timings.append(time.perf_counter() - started)
        line.close()
    return timings


# --- the figures ----------------------------------------------------------------------------------------------------


def _first_byte_name(nbytes: int) -> str:
    return f"SIGKILL of a process that owns {size_name(nbytes)}: standby has loaded its first byte"


def _ratio(found: dict[int, list[Kill]]) -> Figure:
    large, small = (
        summarize([heir.read - killed for killed, heir in found[nbytes]]).median for nbytes in KILLED_BYTES
    )
    name = f"the same, {size_name(KILLED_BYTES[0])} over {size_name(KILLED_BYTES[1])}"
    return Figure(name, large / small, "", SIZE_RATIO)


def _kill_figures(found: dict[int, list[Kill]]) -> list[Figure]:
    large = found[KILLED_BYTES[0]]
    figures = [
        timed(_first_byte_name(nbytes), [heir.read - killed for killed, heir in found[nbytes]], FIRST_BYTE)
        for nbytes in KILLED_BYTES
    ]
    figures.append(_ratio(found))
    figures += [
        timed(
            "SIGKILL: the standby's callback runs, in Python",
            [heir.began - killed for killed, heir in large],
            CALLBACK,
        ),
        timed("part: from the callback until all is stolen", [heir.stolen - heir.began for _, heir in large]),
        timed("part: from then until the first byte is read", [heir.read - heir.stolen for _, heir in large]),
    ]
    return figures


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    outcome = Outcome("steal")
    rack = bequest_side.connect()
    key = bequest_side.rack_key(rack)
    with rack.attach("host") as me:  # the rack stays
        say("steal: killing owners")
        count = QUICK_KILLS if quick else KILLS
        killed = {nbytes: kills(key, nbytes, count, noise) for nbytes in KILLED_BYTES}
        say("steal: stopping owners")
        stopped = stops(key, STOPPED_BYTES, QUICK_STOPS if quick else STOPS, noise)
        say("steal: what the kernel takes")
        proofs = [
            proof_seconds(me, key, f"bare-{number}", GIB if number else MIB)
            for number in range(QUICK_PROOFS if quick else PROOFS)
        ][1:]
        trips = trip_seconds(TRIPS)
    hows = sorted({heir.how for heir in stopped})
    outcome.figures += _kill_figures(killed)
    outcome.figures += [
        timed(
            f"steal from a SIGSTOPped owner of {size_name(STOPPED_BYTES)}: fenced and stolen",
            [heir.stolen - heir.began for heir in stopped],
            STOPPED,
            f"fenced: {', '.join(hows)}",
        ),
        timed(f"kernel: SIGKILL of an owner of {size_name(GIB)}, proof that nobody runs in it", proofs),
        timed("machine: a packet there and back between two sleeping Python processes", trips),
    ]
    outcome.raw.update(
        killed={str(nbytes): [_as_raw(*kill) for kill in found] for nbytes, found in killed.items()},
        stopped=[_as_raw(heir.began, heir) for heir in stopped],
        proofs=proofs,
        trips=trips,
    )
    return outcome


def _as_raw(start: float, heir: Inheritance) -> tuple[float, float, float, str]:
    return heir.began - start, heir.stolen - start, heir.read - start, heir.how
