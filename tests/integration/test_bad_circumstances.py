"""Bad circumstances: detached, the rack gone or another, a wrong version, garbage, a machine that lacks something.

As with bad input, each is exactly one exception of the right class, and nothing has changed by it.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import actors
import bequest as bq
from actors import until
from bequest.limits import PACKET_BYTES_MAX
from bequest.wire import messages as wire
from bequest.wire.codec import encode
from racks import MIB, RackUnderTest, Yard
from test_bad_clients import parting_words
from unchanged import PAGE, nothing_changes, raised

pytestmark = pytest.mark.filterwarnings(
    "ignore:a region of:ResourceWarning"
)  # dropped when a test ends; one minds


# --- attachment ----------------------------------------------------------------------------------------------


def test_nothing_works_once_detached(yard: Yard, me: bq.Process) -> None:
    peer = yard.attach("peer")
    region, message = me.alloc(PAGE), peer.send("me", b"message") or me.accept(0)
    me.detach()
    me.detach()  # the second time it does nothing
    for act in (
        lambda: me.alloc(PAGE),
        lambda: me.accept(0),
        lambda: me.accept_all(5, 0),
        lambda: me.send("peer", b""),
        lambda: me.grant_all([region], "peer"),
        lambda: len(me.inbox),
        lambda: memoryview(region),
        region.free,
        lambda: region.grant("peer"),
        lambda: region[:PAGE],
        region.split,
        lambda: memoryview(message),
        lambda: bq.dumps(1, me),
        lambda: bq.loads(region),
        me.check_rack,
    ):
        assert "attached" in raised(bq.NotAttached, act) or "detached" in raised(bq.NotAttached, act)
    for _ in me.inbox:
        pytest.fail("iterating ends")
    assert not region.owned and "detached" in repr(me)
    assert peer.table.audit() == [] and me.id not in [id for id, _, pages, _ in peer.table.usage() if pages]
    assert bq.current() is peer
    peer.detach()
    raised(bq.NotAttached, bq.current)
    raised(bq.NotAttached, lambda: bq.dumps(1))


def test_one_rack_at_a_time(yard: Yard, rack: RackUnderTest, me: bq.Process, region: bq.Region) -> None:
    other = yard.rack(name="other")
    with nothing_changes(me, region):
        assert "detach" in raised(bq.NotAttached, lambda: yard.attach("me", rack=other))
    assert other.processes() == {}, "and the other rack knows nothing of it"
    region.free()
    me.detach()
    there = yard.attach("me", rack=other)  # though handles of the first attachment are still around
    there.alloc(PAGE).array()[:] = 1
    raised(bq.NotAttached, lambda: yard.attach("again", rack=rack))
    there.detach()
    assert yard.attach("again", rack=rack).alloc(PAGE).array().sum() >= 0


def test_a_rack_that_is_not_there(private_place: Path) -> None:
    for name in ("nothing", str(private_place / "nothing"), "x" * 5000, "embedded-1/x"):
        raised(bq.NoRack, lambda name=name: bq.connect(name))
    assert not (private_place / "bequest" / "nothing").exists()


def test_a_rack_that_is_named_in_the_environment_but_not_there(
    private_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BEQUEST_RACK", "nothing")
    assert "BEQUEST_RACK" in raised(bq.NoRack, bq.connect)


# --- the rack goes -------------------------------------------------------------------------------------------


def test_a_rack_that_has_gone(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    peer = yard.actor("peer")
    region = me.alloc(PAGE)
    region.array()[:] = 7
    peer.start(actors.accept, "never", None)
    until(lambda: me.table.life(peer.id)[0] == 1)
    rack.kill_daemons()
    with pytest.raises(bq.RackGone):
        peer.result(10)  # who waits without a timeout is told
    for act in (
        me.check_rack,
        lambda: me.accept(5),
        lambda: me.alloc(512 * MIB),
        lambda: rack.connection.attach("other"),
        lambda: rack.connection.create_group("group"),
    ):
        raised(bq.RackGone, act)
    assert not rack.connection.is_alive()
    assert region.array()[5] == 7, "memory that is mapped stays readable"
    region.free()
    me.detach()
    yard.rack(name="test")  # the same name, the same place; sweeps what the killed one left
    again = yard.attach("me", rack=yard.racks[-1])
    assert again.alloc(PAGE).array()[5] == 0, "not the memory of the old rack, though at the same address"


def test_a_rack_that_has_gone_says_so_each_time(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    rack.kill_daemons()
    yard.rack(name="test").stop()
    for _ in range(2):
        raised(bq.RackGone, lambda: me.alloc(512 * MIB))


def test_an_attachment_to_the_rack_that_has_gone_is_not_taken_for_one_to_its_successor(yard: Yard) -> None:
    old = yard.rack(name="same")
    me = yard.attach("me")
    region = me.alloc(PAGE)
    region.array()[:] = 7
    old.kill_daemons()
    new = yard.rack(name="same")
    assert "detach" in raised(bq.NotAttached, lambda: yard.attach("again", rack=new))
    region.free()
    me.detach()
    again = yard.attach("again", rack=new)
    fresh = again.alloc(PAGE)
    assert fresh.array().max() == 0
    fresh.free()


# --- versions, garbage ---------------------------------------------------------------------------------------


def raw(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.settimeout(actors.DEADLINE)
    directory = os.open(path.parent, os.O_PATH)
    connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    os.close(directory)
    return connection


def test_a_library_of_another_version(
    yard: Yard, rack: RackUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bequest.runtime import transport

    for wire_version, table_version in ((0, 1), (2, 1), (1, 999)):
        with monkeypatch.context() as patch:
            patch.setattr(transport, "WIRE_VERSION", wire_version)
            patch.setattr(transport, "TABLE_VERSION", table_version)
            raised(bq.VersionMismatch, lambda: bq.connect(str(rack.directory)))
    assert yard.attach("me").alloc(PAGE).owned


GARBAGE = {
    "garbage": b"\xc1garbage",
    "truncated": encode(wire.Hello(1, 1))[:-1],
    "not a request": encode(wire.Done()),
    "before hello": encode(wire.Status("rack")),
    "no map": b"\x05",
    "deep": b"\x91" * 10_000 + b"\x01",
    "many": b"\xdf\xff\xff\xff\xff",
    "largest": bytes(PACKET_BYTES_MAX),
    "oversized": bytes(PACKET_BYTES_MAX + 1),
}


def test_garbage_on_every_socket_drops_who_sent_it_and_nobody_else(
    yard: Yard, rack: RackUnderTest, me: bq.Process, region: bq.Region
) -> None:
    yard.attach("peer")
    sockets = sorted(rack.directory.glob("*.sock"))
    assert [path.name.split("-")[0] for path in sockets] == ["agent", "element", "mmu.sock", "monitor.sock"]
    for path in sockets:
        for garbage in GARBAGE.values():
            with nothing_changes(me, region), raw(path) as client:
                client.send(garbage)
                assert parting_words(client) is not None
    me.alloc(32 * MIB).free()
    region.grant("peer")


def test_descriptors_that_nobody_asked_for(rack: RackUnderTest, me: bq.Process) -> None:
    mmu = rack.daemon("mmu")

    def open_files() -> int:
        return len(os.listdir(f"/proc/{mmu}/fd"))

    before = open_files()
    with open("/dev/null") as null, raw(rack.directory / "mmu.sock") as client:
        for count in (1, 4, 16, 200):
            try:
                socket.send_fds(client, [encode(wire.Hello(1, 1))], [null.fileno()] * count)
                client.recv(1 << 16)
            except OSError:
                break
    until(lambda: open_files() <= before, "the daemon closing what it was sent")
    me.check_rack()


def test_a_client_that_says_nothing_holds_nobody_up(
    rack: RackUnderTest, me: bq.Process, region: bq.Region
) -> None:
    silent = [raw(rack.directory / "mmu.sock") for _ in range(20)]
    with nothing_changes(me, region):
        me.alloc(16 * MIB).free()
    for client in silent:
        assert select.select([client], [], [], 0)[0] == []
        client.close()


# --- the machine ---------------------------------------------------------------------------------------------


def test_a_full_disk_is_an_error_at_once_and_not_a_signal_later(
    yard: Yard, rack: RackUnderTest, me: bq.Process, region: bq.Region
) -> None:
    """A limit on file sizes stands for a full disk, cgroup or /dev/shm: fallocate fails, nobody meets a SIGBUS."""
    element = rack.daemon("dram0")
    resource.prlimit(element, resource.RLIMIT_FSIZE, (64 * MIB, 64 * MIB))
    with nothing_changes(me, region):
        message = raised(bq.RackMemoryError, lambda: me.alloc(100 * MIB))
        assert "100 MiB" in message and os.strerror(errno.EFBIG) in message
    me.alloc(32 * MIB).array()[:] = 1


def test_another_system_than_linux_is_told_at_the_first_use() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.platform = 'darwin'; import bequest; bequest.connect()"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: bequest runs on Linux only")


def test_a_window_that_is_taken(yard: Yard, rack: RackUnderTest) -> None:
    """Something else of this process lies where regions must lie: told when it attaches, and the rack forgets it."""
    program = (
        "import ctypes, bequest as bq\n"
        "libc = ctypes.CDLL(None); libc.mmap.restype = ctypes.c_void_p\n"
        "libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]\n"
        "assert libc.mmap(0x200000010000, 4096, 0, 0x32, -1, 0) == 0x200000010000\n"
        f"rack = bq.connect({str(rack.directory)!r})\n"
        "try:\n    rack.attach('me')\n"
        "except OSError as error:\n    print(type(error).__name__, error)\n"
        "input()\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    line = child.stdout.readline()
    assert line.startswith("UnsupportedPlatform") and "0x200000000000" in line
    assert rack.processes() == {}
    child.communicate("\n")
    assert child.returncode == 0
