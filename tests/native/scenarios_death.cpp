// Deaths: a process is killed before each of its writes, others go on, and the Rack MMU settles what it left.
#include "fake_address_space.hpp"
#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint32_t kMailbox = kFirstMailboxId;

void settle_down(World& w, uint32_t processes, uint32_t pages = 6) {
    for (uint32_t id = 1; id <= processes; id++) {
        w.admit(id);
        w.add_slab(id, id, pages);
        w.split_and_merge_once(id);
    }
}

std::vector<Operation> in_a_split(World& w) {
    settle_down(w, 2);
    w.alloc(1, 4);
    return {{"1 splits", [&] { w.split(1, w.held(1), 1); }}, w.burial(1, 0)};
}

std::vector<Operation> in_a_merge(World& w) {
    settle_down(w, 2);
    w.split(1, w.alloc(1, 4), 1);
    return {{"1 merges", [&] { w.merge(1, w.held(1, 0), w.held(1, 1)); }}, w.burial(1, 0)};
}

std::vector<Operation> in_a_grant(World& w) {
    settle_down(w, 2);
    w.alloc(1, 1);
    return {{"1 grants to 2", [&] { w.grant(1, 2, {w.held(1)}); }},
            {"2 accepts", [&] { w.accept(2, 2); }},
            w.burial(1, 0)};
}

std::vector<Operation> in_a_grant_of_two(World& w) {
    settle_down(w, 2);
    const Extent a = w.alloc(1, 1), b = w.alloc(1, 1);
    return {{"1 grants two to 2", [&, a, b] { w.grant(1, 2, {a, b}); }},
            {"2 accepts", [&] { w.accept(2, 2); }},
            w.burial(1, 0)};
}

std::vector<Operation> in_a_grant_beside_a_sender(World& w) {
    settle_down(w, 3);
    w.alloc(1, 1);
    return {{"1 grants to 2", [&] { w.grant(1, 2, {w.held(1)}); }},
            {"3 sends to 2", [&] { w.send(3, 2); }},
            w.burial(1, 0)};
}

std::vector<Operation> in_an_accept(World& w) {
    settle_down(w, 2);
    w.alloc(1, 1);
    w.grant(1, 2, {w.alloc(1, 1)});
    return {{"2 accepts", [&] { w.accept(2, 2); }},
            {"1 grants to 2", [&] { w.grant(1, 2, {w.held(1)}); }},
            w.burial(2, 0)};
}

std::vector<Operation> in_a_remote_free(World& w) {
    settle_down(w, 2);
    w.grant(1, 2, {w.alloc(1, 1)});
    w.accept(2, 2);
    return {{"2 frees", [&] { w.free(2, w.held(2)); }},
            {"1 allocates, twice", [&] { w.try_alloc(1, 1), w.try_alloc(1, 1); }},
            w.burial(2, 0)};
}

// While 2 lies dead on its way to telling 1, 3 frees too.
std::vector<Operation> in_one_of_two_remote_frees(World& w) {
    settle_down(w, 3, 4);
    for (uint32_t id : {2u, 3u}) {
        w.grant(1, id, {w.alloc(1, 1)});
        w.accept(id, id);
    }
    return {{"2 frees", [&] { w.free(2, w.held(2)); }},
            {"3 frees", [&] { w.free(3, w.held(3)); }},
            w.burial(2, 0),
            {"1 allocates", [&] { w.try_alloc(1, 1); }}};
}

std::vector<Operation> in_a_send(World& w) {
    settle_down(w, 3);
    return {{"1 sends", [&] { w.send(1, 2); }}, {"3 sends", [&] { w.send(3, 2); }}, w.burial(1, 0)};
}

std::vector<Operation> in_an_alloc(World& w) {
    settle_down(w, 2);
    return {{"1 allocates", [&] { w.try_alloc(1, 2); }}, w.burial(1, 0)};
}

// A free run is cut or joined: the home dies of it, and what it leaves must go back to its element whole.
std::vector<Operation> in_an_alloc_that_merges(World& w) {
    settle_down(w, 2);
    const Extent a = w.alloc(1, 1), b = w.alloc(1, 2);
    w.free(1, a);
    w.free(1, b);
    return {{"1 allocates all", [&] { w.try_alloc(1, 6); }},
            w.mmu(
                "buries 1 and takes its slab",
                [&] {
                    w.bury(1);
                    const bool taken = w.steward->take_slab(1);
                    w.also = [taken] { return taken ? "" : "the slab of a dead process cannot be taken"; };
                },
                0)};
}

std::vector<Operation> of_one_of_two_receivers(World& w) {
    settle_down(w, 3);
    w.open_mailbox(kMailbox, {2, 3});
    w.grant(1, kMailbox, {w.alloc(1, 1)});
    w.grant(1, kMailbox, {w.alloc(1, 1)});
    return {{"2 accepts one", [&] { w.accept(2, kMailbox, 1); }},
            {"3 accepts", [&] { w.accept(3, kMailbox); }},
            w.burial(2, 0)};
}

// The one who helps the head along dies before it has looked whether the cell was put back meanwhile.
std::vector<Operation> of_a_receiver_beside_one_that_puts_back(World& w) {
    settle_down(w, 3);
    w.open_mailbox(kMailbox, {2, 3});
    w.grant(1, kMailbox, {w.alloc(1, 1)});
    return {{"2 accepts", [&] { w.accept(2, kMailbox); }},
            {"3 puts back",
             [&] {
                 opens_nothing = &w.processes.at(3)->space();
                 try {
                     w.accept(3, kMailbox);
                 } catch (const TooManyMappings&) {
                 }
                 opens_nothing = nullptr;
             }},
            w.burial(2, 0)};
}

// --- nobody is killed in the middle, but somebody is found dead ------------------------------------------

// What reaches the dead too late is taken back: one release is enough when the sender lives.
std::vector<Operation> grant_to_the_dying(World& w) {
    settle_down(w, 2);
    const Extent a = w.alloc(1, 1), b = w.alloc(1, 1);
    w.also = [&] { return w.steward->holdings(2).pages == 0 ? "" : "memory is in flight to a dead process"; };
    return {{"1 grants two to 2", [&, a, b] { w.grant(1, 2, {a, b}); }}, w.burial(2)};
}

std::vector<Operation> grant_to_the_accepting_and_dying(World& w) {
    settle_down(w, 2);
    const Extent a = w.alloc(1, 1), b = w.alloc(1, 1);
    return {{"2 accepts", [&] { w.accept(2, 2); }},
            {"1 grants two to 2", [&, a, b] { w.grant(1, 2, {a, b}); }},
            w.burial(2, 0)};
}

std::vector<Operation> lost_and_dead(World& w) {
    settle_down(w, 2);
    const Extent a = w.alloc(1, 1), b = w.alloc(1, 1), c = w.alloc(1, 1);
    return {{"1 grants three to 2", [&, a, b, c] { w.grant(1, 2, {a, b, c}); }},
            w.mmu("withdraws the second", [&, b] { w.withdraw(1, b); }),
            w.burial(2)};
}

// The id is borne by another process when the grant arrives.
std::vector<Operation> grant_to_a_former_bearer(World& w) {
    settle_down(w, 2);
    w.admit(3);
    w.alloc(1, 1);
    return {{"1 grants to 3", [&] { w.grant(1, 3, {w.held(1)}); }},
            w.mmu("gives the id to another, who accepts", [&] {
                w.bury(3);
                if (w.steward->holdings(3).pages > 0) return;
                w.table.vacate(3);
                w.admit(3, 2);
                w.accept(3, 3);
            })};
}

// Its sender dies; but the memory was meant for the one before.
std::vector<Operation> dies_granting_to_a_former_bearer(World& w) {
    std::vector<Operation> operations = grant_to_a_former_bearer(w);
    operations.push_back(w.burial(1, 0));
    return operations;
}

// A settled cell must be delivered only if its own payload was complete: here what is left of the payload of
// an earlier lap names an extent that is under way in another cell, with the same word as the one being
// granted.
std::vector<Operation> dies_over_an_old_payload(World& w) {
    settle_down(w, 3);
    const Extent old = w.alloc(1, 1), other = w.alloc(3, 1);
    w.grant(1, 2, {old});
    w.accept(2, 2);
    w.grant(2, 1, {w.held(2)});
    w.accept(1, 1);
    w.table.extent(other.descriptor).owner.store(OwnerWord{w.held(1).word}.next(State::kOwned, 3).bits - 1);
    w.drop(3, other);
    const Extent twin{other.descriptor, w.table.owner(other.descriptor)};
    w.start_ring_at(2, kInboxCells);  // the cell at 0 still holds the old payload
    w.table.slot(2).head.store(kInboxCells - 1);
    w.table.slot(2).tail.store(kInboxCells - 1);
    w.table.cell(2, kInboxCells - 1).word.store(0);
    w.grant(1, 2, {w.held(1)});
    return {{"3 grants to 2", [&, twin] { w.grant(3, 2, {twin}); }}, w.burial(3, 0)};
}

}  // namespace

std::vector<Scenario> death_scenarios() {
    return {
        {"death: in a split", in_a_split, {0}},
        {"death: in a merge", in_a_merge, {0}},
        {"death: in a grant, while it is accepted", in_a_grant, {0}},
        {"death: in a grant of two, while they are accepted", in_a_grant_of_two, {0}},
        {"death: in a grant, beside another sender", in_a_grant_beside_a_sender, {0}},
        {"death: in an accept, while more is granted", in_an_accept, {0}},
        {"death: in a remote free, while the home allocates", in_a_remote_free, {0}},
        {"death: in one of two remote frees", in_one_of_two_remote_frees, {0}},
        {"death: in a send, beside another", in_a_send, {0}},
        {"death: in an alloc", in_an_alloc, {0}},
        {"death: in an alloc that merges, then its slab is taken", in_an_alloc_that_merges, {0}},
        {"death: of one of two receivers of a mailbox", of_one_of_two_receivers, {0}},
        {"death: of a receiver, beside one that puts back", of_a_receiver_beside_one_that_puts_back, {0}},
        {"death: the receiver is buried during a grant", grant_to_the_dying},
        {"death: the receiver dies accepting, during a grant", grant_to_the_accepting_and_dying, {0}},
        {"death: the receiver is buried, and an extent lost", lost_and_dead},
        {"death: the receiver's id is given to another during a grant", grant_to_a_former_bearer, {}},
        {"death: so it is, and the sender dies too", dies_granting_to_a_former_bearer, {0}},
        {"death: over an old payload", dies_over_an_old_payload, {0}},
    };
}

}  // namespace bequest::tests
