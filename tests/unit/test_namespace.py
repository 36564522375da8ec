"""The namespace: what is published, who owns what a name leads to, and when names end."""

from __future__ import annotations

import pytest

from bequest.errors import BadName
from bequest.ids import check_path
from bequest.limits import (
    NAMES_PER_GROUP_MAX,
    PATH_BYTES_MAX,
    PATH_DEPTH_MAX,
    REPORT_BYTES_MAX,
)
from bequest.protocol import namespace
from bequest.sim.fake_shard import PAGE, FakeShard
from bequest.wire import messages as wire
from bequest.wire.codec import encode
from rack_in_a_box import MIB, Box
from test_rack_mmu import failed, need, slab_of


class Scene:
    """A publisher with four pages at an address, and another member of its group."""

    def __init__(self) -> None:
        self.box = Box()
        self.owner, self.owner_is = self.box.attach("owner")
        self.other, self.other_is = self.box.attach("other")
        slab = slab_of(need(self.box, self.owner))
        self.shard: FakeShard = self.box.shards[self.owner_is.group]
        self.address = self.shard.records[slab][0]
        self.descriptor = self.own()

    def own(self) -> int:
        return self.shard.own(self.owner_is.pid, self.address, 4)

    def publish(self, path: str = "/state", peer: int | None = None, **place: int) -> wire.Message | None:
        values = {"address": self.address, "nbytes": 4 * PAGE} | place
        return self.box.ask(peer or self.owner, wire.Publish(path, **values))

    def lookup(self, path: str = "/state", peer: int | None = None) -> wire.Published:
        reply = self.box.ask(peer or self.owner, wire.Lookup(path))
        assert isinstance(reply, wire.Found), reply
        return reply.name

    def gone(self, path: str = "/state") -> None:
        failed(self.box.ask(self.owner, wire.Lookup(path)), "no-name")

    def paths(self, prefix: str = "/", peer: int | None = None) -> list[str]:
        reply = self.box.ask(peer or self.owner, wire.ListNames(prefix))
        assert isinstance(reply, wire.NameList), reply
        return [name.path for name in reply.names]

    def kept(self) -> int:
        return len(self.box.mmu._names._names)


# --- paths ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "normal"),
    [("/", "/"), ("/a", "/a"), ("//a///b/", "/a/b"), ("/a b/ü", "/a b/ü"), ("/...", "/...")],
)
def test_a_path_has_one_spelling(written: str, normal: str) -> None:
    assert check_path(written) == normal == check_path(normal)


@pytest.mark.parametrize(
    "path",
    ["", "a", "a/b", "/a/../b", "/.", "/a\nb", "/" + "x" * 64, "/\ud800", "/a" * (PATH_DEPTH_MAX + 1),
     ("/" + "x" * 60) * (PATH_BYTES_MAX // 61 + 1)],
)  # fmt: skip
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(BadName):
        check_path(path)
    if path.isprintable():
        scene = Scene()
        failed(scene.publish(path), "bad-name")
        failed(scene.box.ask(scene.owner, wire.Lookup(path)), "bad-name")
        failed(scene.box.ask(scene.owner, wire.Unpublish(path)), "bad-name")
        failed(scene.box.ask(scene.owner, wire.ListNames(path)), "bad-name")


# --- publishing -----------------------------------------------------------------------------------------------


def test_a_name_leads_to_a_place_and_its_owner() -> None:
    scene = Scene()
    assert scene.publish("/a//state/", offset=100) == wire.Done()
    found = scene.lookup("/a/state", scene.other)
    assert found == wire.Published(
        path="/a/state", group=scene.owner_is.group_name, address=scene.address, nbytes=4 * PAGE, offset=100,
        publisher="owner", owner=scene.owner_is.pid, owner_name="owner", owner_state="attached",
    )  # fmt: skip
    scene.gone("/a")
    scene.gone("/a/state/x")


def test_nothing_is_published_by_whom_it_does_not_belong_to() -> None:
    scene = Scene()
    failed(scene.publish(peer=scene.other), "not-owner")
    failed(scene.publish(address=scene.address + 4 * PAGE), "not-owner")  # free, at home
    failed(scene.publish(address=scene.address + 64 * MIB), "not-owner")
    failed(scene.publish(nbytes=8 * PAGE, offset=5 * PAGE), "not-owner")
    scene.shard.grant(scene.descriptor, scene.other_is.pid)
    failed(scene.publish(), "not-owner")
    failed(scene.publish(peer=scene.other), "not-owner")  # it has yet to accept it
    failed(scene.box.ask(scene.box.client(), wire.Publish("/x", scene.address, PAGE)), "not-attached")
    assert scene.kept() == 0


@pytest.mark.parametrize(
    "place",
    [{"address": 0}, {"address": -1}, {"address": 1 << 63}, {"nbytes": 0}, {"nbytes": -5}, {"nbytes": 1 << 40},
     {"offset": -1}, {"offset": 4 * PAGE}],
)  # fmt: skip
def test_places_that_cannot_be_are_refused(place: dict[str, int]) -> None:
    failed(Scene().publish(**place), "size")


def test_the_root_is_no_name() -> None:
    failed(Scene().publish("//"), "bad-name")


def test_the_owner_may_publish_anew_and_nobody_else() -> None:
    scene = Scene()
    scene.publish()
    assert scene.publish(offset=8) == wire.Done()
    assert scene.lookup().offset == 8
    mine = slab_of(need(scene.box, scene.other))
    address = scene.shard.records[mine][0]
    descriptor = scene.shard.own(scene.other_is.pid, address, 1)
    failed(scene.publish(peer=scene.other, address=address, nbytes=PAGE), "name-taken")
    scene.shard.free(scene.descriptor)  # with the memory its name ends, and may be had
    assert scene.publish(peer=scene.other, address=address, nbytes=PAGE) == wire.Done()
    assert scene.lookup().owner_name == "other"
    assert descriptor


def test_the_owner_takes_a_name_back_and_nobody_else() -> None:
    scene = Scene()
    scene.publish()
    failed(scene.box.ask(scene.other, wire.Unpublish("/state")), "not-owner")
    assert scene.box.ask(scene.owner, wire.Unpublish("//state")) == wire.Done()
    scene.gone()
    failed(scene.box.ask(scene.owner, wire.Unpublish("/state")), "no-name")


def test_names_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    assert NAMES_PER_GROUP_MAX > 10
    monkeypatch.setattr(namespace, "NAMES_PER_GROUP_MAX", 10)
    scene = Scene()
    for number in range(10):
        assert scene.publish(f"/{number}") == wire.Done()
    failed(scene.publish("/10"), "memory")
    assert scene.publish("/3", offset=1) == wire.Done()


# --- the owner is looked up when asked for --------------------------------------------------------------------


def test_a_name_follows_its_memory_through_grants_and_steals() -> None:
    scene = Scene()
    scene.publish()
    scene.shard.grant(scene.descriptor, scene.other_is.pid)
    assert (scene.lookup().owner_name, scene.lookup().in_flight) == ("other", True)
    scene.shard.accept(scene.other_is.pid)
    assert (scene.lookup().owner_name, scene.lookup().in_flight) == ("other", False)
    assert isinstance(scene.box.ask(scene.owner, wire.Steal("other")), wire.Stolen)
    assert scene.lookup().owner_name == "owner"
    assert scene.lookup().publisher == "owner"


def test_names_of_the_dead_stay_while_their_memory_is_kept() -> None:
    scene = Scene()
    scene.publish()
    scene.box.exit(scene.owner_is)
    scene.box.pass_time(scene.box.config.orphan_keep - 5)
    found = scene.lookup(peer=scene.other)
    assert (found.owner_name, found.owner_state) == ("owner", "orphaned")
    scene.box.pass_time(10)
    failed(scene.box.ask(scene.other, wire.Lookup("/state")), "no-name")
    assert scene.kept() == 0


def test_names_of_who_detaches_end() -> None:
    scene = Scene()
    scene.publish()
    scene.box.ask(scene.owner, wire.Detach())
    assert scene.paths(peer=scene.other) == []


def test_a_name_does_not_lead_to_the_next_region_at_its_address() -> None:
    scene = Scene()
    scene.publish()
    scene.shard.free(scene.descriptor)
    scene.own()
    scene.gone()
    assert scene.paths() == []
    failed(scene.box.ask(scene.owner, wire.Unpublish("/state")), "no-name")


def test_names_of_freed_memory_are_swept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "NAMES_SWEPT_MAX", 5)
    scene = Scene()
    for number in range(10):
        scene.publish(f"/{number}")
    scene.box.pass_time(3)
    assert scene.kept() == 10
    scene.shard.free(scene.descriptor)
    scene.box.pass_time(1)
    assert scene.kept() == 5, "a sweep is short"
    scene.box.pass_time(1)
    assert scene.kept() == 0


def test_memory_that_leaves_for_another_group_leaves_its_names_behind() -> None:
    scene = Scene()
    _, stranger = scene.box.attach("stranger", uid=0)
    scene.publish()
    scene.box.held = []
    word = scene.shard.word(scene.descriptor)
    grant = wire.CrossGrant(scene.descriptor, word, stranger.pid, stranger.incarnation)
    assert scene.box.ask(scene.owner, grant) is None
    scene.gone()
    scene.box.pass_time(3)
    assert scene.kept() == 1, "the grant may fail yet"
    scene.box.answer_held()
    scene.box.pass_time(3)
    assert scene.kept() == 0


def test_a_grant_that_fails_costs_no_name() -> None:
    scene = Scene()
    _, stranger = scene.box.attach("stranger", uid=0)
    scene.publish()
    scene.box.held = []
    scene.box.refusing = lambda message: True
    word = scene.shard.word(scene.descriptor)
    scene.box.ask(scene.owner, wire.CrossGrant(scene.descriptor, word, stranger.pid, stranger.incarnation))
    scene.box.pass_time(3)
    scene.box.answer_held()
    assert scene.lookup().owner_name == "owner"


# --- lists ----------------------------------------------------------------------------------------------------


def test_a_list_is_in_order_and_of_a_subtree() -> None:
    scene = Scene()
    for path in ("/b", "/a/z", "/a", "/ab", "/a/b/c"):
        scene.publish(path)
    assert scene.paths() == ["/a", "/a/b/c", "/a/z", "/ab", "/b"]
    assert scene.paths("/a/") == ["/a", "/a/b/c", "/a/z"]
    assert scene.paths("/a/b/c") == ["/a/b/c"]
    assert scene.paths("/c") == []


def test_a_long_list_comes_in_pages() -> None:
    scene = Scene()
    expected = sorted("/" + "ü" * 20 + f"/{number}" for number in range(300))
    for path in expected:
        scene.publish(path)
    paths: list[str] = []
    after = None
    pages = 0
    while pages == 0 or after is not None:
        reply = scene.box.ask(scene.owner, wire.ListNames("/", after))
        assert isinstance(reply, wire.NameList) and len(encode(reply)) < REPORT_BYTES_MAX
        paths += [name.path for name in reply.names]
        after = reply.next_after
        pages += 1
    assert paths == expected and pages > 2


def test_each_group_has_its_own_names() -> None:
    scene = Scene()
    scene.publish()
    stranger, _ = scene.box.attach("stranger", uid=0)
    assert scene.paths(peer=stranger) == []
    failed(scene.box.ask(stranger, wire.Lookup("/state")), "no-name")
    mine = slab_of(need(scene.box, stranger))
    theirs = scene.box.shards[2]
    address = theirs.records[mine][0]
    theirs.own(3, address, 1)
    assert scene.publish(peer=stranger, address=address, nbytes=PAGE) == wire.Done()
    everything = scene.box.ask(scene.box.client(), wire.ListNames())
    assert isinstance(everything, wire.NameList)
    assert [(name.group, name.owner_name) for name in everything.names] == [
        ("user-1000", "owner"),
        ("user-0", "stranger"),
    ]


def test_names_of_a_group_end_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "NAMES_SWEPT_MAX", 2)
    box = Box()
    creator = box.client()
    made = box.ask(creator, wire.CreateGroup("etl"))
    assert isinstance(made, wire.GroupCreated)
    peer, process = box.attach("a", made.secret)
    slab = slab_of(need(box, peer))
    shard = box.shards[process.group]
    address = shard.records[slab][0]
    shard.own(process.pid, address, 1)
    for number in range(10):
        box.ask(peer, wire.Publish(f"/{number}", address, PAGE))
    box.ask(peer, wire.Detach())
    box.leave(creator)
    assert process.group not in box.shards
    box.pass_time(2)
    assert len(box.mmu._names._names) == 0
