// The Rack MMU takes slabs back, carries memory to other groups, and gives ids to others, while processes go
// on.
#include "scenario.hpp"

namespace bequest::tests {

namespace {

constexpr uint32_t kSlab = 1;

void settle_down(World& w, uint32_t pages = 6) {
    for (uint32_t id = 1; id <= 3; id++) w.admit(id);
    w.add_slab(kSlab, 1, pages);
    w.split_and_merge_once(1);
}

Operation take(World& w) {
    return w.mmu("takes the slab", [&w] { w.steward->take_slab(kSlab); });
}

std::vector<Operation> take_and_alloc(World& w) {
    settle_down(w);
    return {take(w), {"1 allocates all", [&] { w.try_alloc(1, 6); }}};
}

std::vector<Operation> take_and_split(World& w) {
    settle_down(w);
    return {take(w), {"1 allocates a part", [&] { w.try_alloc(1, 2); }}};
}

// Two free runs: 1 merges them because nothing else fits.
void cut_in_two(World& w) {
    settle_down(w);
    const Extent a = w.alloc(1, 2), b = w.alloc(1, 4);
    w.free(1, a);
    w.free(1, b);
}

std::vector<Operation> take_and_merge(World& w) {
    cut_in_two(w);
    return {take(w), {"1 allocates all", [&] { w.try_alloc(1, 6); }}};
}

std::vector<Operation> take_and_merge_and_split(World& w) {
    cut_in_two(w);
    return {take(w), {"1 allocates most", [&] { w.try_alloc(1, 5), w.try_alloc(1, 1); }}};
}

// The run that 1 finds begins in the middle of a large page: it leaves out what comes before the next.
void begin_in_a_large_page(World& w) {
    settle_down(w, kPagesPerHugePage + 2);
    w.free(1, w.alloc(1, 1));
}

std::vector<Operation> take_and_alloc_aligned(World& w) {
    begin_in_a_large_page(w);
    return {take(w), {"1 allocates a large page's beginning", [&] { w.try_alloc(1, 2, 0, true); }}};
}

std::vector<Operation> alloc_aligned_and_die(World& w) {
    begin_in_a_large_page(w);
    return {{"1 allocates a large page's beginning", [&] { w.try_alloc(1, 2, 0, true); }}, w.burial(1, 0)};
}

// One page of the slab is out; it comes home while the slab is being taken.
std::vector<Operation> take_and_remote_free(World& w) {
    settle_down(w);
    w.grant(1, 2, {w.alloc(1, 1)});
    w.accept(2, 2);
    return {take(w), {"2 frees", [&] { w.free(2, w.held(2)); }}};
}

std::vector<Operation> take_and_remote_free_and_alloc(World& w) {
    std::vector<Operation> operations = take_and_remote_free(w);
    operations.push_back({"1 allocates", [&] { w.try_alloc(1, 1); }});
    return operations;
}

// In vain: the last page is in use. What was taken before it is noticed goes back.
std::vector<Operation> take_in_vain(World& w) {
    settle_down(w);
    const Extent a = w.alloc(1, 2), b = w.alloc(1, 2);
    w.alloc(1, 2);
    w.free(1, a);
    w.free(1, b);
    return {take(w), {"1 allocates, by merging", [&] { w.try_alloc(1, 4); }}};
}

std::vector<Operation> take_while_the_home_dies_splitting(World& w) {
    settle_down(w);
    return {{"1 allocates a part", [&] { w.try_alloc(1, 2); }}, take(w), w.burial(1, 0)};
}

std::vector<Operation> take_while_the_home_dies_merging(World& w) {
    cut_in_two(w);
    return {{"1 allocates all", [&] { w.try_alloc(1, 6); }}, take(w), w.burial(1, 0)};
}

std::vector<Operation> take_in_vain_while_the_home_dies(World& w) {
    settle_down(w, 7);
    const Extent a = w.alloc(1, 2), b = w.alloc(1, 2);
    w.grant(1, 2, {w.alloc(1, 3)});
    w.accept(2, 2);
    w.free(1, a);
    w.free(1, b);
    return {{"1 allocates a part, by merging", [&] { w.try_alloc(1, 4); }}, take(w), w.burial(1, 0)};
}

// The descriptor of a run that 1 knows of becomes a part of another slab while the first is being taken.
std::vector<Operation> take_while_descriptors_move(World& w) {
    cut_in_two(w);
    w.add_slab(kSlab + 1, 1, 3);
    return {take(w), {"1 merges, and splits the other slab", [&] {
                          w.try_alloc(1, 6);
                          w.try_alloc(1, 1);
                      }}};
}

// A new slab of another's home uses the descriptor that 1 was about to allocate from.
std::vector<Operation> nbytes_of_a_descriptor_lost(World& w) {
    for (uint32_t id = 1; id <= 3; id++) w.admit(id);
    for (uint32_t slab = 0; slab < kExtentsPerBlock; slab++) w.add_slab(slab, slab < 2 ? 1 : 2, 1);
    w.free(1, w.alloc(1, 1));  // so that nothing is left on its list
    w.also = [&w]() -> std::string {
        for (uint32_t i = 0; i < w.table.extent_limit(); i++)
            if (w.table.owner(i).is(State::kInFlight, 3) && w.table.nbytes({i, w.table.owner(i)}) != 77)
                return "a region was delivered with another's length";
        return "";
    };
    return {{"1 allocates", [&] { w.try_alloc(1, 1), w.try_alloc(1, 1); }},
            w.mmu("takes slabs and grants a new one to 3", [&] {
                w.steward->take_slab(0);
                w.steward->take_slab(1);
                w.deliver({90, kWindowBase + (3ull << kProcessSpaceBits), 1, 0, false, 3}, 77, 3);
            })};
}

// --- memory that is away in another group ------------------------------------------------------------------

std::vector<Operation> deliver_beside_senders(World& w) {
    settle_down(w);
    return {
        w.mmu("grants a new slab to 2",
              [&] { w.deliver({90, kWindowBase + (3ull << kProcessSpaceBits), 2, 0, false, 3}, 100, 2); }),
        {"1 sends to 2, if nobody waits", [&] { w.send(1, 2, 1); }},
        {"2 accepts", [&] { w.accept(2, 2); }}};
}

// Withdrawn for a grant to another group, brought back in part, freed in part.
std::vector<Operation> away_and_back(World& w) {
    settle_down(w);
    const Extent e = w.alloc(1, 5);
    w.processes.at(1)->close_pages(e);
    w.drop(1, e);
    w.steward->withdraw(e);
    const uint64_t address = w.table.extent(e.descriptor).address;
    return {w.mmu("delivers a part and frees the rest",
                  [&w, address] {
                      w.deliver_into(address + kPageBytes, 2, 2);
                      w.steward->free_away(address, 5);
                  }),
            {"1 allocates", [&] { w.try_alloc(1, 1), w.try_alloc(1, 1); }},
            {"2 accepts and frees", [&] {
                 if (w.accept(2, 2) > 0) w.free(2, w.held(2));
             }}};
}

// While a grant to another group is under way the Rack MMU takes no slab of it, nor is that tried here.
std::vector<Operation> withdrawn_and_restored(World& w) {
    settle_down(w);
    const Extent e = w.alloc(1, 2);
    w.drop(1, e);
    w.grant(1, 2, {w.alloc(1, 1)});
    w.accept(2, 2);
    return {{"1 surrenders a region, has it again and frees it",
             [&w, e] {
                 w.processes.at(1)->close_pages(e);
                 w.steward->withdraw(e);
                 const auto restored = w.steward->restore(e);
                 const Extent again{e.descriptor, restored.value_or(OwnerWord{})};
                 w.processes.at(1)->open_pages(again);
                 w.free(1, again);
             }},
            {"2 frees", [&w] { w.free(2, w.held(2)); }}};
}

// --- ids
// --------------------------------------------------------------------------------------------------------

// 1 dies with a cell of 3's inbox in its hand, and 3's id has gone to another meanwhile.
std::vector<Operation> a_cell_in_a_vacated_inbox(World& w) {
    for (uint32_t id = 1; id <= 3; id++) w.admit(id);
    w.open_mailbox(kFirstMailboxId, {2});
    return {{"1 sends", [&] { w.send(1, kFirstMailboxId); }},
            w.mmu("closes the mailbox",
                  [&] {
                      w.bury(kFirstMailboxId);
                      w.table.vacate(kFirstMailboxId);
                  }),
            w.mmu(
                "buries 1, opens another mailbox",
                [&] {
                    w.bury(1);
                    if (w.table.life(kFirstMailboxId) != Life::kEmpty) return;
                    w.open_mailbox(kFirstMailboxId, {2}, 2);
                    w.send(3, kFirstMailboxId);
                },
                0)};
}

// Nobody else may bear the id of a process that has died telling 1 of a page, before 1 has looked.
std::vector<Operation> an_id_in_a_link(World& w) {
    settle_down(w);
    w.grant(1, 2, {w.alloc(1, 1)});
    w.accept(2, 2);
    return {{"2 frees", [&] { w.free(2, w.held(2)); }},
            w.mmu(
                "gives the id of 2 to another",
                [&] {
                    w.bury(2);
                    const Holdings left = w.steward->holdings(2);
                    if (left.extents + left.pages > 0) return;
                    w.table.vacate(2);
                    w.admit(2, 2);
                },
                0),
            {"1 allocates, lends all to 3, who frees",
             [&] {
                 while (w.try_alloc(1, 1)) {
                 }
                 while (w.holds(1) > 0) w.grant(1, 3, {w.held(1)});
                 w.accept(3, 3);
                 while (w.holds(3) > 0) w.free(3, w.held(3));
             },
             1}};
}

}  // namespace

std::vector<Scenario> steward_scenarios() {
    return {
        {"steward: takes a slab while it is allocated", take_and_alloc},
        {"steward: takes a slab while a run of it is split", take_and_split},
        {"steward: takes a slab while runs of it are merged", take_and_merge},
        {"steward: takes a slab while runs of it are merged and split", take_and_merge_and_split},
        {"slab taken: while its home allocates by large pages", take_and_alloc_aligned},
        {"slab: its home dies allocating by large pages", alloc_aligned_and_die, {0}},
        {"steward: takes a slab while a page of it comes home", take_and_remote_free},
        {"steward: so it does, and the home allocates", take_and_remote_free_and_alloc},
        {"steward: takes a slab in vain while runs of it are merged", take_in_vain},
        {"steward: takes a slab while its home dies splitting", take_while_the_home_dies_splitting, {0}},
        {"steward: takes a slab while its home dies merging", take_while_the_home_dies_merging, {0}},
        {"steward: takes a slab in vain while its home dies", take_in_vain_while_the_home_dies, {0}},
        {"steward: takes a slab whose descriptors move on", take_while_descriptors_move},
        {"steward: grants a slab made of a lost descriptor", nbytes_of_a_descriptor_lost},
        {"steward: grants a slab beside a sender", deliver_beside_senders},
        {"steward: delivers and frees what was away", away_and_back},
        {"steward: restores what was withdrawn", withdrawn_and_restored},
        {"steward: a cell is held in a vacated inbox", a_cell_in_a_vacated_inbox, {0}},
        {"steward: an id is borne by a link", an_id_in_a_link, {0}},
    };
}

}  // namespace bequest::tests
