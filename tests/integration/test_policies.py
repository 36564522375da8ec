"""Who may steal, on a real rack: policies, capabilities, shares, wrong guesses, and the book of attempts."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import actors
import bequest as bq
import steal_users as users
from bequest.limits import WRONG_TRIES_MAX
from bequest.memory.group import combine
from racks import RackUnderTest, Yard

PAGE = 4096
BYTES = 16 * PAGE
pytestmark = pytest.mark.filterwarnings("ignore:a region of:ResourceWarning")


@pytest.fixture
def rack(yard: Yard) -> RackUnderTest:
    """One that keeps the memory of the dead for a minute."""
    return yard.rack()


class Crew:
    """A thief in this process, in a group of its own, and a victim elsewhere that owns a region."""

    def __init__(self, yard: Yard, rack: RackUnderTest, **rules: object) -> None:
        self.yard, self.rack = yard, rack
        self.group = rack.connection.create_group("crew", **rules)  # type: ignore[arg-type]
        self.thief = yard.attach("thief", rack, self.group)
        self.victim = yard.actor("victim", group=self.group)
        self.address = self.victim.do(actors.alloc, "state", BYTES, 7)

    def steal(self, capability: bytes | None) -> str:
        stolen = users.take(self.thief, "victim", capability)
        assert stolen.nbytes == BYTES
        return stolen.how


def command_line(rack: RackUnderTest, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bequest.cli", *arguments, "--rack", str(rack.directory)]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


# --- policies -------------------------------------------------------------------------------------------------


def test_a_member_with_the_capability_steals_from_the_dead(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack)
    crew.victim.kill()
    with pytest.raises(bq.WrongCapability, match="takes the group's capability"):
        users.take(crew.thief, "victim")
    assert crew.steal(crew.group.capability) == "dead"


def test_a_wrong_capability_opens_nothing(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack)
    other = rack.connection.create_group("others")
    for wrong in (b"", bytes(32), other.capability, crew.group.secret):
        with pytest.raises(bq.WrongCapability):
            users.take(crew.thief, "victim", wrong)
    crew.victim.do(users.store, "state", 8)
    assert crew.victim.do(actors.values, "state") == [8], "and nobody has fenced it"


def test_where_the_policy_is_never_nobody_steals(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack, steal="never")
    assert crew.group.capability is None
    crew.victim.kill()
    with pytest.raises(bq.WrongCapability, match="never"):
        users.take(crew.thief, "victim", bytes(32))


def test_only_the_standby_that_the_victim_named_steals(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack, steal="standby")
    crew.victim.do(users.name_heir, "nobody")
    with pytest.raises(bq.WrongCapability, match="not the standby"):
        users.take(crew.thief, "victim", crew.group.capability)
    crew.victim.do(users.name_heir, "thief")
    with pytest.raises(bq.WrongCapability):
        users.take(crew.thief, "victim")
    crew.victim.kill()
    assert crew.steal(crew.group.capability) == "dead"


def test_a_standby_is_named_when_attaching(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack, steal="standby")
    other = yard.actor(None)
    other.do(users.attach_with_heir, "other", crew.group.secret, "thief")
    other.do(actors.alloc, "state", BYTES)
    other.kill()
    assert users.take(crew.thief, "other", crew.group.capability).nbytes == BYTES


# --- a quorum -------------------------------------------------------------------------------------------------


def test_a_quorum_steals_and_no_member_of_it_alone(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack, steal=bq.Quorum(2, of=3))
    one, two, three = crew.group.shares
    assert crew.group.capability is None
    for alone in (one, two, three):
        with pytest.raises(bq.WrongCapability, match="2 shares are needed, not 1"):
            users.take_with_shares(crew.thief, "victim", [alone])
        with pytest.raises(bq.WrongCapability):
            users.take(crew.thief, "victim", alone)  # a share is no capability either
    crew.victim.kill()
    assert crew.steal(combine([three, one])) == "dead"


def test_a_replayed_share_counts_once(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack, steal=bq.Quorum(2, of=3))
    with pytest.raises(bq.WrongCapability, match="twice"):
        users.take_with_shares(crew.thief, "victim", [crew.group.shares[0]] * 2)


def test_shares_of_another_group_open_nothing(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack, steal=bq.Quorum(2, of=3))
    other = rack.connection.create_group("others", steal=bq.Quorum(2, of=3))
    with pytest.raises(bq.WrongCapability, match="different groups"):
        users.take_with_shares(crew.thief, "victim", [crew.group.shares[0], other.shares[1]])
    with pytest.raises(bq.WrongCapability, match="not the capability of group 'crew'"):
        users.take_with_shares(crew.thief, "victim", list(other.shares[:2]))


# --- groups ---------------------------------------------------------------------------------------------------


def test_a_process_of_another_group_is_out_of_reach(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack)
    stranger = yard.actor("stranger", group=rack.connection.create_group("others"))
    assert stranger.do(users.steal, "victim", crew.group.capability) == ("WrongCapability", 0)
    crew.victim.kill()
    assert stranger.do(users.steal, "victim", crew.group.capability) == ("WrongCapability", 0)
    assert crew.steal(crew.group.capability) == "dead"


@pytest.mark.parametrize("rules", [{"steal": "anybody"}, {"steal": "quorum"}, {"fence": "nuke"}])
def test_rules_that_mean_nothing_are_refused(rack: RackUnderTest, rules: dict[str, str]) -> None:
    with pytest.raises(bq.BadConfig):
        rack.connection.create_group("crew", **rules)  # type: ignore[arg-type]


# --- names that are used again --------------------------------------------------------------------------------


def test_a_name_that_a_newer_process_bears_means_the_dead_one_first(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack)
    crew.victim.kill()
    newer = yard.actor("victim", group=crew.group)
    newer.do(actors.alloc, "state", 2 * BYTES, 9)
    first = users.take(crew.thief, "victim", crew.group.capability)
    assert (first.how, first.nbytes) == ("dead", BYTES)
    assert newer.do(actors.values, "state") == [9]
    with pytest.raises(bq.UnknownProcess):
        users.take(crew.thief, "victim", crew.group.capability, incarnation=first.incarnation + 100)
    again = users.take(crew.thief, "victim", crew.group.capability, incarnation=first.incarnation)
    assert (again.how, again.nbytes) == ("dead", 0)


# --- guesses, and the book ------------------------------------------------------------------------------------


def test_who_guesses_too_often_is_barred_and_others_are_not(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack)
    guesser = yard.actor("guesser", group=crew.group)
    for _ in range(WRONG_TRIES_MAX):
        assert guesser.do(users.steal, "victim", b"wrong")[0] == "WrongCapability"
    crew.victim.kill()
    assert guesser.do(users.steal, "victim", crew.group.capability)[0] == "WrongCapability"
    assert crew.steal(crew.group.capability) == "dead"

    done = command_line(rack, "audit", "--json")
    thefts = json.loads(done.stdout)["thefts"]
    assert [theft["outcome"] for theft in thefts] == ["refused", "barred", "stolen"]
    assert [theft["times"] for theft in thefts] == [WRONG_TRIES_MAX, 1, 1]
    last = thefts[-1]
    assert (last["thief"], last["victim"]["name"], last["how"], last["bytes"]) == (
        "thief", "victim", "dead", BYTES,
    )  # fmt: skip
    assert thefts[0]["pid"] == guesser.pid
    shown = command_line(rack, "audit").stdout
    assert "barred" in shown and "stolen" in shown and "7 attempts, 1 successful" in shown


# --- names of memory ------------------------------------------------------------------------------------------


def test_names_lead_to_memory_through_grants(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack)
    crew.victim.do(users.publish, "/victim/state", "state", 100)
    with pytest.raises(bq.NotOwner, match="victim"):
        crew.thief.lookup("/victim/state")
    with pytest.raises(bq.UnknownName):
        crew.thief.lookup("/victim")
    with pytest.raises(bq.NotOwner):
        crew.thief.unpublish("/victim/state")
    assert crew.victim.do(users.lookup, "//victim/state/") == (crew.address, BYTES)
    crew.victim.do(actors.grant, "state", "thief")
    with pytest.raises(bq.NotOwner, match="accept it first"):
        crew.thief.lookup("/victim/state")
    region = crew.thief.accept(10)
    found = crew.thief.lookup("/victim/state")
    assert (found.address, found.nbytes) == (region.address, region.nbytes)
    assert found.array()[0] == 7
    [name] = crew.thief.list("/victim")
    assert (name.path, name.offset, name.publisher, name.owner) == ("/victim/state", 100, "victim", "thief")
    crew.thief.unpublish("/victim/state")
    assert crew.thief.list() == []


def test_a_name_ends_with_its_memory_and_not_later(yard: Yard, me: bq.Process) -> None:
    region = me.alloc(BYTES)
    address = region.address
    me.publish("/state", region)
    part = region[PAGE : 2 * PAGE]
    me.publish("/part", part)
    assert me.lookup("/part").address == address + PAGE
    region.free()
    again = me.alloc(BYTES)
    assert again.address == address, "the same place, and another region"
    for path in ("/state", "/part"):
        with pytest.raises(bq.UnknownName):
            me.lookup(path)
    assert me.list() == []


def test_a_name_is_published_of_what_one_owns(me: bq.Process, yard: Yard, rack: RackUnderTest) -> None:
    other = yard.attach("other", rack)
    region = me.alloc(BYTES)
    with pytest.raises(bq.NotOwner):
        other.publish("/state", region)
    with pytest.raises(TypeError):
        me.publish("/state", memoryview(region))  # type: ignore[arg-type]
    for path in ("state", "/a/../b", ""):
        with pytest.raises(bq.BadName):
            me.publish(path, region)
    for offset in (BYTES, -1):
        with pytest.raises(bq.BadSize):
            me.publish("/state", region, offset)
    region.free()
    with pytest.raises(bq.RegionMoved):
        me.publish("/state", region)


def test_ls_shows_names_sizes_and_owners(yard: Yard, rack: RackUnderTest, me: bq.Process) -> None:
    region = me.alloc(BYTES)
    me.publish("/a/state", region, 8)
    me.publish("/b", region)
    names = json.loads(command_line(rack, "ls", "--json").stdout)["names"]
    assert [name["path"] for name in names] == ["/a/state", "/b"]
    assert (names[0]["bytes"], names[0]["offset"], names[0]["owner"]["name"]) == (BYTES, 8, me.name)
    shown = command_line(rack, "ls", "/a").stdout
    assert "/a/state" in shown and me.name in shown and "/b" not in shown
    assert command_line(rack, "ls", "/nothing").returncode == 1


def test_ps_tells_how_long_the_dead_keep_their_memory(yard: Yard, rack: RackUnderTest) -> None:
    crew = Crew(yard, rack)
    crew.victim.kill()
    actors.until(lambda: rack.processes()["victim"].state == "orphaned")
    document = json.loads(command_line(rack, "ps", "--json").stdout)
    [victim] = [process for process in document["processes"] if process["name"] == "victim"]
    assert 0 < victim["freed_in_seconds"] <= document["rack"]["orphan_keep_seconds"]
    assert "orphaned, " in command_line(rack, "ps").stdout
