"""A rack whose Rack MMU can be killed at any step, with clients that ask again: the setting of test_restore."""

from __future__ import annotations

from typing import Any

from bequest.sim.fake_shard import MMU, PAGE, FakeShard
from bequest.wire import messages as wire
from killable_box import KillableBox

SLAB_PAGES = 512
NONCE = b"nonce of a request"


class User:
    """A client, as the library is one: it comes back, and asks again."""

    def __init__(
        self, box: KillableBox, name: str | None, secret: bytes | None = None, uid: int = 1000
    ) -> None:
        self.box = box
        self.uid = uid
        self.os_pid = box.next_os_pid()
        self.number = 0
        self.attached: wire.Attached | None = None
        self.peer = box.client(uid, self.os_pid)
        self.client = self.peer
        self.is_connected = True
        if name is not None:
            reply = self.ask(wire.Attach(name, secret, nonce=f"nonce of {name}".encode()))
            assert isinstance(reply, wire.Attached)
            self.enrol(reply)

    def enrol(self, attached: wire.Attached) -> None:
        self.attached = attached
        self.box.enrol(attached)

    @property
    def id(self) -> int:
        assert self.attached is not None
        return self.attached.pid

    @property
    def shard(self) -> FakeShard:
        assert self.attached is not None
        return self.box.shards[self.attached.group]

    def ask(self, message: wire.Message) -> wire.Message | None:
        if self.attached is None or isinstance(message, wire.Detach):
            return self.box.ask(self.peer, message)
        self.number += 1
        return self.box.ask(self.peer, wire.Once(self.number, message))

    def ask_again(self, message: wire.Message) -> wire.Message | None:
        """After a restart: comes back first, and repeats the request under its number."""
        self.come_back()
        if self.attached is None or isinstance(message, wire.Detach):
            return self.box.ask(self.peer, message)
        return self.box.ask(self.peer, wire.Once(self.number, message))

    def come_back(self) -> wire.Message | None:
        self.peer = self.box.client(self.uid, self.os_pid)
        if self.attached is None:
            self.box.ask(self.peer, wire.ComeBack(self.client))
            self.client = self.peer
            return None
        resume = wire.Resume(self.attached.pid, self.attached.incarnation, self.attached.agent_ticket)
        return self.box.ask(self.peer, resume)


class World(KillableBox):
    compares_each_writing = True  # or else only a picture's: what was not noted is still missing then

    def __init__(self, **changes: object) -> None:
        self.users: list[User] = []
        self._os_pids = 7000
        super().__init__(**changes)

    def next_os_pid(self) -> int:
        self._os_pids += 1
        return self._os_pids

    def compare_books(self) -> None:
        if self.compares_each_writing:
            super().compare_books()

    def enrol(self, attached: wire.Attached) -> None:
        self.agents.processes[attached.pid, attached.incarnation] = "enrolled"
        self.do(self.mmu.agent_message(wire.ProcessEnrolled(attached.pid, attached.incarnation), self.now))

    def user(self, name: str | None, secret: bytes | None = None, uid: int = 1000) -> User:
        user = User(self, name, secret, uid)
        self.users.append(user)
        return user

    def memory(self, user: User, pages: int = SLAB_PAGES) -> int:
        """The address of a new slab."""
        ready = user.ask(wire.NeedSlab(pages))
        assert isinstance(ready, wire.SlabReady), ready
        return user.shard.records[ready.slab][0]

    # --- the oracle -----------------------------------------------------------------------------------------------

    def picture(self) -> dict[str, Any]:
        """The rack, from what the books are not: tables and elements. Ids that nobody need know are left out."""
        self.check()
        super().compare_books()
        report = self.status("processes")
        assert isinstance(report, wire.ProcessList)
        names = {process.id: process.name for process in report.processes} | {MMU: "MMU", 0: "nobody"}
        slots = sorted(number for shard in self.shards.values() for number in shard.lives)
        assert slots == sorted(process.id for process in report.processes)
        self._check_owners()
        self._check_elements()
        return {
            "processes": sorted((p.name, p.kind, p.state, p.group, p.inbox_depth) for p in report.processes),
            "extents": sorted(
                (e.address, e.pages, e.state, names.get(e.owner, "gone"))
                for shard in self.shards.values()
                for e in shard.extents.values()
            ),
            "inboxes": sorted(
                (names[number], shard.extents[d].address if d in shard.extents else 0, tag)
                for shard in self.shards.values()
                for number, inbox in shard.inboxes.items()
                for d, _, tag in inbox
            ),
            "groups": len(self.shards),
            "held": sorted(
                nbytes for element in self.elements.values() for _, nbytes in element.slabs.values()
            ),
            "used": self.used(),
            "names": self._names(),
            "stolen": self._stolen(),
        }

    def _names(self) -> list[tuple[str, str]]:
        """Paths, and who owns what they lead to."""
        listed = self.ask(self.client(), wire.ListNames("/"))
        assert isinstance(listed, wire.NameList)
        return [(name.path, name.owner_name) for name in listed.names]

    def _stolen(self) -> list[tuple[str, str]]:
        """Who has stolen from whom, as the book of attempts has it; and nothing in it is left open."""
        report = self.status("thefts")
        assert isinstance(report, wire.TheftList)
        assert all(theft.outcome != "under way" for theft in report.thefts)
        return [(theft.thief, theft.victim) for theft in report.thefts if theft.outcome == "stolen"]

    def _check_owners(self) -> None:
        owned: dict[int, int] = {}
        for group, shard in self.shards.items():
            for extent in shard.extents.values():
                if extent.state > 2 and extent.owner != MMU:
                    for page in range(extent.address, extent.end, PAGE):
                        assert owned.setdefault(page, group) == group, "two groups own one page"

    def _check_elements(self) -> None:
        recorded: dict[int, tuple[int, int, int]] = {}
        for group, shard in self.shards.items():
            for slab, (_, pages, element, _, _) in shard.records.items():
                assert slab not in recorded, "two tables have one slab"
                recorded[slab] = (element, group, pages * PAGE)
        held = {
            slab: (number, group, nbytes)
            for number, element in self.elements.items()
            for slab, (group, nbytes) in element.slabs.items()
        }
        assert held == recorded, "elements hold what no table has, or lack what one has"
        for element in self.elements.values():
            assert sorted(element.groups) == sorted(self.shards), (
                "an element knows other groups than there are"
            )
