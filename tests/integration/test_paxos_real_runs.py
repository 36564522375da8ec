"""The service under kills, stops, lost memory and cut wires: what its clients saw is the history of one machine.

Clients do what they like to a few keys at all sites; a seeded nemesis does its worst to processes, memory and wires.
Afterwards an independent checker looks for an order of everything that was answered, in which each answer is right and
nothing happens before it was asked for or after it was answered. The seed is printed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

import soaking
from linearizability import Operation, find_violation
from racks import Yard
from service_under_test import KEYS, Client, Nemesis, ServiceUnderTest, ask_for, step_of_keys

FAULTS = soaking.size(6, 300)
CLIENTS = 4


@pytest.fixture
def service(yard: Yard, tmp_path: Path) -> Iterator[ServiceUnderTest]:
    one = ServiceUnderTest(yard, tmp_path)
    yield one
    one.close()


def read_all(service: ServiceUnderTest) -> list[Operation]:
    """A last look at each key, at each site."""
    found = []
    for _, port in service.clients.values():
        with redis.Redis(port=port, socket_timeout=10) as connection:
            for number in range(KEYS):
                operation = Operation(b"key%d" % number, "get", (), time.perf_counter())
                operation.end(time.perf_counter(), ask_for(connection, operation))
                found.append(operation)
    return found


@pytest.mark.soak
@pytest.mark.timeout(soaking.timeout(7200))
def test_whatever_breaks_clients_see_one_machine(service: ServiceUnderTest, record_property: Any) -> None:
    seed = soaking.SEED
    print("seed", seed)
    service.rest()
    clients = [
        Client(number, seed, [port for _, port in service.clients.values()]) for number in range(CLIENTS)
    ]
    nemesis = Nemesis(service, seed)
    for client in clients:
        client.start()
    for fault in range(FAULTS):
        nemesis.act(("kill", "stop", "isolate", "lose memory", "kill both")[fault] if fault < 5 else None)
    service.rest()
    for client in clients:
        client.stopping.set()
    for client in clients:
        client.join()
    history = [operation for client in clients for operation in client.history] + read_all(service)
    answered = sum(operation.result is not None for operation in history)
    print(nemesis.done, len(history), "operations,", answered, "answered")
    record_property("faults", FAULTS)
    record_property("operations answered", answered)
    violation = find_violation(history, step_of_keys)
    assert violation is None, "no order of these operations gives these answers:\n" + "\n".join(
        map(str, violation)
    )
    assert answered > 100


def test_the_checker_sees_a_stale_read_and_a_lost_write() -> None:
    def operation(kind: str, asked: float, ended: float, result: bytes, *values: bytes) -> Operation:
        one = Operation(b"key", kind, values, asked)
        one.end(ended, result)
        return one

    written = operation("set", 1.0, 2.0, b"OK", b"new")
    assert find_violation([written, operation("get", 1.5, 1.9, b"")], step_of_keys) is None
    for wrong in (operation("get", 3.0, 4.0, b""), operation("delete", 3.0, 4.0, b"0")):
        assert find_violation([written, wrong], step_of_keys) is not None
    unanswered = Operation(b"key", "set", (b"later",), 0.5)
    assert find_violation([written, unanswered, operation("get", 3.0, 4.0, b"later")], step_of_keys) is None
