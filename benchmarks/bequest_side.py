"""What the benchmarks ask of Bequest beyond its everyday face, and how they start processes, in one place."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

PATIENCE_SECONDS = 60.0
SUPERVISOR = b"bequest.runtime.supervisor"


def connect() -> Any:
    """An embedded rack of this process's own, whatever rack the user may have running."""
    import bequest
    from bequest.runtime.embedded import start_embedded

    return bequest.connect(str(start_embedded().path))


def rack_key(rack: Any) -> str:
    """What another process passes to `join` to reach the same rack."""
    return str(rack.directory)


def join(key: str) -> Any:
    """The rack with that key."""
    import bequest

    return bequest.connect(key)


def attach(rack: Any, name: str, spin_seconds: float | None) -> Any:
    """Attaches with that much spinning before a wait sleeps; None leaves it to Bequest."""
    return rack.attach(name) if spin_seconds is None else rack.attach(name, spin=spin_seconds)


def extents(rack: Any) -> int:
    """How many extents the V2P table holds, free ones included."""
    from bequest.wire import messages as wire

    return int(rack.request(wire.Status("rack")).extents)


@contextmanager
def partner(
    task: Callable[..., None], *arguments: Any, method: Literal["spawn", "forkserver"] = "spawn"
) -> Iterator[Connection]:
    """Runs `task(connection, *arguments)` in a process of its own; it should end when its connection does."""
    context = (
        multiprocessing.get_context("spawn")
        if method == "spawn"
        else multiprocessing.get_context("forkserver")
    )
    ours, theirs = context.Pipe()
    process = context.Process(target=task, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        ours.close()
        process.join(timeout=20)
        if process.is_alive():
            process.kill()


def daemons() -> set[int]:
    """The process ids of all rack daemons on this host: forks of supervisors, with their command line."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue  # it ended meanwhile
        if SUPERVISOR in command:
            found.add(int(entry.name))
    return found


def daemon_pids(rack: Any, kind: str) -> list[int]:
    """The process ids of a rack's own daemons of that kind: "mmu", "element", "agent" or "monitor"."""
    from bequest.wire import messages as wire

    return [daemon.os_pid for daemon in rack.request(wire.Status("rack")).daemons if daemon.kind == kind]


def break_memory(rack: Any, address: int, nbytes: int) -> None:
    """Has the memory there fail, as `bequest fault memory --range` does; returns once it is lost."""
    from bequest.wire import messages as wire

    element = rack.request(wire.Status("elements")).elements[0].name
    rack.request(wire.BreakMemory(element, address, nbytes))


def memory_of(pid: int) -> dict[str, int]:
    """The kernel's smaps_rollup of a process in bytes: `Rss`, `Pss`, ... Empty if the process is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return {}
    return {name.rstrip(":"): int(amount) * 1024 for name, amount, *_ in (line.split() for line in lines)}


BUILT = Path(__file__).resolve().parent.parent / "build" / "bench"
TABLE_BENCH, HEAP_BENCH = BUILT / "table_bench", BUILT / "heap_bench"

NO_HEAP_BENCH = "build/bench/heap_bench is not built: make bench does"
NO_TABLE_BENCH = "build/bench/table_bench is not built: make bench does"
TABLE_OPERATIONS = 1_000_000


def table_bench(flipped_bytes: int) -> dict[str, float] | None:
    """What benchmarks/native/table_bench.cpp prints; None where that is not built."""
    return _printed(TABLE_BENCH, TABLE_OPERATIONS, flipped_bytes)


def heap_bench() -> dict[str, float] | None:
    """What benchmarks/native/heap_bench.cpp prints; None where that is not built."""
    return _printed(HEAP_BENCH)


def _printed(program: Path, *arguments: int) -> dict[str, float] | None:
    if not program.exists():
        return None
    command = [str(program), *map(str, arguments)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(run.stdout)
    return found
