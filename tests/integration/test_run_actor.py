"""``bequest run-actor``: an actor and its standby as a user runs them, in a terminal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bequest as bq
from actors import until
from racks import RackUnderTest, Yard

SOON = 15.0
MODULE = """
import bequest as bq

class Count(bq.Struct):
    total: int = 0

class Counter(bq.Actor):
    state: Count

    def add(self, number: int) -> int:
        self.state.total += number
        return self.state.total

@bq.function
def charge(count: Count, amount: int) -> int:
    count.total -= amount
    return count.total

class Broken(bq.Actor):
    state: Count

    def setup(self) -> None:
        raise OSError("no")
"""


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """It keeps the memory of the dead for a minute."""
    return yard.rack()


class Terminal:
    """The command, running; what it has said so far."""

    def __init__(self, rack: RackUnderTest, place: Path, *arguments: str) -> None:
        (place / "shop.py").write_text(MODULE)
        command = [
            sys.executable,
            "-m",
            "bequest.cli",
            "run-actor",
            *arguments,
            "--rack",
            str(rack.directory),
        ]
        self.process = subprocess.Popen(
            command,
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def line(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def interrupt(self) -> int:
        """Ctrl-C, which every process of a terminal gets."""
        os.killpg(self.process.pid, signal.SIGINT)
        return self.process.wait(SOON)

    def close(self) -> None:
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


@pytest.fixture
def run(rack: RackUnderTest, tmp_path: Path) -> Iterator[Any]:
    opened: list[Terminal] = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(rack, tmp_path, *arguments))
        return opened[-1]

    yield start
    for one in opened:
        if one.process.poll() is None:
            os.killpg(one.process.pid, signal.SIGKILL)
            one.process.wait()
        one.close()


def test_one_alone_ends_at_ctrl_c(run: Any, me: bq.Process) -> None:
    terminal = run("shop:Counter", "--name", "till", "--json")
    assert terminal.line() == {"actor": "till", "state": "running", "pid": terminal.process.pid}
    till = bq.actors.ref(me, "till")
    assert till.call("add", 3, timeout=SOON) == 3
    assert terminal.interrupt() == 0
    with pytest.raises(bq.UnknownActor):
        till.call("add", 1, timeout=SOON)
    assert me.list("/actors") == []


def test_a_standby_goes_on_and_is_replaced(run: Any, me: bq.Process) -> None:
    terminal = run("shop:Counter", "--standby", "--json")
    counter = bq.actors.ref(me, "counter")
    bearer = terminal.line()
    assert bearer["state"] == "running" and bearer["actor"] == "counter"
    for death in range(2):
        assert terminal.line()["state"] == "standing by"
        assert counter.call("add", 1, timeout=SOON) == death + 1
        os.kill(bearer["pid"], signal.SIGKILL)
        assert counter.call("add", 0, timeout=SOON) == death + 1
        said = sorted((terminal.line() for _ in range(2)), key=lambda line: line["state"])
        assert [line["state"] for line in said] == ["died", "inherited"] and said[0]["pid"] == bearer["pid"]
        bearer = said[1]
    assert terminal.line()["state"] == "standing by"
    assert terminal.interrupt() == 0
    until(lambda: me.list("/actors") == [])


def test_an_actor_that_hangs_is_ended_and_inherited(run: Any, me: bq.Process) -> None:
    terminal = run("shop:Counter", "--standby", "--hung", "--json")
    counter = bq.actors.ref(me, "counter")
    bearer = terminal.line()
    assert terminal.line()["state"] == "standing by"
    assert counter.call("add", 1, timeout=SOON) == 1
    os.kill(bearer["pid"], signal.SIGSTOP)
    assert counter.call("add", 1, timeout=SOON) == 2
    said = [terminal.line() for _ in range(3)]
    assert said[0] == {"actor": "counter", "state": "hung", "pid": bearer["pid"]}
    assert sorted(line["state"] for line in said[1:]) == ["died", "inherited"]
    assert terminal.line()["state"] == "standing by"
    assert terminal.interrupt() == 0


def test_a_function_runs_too(run: Any, me: bq.Process) -> None:
    terminal = run("shop:charge", "--json")
    assert terminal.line()["actor"] == "charge"
    charge = bq.actors.ref(me, "charge")
    assert charge.call("invoke", "key", [5]) == charge.call("invoke", "key", [5]) == -5
    assert terminal.interrupt() == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["shop"], "'shop' is not MODULE:CLASS"),
        (["nowhere:Counter"], "no module 'nowhere'"),
        (["shop:Nothing"], "module 'shop' has no 'Nothing'"),
        (["shop:Count"], "neither a subclass of bequest.Actor nor a bequest.function"),
        (["shop:Counter", "--name", "a/b"], "contains '/'"),
        (["shop:Counter", "--group", "zz"], "hexadecimal"),
        (["shop:Counter", "--hung"], "--standby"),
        (["shop:Broken", "--standby"], "OSError: no"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistakes_are_told(run: Any, arguments: list[str], told: str) -> None:
    terminal = run(*arguments)
    _, errors = terminal.process.communicate(timeout=SOON)
    assert terminal.process.returncode in (1, 2) and told in errors
