"""The log of a rack with real daemons: bounded, whichever of them writes, and begun anew when it is deleted."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import socket
import time
from collections import deque
from pathlib import Path

import pytest

from actors import until
from alive import is_running
from bequest.limits import HEAD_START, RACK_LOG_BYTES_MAX
from bequest.protocol.outputs import Note
from bequest.runtime.loop import Daemon
from bequest.runtime.mmu_daemon import MmuDaemon
from bequest.runtime.transport import send_packet
from racks import RackUnderTest

SOCKETS = {
    "mmu": "mmu.sock",
    "dram0": "element-dram0.sock",
    "host0": "agent-host0.sock",
    "monitor": "monitor.sock",
}


def log_of(rack: RackUnderTest) -> Path:
    return rack.directory / "rack.log"


def former_log_of(rack: RackUnderTest) -> Path:
    return rack.directory / "rack.log.1"


def fill(rack: RackUnderTest, mark: str) -> None:
    """As if its daemons had had much to say."""
    with log_of(rack).open("a") as log:
        log.write(f"{mark}\n" * (RACK_LOG_BYTES_MAX // len(mark)))


def ends_with(mark: str, path: Path) -> bool:
    return path.exists() and mark in path.read_text()[-1000:]


def written_by(pid: int) -> tuple[int, int]:
    found = os.stat(f"/proc/{pid}/fd/2")
    return found.st_dev, found.st_ino


def all_write_into(path: Path, pids: list[int]) -> bool:
    return path.exists() and {written_by(pid) for pid in pids} == {(path.stat().st_dev, path.stat().st_ino)}


def everybody(rack: RackUnderTest) -> list[int]:
    return [rack.supervisor, *rack.daemons().values()]


def provoke(rack: RackUnderTest, role: str) -> None:
    """A daemon writes a line about who sends it garbage."""
    directory = os.open(rack.directory, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.connect(f"/proc/self/fd/{directory}/{SOCKETS[role]}")  # a path of any length
            send_packet(client, b"garbage")
            client.settimeout(10)
            client.recv(4096)
    finally:
        os.close(directory)


def all_are_heard_in(rack: RackUnderTest, path: Path) -> None:
    """Each daemon writes there, and so does the supervisor."""
    daemons = rack.daemons()
    for role in SOCKETS:
        provoke(rack, role)
    for role, pid in daemons.items():
        until(lambda pid=pid: f" {pid} WARNING " in path.read_text(), f"a line of {role}")  # type: ignore[misc]
    os.kill(daemons["dram0"], signal.SIGKILL)
    until(lambda: "dram0 runs again" in path.read_text(), "a line of the supervisor")


def test_a_log_that_is_too_long_becomes_the_former_one(rack: RackUnderTest) -> None:
    for mark in ("first", "second"):
        fill(rack, mark)
        until(lambda mark=mark: ends_with(mark, former_log_of(rack)), "the change of logs")  # type: ignore[misc]
        until(lambda: all_write_into(log_of(rack), everybody(rack)), "the move to a new log")
    all_are_heard_in(rack, log_of(rack))
    assert "first" not in former_log_of(rack).read_text()
    logs = [path.name for path in rack.directory.glob("rack.log*")]
    assert sorted(logs) == ["rack.log", "rack.log.1"]


def test_a_log_that_is_deleted_is_begun_anew(rack: RackUnderTest) -> None:
    log_of(rack).unlink()
    until(lambda: all_write_into(log_of(rack), everybody(rack)), "the new log")
    all_are_heard_in(rack, log_of(rack))


def test_a_directory_that_is_made_again_has_the_log(rack: RackUnderTest) -> None:
    shutil.rmtree(rack.directory)
    until(lambda: all_write_into(log_of(rack), everybody(rack)), "the new log")
    until(lambda: all((rack.directory / name).exists() for name in SOCKETS.values()), "the sockets")
    assert "had been deleted, and has been made again" in log_of(rack).read_text()
    all_are_heard_in(rack, log_of(rack))


def test_a_daemon_that_is_killed_before_it_has_moved(rack: RackUnderTest) -> None:
    """Nobody waits for it, and its successor writes into the new log."""
    stopped = rack.daemon("dram0")
    os.kill(stopped, signal.SIGSTOP)
    fill(rack, "full")
    others = [pid for pid in everybody(rack) if pid != stopped]
    until(lambda: former_log_of(rack).exists() and all_write_into(log_of(rack), others), "the others' move")
    assert written_by(stopped) != written_by(rack.supervisor)
    os.kill(stopped, signal.SIGKILL)
    until(lambda: rack.daemons().get("dram0", stopped) != stopped, "its successor")
    assert all_write_into(log_of(rack), everybody(rack))
    all_are_heard_in(rack, log_of(rack))


def test_the_directory_goes_with_both_logs(rack: RackUnderTest) -> None:
    """Also when the supervisor is killed between the files: daemons write their last lines, and make none."""
    daemons = rack.daemons()
    fill(rack, "full")
    until(lambda: former_log_of(rack).exists() and log_of(rack).exists(), "both logs")
    os.kill(rack.supervisor, signal.SIGSTOP)
    log_of(rack).rename(former_log_of(rack))
    rack.connection.close()
    os.kill(rack.supervisor, signal.SIGKILL)
    until(lambda: not any(map(is_running, daemons.values())), "the end of the daemons")
    assert not rack.directory.exists()


def test_what_the_rack_mmu_has_yet_to_log_is_logged_when_it_stops(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It lets others go first for a moment."""
    monkeypatch.setattr(Daemon, "stop", lambda daemon, reason: None)
    daemon = MmuDaemon.__new__(MmuDaemon)
    daemon._notes = deque([(time.monotonic() + HEAD_START, Note("somebody died"))])
    with caplog.at_level(logging.INFO):
        daemon._log_notes(time.monotonic())
        assert "somebody died" not in caplog.text
        daemon.stop("it was asked to")
    assert "somebody died" in caplog.text
