"""A replicated service whose dead replicas are reincarnated, beside etcd, and beside itself without that.

**Outages.** One client writes without end, each key once, to whichever member acknowledges it (`benchmarks.writers`,
for all services). The leader is killed; timed is from just before that until the first write has been acknowledged to
an attempt which began later. Between two kills the service becomes whole again. Afterwards every key that was ever
acknowledged is asked for: those that are missing are lost.

**Full health**: from the kill until three replicas vote, follow one leader and have carried out all that was chosen.
Without reincarnation a fresh replica gets the whole state first, from another.

**Memory**: a memory element fails, that with the state of a follower. Timed is until another site has a configuration
without it. Without notices that is found out by time-outs.

**Rates** are those of 16 clients with 16 writes under way each; of Redis and of the service by redis-benchmark, of etcd
by its own protocol, gRPC, from Python, whose share of the processors is larger than that of redis-benchmark.
"""

from __future__ import annotations

import csv
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from . import etcd_side, redis_side
from .etcd_side import EtcdCluster, free_ports
from .measure import GIB, MIB, Figure, Noise, Outcome, Target, size_name, summarize, timed
from .paxos_side import NO_NOTICES, NO_REINCARNATION, PaxosService
from .writers import RespMember, Writer

KILLS, QUICK_KILLS = 50, 5
SLOW_KILLS, QUICK_SLOW_KILLS = 10, 2
"""Of services that are without a leader for a second each time, or copy a gigabyte."""
FAILURES, QUICK_FAILURES = 5, 1
LARGE_BYTES, QUICK_LARGE_BYTES = GIB, 64 * MIB
SMALL_BYTES = MIB
BEFORE_SECONDS = 0.1
CLIENTS, DEPTH = 16, 16
WRITES, QUICK_WRITES = 50_000, 5_000
ALONE, QUICK_ALONE = 1_000, 100
ROUNDS, QUICK_ROUNDS = 3, 1
VALUE = bytes(100)

OUTAGE = Target("at most", 5e-3)
OUTAGE_P99 = Target("at most", 20e-3)
SIZE_RATIO = Target("at most", 2.0)
ETCD_RATIO = Target("at least", 100.0)
HEALTH = Target("at most", 20e-3)
RECONFIGURATION = Target("at most", 5e-3)
LOST = Target("at most", 0)


class Trials(NamedTuple):
    """Seconds of each outage, and until each return to health; how many writes were acknowledged, and lost."""

    outages: list[float]
    health: list[float]
    acknowledged: int
    lost: int


# --- outages --------------------------------------------------------------------------------------------------------


def service_trials(service: PaxosService, count: int, noise: Noise) -> Trials:
    """The leader is killed that many times, and once more before, when everything is done for the first time."""
    found = Trials([], [], 0, 0)
    for trial in range(count + 1):
        noise.sample()
        service.rest()
        writer = Writer(f"{service.name}:{trial}", service.members())
        writer.start()
        writer.first_after(0.0)
        time.sleep(BEFORE_SECONDS)
        killed = service.kill(service.leader())
        outage = writer.first_after(killed).at - killed
        keys = writer.stop()
        service.wait_until_healthy()
        lost = len(keys) - service.count(keys)
        if trial > 0:
            found.outages.append(outage)
        found = found._replace(acknowledged=found.acknowledged + len(keys), lost=found.lost + lost)
    return found


def health_trials(service: PaxosService, count: int, noise: Noise) -> list[float]:
    """Seconds from each kill of a leader, while nobody writes, until the service is whole again."""
    found = []
    for _ in range(count + 1):
        noise.sample()
        service.rest()
        leader = service.leader()
        killed = service.kill(leader)
        found.append(_healthy_again(service, leader) - killed)
    return found[1:]


def _healthy_again(service: PaxosService, victim: Any) -> float:
    """When it was whole, and somebody else than the dead process spoke for its site."""
    while True:
        healthy = service.wait_until_healthy()
        pids = {report.os_pid for report in service.reports()}
        if victim.os_pid not in pids:
            return healthy


def etcd_trials(count: int, noise: Noise) -> Trials:
    """The same for etcd, whose dead member is started again at once."""
    found = Trials([], [], 0, 0)
    with tempfile.TemporaryDirectory(prefix="bequest-bench-") as directory:
        cluster = EtcdCluster(Path(directory))
        try:
            for trial in range(count):
                noise.sample()
                cluster.wait_until_healthy()
                writer = Writer(f"trial{trial}", cluster.members())
                writer.start()
                writer.first_after(0.0)
                time.sleep(BEFORE_SECONDS)
                member, killed = cluster.kill_leader()
                found.outages.append(writer.first_after(killed).at - killed)
                cluster.restart(member)
                keys = writer.stop()
                found.health.append(cluster.wait_until_healthy() - killed)
                lost = max(0, len(keys) - cluster.count(f"trial{trial}:"))
                found = found._replace(acknowledged=found.acknowledged + len(keys), lost=found.lost + lost)
        finally:
            cluster.close()
    return found


# --- memory ---------------------------------------------------------------------------------------------------------


def memory_trials(count: int, noise: Noise, *options: str) -> list[float]:
    """Seconds from each failure of a follower's memory until the others have reconfigured; each of a fresh service."""
    found = []
    for trial in range(count):
        noise.sample()
        service = PaxosService(f"bench-memory-{trial}", 256 * MIB, *options)
        try:
            service.rest()
            victim = next(report for report in service.reports() if report.role == "follower")
            broken = service.break_memory(victim)
            found.append(service.next_epoch(victim.epoch, victim.site) - broken)
        finally:
            service.close()
    return found


# --- rates ----------------------------------------------------------------------------------------------------------


def redis_benchmark(port: int, writes: int, clients: int, depth: int) -> float:
    """SETs a second, by redis-benchmark."""
    load = ["-t", "set", "-n", str(writes), "-c", str(clients), "-P", str(depth), "-d", str(len(VALUE))]
    command = ["redis-benchmark", "-p", str(port), *load, "-r", "100000", "--csv"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [row for row in csv.reader(said.splitlines()) if row and row[0] == "SET"]
    return float(rows[0][1])


def one_by_one(port: int, count: int) -> list[float]:
    """Seconds of one client's SETs."""
    member = RespMember("127.0.0.1", port)
    member.put("alone:warm", VALUE.decode())
    found = []
    for number in range(count):
        started = time.perf_counter()
        member.put(f"alone:{number}", VALUE.decode())
        found.append(time.perf_counter() - started)
    member.close()
    return found


class Load(NamedTuple):
    """Writes a second of many clients, and the seconds of one client's writes."""

    rates: list[float]
    alone: list[float]


def resp_load(port: int, quick: bool, noise: Noise) -> Load:
    """Of whatever speaks the Redis protocol there."""
    rates = []
    for _ in range(QUICK_ROUNDS if quick else ROUNDS):
        noise.sample()
        rates.append(redis_benchmark(port, QUICK_WRITES if quick else WRITES, CLIENTS, DEPTH))
    return Load(rates, one_by_one(port, QUICK_ALONE if quick else ALONE))


def redis_load(quick: bool, noise: Noise) -> Load:
    """Of Redis alone, which may lose the last second's writes when its machine dies."""
    [port] = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="bequest-bench-") as directory:
        durable = ("--appendonly", "yes", "--appendfsync", "everysec")
        server = redis_side.RedisServer(Path(directory), *durable, "--bind", "127.0.0.1", "--port", str(port))
        try:
            server.wait()
            return resp_load(port, quick, noise)
        finally:
            server.close()


def etcd_load(quick: bool, noise: Noise) -> Load:
    """Of etcd, each write on three disks' write-ahead logs."""
    with tempfile.TemporaryDirectory(prefix="bequest-bench-") as directory:
        cluster = EtcdCluster(Path(directory))
        try:
            cluster.wait_until_healthy()
            rates = []
            for _ in range(QUICK_ROUNDS if quick else ROUNDS):
                noise.sample()
                writes = (QUICK_WRITES if quick else WRITES) // 10
                rates.append(etcd_side.pipelined_rate(cluster.ports, CLIENTS, DEPTH, writes, VALUE))
            leader = cluster.ports[cluster.leader()]
            return Load(rates, etcd_side.latencies(leader, QUICK_ALONE if quick else ALONE, VALUE))
        finally:
            cluster.close()


# --- the whole ------------------------------------------------------------------------------------------------------


class Measured(NamedTuple):
    """Everything; empty where a peer is missing."""

    small: Trials
    large: Trials
    health: list[float]
    plain: Trials
    transfer: list[float]
    etcd: Trials
    told: list[float]
    timed_out: list[float]
    load: Load
    redis: Load
    etcd_load: Load


NOTHING = Trials([], [], 0, 0)
NO_LOAD = Load([], [])


def room_for(nbytes: int) -> int:
    """What a rack needs: the state, its heap's growth, the log that is kept, and a snapshot's way in."""
    return 2 * nbytes + 512 * MIB


def measure(quick: bool, noise: Noise, say: Callable[[str], None]) -> Measured:
    """One service after the other, so that none competes with another for the processors."""
    kills, slow = (QUICK_KILLS, QUICK_SLOW_KILLS) if quick else (KILLS, SLOW_KILLS)
    large_bytes = QUICK_LARGE_BYTES if quick else LARGE_BYTES
    failures = QUICK_FAILURES if quick else FAILURES
    say("paxos: kills, small state; rates")
    service = PaxosService("bench-small", room_for(SMALL_BYTES))
    try:
        service.fill(SMALL_BYTES)
        small = service_trials(service, kills, noise)
        load = resp_load(service.port, quick, noise)
    finally:
        service.close()
    say("paxos: kills, large state")
    service = PaxosService("bench-large", room_for(large_bytes))
    try:
        service.fill(large_bytes)
        large = service_trials(service, kills, noise)
        health = health_trials(service, kills, noise)
    finally:
        service.close()
    say("paxos: kills without reincarnation")
    service = PaxosService("bench-plain", room_for(large_bytes), NO_REINCARNATION)
    try:
        service.fill(large_bytes)
        plain = service_trials(service, slow, noise)
        transfer = health_trials(service, slow, noise)
    finally:
        service.close()
    say("paxos: memory failures")
    told = memory_trials(failures, noise)
    timed_out = memory_trials(failures, noise, NO_REINCARNATION, NO_NOTICES)
    say("paxos: etcd and Redis")
    no_etcd = etcd_side.missing()
    return Measured(
        small,
        large,
        health,
        plain,
        transfer,
        NOTHING if no_etcd else etcd_trials(slow, noise),
        told,
        timed_out,
        load,
        NO_LOAD if redis_side.missing() else redis_load(quick, noise),
        NO_LOAD if no_etcd or etcd_side.no_grpc() else etcd_load(quick, noise),
    )


def outage_figures(found: Measured, large: str) -> list[Figure]:
    """Kills of leaders."""
    no_etcd = etcd_side.missing()
    outage = "kill -9 of the leader: the next write is acknowledged"
    medians = [statistics.median(trials.outages) for trials in (found.small, found.large)]
    faster = statistics.median(found.etcd.outages) / medians[1] if found.etcd.outages else None
    return [
        timed(f"{outage}, {size_name(SMALL_BYTES)} of state", found.small.outages, OUTAGE),
        timed(f"{outage}, {large} of state", found.large.outages, OUTAGE),
        Figure(f"the same, {large}: p99", summarize(found.large.outages).p99, "s", OUTAGE_P99),
        Figure(f"{large} beside {size_name(SMALL_BYTES)}", medians[1] / medians[0], "times", SIZE_RATIO),
        timed(f"{outage}, {large}, without reincarnation", found.plain.outages),
        timed("etcd, three members: the same", found.etcd.outages, None, no_etcd),
        Figure(f"times faster than etcd, {large} of state", faster, "times", ETCD_RATIO, no_etcd),
        timed(f"kill -9 of the leader: three replicas are up to date, {large}", found.health, HEALTH),
        timed(f"the same without reincarnation: the state is transferred, {large}", found.transfer),
        timed(
            "etcd: three members are up to date, the dead one restarted at once",
            found.etcd.health,
            None,
            no_etcd,
        ),
    ]


def loss_figures(found: Measured) -> list[Figure]:
    """Of what was acknowledged."""
    ours = (found.small, found.large, found.plain)
    lost, acknowledged = sum(trials.lost for trials in ours), sum(trials.acknowledged for trials in ours)
    kills = sum(len(trials.outages) + 1 for trials in ours)
    return [
        Figure("acknowledged writes lost", lost, "", LOST, f"of {acknowledged:,}, over {kills} kills"),
        Figure(
            "etcd: acknowledged writes lost",
            found.etcd.lost if found.etcd.outages else None,
            "",
            None,
            etcd_side.missing() or f"of {found.etcd.acknowledged:,}",
        ),
    ]


def _rate(name: str, rates: list[float], target: Target | None = None, note: str = "") -> Figure:
    if not rates:
        return Figure(name, None, "/s", target, note)
    return Figure(name, statistics.median(rates), "/s", target, f"of {len(rates)} rounds")


def load_figures(found: Measured) -> list[Figure]:
    """Rates and latencies."""
    no_etcd = etcd_side.missing() or etcd_side.no_grpc()
    no_redis = redis_side.missing()
    etcds = statistics.median(found.etcd_load.rates) if found.etcd_load.rates else None
    target = None if etcds is None else Target("at least", etcds)
    many = f"writes of {CLIENTS} clients, {DEPTH} under way each"
    return [
        _rate(f"{many}, three replicas", found.load.rates, target),
        _rate(f"etcd: {many}, three members, gRPC", found.etcd_load.rates, None, no_etcd),
        _rate(f"Redis, one process, AOF everysec: {many}", found.redis.rates, None, no_redis),
        timed("one client's write, three replicas", found.load.alone),
        timed("etcd: one client's write, gRPC", found.etcd_load.alone, None, no_etcd),
        timed("Redis: one client's write", found.redis.alone, None, no_redis),
    ]


def run(quick: bool, noise: Noise, say: Callable[[str], None]) -> Outcome:
    """The whole benchmark."""
    found = measure(quick, noise, say)
    large = size_name(QUICK_LARGE_BYTES if quick else LARGE_BYTES)
    memory = "a follower's memory fails: the others have reconfigured"
    return Outcome(
        "paxos",
        [
            *outage_figures(found, large),
            timed(memory, found.told, RECONFIGURATION),
            timed(f"{memory}, found out by time-outs", found.timed_out),
            *load_figures(found),
            *loss_figures(found),
        ],
        {
            name: value._asdict() if hasattr(value, "_asdict") else value
            for name, value in found._asdict().items()
        },
    )
