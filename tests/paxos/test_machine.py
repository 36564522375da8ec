"""The consensus machine, one behaviour at a time, where messages arrive at once. What faults do: `test_world.py`."""

from __future__ import annotations

from bequest.paxos.ledger import MemoryLedger
from bequest.paxos.machine import Machine
from bequest.paxos.messages import Accept, Once, OpenSession, Part, decode_message, first_membership
from bequest.paxos.newcomer import Newcomer
from bequest.paxos.outputs import Removed, Send, Why
from bequest.paxos.timing import BACKLOG_MAX, IN_FLIGHT_MAX, SESSION_IDLE_MS, Timing
from lockstep import Cluster
from registers import Registers


def test_somebody_is_elected_and_what_is_said_to_any_replica_is_done_by_all() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    assert cluster.do(b"set a 1") == b""
    for replica in cluster.replicas:
        assert cluster.do(b"append a %d" % replica, at=replica) != b""
        assert cluster.get(b"a", at=replica)
    cluster.run(0.2)
    assert {bytes(r.application.values[b"a"]) for r in cluster.replicas.values()} == {b"1,1,2,3"}


def test_a_leader_that_comes_back_leads_on_with_its_ballot() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    leader, ballot = cluster.leader.ledger.replica, cluster.leader.ledger.promised
    cluster.do(b"set a 1")
    cluster.reincarnate(leader)
    assert cluster.do(b"append a 2", at=leader) == b"1"
    assert cluster.get(b"a", at=leader) == b"1,2"
    cluster.run(3)
    assert (cluster.leader.ledger.replica, cluster.leader.ledger.promised) == (leader, ballot)


def test_a_leader_that_comes_back_says_at_once_what_it_wants_however_much_was_chosen_before() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    for number in range(IN_FLIGHT_MAX + 1):
        cluster.do(b"set a %d" % number)
    heir = cluster.reincarnate(cluster.leader.ledger.replica)
    heir.inputs.commands.append(("early", b"set a 1"))
    said = [output.message for output in heir.turn() if isinstance(output, Send)]
    assert [len(message.values) for message in said if isinstance(message, Accept)] == [1, 1]


def test_a_leader_that_comes_back_to_who_has_not_answered_yet_takes_it_to_have_what_is_chosen() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    cluster.do(b"set a 1")
    cluster.run(1)
    heir = cluster.reincarnate(cluster.leader.ledger.replica)
    assert heir.ledger.first_kept > 1, "the log goes back to the beginning: nothing is tried here"
    others = [replica for replica in cluster.replicas if replica != heir.ledger.replica]
    heir.inputs.connected += others
    assert not [
        output for output in heir.turn() if isinstance(output, Send) and isinstance(output.message, Part)
    ]


def test_when_the_leader_stays_away_another_is_elected_after_its_lease() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    cluster.do(b"set a 1")
    away = cluster.leader.ledger.replica
    cluster.cut.add(away)
    cluster.run(2)
    assert cluster.do(b"append a 2") == b"1"
    assert cluster.leader.ledger.replica != away
    cluster.cut.clear()
    cluster.run(1)
    assert cluster.get(b"a", at=away) == b"1,2"


def test_reads_ask_a_majority_where_nothing_is_assumed_of_clocks() -> None:
    cluster = Cluster(timing=Timing(lease_reads=False))
    cluster.run(0.5)
    cluster.do(b"set a 1")
    leader = cluster.leader.ledger.replica
    follower = next(replica for replica in cluster.replicas if replica != leader)
    assert cluster.get(b"a", at=leader) == cluster.get(b"a", at=follower) == b"1"
    cluster.cut.update(replica for replica in cluster.replicas if replica != leader)
    cluster.leader.inputs.queries.append(("alone", b"a"))
    cluster.settle()
    assert "alone" not in cluster.replies, "a majority was not asked"


def test_reads_by_lease_ask_nobody_and_only_while_it_lasts() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    cluster.do(b"set a 1")
    leader = cluster.leader
    cluster.cut.update(replica for replica in cluster.replicas if replica != leader.ledger.replica)
    assert cluster.get(b"a") == b"1"
    cluster.run(cluster.timing.lease)
    leader.inputs.queries.append(("late", b"a"))
    cluster.settle()
    assert "late" not in cluster.replies


def test_what_a_session_has_done_is_not_done_again_by_anybody() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    session = int(cluster.do(OpenSession()))
    assert cluster.do(Once(session, 1, b"append a 1"), at=1) == b""
    assert cluster.do(Once(session, 1, b"append a 1"), at=2) == b""
    assert cluster.do(Once(session, 2, b"append a 2"), at=3) == b",1"
    assert cluster.do(Once(session, 1, b"append a 1"), at=2).why is Why.SESSION_STALE
    assert cluster.do(Once(session + 1, 1, b"append a 1")).why is Why.SESSION_UNKNOWN
    assert cluster.get(b"a") == b",1,2"


def test_sessions_that_nobody_uses_end_and_others_do_not() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    idle, used = int(cluster.do(OpenSession())), int(cluster.do(OpenSession()))
    cluster.now += SESSION_IDLE_MS / 1000
    cluster.run(2)
    cluster.do(Once(used, 1, b"set a 1"))
    cluster.now += 10
    cluster.run(2)
    for _ in range(3):
        cluster.do(OpenSession())
    assert cluster.do(Once(idle, 1, b"set a 2")).why is Why.SESSION_UNKNOWN
    assert cluster.do(Once(used, 2, b"set a 3")) == b"1"


def test_lost_memory_is_answered_at_once_by_another_epoch_though_it_was_the_leaders() -> None:
    for is_leader in (False, True):
        cluster = Cluster()
        cluster.run(0.5)
        cluster.do(b"set a 1")
        leader = cluster.leader.ledger.replica
        lost = leader if is_leader else next(replica for replica in cluster.replicas if replica != leader)
        cluster.cut.add(lost)
        before = cluster.now
        for replica in cluster.replicas.values():
            replica.inputs.lost.append(lost)
        cluster.settle()
        assert cluster.now == before
        membership = cluster.leader.machine.membership
        assert (membership.epoch, sorted(membership.members)) == (2, sorted({1, 2, 3} - {lost}))
        assert cluster.do(b"append a 2") == b"1"


def test_a_newcomer_gets_the_state_and_then_a_vote() -> None:
    cluster = Cluster()
    cluster.run(0.5)
    for key in range(10):
        cluster.do(b"set key%d %d" % (key, key))
    cluster.cut.add(3)
    lost = cluster.replicas.pop(3)
    newcomer = Newcomer("site3", ["site1"], ticket=7, timing=cluster.timing, now=cluster.now)
    (asks,) = newcomer.tick(cluster.now)
    for _ in range(2):  # asking twice is asking once
        cluster.replicas[1].inputs.messages.append((0, asks.message))
        cluster.run(2)
    newcomer.receive(decode_message(cluster.replies["site3"]))
    assert newcomer.joined is not None
    assert newcomer.joined.replica == 4
    cluster.replicas[4] = cluster.make(4, newcomer.joined.membership)
    cluster.run(1)
    assert cluster.leader.machine.membership.members == {1: "site1", 2: "site2", 4: "site3"}
    assert cluster.replicas[4].application.values == cluster.leader.application.values
    assert cluster.do(b"append key0 9", at=4) == b"0"
    cluster.cut.clear()
    cluster.replicas[3] = lost
    said = []
    cluster.watch = lambda replica, output: said.append(replica) if isinstance(output, Removed) else None
    cluster.run(5)
    assert said == [3], "who comes back too late is told"


def test_a_ledger_opened_under_another_clock_waits_out_what_it_may_have_granted() -> None:
    ledger = MemoryLedger(1, first_membership(["a"]))
    registers = Registers(ledger.undo)
    for clock, now, until in (("one", 5.0, 0.0), ("one", 6.0, 0.0), ("other", 7.0, 7.0 + Timing().lease)):
        Machine(ledger, registers, Timing(), lambda: 0.5, clock=clock, now=now)
        assert ledger.granted_until == until


def test_too_many_requests_are_refused_and_those_too_old_as_well() -> None:
    cluster = Cluster()
    cluster.cut.update((2, 3))
    alone = cluster.replicas[1]
    alone.inputs.commands += [(number, b"set a 1") for number in range(BACKLOG_MAX + 1)]
    cluster.settle()
    assert cluster.replies[BACKLOG_MAX].why is Why.BUSY
    cluster.run(cluster.timing.patience + 1)
    assert {cluster.replies[number].why for number in range(BACKLOG_MAX)} == {Why.OUTCOME_UNKNOWN}
    cluster.cut.clear()
    cluster.run(3)
    assert alone.ledger.executed == BACKLOG_MAX, "what was numbered keeps its place"
