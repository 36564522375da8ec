"""The supervisor with daemons of a few lines: real processes, links and descriptors, and a rack that does nothing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bequest.limits import SHORT_LIVES_AT_ONCE, SHORT_LIVES_MAX
from bequest.runtime import post as posts
from bequest.runtime import supervisor as module
from bequest.runtime.config import make_config
from bequest.runtime.directory import claim
from bequest.runtime.post import Post
from bequest.runtime.safe import Tether
from bequest.runtime.supervisor import Supervisor
from bequest.runtime.transport import new_buffer, receive_packet, send_packet
from bequest.wire.codec import Decoder, encode
from bequest.wire.supervision import Keep, Kept, Release, Relink, SupervisorToDaemon

Life = Callable[["Actor"], None]
DEADLINE = 20.0


class Actor:
    """A daemon that lives as a function of the test says; what it reports, the test reads."""

    def __init__(self, tether: Tether, name: str, life: Life, report_to: int) -> None:
        self.tether = tether
        self.name = name
        self._life = life
        self._report_to = report_to
        self.ends_rack = False
        self.links: dict[str, socket.socket] = {}
        tether.control.setblocking(True)

    def run(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, module.STOP_SIGNALS)
        self._life(self)

    def supervisor_has_gone(self) -> bool:
        return False

    def report(self, text: str) -> None:
        os.write(self._report_to, f"{self.name}{self.tether.restarts} {text}\n".encode())

    def keep(self, key: str, content: bytes, about: bytes = b"") -> None:
        fd = os.memfd_create("test")
        os.write(fd, content)
        send_packet(self.tether.control, encode(Keep(key, about)), [fd])
        os.close(fd)

    def hear(self) -> Kept | Relink:
        packet = receive_packet(self.tether.control, new_buffer())
        if not packet.data:
            os._exit(0)
        message = Decoder(SupervisorToDaemon).decode(packet.data)
        assert isinstance(message, Kept | Relink)
        if isinstance(message, Relink):
            link = self.links[message.name] = socket.socket(fileno=packet.fds[0])
            link.setblocking(True)
        return message

    def wait_for_end(self) -> None:
        while True:
            self.hear()

    def die(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


class Rig:
    """A supervisor in a process of its own, and what its daemons report."""

    def __init__(self, lives: dict[str, Life], linked: bool = True) -> None:
        read_end, write_end = os.pipe()
        self.reports = os.fdopen(read_end)
        self._lines: list[str] = []
        self.pid = os.fork()
        if self.pid == 0:
            code = 70
            try:
                self.reports.close()
                code = RigSupervisor(lives, write_end, linked).run(lambda: None)
            finally:
                os._exit(code)
        os.close(write_end)
        self.code: int | None = None

    def read(self) -> str:
        if not self._lines:
            ready, _, _ = select.select([self.reports], [], [], DEADLINE)
            assert ready, "nothing is reported"
            self._lines = os.read(self.reports.fileno(), 1 << 16).decode().splitlines()
        return self._lines.pop(0)

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.code is None:
            os.kill(self.pid, number)
            self.wait()
        assert self.code is not None
        return self.code

    def wait(self) -> int:
        self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.code


class RigSupervisor(Supervisor):
    def __init__(self, lives: dict[str, Life], report_to: int, linked: bool) -> None:
        super().__init__(make_config(name="rig", memory=["d:64MiB"]), claim("rig"))
        self._lives = lives
        self._report_to = report_to
        self._linked = linked

    def _plan(self, config: object) -> list[Post]:
        made = [
            Post("test", name, name, None, None, self._maker(name, life))  # type: ignore[arg-type]
            for name, life in self._lives.items()
        ]
        for index, post in enumerate(made):
            for other in made[index + 1 :] if self._linked else []:
                post.is_neighbour(other)
        return made

    def _maker(self, name: str, life: Life) -> Callable[[None, Tether], Actor]:
        return lambda _, tether: Actor(tether, name, life, self._report_to)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Rig]]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    rigs: list[Rig] = []

    def start(linked: bool = True, **lives: Life) -> Rig:
        rigs.append(Rig(lives, linked))
        return rigs[-1]

    yield start
    for one in rigs:
        one.end()
        one.reports.close()
    assert not (tmp_path / "bequest" / "rig").exists()


# --- the safe ------------------------------------------------------------------------------------------------


def test_what_was_sent_last_is_the_successors(rig: Callable[..., Rig]) -> None:
    """It dies in the same breath, with an answer unread."""

    def life(me: Actor) -> None:
        if me.tether.restarts == 0:
            me.keep("first", b"1")
            me.hear()
            me.keep("second", b"2", b"about")
            me.keep("third", b"3")
            send_packet(me.tether.control, encode(Release("first")))
            me.die()
        for key, deposit in me.tether.kept.items():
            (fd,) = deposit.fds
            me.report(f"{key} {os.pread(fd, 10, 0).decode()} {deposit.meta.decode()}")
        me.wait_for_end()

    one = rig(a=life)
    assert [one.read(), one.read()] == ["a1 second 2 about", "a1 third 3 "]
    assert one.end() == 0


def test_a_daemon_has_nothing_of_anothers(rig: Callable[..., Rig]) -> None:
    def keeper(me: Actor) -> None:
        for number in range(100):
            me.keep(str(number), b"")
            while not isinstance(me.hear(), Kept):
                pass
        me.report("kept")
        me.wait_for_end()

    def other(me: Actor) -> None:
        me.report(str(len(os.listdir("/proc/self/fd"))))
        me.wait_for_end()

    one = rig(a=keeper, b=other)
    reports = sorted([one.read(), one.read()])
    assert reports[0] == "a0 kept"
    before = int(reports[1].removeprefix("b0 "))
    children = Path(f"/proc/{one.pid}/task/{one.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    assert int(one.read().removeprefix("b1 ")) <= before + 1


def test_nothing_that_was_sent_is_left_behind(rig: Callable[..., Rig]) -> None:
    """More than the supervisor takes at once, all of it sent before it sees the death."""

    def life(me: Actor) -> None:
        if me.tether.restarts == 0:
            os.kill(os.getppid(), signal.SIGSTOP)
            for number in range(150):
                me.keep(str(number), b"")
            me.report("sent")
            me.die()
        me.report(f"{len(me.tether.kept)} kept")
        me.wait_for_end()

    one = rig(a=life)
    assert one.read() == "a0 sent"
    (child,) = children_of(one, 1)
    while Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
        time.sleep(0.001)
    os.kill(one.pid, signal.SIGCONT)
    assert one.read() == "a1 150 kept"


# --- misbehaviour ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["garbage", "hangs up", "never reads"])
def test_a_daemon_that_misbehaves_is_replaced_and_the_other_goes_on(
    rig: Callable[..., Rig], way: str
) -> None:
    def bad(me: Actor) -> None:
        if me.tether.restarts == 0:
            if way == "garbage":
                send_packet(me.tether.control, b"\xff garbage")
            elif way == "hangs up":
                me.tether.control.close()
            while way == "never reads" and not is_stuck(me):
                me.keep("k", b"")
            if way == "never reads":
                me.report("stuck")
                me.die()
            time.sleep(DEADLINE)
        me.report("again")
        me.wait_for_end()

    def good(me: Actor) -> None:
        while True:
            message = me.hear()
            if isinstance(message, Relink):
                me.keep("k", b"")
            else:
                me.report("kept")

    one = rig(bad=bad, good=good)
    wanted = ["bad1 again", "good0 kept", "good0 kept"] + ["bad0 stuck"] * (way == "never reads")
    assert sorted(one.read() for _ in wanted) == sorted(wanted)
    assert one.end() == 0


def is_stuck(me: Actor) -> bool:
    """The supervisor does not read a daemon that does not read it."""
    poll = select.poll()
    poll.register(me.tether.control, select.POLLOUT)
    return not poll.poll(200)


# --- deaths ------------------------------------------------------------------------------------------------------


def chat(me: Actor) -> None:
    """Says who it is over each fresh link, and reports who says so to it."""
    links: dict[int, socket.socket] = {}
    poll = select.poll()
    poll.register(me.tether.control, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd == me.tether.control.fileno():
                message = me.hear()
                assert isinstance(message, Relink)
                link = me.links[message.name]
                links[link.fileno()] = link
                poll.register(link, select.POLLIN)
                with contextlib.suppress(OSError):  # that one has died already
                    send_packet(link, f"{me.name}{me.tether.restarts}".encode())
                continue
            with contextlib.suppress(ConnectionResetError):
                data = links[fd].recv(100)
                if data:
                    me.report(f"hears {data.decode()}")
                else:
                    poll.unregister(fd)


def children_of(rig: Rig, count: int) -> list[int]:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        pids = Path(f"/proc/{rig.pid}/task/{rig.pid}/children").read_text().split()
        if len(pids) == count:
            return [int(pid) for pid in pids]
        time.sleep(0.01)
    raise AssertionError(f"there are not {count} daemons")


def test_neighbours_get_fresh_links_whoever_dies(rig: Callable[..., Rig]) -> None:
    one = rig(a=chat, b=chat)
    assert sorted([one.read(), one.read()]) == ["a0 hears b0", "b0 hears a0"]
    os.kill(children_of(one, 2)[1], signal.SIGKILL)
    assert sorted([one.read(), one.read()]) == ["a0 hears b1", "b1 hears a0"]
    os.kill(children_of(one, 2)[0], signal.SIGKILL)
    assert sorted([one.read(), one.read()]) == ["a1 hears b1", "b1 hears a1"]


def test_all_at_once(rig: Callable[..., Rig]) -> None:
    one = rig(a=chat, b=chat, c=chat)
    first = {one.read() for _ in range(6)}
    assert len(first) == 6
    children = children_of(one, 3)
    os.kill(one.pid, signal.SIGSTOP)
    for pid in children:
        os.kill(pid, signal.SIGKILL)
    os.kill(one.pid, signal.SIGCONT)
    wanted = {f"{x}1 hears {y}1" for x in "abc" for y in "abc" if x != y}
    while wanted:
        wanted.discard(one.read())


def test_one_that_cannot_be_linked_is_replaced_and_is_not_there_twice(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = module.link
    calls = itertools.count(1)

    def no_third_time() -> tuple[socket.socket, socket.socket]:
        if next(calls) == 3:  # those before were the daemons' own
            raise OSError(errno.EMFILE, "Too many open files")
        return made()

    monkeypatch.setattr(module, "link", no_third_time)
    one = rig(a=chat, b=chat)
    assert sorted([one.read(), one.read()]) == ["a0 hears b1", "b1 hears a0"]
    assert len(children_of(one, 2)) == 2


def test_a_daemon_that_dies_again_and_again_ends_the_rack(
    rig: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posts, "RESTART_PAUSE", 0.01)

    def life(me: Actor) -> None:
        me.report("lives")
        raise RuntimeError("the same again")

    one = rig(a=life, b=lambda me: me.wait_for_end())
    assert one.wait() == 1
    assert one.reports.read().count("lives") == SHORT_LIVES_MAX + 1


def test_pauses_between_short_lives_grow_and_a_long_one_forgives() -> None:
    post = Post("test", "a", "a", None, None, lambda *_: None)  # type: ignore[arg-type, return-value]
    pauses = []

    def live(seconds: float) -> bool:
        post.child = posts.Child(1, 1, None, 0.0)  # type: ignore[arg-type]
        may_return = post.ended(seconds)
        pauses.append((post.start_at or 0.0) - seconds)
        return may_return

    assert all(live(0.0) for _ in range(SHORT_LIVES_AT_ONCE))
    assert set(pauses) == {0.0}
    pauses.clear()
    assert all(live(0.0) for _ in range(SHORT_LIVES_AT_ONCE, SHORT_LIVES_MAX))
    assert pauses == [posts.RESTART_PAUSE * 2**step for step in range(len(pauses))]
    assert live(1.0) and pauses[-1] == 0.0
    assert all(live(0.0) for _ in range(SHORT_LIVES_MAX))
    assert not live(0.0)


def test_the_rack_ends_when_a_daemon_says_so(rig: Callable[..., Rig]) -> None:
    def life(me: Actor) -> None:
        me.ends_rack = True

    one = rig(a=life, b=lambda me: me.wait_for_end())
    assert one.wait() == 0


def test_without_their_supervisor_daemons_end(rig: Callable[..., Rig], tmp_path: Path) -> None:
    one = rig(a=chat, b=lambda me: me.wait_for_end())
    children = children_of(one, 2)
    assert one.end(signal.SIGKILL) == -signal.SIGKILL
    deadline = time.monotonic() + DEADLINE
    os.kill(children[0], signal.SIGKILL)  # it does not look
    while Path(f"/proc/{children[1]}").exists() and time.monotonic() < deadline:
        if "Z" in Path(f"/proc/{children[1]}/stat").read_text().rpartition(")")[2].split()[0]:
            break
        time.sleep(0.01)
    else:
        assert not Path(f"/proc/{children[1]}").exists()
    for path in (tmp_path / "bequest" / "rig").iterdir():
        path.unlink()
    (tmp_path / "bequest" / "rig").rmdir()
