"""The rack's log by itself: who writes into it, who makes its files, and what stands in its place."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bequest.runtime import rack_log as module
from bequest.runtime.directory import claim
from bequest.runtime.rack_log import Lines, RackLog, follow
from bequest.runtime.upkeep import Upkeep
from bequest.wire.supervision import WriteLog
from test_loop import Mute

DEADLINE = 20  # seconds
WRITERS = 3
LINES = 3000  # of each


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "RACK_LOG_BYTES_MAX", 50_000)
    return tmp_path / "rack.log"


def fork(run: Callable[[], None]) -> int:
    """A process whose descriptor 2 is its own to give away."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(DEADLINE)
        code = 70
        try:
            logging.basicConfig(handlers=[logging.StreamHandler(Lines())], format="%(message)s", force=True)
            run()
            code = 0
        finally:
            os._exit(code)
    return pid


def ended_well(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def is_written_into(path: Path) -> bool:
    return os.path.samestat(os.fstat(2), path.stat())


def test_lines_of_many_writers_stay_whole_while_files_change(path: Path) -> None:
    def write(number: int) -> None:
        for count in range(LINES):
            if count % 100 == 0:
                with contextlib.suppress(FileNotFoundError):  # it is just being made
                    follow(path)
            logging.error("%d %06d %s", number, count, "x" * (count % 100))

    def keep() -> None:
        the_log = RackLog(path)
        writers = [fork(lambda number=number: write(number)) for number in range(WRITERS)]  # type: ignore[misc]
        changes = 0
        while any(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None for pid in writers):
            changes += the_log.look()
        assert changes >= 2 and all(map(ended_well, writers))
        the_log.look()

    assert ended_well(fork(keep))
    assert sorted(os.listdir(path.parent)) == ["rack.log", "rack.log.1"]
    lines = [
        line for name in sorted(os.listdir(path.parent), reverse=True) for line in read(path.parent / name)
    ]
    assert len(lines) > 100
    last: dict[str, int] = {}
    for line in lines:
        number, count, rest = line.split(" ")
        assert re.fullmatch("x*", rest) and len(rest) == int(count) % 100
        assert int(count) > last.get(number, -1)
        last[number] = int(count)


def read(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_log_of_the_right_length_in_its_place_is_left_alone(path: Path) -> None:
    def keep() -> None:
        the_log = RackLog(path)
        os.write(2, b"x" * 50_000)
        assert not the_log.look()

    assert ended_well(fork(keep))
    assert os.listdir(path.parent) == ["rack.log"]


def test_what_another_has_put_in_its_place_is_written_on(path: Path) -> None:
    def keep() -> None:
        the_log = RackLog(path)
        path.unlink()
        path.write_text("before\n")
        assert the_log.look()
        logging.error("after")

    assert ended_well(fork(keep))
    assert read(path) == ["before", "after"]


def test_it_is_for_its_user_only(path: Path) -> None:
    assert ended_well(fork(lambda: RackLog(path) and None))
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_file_that_cannot_be_made_is_tried_again(path: Path) -> None:
    """Half-way, as for want of descriptors: the log goes on in the file that has its old name by then."""

    def keep() -> None:
        the_log = RackLog(path)
        os.write(2, b"x" * 50_000 + b"\n")
        os.write(2, b"too much\n")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
        assert not the_log.look() and not the_log.look()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert not path.exists()
        assert the_log.look() and not the_log.look()
        logging.error("new")

    assert ended_well(fork(keep))
    _, much, told = read(path.with_name("rack.log.1"))
    assert much == "too much" and told.startswith("the log cannot be begun anew: ")
    assert read(path) == ["new"]


def test_nobody_waits_for_what_stands_in_its_place(path: Path) -> None:
    """A pipe without a reader, or one that is full."""

    def keep() -> None:
        the_log = RackLog(path)
        path.unlink()
        os.mkfifo(path)
        assert not the_log.look()
        reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        assert the_log.look()
        for _ in range(100):
            logging.error("%s", "x" * 4000)
        os.close(reader)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        Lines().write("nobody reads\n")

    started = time.monotonic()
    assert ended_well(fork(keep))
    assert time.monotonic() - started < DEADLINE / 2


def test_a_link_in_its_place_is_not_followed(path: Path) -> None:
    elsewhere = path.with_name("elsewhere")

    def keep() -> None:
        the_log = RackLog(path)
        path.unlink()
        path.symlink_to(elsewhere)
        assert not the_log.look()

    assert ended_well(fork(keep))
    assert not elsewhere.exists()


def test_a_rack_in_the_foreground_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    directory = claim("lab")
    Upkeep(directory, [], lambda *_: None, None).look(math.inf)
    assert not directory.log.exists()
    directory.remove()
    os.close(directory.lock)


# --- daemons --------------------------------------------------------------------------------------------------------


def test_a_daemon_makes_no_file(path: Path) -> None:
    """It might lie in the directory of another rack, or in one that is just being removed."""

    def live() -> None:
        RackLog(path)
        path.unlink()
        daemon = Mute()
        daemon._spare_fd = None
        daemon._hear(WriteLog(str(path)), [])
        logging.error("lost")

    assert ended_well(fork(live))
    assert not path.exists()


def test_a_daemon_without_a_descriptor_to_spare_has_one_for_this(path: Path) -> None:
    def live() -> None:
        daemon = Mute()
        daemon._spare_fd = os.open("/dev/null", os.O_RDONLY)
        path.touch()
        resource.setrlimit(resource.RLIMIT_NOFILE, (daemon._spare_fd + 1,) * 2)
        while True:
            try:
                os.dup(0)
            except OSError:
                break
        daemon._hear(WriteLog(str(path)), [])
        assert is_written_into(path)
        daemon._hear(WriteLog(str(path)), [])
        assert daemon._spare_fd is not None

    assert ended_well(fork(live))
