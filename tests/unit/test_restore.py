"""Kill the Rack MMU at every step of every operation: what comes back is as if it had not been killed.

Each scenario has a setting and an act. The act is done once undisturbed; then again and again, killed at its first
step, at its second, and so on, and at each step of coming back from that. After each the client asks again, as the
library does, and then the rack must be as it is after the undisturbed act. What "as it is" means is read from the
tables and from the elements, not from the books.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from bequest.protocol.rack_state import ElementInfo
from bequest.sim.fake_shard import MMU, PAGE, FakeShard
from bequest.wire import messages as wire
from rack_in_a_box import GIB
from restored_world import NONCE, SLAB_PAGES, User, World

Act = Callable[[World], object]
SCENARIOS: dict[str, Callable[[], tuple[World, Act, Act]]] = {}


def scenario(make: Callable[[], tuple[World, Act, Act]]) -> Callable[[], tuple[World, Act, Act]]:
    """Makes a world in its setting, the act in it, and what is done about the act after a restart."""
    SCENARIOS[make.__name__] = make
    return make


def request(user: User, message: wire.Message) -> tuple[Act, Act]:
    return (lambda world: user.ask(message)), (lambda world: user.ask_again(message))


def nothing_more(world: World) -> None:
    """The act is no client's: what the agents know is said when they are linked, and time passes anyway."""


@scenario
def the_first_attaches() -> tuple[World, Act, Act]:
    world = World()
    return world, *request(world.user(None), wire.Attach("a", nonce=NONCE))


@scenario
def another_attaches() -> tuple[World, Act, Act]:
    world = World()
    world.user("a")
    return world, *request(world.user(None), wire.Attach("b", nonce=NONCE))


@scenario
def one_attaches_with_a_secret() -> tuple[World, Act, Act]:
    world = World()
    created = world.user(None).ask(wire.CreateGroup("etl", nonce=NONCE))
    assert isinstance(created, wire.GroupCreated)
    return world, *request(world.user(None), wire.Attach("b", created.secret, nonce=NONCE))


@scenario
def a_name_is_refused() -> tuple[World, Act, Act]:
    world = World()
    world.user("a")
    return world, *request(world.user(None), wire.Attach("a", nonce=NONCE))


@scenario
def a_group_is_created() -> tuple[World, Act, Act]:
    world = World()
    return world, *request(world.user(None), wire.CreateGroup("etl", nonce=NONCE))


@scenario
def a_group_ends() -> tuple[World, Act, Act]:
    world = World()
    creator = world.user(None)
    created = creator.ask(wire.CreateGroup("etl", nonce=NONCE))
    assert isinstance(created, wire.GroupCreated)
    member = world.user("a", created.secret)
    world.memory(member)
    world.leave(creator.peer)
    act, again = request(member, wire.Detach())
    return world, act, again


@scenario
def one_detaches() -> tuple[World, Act, Act]:
    world = World()
    user, friend = world.user("a"), world.user("b")
    address = world.memory(user)
    user.shard.own(user.id, address, 7)
    user.shard.own(friend.id, address + 7 * PAGE, 3)
    user.ask(wire.OpenMailbox("box", create=True))
    return world, *request(user, wire.Detach())


@scenario
def a_slab_is_needed() -> tuple[World, Act, Act]:
    world = World()
    return world, *request(world.user("a"), wire.NeedSlab(SLAB_PAGES))


@scenario
def too_large_a_slab_is_refused() -> tuple[World, Act, Act]:
    world = World()
    return world, *request(world.user("a"), wire.NeedSlab(2 * GIB // PAGE))


def two_elements() -> World:
    return World(elements=tuple(ElementInfo(n, f"dram{n}", "dram", GIB, f"{n}.sock") for n in range(2)))


@scenario
def the_first_element_refuses() -> tuple[World, Act, Act]:
    world = two_elements()
    user = world.user("a")
    world.elements[0]._refuses = lambda message: True
    return world, *request(user, wire.NeedSlab(SLAB_PAGES))


@scenario
def every_element_refuses() -> tuple[World, Act, Act]:
    world = two_elements()
    user = world.user("a")
    world.refuses = lambda message: True
    return world, *request(user, wire.NeedSlab(SLAB_PAGES))


@scenario
def the_table_is_full() -> tuple[World, Act, Act]:
    world = World()
    user = world.user("a")
    user.shard.is_full = True
    return world, *request(user, wire.NeedSlab(SLAB_PAGES))


@scenario
def idle_slabs_make_room() -> tuple[World, Act, Act]:
    world = World()
    for name in ("a", "b"):
        world.memory(world.user(name), GIB // PAGE // 2)
    return world, *request(world.user("c"), wire.NeedSlab(SLAB_PAGES))


def two_groups(**changes: object) -> tuple[World, User, User, int]:
    world = World(**changes)
    giver, taker = world.user("giver"), world.user("taker", uid=0)
    return world, giver, taker, world.memory(giver, 2 * SLAB_PAGES)


def cross(user: User, to: User, descriptor: int) -> wire.CrossGrant:
    assert to.attached is not None
    return wire.CrossGrant(descriptor, user.shard.word(descriptor), to.id, to.attached.incarnation, b"tag")


@scenario
def a_whole_slab_is_granted_to_another_group() -> tuple[World, Act, Act]:
    world, giver, taker, address = two_groups()
    region = giver.shard.own(giver.id, address, 2 * SLAB_PAGES)
    return world, *request(giver, cross(giver, taker, region))


@scenario
def a_part_is_granted_to_another_group() -> tuple[World, Act, Act]:
    world, giver, taker, address = two_groups()
    giver.shard.own(giver.id, address, 4)
    part = giver.shard.own(giver.id, address + 4 * PAGE, 4)
    return world, *request(giver, cross(giver, taker, part))


def granted_part() -> tuple[World, User, User, int]:
    world, giver, taker, address = two_groups()
    part = giver.shard.own(giver.id, address + 4 * PAGE, 4)
    assert giver.ask(cross(giver, taker, part)) == wire.CrossGranted(4 * PAGE)
    return world, giver, taker, taker.shard.accept(taker.id)


@scenario
def a_part_comes_back() -> tuple[World, Act, Act]:
    world, giver, taker, region = granted_part()
    return world, *request(taker, cross(taker, giver, region))


@scenario
def a_part_goes_again_and_finds_its_copy_idle() -> tuple[World, Act, Act]:
    world, giver, taker, region = granted_part()
    taker.ask(cross(taker, giver, region))
    again = giver.shard.accept(giver.id)
    return world, *request(giver, cross(giver, taker, again))


@scenario
def a_copy_ends() -> tuple[World, Act, Act]:
    world, _, taker, region = granted_part()
    taker.shard.free(region)
    return world, (lambda world: world.pass_time(2)), nothing_more


@scenario
def a_whole_slab_meets_a_full_inbox() -> tuple[World, Act, Act]:
    world, giver, taker, address = two_groups()
    taker.shard.inbox_cells = 0
    region = giver.shard.own(giver.id, address, 2 * SLAB_PAGES)
    return world, *request(giver, cross(giver, taker, region))


@scenario
def a_part_meets_a_full_inbox() -> tuple[World, Act, Act]:
    world, giver, taker, address = two_groups()
    taker.shard.inbox_cells = 0
    region = giver.shard.own(giver.id, address, 5)
    return world, *request(giver, cross(giver, taker, region))


@scenario
def there_is_no_room_for_a_copy() -> tuple[World, Act, Act]:
    world, giver, taker, address = two_groups()
    world.refuses = lambda message: True
    region = giver.shard.own(giver.id, address, 5)
    return world, *request(giver, cross(giver, taker, region))


@scenario
def what_has_moved_is_not_granted() -> tuple[World, Act, Act]:
    world, giver, taker, address = two_groups()
    region = giver.shard.own(giver.id, address, 5)
    message = cross(giver, taker, region)
    giver.shard.free(region)
    giver.shard.own(giver.id, address, 5)
    return world, *request(giver, message)


@scenario
def a_mailbox_is_created() -> tuple[World, Act, Act]:
    world = World()
    return world, *request(world.user("a"), wire.OpenMailbox("box", create=True))


@scenario
def a_mailbox_is_opened_again() -> tuple[World, Act, Act]:
    world = World()
    user, other = world.user("a"), world.user("b")
    user.ask(wire.OpenMailbox("box", create=True))
    other.ask(wire.OpenMailbox("box"))
    act, again = request(other, wire.OpenMailbox("box"))

    def close_as_often(world: World, act: Act) -> object:
        reply = act(world)
        assert isinstance(reply, wire.MailboxOpened)
        for _ in range(2):  # open twice, not three times
            other.ask(wire.CloseMailbox(reply.id))
        assert isinstance(other.ask(wire.CloseMailbox(reply.id)), wire.Failed)
        return reply

    return world, act, lambda world: close_as_often(world, again)


@scenario
def a_mailbox_is_closed_by_its_last() -> tuple[World, Act, Act]:
    world = World()
    user = world.user("a")
    opened = user.ask(wire.OpenMailbox("box", create=True))
    assert isinstance(opened, wire.MailboxOpened)
    address = world.memory(user)
    user.shard.own(opened.id, address, 3)
    return world, *request(user, wire.CloseMailbox(opened.id))


@scenario
def a_process_dies() -> tuple[World, Act, Act]:
    world = World()
    user, friend = world.user("a"), world.user("b")
    address = world.memory(user)
    user.shard.own(user.id, address, 7)
    user.ask(wire.OpenMailbox("box", create=True))
    friend.ask(wire.OpenMailbox("box"))
    assert user.attached is not None
    dying = user.attached
    return world, (lambda world: world.exit(dying)), nothing_more


@scenario
def a_process_dies_while_it_grants() -> tuple[World, Act, Act]:
    world, giver, taker, address = two_groups()
    part = giver.shard.own(giver.id, address, 5)
    dying = giver.attached
    assert dying is not None

    def act(world: World) -> None:
        giver.ask(cross(giver, taker, part))
        world.exit(dying)

    def after(world: World) -> None:
        giver.come_back()
        giver.box.ask(giver.peer, wire.Once(giver.number, cross_again))
        world.exit(dying)

    cross_again = cross(giver, taker, part)
    return world, act, after


@scenario
def a_connection_is_lost() -> tuple[World, Act, Act]:
    world = World()
    user = world.user("a")
    world.memory(user)
    assert user.attached is not None
    key = (user.attached.pid, user.attached.incarnation)

    def act(world: World) -> None:
        world.agents.processes[key] = "lost"
        world.leave(user.peer)

    return world, act, nothing_more


@scenario
def an_orphan_is_freed() -> tuple[World, Act, Act]:
    world = World(orphan_keep=5.0)
    user, friend = world.user("a"), world.user("b")
    address = world.memory(user)
    user.shard.own(user.id, address, 7)
    kept = user.shard.own(friend.id, address + 7 * PAGE, 3)
    assert user.attached is not None and kept
    world.exit(user.attached)
    return world, (lambda world: world.pass_time(6)), (lambda world: world.pass_time(6))


@scenario
def one_stands_by() -> tuple[World, Act, Act]:
    world = World()
    world.user("a")
    return world, *request(world.user("b"), wire.StandBy("a"))


def plundered(dead: bool) -> tuple[World, User, User]:
    """A victim that owns two regions and has published one, and a thief."""
    world = World()
    victim, thief = world.user("victim"), world.user("thief")
    address = world.memory(victim)
    victim.shard.own(victim.id, address, 7)
    victim.shard.own(victim.id, address + 9 * PAGE, 5)
    assert victim.ask(wire.Publish("/state", address, 7 * PAGE, 0)) == wire.Done()
    assert victim.attached is not None
    if dead:
        world.exit(victim.attached)
    return world, victim, thief


@scenario
def one_steals_from_the_dead() -> tuple[World, Act, Act]:
    world, _, thief = plundered(dead=True)
    return world, *request(thief, wire.Steal("victim"))


@scenario
def one_steals_from_the_living() -> tuple[World, Act, Act]:
    world, _, thief = plundered(dead=False)
    act, again = request(thief, wire.Steal("victim"))

    def after(world: World) -> object:
        """What was taken was fenced off once more before the thief was told."""
        reply = again(world)
        taken_at = max(index for index, step in enumerate(world.steps) if step == "table: steal")
        fenced_after = [ranges for index, ranges in world.agents.fenced if index > taken_at]
        assert sum(nbytes for ranges in fenced_after for _, nbytes in ranges) >= 12 * PAGE
        return reply

    return world, act, after


@scenario
def one_steals_a_part() -> tuple[World, Act, Act]:
    world, _, thief = plundered(dead=False)
    return world, *request(thief, wire.Steal("victim", None, ["/state"]))


@scenario
def a_victim_dies_while_it_is_stolen_from() -> tuple[World, Act, Act]:
    world, victim, thief = plundered(dead=False)
    dying = victim.attached
    assert dying is not None
    act, again = request(thief, wire.Steal("victim"))

    def die_too(world: World, act: Act) -> object:
        reply = act(world)
        world.exit(dying)
        return reply

    return world, (lambda world: die_too(world, act)), (lambda world: die_too(world, again))


@scenario
def one_publishes() -> tuple[World, Act, Act]:
    world, _, thief = plundered(dead=False)
    address = world.memory(thief)
    thief.shard.own(thief.id, address, 2)
    return world, *request(thief, wire.Publish("/other", address, 2 * PAGE, 8))


@scenario
def one_takes_a_name_back() -> tuple[World, Act, Act]:
    world, victim, _ = plundered(dead=False)
    return world, *request(victim, wire.Unpublish("/state"))


@scenario
def one_stands_by_no_more() -> tuple[World, Act, Act]:
    world = World()
    world.user("a")
    user = world.user("b")
    standing = user.ask(wire.StandBy("a"))
    assert isinstance(standing, wire.StandingBy)
    return world, *request(user, wire.StandDown(standing.standby))


# --- the enumeration ----------------------------------------------------------------------------------------------


def settled(world: World) -> dict[str, Any]:
    world.pass_time(3)
    return world.picture()


def undisturbed(name: str) -> tuple[object, dict[str, Any], int]:
    """The reply to the act, the rack after it, and how many steps it has."""
    world, act, _ = SCENARIOS[name]()
    world.steps.clear()
    reply = act(world)
    steps = len(world.steps)
    if name == "a_mailbox_is_opened_again":
        assert isinstance(reply, wire.MailboxOpened)
        for _ in range(2):
            world.users[1].ask(wire.CloseMailbox(reply.id))
    return reply, settled(world), steps


def is_same_answer(reply: object, expected: object) -> bool:
    if isinstance(expected, wire.Failed):
        return isinstance(reply, wire.Failed) and reply.kind == expected.kind
    if isinstance(expected, wire.CrossGranted):
        return reply == expected
    return type(reply) is type(expected)


def without_addresses(picture: dict[str, Any]) -> dict[str, Any]:
    """A process that was about to be attached may get another id, and so other addresses, the second time."""
    return picture | {"extents": [(extent[1:]) for extent in picture["extents"]]}


@pytest.mark.parametrize("name", SCENARIOS)
def test_killed_at_every_step_it_comes_back_as_if_it_had_not_been(name: str) -> None:
    expected_reply, expected, steps = undisturbed(name)
    assert steps > 0
    for kill_at in range(1, steps + 1):
        world, act, after = SCENARIOS[name]()
        where = world.until_killed(lambda: act(world), kill_at)  # noqa: B023 - called at once
        assert where is not None, (kill_at, steps)
        world.restart()
        reply = after(world)
        told = f"{name}, killed at step {kill_at} ({where})"
        if after is not nothing_more and not isinstance(expected_reply, wire.Done):
            assert is_same_answer(reply, expected_reply), (told, reply)
        assert without_addresses(settled(world)) == without_addresses(expected), told


LONG = ("one_steals_from_the_dead", "one_steals_a_part", "a_victim_dies_while_it_is_stolen_from")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SCENARIOS if name not in LONG])
def test_killed_again_while_it_comes_back(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(World, "compares_each_writing", False)
    expected_reply, expected, steps = undisturbed(name)
    for kill_at in range(1, steps + 1):
        again_at = 0
        where: str | None = ""
        while where is not None:
            again_at += 1
            world, act, after = SCENARIOS[name]()
            world.until_killed(lambda: act(world), kill_at)  # noqa: B023
            where = world.until_killed(world.restart, again_at)
            if where is not None:
                world.restart()
            reply = after(world)
            told = f"{name}, killed at step {kill_at}, then at step {again_at} ({where}) of its return"
            if after is not nothing_more and not isinstance(expected_reply, wire.Done):
                assert is_same_answer(reply, expected_reply), (told, reply)
            assert without_addresses(settled(world)) == without_addresses(expected), told


def test_a_slab_that_was_half_taken_is_its_homes_again() -> None:
    """In a table one step takes many: a kill may leave part of a free slab with the Rack MMU."""
    world, giver, _, _ = granted_part()
    address, *_ = next(iter(giver.shard.records.values()))
    half = giver.shard._carve(2, giver.id, address + 8 * PAGE, 100)
    before = giver.shard.holdings(giver.id)[2]
    giver.shard._set(half, state=3, owner=MMU)
    world.restart()
    assert giver.shard.holdings(giver.id)[2] == before
    assert giver.shard.holdings(MMU)[1] == 4, "what the copy stands for is still away"


def test_tables_are_made_to_agree_before_anything_is_built_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A real table, unlike this one, may have steps that a Rack MMU or a process was killed in."""
    called: list[str] = []
    for name in ("recover", "settle"):
        monkeypatch.setattr(FakeShard, name, lambda *_, name=name: called.append(name) or 0)
    world = World()
    user = world.user("a")
    assert user.attached is not None
    world.exit(user.attached)
    called.clear()
    world.restart()
    assert called[:2] == ["recover", "settle"]
