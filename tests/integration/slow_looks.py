"""Racks whose looks through tables take as long as a test wants, or fail."""

from __future__ import annotations

import os
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from actors import run_rack
from bequest.runtime import mmu_daemon


def run_slow_rack(connection: Connection, config: Any, gate: Path) -> None:
    """Looks begin by waiting for somebody to open this pipe, as long as it is there."""
    real = mmu_daemon.look_through

    def look_through(*arguments: Any) -> Any:
        if gate.exists():
            os.close(os.open(gate, os.O_RDONLY))
        return real(*arguments)

    mmu_daemon.look_through = look_through
    run_rack(connection, config)


def run_rack_without_memory(connection: Connection, config: Any) -> None:
    def look_through(*arguments: Any) -> Any:
        raise MemoryError

    mmu_daemon.look_through = look_through
    run_rack(connection, config)
