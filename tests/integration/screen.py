"""The command line as people use it: the real program, real racks, and what is on the screen.

Every test has a runtime directory of its own, so that the racks that it starts are the only ones it sees; when it ends,
that directory must be empty again. `Screen` runs `bequest` in it; `attached` is a program with two processes in a rack
that does what it is told line by line, so that no test waits for a while and hopes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20
SMALL = ("--element", "dram0:64MiB")
BEQUEST = (sys.executable, "-m", "bequest.cli")

# Holds three large regions and a small one, two of them granted; then grants one more for each line that it reads.
PROGRAM = """
import sys
import bequest as bq

rack = bq.connect()
with rack.attach("mapper") as mapper, rack.attach("reducer") as reducer:
    regions = [mapper.alloc(4 << 20) for _ in range(3)]
    waiting = mapper.alloc(8192)
    regions.pop().grant("reducer")
    accepted = [reducer.accept(timeout=10)]
    waiting.grant("reducer")
    print("ready", flush=True)
    for line in sys.stdin:
        mapper.alloc(1 << 20).grant("reducer")
        print("granted", flush=True)
"""


class Screen:
    """Runs `bequest` with a runtime directory of its own."""

    def __init__(self, runtime: Path) -> None:
        self.runtime = runtime
        self.racks = runtime / "bequest"
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"BEQUEST_RACK", "BEQUEST_COMPUTE", "COLUMNS", "FORCE_COLOR", "NO_COLOR"}
        } | {"XDG_RUNTIME_DIR": str(runtime)}

    def __call__(
        self, *arguments: str, columns: int | None = None, **more: Any
    ) -> subprocess.CompletedProcess[str]:
        width = {} if columns is None else {"COLUMNS": str(columns)}
        return subprocess.run(
            [*BEQUEST, *arguments],
            env=self.environment | width | more.pop("environment", {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=25,
            check=False,
            **more,
        )

    def says(self, *arguments: str, columns: int | None = None) -> str:
        """Standard output of a command that must succeed without a word on standard error."""
        done = self(*arguments, columns=columns)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def document(self, *arguments: str) -> Any:
        """The one JSON document that a command must answer."""
        return json.loads(self.says(*arguments, "--json"))

    def start(self, *arguments: str, **more: Any) -> subprocess.Popen[str]:
        """A command that goes on, with pipes to it."""
        pipe = subprocess.PIPE
        return subprocess.Popen(
            [*BEQUEST, *arguments],
            **{"env": self.environment, "stdin": pipe, "stdout": pipe, "stderr": pipe, "text": True, **more},
        )

    def up(self, *arguments: str) -> dict[str, Any]:
        """A detached rack, by what `bequest up` says of it."""
        described: dict[str, Any] = self.document("up", "--detach", *SMALL, *arguments)
        return described

    @contextmanager
    def attached(self, *arguments: str) -> Iterator[Callable[[], None]]:
        """`PROGRAM` in a rack; the function has it grant 1 MiB."""
        with self.start("run", *arguments, "--", sys.executable, "-c", PROGRAM) as program:
            assert program.stdin is not None and program.stdout is not None and program.stderr is not None
            told = program.stdout.readline()
            assert told == "ready\n", program.stderr.read()

            def grant() -> None:
                assert program.stdin is not None and program.stdout is not None
                program.stdin.write("grant\n")
                program.stdin.flush()
                assert program.stdout.readline() == "granted\n"

            yield grant
            program.stdin.close()
            assert program.wait(20) == 0

    def remaining(self) -> list[str]:
        """What is left of racks."""
        if not self.racks.exists():
            return []
        return sorted(path.name for path in self.racks.iterdir() if path.name != ".lock")


@pytest.fixture
def bequest(tmp_path: Path) -> Iterator[Screen]:
    """The program; its racks are gone when the test is, and have left nothing."""
    screen = Screen(tmp_path)
    yield screen
    screen("down", "--all")
    wait_until(lambda: not screen.remaining(), f"left behind: {screen.remaining()}")


@pytest.fixture
def attached(bequest: Screen) -> AbstractContextManager[Callable[[], None]]:
    bequest.up()
    return bequest.attached()


def wait_until(holds: Callable[[], bool], otherwise: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


def fits(text: str, columns: int) -> bool:
    return all(len(line.rstrip()) <= columns for line in text.splitlines())


def one_line(stderr: str) -> str:
    """The message, which must be one plain line."""
    assert stderr.startswith("bequest: ") and stderr.count("\n") == 1 and "\x1b" not in stderr
    return stderr
