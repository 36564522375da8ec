"""kill -9 of each daemon at each of its fault points, under load: no page lost, none owned twice, no litter.

Not at random instants: a daemon dies at every point that it comes to (`fault_points.py`), once at each, until the load
has run through without a new one; then at those of coming back. After every death the successor has to come, the books
have to balance, and the users (`fault_point_users.py`), who check all that they get, to go on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

import fault_point_users
import fault_points
from actors import Actor, until
from bequest.runtime.config import make_config
from bequest.wire import messages as wire
from fault_points import FaultPoints
from racks import RackUnderTest, Yard

USERS = int(os.environ.get("FAULT_POINT_USERS", "1"))  # more for a heavier load, which takes longer
ROUNDS = 5  # without a death: the load comes round to each way in which a process may end after four


class RackUnderFire(RackUnderTest):
    def __init__(self, yard: Yard, place: Path) -> None:
        config = make_config(name="test", memory=("dram0:256MiB",), orphan_keep=4)
        super().__init__(
            yard.nursery, {"XDG_RUNTIME_DIR": str(yard.runtime)}, config, fault_points.run_rack, str(place)
        )
        yard.racks.append(self)
        self.points = FaultPoints(place)

    def pids(self) -> dict[str, int]:
        """Of the daemons that the Rack MMU knows, which has its links to them by then."""
        report = self.connection.request(wire.Status("rack"))
        assert isinstance(report, wire.RackReport)
        return {daemon.name: daemon.os_pid for daemon in report.daemons}


class Load:
    def __init__(self, yard: Yard, rack: RackUnderFire, place: Path) -> None:
        self.group = group = rack.connection.create_group("strangers")
        self.files = [place / f"rounds of user-{number}" for number in range(USERS)]
        self.users: list[Actor] = []
        self.strangers: list[Actor] = []
        for number, file in enumerate(self.files):
            file.write_text("0")
            self.strangers.append(yard.actor(f"stranger-{number}", group=group))
            self.strangers[-1].start(fault_point_users.take_across, f"user-{number}")
            self.users.append(yard.actor(f"user-{number}"))
            self.users[-1].start(fault_point_users.use, f"stranger-{number}", str(file))

    def rounds(self) -> int:
        """That the slowest user has done."""
        for user in self.users + self.strangers:
            if not user.is_busy():
                raise AssertionError(f"{user.name} has stopped: {user.result()}")
        return min(int(file.read_text() or 0) for file in self.files)

    def goes_on(self) -> None:
        before = self.rounds()
        until(lambda: self.rounds() > before, "a round")

    def end(self, rack: RackUnderFire) -> None:
        for file in self.files:
            file.unlink()
        for user in self.users:
            user.result()
        with rack.connection.attach("herald", group=self.group) as herald:
            for stranger in self.strangers:
                herald.send(stranger.name, b"over")
        for actor in self.strangers:
            actor.result()
        for actor in self.users + self.strangers:
            assert actor.close() == 0


@pytest.fixture
def rack(yard: Yard, tmp_path: Path) -> RackUnderFire:
    return RackUnderFire(yard, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("daemon", ["mmu", "dram0", "host0", "monitor"])
def test_a_daemon_dies_at_each_of_its_points(
    yard: Yard, rack: RackUnderFire, tmp_path: Path, daemon: str
) -> None:
    with undone(yard, rack):
        load = Load(yard, rack, tmp_path)
        until(lambda: load.rounds() >= 1, "the first round")
        die_at_work(rack, load, daemon)
        at_work = len(rack.points.deaths())
        die_at_coming_back(rack, load, daemon)
        print(*sorted(rack.points.deaths()), sep="\n")
        print(f"{daemon}: {at_work} points at work, {len(rack.points.deaths()) - at_work} at coming back")
        load.end(rack)
    nothing_is_left(rack)


@contextlib.contextmanager
def undone(yard: Yard, rack: RackUnderFire) -> Iterator[None]:
    """Should it fail, it is told where daemons had died, and users do not wait for what never comes."""
    try:
        yield
    except BaseException:
        rack.points.aim("", once=True)
        print(*rack.points.deaths(), (rack.directory / "rack.log").read_text(), sep="\n")
        for actor in yard.actors:
            actor.kill()
        raise


def die_at_work(rack: RackUnderFire, load: Load, daemon: str) -> None:
    """One death at a time, until the load has met no new point for some rounds."""
    last, pid = load.rounds(), rack.pids()[daemon]
    rack.points.aim(daemon, once=True)
    count = 0
    while load.rounds() < last + ROUNDS:
        if len(rack.points.deaths()) == count:
            time.sleep(0.001)
            continue
        count += 1
        pid = successor(rack, daemon, pid)
        assert rack.audit() == [], rack.points.deaths()[-1]
        last = load.rounds()
        rack.points.aim(daemon, once=True)


def die_at_coming_back(rack: RackUnderFire, load: Load, daemon: str) -> None:
    """It is killed, and so are those who come after it, as long as they meet new points."""
    count = -1
    while count < len(rack.points.deaths()):
        count = len(rack.points.deaths())
        pid = rack.daemon(daemon)
        rack.points.aim(daemon, once=False)
        os.kill(pid, signal.SIGKILL)
        successor(rack, daemon, pid)
        load.goes_on()
        rack.points.aim("", once=True)
        assert rack.audit() == [], rack.points.deaths()[count:]


def successor(rack: RackUnderFire, daemon: str, pid: int) -> int:
    """Its pid, once the Rack MMU is linked with it, or is it."""
    found: int = until(lambda: rack.pids()[daemon] if rack.pids()[daemon] != pid else 0, f"another {daemon}")
    return found


def nothing_is_left(rack: RackUnderFire) -> None:
    until(lambda: rack.processes() == {}, "the end of all processes")
    until(lambda: rack.used_bytes() == 0, "the return of all memory")
    assert rack.slabs() == [] and rack.audit() == []
    log = (rack.directory / "rack.log").read_text()
    assert "Traceback" not in log and "ended with code" not in log, log
    os.kill(
        rack.daemon("dram0"), signal.SIGKILL
    )  # files of retired slabs wait to be used again, but not for ever
    until(lambda: litter(rack) == [], "the end of all that was kept")


def litter(rack: RackUnderFire) -> list[str]:
    """What the supervisor has beside the daemons' pidfds, the journal, and the tables of both groups."""
    kept = Counter(
        target for target in descriptors(rack.supervisor) if target.startswith(("/memfd:", "anon_inode:"))
    )
    expected = Counter({"anon_inode:[pidfd]": len(rack.daemons()), "anon_inode:[eventpoll]": 1})
    expected += Counter({"/memfd:bequest-journal (deleted)": 1, "/memfd:bequest-v2p (deleted)": 2})
    return sorted((kept - expected).elements())


def descriptors(pid: int) -> list[str]:
    found = []
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            found.append(os.readlink(entry))
    return found
