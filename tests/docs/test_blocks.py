"""Every block of code in README.md and docs/ runs, and prints what the page says that it prints.

A Python block runs as a script of its own in a fresh process, a console block line by line in a shell; both with a
runtime directory of their own, in which no rack may be left when they have ended.
"""

from __future__ import annotations

import doctest
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pages import BLOCKS, Block

LINGER_SECONDS = 8.0
RUN_SECONDS = 50.0
MARKS = {"", "not run", "file", "prints"}
NEVER_RUN = {"text", "toml", "json", "mermaid", "ini"}

RUNNABLE = [
    block for block in BLOCKS if block.mark in {"", "prints"} and block.language in {"python", "console"}
]


@dataclass(frozen=True)
class Place:
    """A directory to run in, and one for racks."""

    directory: Path
    runtime: Path


@pytest.fixture(scope="module")
def runtimes() -> Iterator[dict[str, Path]]:
    """By block: where its racks are. They must end by themselves, which the next block need not wait for."""
    used: dict[str, Path] = {}
    yield used
    deadline = time.monotonic() + LINGER_SECONDS
    while (left := [name for name, path in used.items() if racks_in(path)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for path in used.values():
        if racks_in(path):
            run([sys.executable, "-m", "bequest.cli", "down", "--all"], Place(path, path))
        shutil.rmtree(path)
    assert not left, f"racks were still there, of {left}"


def racks_in(runtime: Path) -> list[Path]:
    return list(runtime.glob("bequest/[!.]*"))


@pytest.fixture
def place(tmp_path: Path, runtimes: dict[str, Path], request: pytest.FixtureRequest) -> Place:
    """A fresh one."""
    runtime = Path(tempfile.mkdtemp(prefix="bqd-", dir="/tmp"))  # short: a socket's path ends at 107 bytes
    runtimes[request.node.name] = runtime
    return Place(tmp_path, runtime)


@pytest.mark.parametrize("block", RUNNABLE, ids=lambda block: block.name)
def test_block_runs(block: Block, place: Place) -> None:
    for name, text in block.files.items():
        (place.directory / name).write_text(text)
    if block.language == "python":
        script = place.directory / "block.py"
        script.write_text(block.text)
        output = run([sys.executable, "-W", "error", str(script)], place)
        if block.prints is not None:
            check_output(block.prints, output)
        return
    for commands, expected in console(block.text):
        output = run(["bash", "-eu", "-o", "pipefail", "-c", commands], place)
        if expected:
            check_output(expected, output)


def run(command: list[str], place: Place) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "BEQUEST_RACK"}
    environment["XDG_RUNTIME_DIR"] = str(place.runtime)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    environment["COLUMNS"] = "100"
    log = place.directory / "output"
    with log.open("w+") as output:  # no pipe: an embedded rack, which lingers, would hold it open
        done = subprocess.run(
            command, cwd=place.directory, env=environment, stdout=output, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, timeout=RUN_SECONDS, check=False,
        )  # fmt: skip
    assert done.returncode == 0, f"exit code {done.returncode}:\n{log.read_text()}"
    return log.read_text()


def console(text: str) -> Iterator[tuple[str, str]]:
    """(command, what it prints) of each prompt; a command ends in a backslash where it goes on."""
    command, output = "", ""
    for line in text.splitlines(keepends=True):
        if line.startswith("$ "):
            if command:
                yield command, output
            command, output = line[2:], ""
        elif line.startswith("> ") or line == ">\n":  # as a shell asks for more
            command += line[2:] or "\n"
        else:
            output += line
    assert command, "a console block begins with a prompt: $ command"
    yield command, output


def check_output(expected: str, output: str) -> None:
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    assert doctest.OutputChecker().check_output(expected, output, flags), (
        f"expected:\n{expected}\ngot:\n{output}"
    )


def test_blocks_are_marked_in_a_known_way() -> None:
    for block in BLOCKS:
        assert block.mark in MARKS, f"{block.name}: mark {block.mark!r}"
        assert block.mark not in {"not run", "file"} or block.value, (
            f"{block.name}: {block.mark!r} needs a value"
        )
        assert block.language in NEVER_RUN | {"python", "console"}, (
            f"{block.name}: language {block.language!r}"
        )


def test_there_is_something_to_run() -> None:
    pages = {block.page.name for block in RUNNABLE}
    assert {"README.md", "tutorial.md"} <= pages and len(RUNNABLE) >= 15


def test_wrong_output_is_noticed() -> None:
    with pytest.raises(AssertionError, match="expected"):
        check_output("1 region\n", "2 regions\n")
    check_output("at 0x...\n", "at 0x20\n")
