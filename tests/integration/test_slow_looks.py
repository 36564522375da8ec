"""A table of millions of extents takes long to look through: the Rack MMU serves others meanwhile."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

import bequest as bq
from actors import DEADLINE
from bequest.cli import racks as questions
from bequest.runtime.config import make_config
from racks import RackUnderTest, Yard
from slow_looks import run_rack_without_memory, run_slow_rack


@pytest.mark.parametrize("what", ["audit", "slabs"])
def test_others_are_served_while_somebody_has_a_table_looked_through(
    yard: Yard, tmp_path: Path, what: str
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    config = make_config(name="slow", memory=("dram0:64MiB",))
    rack = RackUnderTest(yard.nursery, yard._environment, config, run_slow_rack, gate)
    yard.racks.append(rack)
    me = yard.attach("me", rack)
    answers: list[object] = []
    with bq.connect(str(rack.directory)) as asker:
        waiting = threading.Thread(target=lambda: answers.append(getattr(questions, what)(asker)))
        waiting.start()
        with me.alloc(4 << 20):  # a fresh slab: the Rack MMU has to do something for it
            assert sorted(rack.processes()) == ["me"] and answers == []
        opened = os.open(gate, os.O_WRONLY)
        gate.unlink()
        os.close(opened)
        waiting.join(DEADLINE)
    assert len(answers) == 1


def test_a_look_that_fails_is_told_to_who_asked(yard: Yard) -> None:
    config = make_config(name="small", memory=("dram0:64MiB",))
    rack = RackUnderTest(yard.nursery, yard._environment, config, run_rack_without_memory)
    mmu = rack.daemon("mmu")
    with pytest.raises(bq.RackMemoryError, match="cannot look through its tables: MemoryError"):
        rack.audit()
    assert rack.processes() == {} and rack.daemon("mmu") == mmu
    rack.connection.close()
    os.kill(rack.supervisor, signal.SIGTERM)
    assert yard.nursery.wait(rack.supervisor) == 0
