"""How soon it is known that memory has failed, or that a process hangs.

Memory: an owner reads its region without end while the rack takes that memory away (`bequest fault memory --range`
does the same). The failure lies after the last byte that could be read; timed are, from just before that, the exception
in the owner, and the notice to its emergency contact, since the owner has no handler.

A hang: a process for which somebody stands by is stopped with SIGSTOP while the machine is idle, and its standby is
told that it is suspected. The time-out is the default one.
"""

from __future__ import annotations

import os
import signal
import time
from _queue import SimpleQueue
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from . import bequest_side
from .bequest_side import PATIENCE_SECONDS
from .heirs import REST_SECONDS, receive
from .measure import KIB, Noise, Outcome, Target, timed
from .peers.peer import as_bytes

NBYTES = 64 * KIB
FAILURES, QUICK_FAILURES = 100, 10
HANGS, QUICK_HANGS = 20, 3
CALM_SECONDS = 0.3
"""An untimed pause after each hang, so that the process has been seen to run again."""

EXCEPTION = Target("at most", 0.2e-3)
CONTACT = Target("at most", 1e-3)
HANG = Target("at most", 50e-3)

OWNER, CONTACT_NAME, SLEEPER = "owner", "contact", "sleeper"


# --- memory ---------------------------------------------------------------------------------------------------------


def own_and_read(orders: Connection, key: str) -> None:
    """The owner: for each order a fresh region, read until it fails."""
    with bequest_side.join(key).attach(OWNER) as me:
        me.emergency_contacts([CONTACT_NAME])
        orders.send("ready")
        while order_follows(orders):
            region = me.alloc(NBYTES)
            as_bytes(region)[:] = 1
            view = memoryview(region)
            orders.send(region.address)
            orders.send(read_until_it_fails(view))
            orders.recv()  # the contact has been told: who has freed what it lost does not own it any more
            view.release()
            region.free()


def read_until_it_fails(view: memoryview) -> tuple[float, float]:
    """Just before a byte could be read last, and when the exception was caught."""
    from bequest.errors import MemoryFailure

    read = before = time.perf_counter()
    try:
        while True:
            view[0]
            read = before
            before = time.perf_counter()
    except MemoryFailure:
        return read, time.perf_counter()


def be_contact(orders: Connection, key: str) -> None:
    """The emergency contact: says when it was called, each time."""
    with bequest_side.join(key).attach(CONTACT_NAME) as me:
        events = me.events
        orders.send("ready")
        while order_follows(orders):
            events.get(PATIENCE_SECONDS)
            orders.send(time.perf_counter())


def order_follows(orders: Connection) -> bool:
    """Waits for the next order; False at the end of them."""
    try:
        orders.recv()
    except EOFError:
        return False
    return True


def failures(rack: Any, count: int, noise: Noise) -> list[tuple[float, float]]:
    """For each failure: seconds until the exception, and until the contact was told."""
    key = bequest_side.rack_key(rack)
    found = []
    with (
        bequest_side.partner(be_contact, key) as contact,
        bequest_side.partner(own_and_read, key) as owner,
    ):
        receive(contact)
        receive(owner)
        for _ in range(count + 1):
            noise.sample()
            contact.send("next")
            owner.send("next")
            address = receive(owner)
            time.sleep(REST_SECONDS)
            bequest_side.break_memory(rack, address, NBYTES)
            read, caught = receive(owner)
            told = receive(contact)
            owner.send("free it")
            found.append((caught - read, told - read))
    return found[1:]


# --- hangs ----------------------------------------------------------------------------------------------------------


def sleep_attached(orders: Connection, key: str) -> None:
    """A process that does nothing at all."""
    with bequest_side.join(key).attach(SLEEPER):
        orders.send(os.getpid())
        orders.poll(None)


def hangs(key: str, me: Any, count: int, noise: Noise) -> list[float]:
    """Seconds from each SIGSTOP until the standby was told."""
    told: SimpleQueue[float] = SimpleQueue()
    found = []
    with bequest_side.partner(sleep_attached, key) as sleeper:
        pid = receive(sleeper)
        standby = me.standby(
            for_=SLEEPER, then=print, on_suspicion=lambda suspicion: told.put(time.perf_counter())
        )
        for _ in range(count):
            noise.sample()
            time.sleep(CALM_SECONDS)
            stopped = time.perf_counter()
            os.kill(pid, signal.SIGSTOP)
            found.append(told.get(timeout=PATIENCE_SECONDS) - stopped)
            os.kill(pid, signal.SIGCONT)
        standby.cancel()
    return found


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    outcome = Outcome("failure")
    rack = bequest_side.connect()
    with rack.attach("host") as me:
        say("failure: losing memory")
        lost = failures(rack, QUICK_FAILURES if quick else FAILURES, noise)
        say("failure: stopping a process")
        hung = hangs(bequest_side.rack_key(rack), me, QUICK_HANGS if quick else HANGS, noise)
    outcome.raw.update(failures=lost, hangs=hung)
    outcome.figures += [
        timed("memory failure: exception in the owner", [caught for caught, _ in lost], EXCEPTION),
        timed("memory failure: the owner's emergency contact is told", [told for _, told in lost], CONTACT),
        timed("SIGSTOP: the standby is told that the process hangs, machine idle", hung, HANG),
    ]
    return outcome
