"""The verbs of the command line: see screen.py for how they are run."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

import bequest as bq
from alive import is_running
from bequest.cli.slab_map import FREE
from screen import MIB, SMALL, Screen, fits, one_line, wait_until

VERBS = (
    "up",
    "down",
    "run",
    "ps",
    "ls",
    "mem",
    "top",
    "audit",
    "fault",
    "standby",
    "doctor",
    "demo",
    "bench",
)


# --- the program itself ---------------------------------------------------------------------------------------


def test_help_lists_every_verb_and_each_has_help(bequest: Screen) -> None:
    told = bequest.says("--help")
    assert all(f"\n  {verb} " in told for verb in VERBS)
    for verb in set(VERBS) - {"fault", "demo", "bench"}:
        assert "--json" in bequest.says(verb, "--help")
    assert bequest.says("--version").startswith("bequest 0.")


@pytest.mark.parametrize(
    "arguments",
    [("psx",), ("ps", "--nonsense"), ("up", "--orphan-keep", "soon"), ("down", "a", "--all"), ("run",)],
)
def test_a_wrong_command_line_is_code_2(bequest: Screen, arguments: tuple[str, ...]) -> None:
    done = bequest(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Usage: bequest" in done.stderr and "Traceback" not in done.stderr


def test_a_wrong_command_line_is_told_as_json_too(bequest: Screen) -> None:
    done = bequest("ps", "--nonsense", "--json")
    assert (done.returncode, done.stderr) == (2, "")
    assert json.loads(done.stdout)["error"]["kind"] == "UsageError"


@pytest.mark.parametrize("verb", ["ps", "mem", "top", "down"])
def test_without_a_rack_one_line_says_how_to_start_one(bequest: Screen, verb: str) -> None:
    done = bequest(verb)
    assert (done.returncode, done.stdout) == (1, "")
    assert one_line(done.stderr) == "bequest: no rack is running; start one with `bequest up`\n"
    as_json = bequest(verb, "--json")
    assert (as_json.returncode, as_json.stderr) == (1, "")
    assert json.loads(as_json.stdout) == {
        "error": {"kind": "NoRack", "message": "no rack is running; start one with `bequest up`"}
    }


def test_a_rack_that_was_named_but_does_not_run(bequest: Screen) -> None:
    for done in (bequest("ps", "--rack", "nope"), bequest("ps", environment={"BEQUEST_RACK": "nope"})):
        assert done.returncode == 1
        assert "no rack 'nope'" in one_line(done.stderr)


def test_a_reader_that_goes_away_is_no_error(bequest: Screen) -> None:
    with bequest.start("doctor") as doctor:
        assert doctor.stdout is not None and doctor.stderr is not None
        doctor.stdout.close()
        assert doctor.stderr.read() == ""


# --- up and down ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_up_in_the_foreground_ends_cleanly_by_signal(bequest: Screen, ending: signal.Signals) -> None:
    with bequest.start("up", *SMALL) as up:
        assert up.stdout is not None and up.stderr is not None
        assert up.stdout.readline() == f"● Rack default is ready (process {up.pid})\n"
        assert "mapper" not in bequest.says("ps")
        up.send_signal(ending)
        rest, log = up.stdout.read(), up.stderr.read()
        assert up.wait(20) == 0
    assert "dram0  64.0 MiB  dram" in rest and "Ctrl-C" in rest
    assert rest.endswith("Rack default has ended.\n")
    assert "Traceback" not in log
    assert bequest.remaining() == []


def test_ctrl_c_on_a_terminal_ends_up_and_its_daemons(bequest: Screen) -> None:
    """The terminal sends SIGINT to the daemons, too: the supervisor alone may act on it."""
    with on_a_terminal(bequest, "up", *SMALL) as (process, terminal):
        read_until(terminal, "to end it")
        os.write(terminal, b"\x03")
        read_until(terminal, "Rack default has ended.")
        assert process.wait(20) == 0
    assert bequest.remaining() == []


def test_up_detached_says_where_and_what_and_down_leaves_nothing(bequest: Screen) -> None:
    described = bequest.up(
        "--element", "far:32MiB", "--compute", "host0", "--compute", "host1", "--policy", "spread"
    )
    pid = described.pop("pid")
    assert described == {
        "name": "default",
        "directory": str(bequest.racks / "default"),
        "detached": True,
        "elements": [
            {"name": "dram0", "kind": "dram", "size_bytes": 64 * MIB},
            {"name": "far", "kind": "dram", "size_bytes": 32 * MIB},
        ],
        "computes": ["host0", "host1"],
        "policy": "spread",
        "orphan_keep_seconds": 60.0,
    }
    daemons = [pid, *children_of(pid)]
    assert len(daemons) == 7 and all(is_running(daemon) for daemon in daemons)
    assert bequest.document("down") == {"ended": ["default"]}
    assert not any(is_running(daemon) for daemon in daemons)
    assert bequest.remaining() == []


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_up_from_a_file_and_flags_outrank_it(bequest: Screen, tmp_path: Path) -> None:
    file = tmp_path / "rack.toml"
    file.write_text(
        'name = "lab"\npolicy = "spread"\norphan_keep = 5\ncompute = ["a", "b"]\n'
        f'[[memory]]\nname = "pmem0"\nsize = "16MiB"\nkind = "file:{tmp_path}"\n'
    )
    described = bequest.document("up", "--detach", "--config", str(file), "--policy", "worst-fit")
    assert (described["name"], described["policy"], described["computes"]) == ("lab", "worst-fit", ["a", "b"])
    assert described["orphan_keep_seconds"] == 5
    assert described["elements"] == [{"name": "pmem0", "kind": f"file:{tmp_path}", "size_bytes": 16 * MIB}]
    assert bequest.document("down", "lab") == {"ended": ["lab"]}


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--element", "dram0"), "write NAME:SIZE"),
        (("--element", "dram0:many"), "no size"),
        (("--element", "dram0:1KiB"), "the least is 2MiB"),
        (("--policy", "random"), "best-fit, worst-fit, spread"),
        (("--element", "p:8MiB:file:/nowhere"), "no directory"),
        (("--compute", "a/b"), "'/'"),
    ],
)
def test_up_says_what_is_wrong_with_a_flag(
    bequest: Screen, arguments: tuple[str, ...], complaint: str
) -> None:
    for how in ((), ("--detach",)):
        done = bequest("up", *how, *arguments)
        assert done.returncode == 1
        assert complaint in one_line(done.stderr)
    assert bequest.remaining() == []


def test_a_name_is_given_once(bequest: Screen) -> None:
    bequest.up()
    for how in ((), ("--detach",)):
        done = bequest("up", *how, *SMALL)
        assert done.returncode == 1
        assert "running already" in one_line(done.stderr)


def test_two_racks_side_by_side(bequest: Screen) -> None:
    bequest.up("--name", "left")
    bequest.up("--name", "right")
    assert "left, right" in one_line(bequest("ps").stderr)
    assert "left, right" in one_line(bequest("down").stderr)
    with bequest.attached("--rack", "left"):
        assert len(bequest.document("ps", "--rack", "left")["processes"]) == 2
        assert bequest.document("ps", "--rack", str(bequest.racks / "right"))["processes"] == []
        assert bequest.document("down", "right") == {"ended": ["right"]}
        only = bequest.document("ps")  # the only one left needs no name
        assert only["rack"]["name"] == "left" and len(only["processes"]) == 2
    assert "name" not in bequest("down").stdout, "what was not named and is not the default is not ended"
    assert bequest.document("down", "--all") == {"ended": ["left"]}
    assert bequest.document("down", "--all") == {"ended": []}


@pytest.mark.slow
def test_down_ends_a_rack_that_does_not_answer(bequest: Screen) -> None:
    pid = bequest.up()["pid"]
    os.kill(children_of(pid)[0], signal.SIGSTOP)  # the Rack MMU
    assert bequest.document("down") == {"ended": ["default"]}
    assert not is_running(pid)


# --- ps, mem, top ---------------------------------------------------------------------------------------------

PROCESS_FIELDS = {
    "id", "name", "kind", "group", "compute", "pid", "state", "extents", "owned_bytes", "cached_bytes", "inbox",
    "grants", "granted_bytes", "accepts", "allocs", "frees", "reads", "read_bytes", "steals", "resumes",
    "freed_in_seconds",
}  # fmt: skip
RATE_FIELDS = {
    "grants_per_second", "reads_per_second", "bytes_not_copied_per_second", "accepts_per_second",
    "allocs_per_second", "frees_per_second",
}  # fmt: skip
ELEMENT_FIELDS = {
    "name", "kind", "size_bytes", "used_bytes", "free_bytes", "state", "failed_bytes", "slabs", "warm_bytes",
    "recycled_bytes", "huge_bytes", "warm_hits", "cold_misses", "summed_bytes", "scrubbed_bytes", "mismatched_bytes",
}  # fmt: skip


RARE = ("reads", "read_bytes", "steals", "resumes")


def test_the_reference_names_every_field() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "cli.md").read_text()
    unnamed = [field for field in PROCESS_FIELDS | RATE_FIELDS | ELEMENT_FIELDS if f"`{field}`" not in text]
    assert not unnamed


def test_ps(bequest: Screen, attached: AbstractContextManager[Callable[[], None]]) -> None:
    assert "Nobody is attached." in bequest.says("ps")
    with attached:
        answer = bequest.document("ps")
        assert answer["rack"].keys() == {
            "name", "daemons", "uptime_seconds", "policy", "orphan_keep_seconds", "embedded", "groups", "computes",
        }  # fmt: skip
        assert answer["rack"]["computes"] == {"host0": 2}
        assert all(process.keys() == PROCESS_FIELDS for process in answer["processes"])
        mapper, reducer = sorted(answer["processes"], key=lambda process: process["name"])
        assert (mapper["name"], mapper["state"], mapper["kind"]) == ("mapper", "attached", "process")
        assert (mapper["owned_bytes"], mapper["grants"], mapper["inbox"]) == (8 * MIB, 2, 0)
        assert mapper["granted_bytes"] == 4 * MIB + 8192
        assert (reducer["owned_bytes"], reducer["accepts"], reducer["inbox"]) == (4 * MIB + 8192, 1, 1)
        told = bequest.says("ps", columns=80)
        assert "\x1b" not in told and fits(told, 80)
        assert told.startswith("Rack default · 2 processes · up ")
        row = next(line for line in told.splitlines() if "mapper" in line)
        assert row.split()[1:] == [
            "mapper",
            str(mapper["pid"]),
            "attached",
            "8.0",
            "MiB",
            *row.split()[6:-1],
            "2",
        ]


def test_mem_draws_who_owns_what(
    bequest: Screen, attached: AbstractContextManager[Callable[[], None]]
) -> None:
    assert "dram0" in bequest.says("mem")
    with attached:
        answer = bequest.document("mem")
        (element,) = answer["elements"]
        assert element.keys() == ELEMENT_FIELDS | {"fragmentation"}
        assert element["used_bytes"] + element["free_bytes"] == element["size_bytes"] == 64 * MIB
        assert {owner["name"]: owner["bytes"] for owner in answer["owners"]} == {
            "mapper": 8 * MIB,
            "reducer": 4 * MIB + 8192,
        }
        assert answer["slab_count"] == len(answer["slabs"]) == element["slabs"]
        for slab in answer["slabs"]:
            assert slab["home"]["name"] == "mapper" and slab["runs_complete"]
            assert sum(run["pages"] for run in slab["runs"]) == slab["pages"]
            assert slab["free_bytes"] + sum(owner["bytes"] for owner in slab["owners"]) == slab["bytes"]
        for columns in (80, 120):
            told = bequest.says("mem", columns=columns)
            assert fits(told, columns) and "a mapper 8.0 MiB" in told and "b reducer 4.0 MiB" in told
            assert "aaaaaaaa" in told and "bbbbbbbb" in told and FREE * 8 in told
        assert "more slab" in bequest.says("mem", "--slabs", "1")
        assert len(bequest.document("mem", "--slabs", "1")["slabs"]) == 1


def test_top_as_json_tells_rates(
    bequest: Screen, attached: AbstractContextManager[Callable[[], None]]
) -> None:
    with attached as grant, bequest.start("top", "--json", "--interval", "0.1") as top:
        assert top.stdout is not None
        assert json.loads(top.stdout.readline())["grants_per_second"] == 0
        grant()
        sample = next(filter(lambda sample: sample["grants_per_second"], map(json.loads, top.stdout)))
        top.send_signal(signal.SIGINT)
        assert top.wait(20) == 0
    assert all(process.keys() == PROCESS_FIELDS | RATE_FIELDS for process in sample["processes"])
    assert sample.keys() == {"time", "interval_seconds", "rack", "processes", "elements"} | RATE_FIELDS
    granted = sample["bytes_not_copied_per_second"] * sample["interval_seconds"]
    assert granted == pytest.approx(2 * MIB, rel=1e-3), "1 MiB takes a page of 2 MiB"


def test_top_in_a_pipe_prints_tables(
    bequest: Screen, attached: AbstractContextManager[Callable[[], None]]
) -> None:
    with attached:
        told = bequest.says("top", "--count", "2", "--interval", "0.1", columns=80)
    assert fits(told, 80) and "\x1b" not in told
    assert told.count("NOT COPIED/S") == 2 and "grants/s" in told and "STEALS" not in told


def test_top_counts_what_is_read_in_place_stolen_and_resumed(bequest: Screen) -> None:
    bequest.up()
    with bq.connect(str(bequest.racks / "default")) as rack:
        keeper, reader = rack.attach("keeper"), rack.attach("reader")
        with bequest.start("top", "--json", "--interval", "0.1") as top:
            assert top.stdout is not None
            top.stdout.readline()
            region = keeper.alloc(2 * MIB)
            frozen = region.freeze()
            readings = [reader.read(frozen), keeper.read(frozen)]  # one's own does not count
            sample = next(filter(lambda sample: sample["reads_per_second"], map(json.loads, top.stdout)))
            top.send_signal(signal.SIGINT)
            assert top.wait(20) == 0
        assert sample["bytes_not_copied_per_second"] * sample["interval_seconds"] == pytest.approx(
            2 * MIB, rel=1e-3
        )
        (stolen,) = reader.steal("keeper").regions
        reader._count_resumed()
        sample = bequest.document("top", "--once", "--interval", "0.05")
        counted = {process["name"]: process for process in sample["processes"]}
        assert {name: counted["reader"][name] for name in RARE} == dict(
            zip(RARE, (1, 2 * MIB, 1, 1), strict=True)
        )
        assert {name: counted["keeper"][name] for name in RARE} == dict.fromkeys(RARE, 0)
        for columns in (80, 120):
            told = bequest.says("top", "--once", "--interval", "0.05", columns=columns)
            assert fits(told, columns) and "STEALS" in told and "RESUMED" in told and "NOT COPIED/S" in told
        for reading in readings:
            reading.close()
        stolen.free()
        reader.detach()
        keeper.detach()


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_top_on_a_terminal_ends_with_a_key_and_tidies_up(
    bequest: Screen, attached: AbstractContextManager[Callable[[], None]], key: bytes
) -> None:
    with attached, on_a_terminal(bequest, "top", "--interval", "0.1") as (process, terminal):
        seen = read_until(terminal, "not copied")
        assert "\x1b[?1049h" in seen and "mapper" in seen
        os.write(terminal, key)
        assert "\x1b[?1049l" in read_until(terminal, "\x1b[?1049l"), "the screen before comes back"
        assert process.wait(20) == 0


def test_top_ends_when_the_rack_does(bequest: Screen) -> None:
    bequest.up()
    with bequest.start("top", "--json", "--interval", "0.1") as top:
        assert top.stdout is not None and top.stderr is not None
        top.stdout.readline()
        bequest("down")
        last = top.stdout.read()
        assert top.wait(20) == 1
    assert '"kind": "RackGone"' in last


@contextmanager
def on_a_terminal(bequest: Screen, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The command as the foreground job of a terminal of its own, and the terminal's other end."""
    ours, theirs = pty.openpty()
    environment = bequest.environment | {"TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"}
    process = bequest.start(
        *arguments, env=environment, stdin=theirs, stdout=theirs, stderr=theirs,
        start_new_session=True, preexec_fn=lambda: fcntl.ioctl(theirs, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(theirs)
    try:
        yield process, ours
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(ours)


def read_until(terminal: int, text: str) -> str:
    """What the terminal shows up to and with ``text``."""
    seen = ""
    while text not in seen:
        ready, _, _ = select.select([terminal], [], [], 20)
        assert ready, f"{text!r} did not come after {seen!r}"
        seen += os.read(terminal, 65536).decode(errors="replace")
    return seen


# --- run ------------------------------------------------------------------------------------------------------

SHOW = 'echo "$BEQUEST_RACK $BEQUEST_COMPUTE"'


def test_run_in_a_rack_places_and_becomes_the_program(bequest: Screen) -> None:
    bequest.up("--compute", "host0", "--compute", "host1")
    done = bequest("run", "--", "sh", "-c", f"{SHOW}; exit 7")
    assert (done.returncode, done.stderr) == (7, "")
    assert done.stdout.split()[0] == str(bequest.racks / "default")
    assert done.stdout.split()[1] in {"host0", "host1"}
    assert bequest.says("run", "--compute", "host1", "sh", "-c", SHOW).split()[1] == "host1"
    refused = bequest("run", "--compute", "host7", "true")
    assert refused.returncode == 2 and "it has host0, host1" in refused.stderr
    assert bequest.says("run", "echo", "--json", "--help") == "--json --help\n", "the program's, not ours"


def test_run_without_a_rack_starts_one_for_as_long_as_the_program_runs(bequest: Screen) -> None:
    with bequest.attached():
        answer = bequest.document("ps")
        assert answer["rack"]["embedded"] and len(answer["processes"]) == 2
    wait_until(lambda: not bequest.remaining(), "the embedded rack has not ended")
    done = bequest("run", "--", "sh", "-c", f"{SHOW}; exit 3")
    assert done.returncode == 3 and "embedded-" in done.stdout and done.stdout.endswith(" host0\n")


@pytest.mark.parametrize("with_rack", [True, False])
def test_run_ends_as_the_program_does(bequest: Screen, with_rack: bool) -> None:
    if with_rack:
        bequest.up()
    assert bequest("run", "sh", "-c", "kill -USR1 $$").returncode == -signal.SIGUSR1
    waiting = "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"
    with bequest.start("run", "--", "sh", "-c", waiting) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        program.terminate()
        assert program.wait(20) == 9
    pipe = bequest("run", "--", "sh", "-c", "yes | head -n 1; exit 0")
    assert (pipe.stdout, pipe.stderr) == ("y\n", ""), "SIGPIPE is not ignored in the program"


def test_run_of_what_is_not_there(bequest: Screen, tmp_path: Path) -> None:
    bequest.up()
    assert bequest("run", "no-such-program").returncode == 127
    (tmp_path / "text").write_text("")
    done = bequest("run", "--", str(tmp_path / "text"))
    assert done.returncode == 126 and "Permission denied" in one_line(done.stderr)


# --- demo, bench ----------------------------------------------------------------------------------------------


def test_demo_and_bench_pass_their_arguments_on(bequest: Screen) -> None:
    assert "--mappers" in bequest.says("demo", "--help")
    assert "--quick" in bequest.says("bench", "--help")
    assert bequest("demo", "--nonsense").returncode == 2
    assert bequest("bench", "no-such-benchmark").returncode == 2
