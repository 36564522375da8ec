// Memory changes hands: grants, accepts, and what may come between them.
#include "fake_address_space.hpp"
#include "scenario.hpp"

namespace bequest::tests {

namespace {

// 1 and 2 with a slab each; 3 too if there are three. Everybody has descriptors at hand.
void settle_down(World& w, uint32_t processes, uint32_t pages = 8) {
    for (uint32_t id = 1; id <= processes; id++) {
        w.admit(id);
        w.add_slab(id, id, pages);
        w.split_and_merge_once(id);
    }
}

std::vector<Operation> grant_and_accept(World& w) {
    settle_down(w, 2);
    w.alloc(1, 2);
    return {{"1 grants to 2", [&] { w.grant(1, 2, {w.held(1)}); }}, {"2 accepts", [&] { w.accept(2, 2); }}};
}

std::vector<Operation> two_grants_and_accept(World& w) {
    settle_down(w, 3);
    w.alloc(1, 1);
    w.alloc(3, 1);
    return {{"1 grants to 2", [&] { w.grant(1, 2, {w.held(1)}); }},
            {"3 grants to 2", [&] { w.grant(3, 2, {w.held(3)}); }},
            {"2 accepts", [&] { w.accept(2, 2, 1); }}};
}

std::vector<Operation> a_batch_and_accept(World& w) {
    settle_down(w, 2);
    const Extent a = w.alloc(1, 1), b = w.alloc(1, 1);
    return {{"1 grants two to 2", [&, a, b] { w.grant(1, 2, {a, b}); }},
            {"2 accepts", [&] { w.accept(2, 2); }}};
}

std::vector<Operation> grants_both_ways(World& w) {
    settle_down(w, 2);
    w.alloc(1, 1);
    w.alloc(2, 1);
    return {{"1 grants to 2, accepts", [&] { w.grant(1, 2, {w.held(1)}), w.accept(1, 1); }},
            {"2 grants to 1, accepts", [&] { w.grant(2, 1, {w.held(2)}), w.accept(2, 2); }}};
}

std::vector<Operation> grant_on_to_a_third(World& w) {
    settle_down(w, 3);
    w.alloc(1, 1);
    return {{"1 grants to 2", [&] { w.grant(1, 2, {w.held(1)}); }},
            {"2 accepts, grants to 3",
             [&] {
                 if (w.accept(2, 2) > 0) w.grant(2, 3, {w.held(2)});
             }},
            {"3 accepts", [&] { w.accept(3, 3); }}};
}

std::vector<Operation> grant_a_split_part(World& w) {
    settle_down(w, 2);
    w.alloc(1, 4);
    return {{"1 splits, grants a part, merges nothing",
             [&] {
                 const Extent right = w.split(1, w.held(1), 2);
                 w.grant(1, 2, {right});
             }},
            {"2 accepts, splits, merges", [&] {
                 if (w.accept(2, 2) == 0) return;
                 const Extent right = w.split(2, w.held(2), 1);
                 w.merge(2, w.held(2), right);
             }}};
}

// The kernel refuses to open pages: what was taken is put back, in order, and nothing is lost.
std::vector<Operation> accept_that_cannot_open(World& w) {
    settle_down(w, 2);
    w.alloc(1, 1);
    w.alloc(1, 1);
    return {{"1 grants twice", [&] { w.grant(1, 2, {w.held(1)}), w.grant(1, 2, {w.held(1)}); }},
            {"2 accepts in vain", [&] {
                 opens_nothing = &w.processes.at(2)->space();
                 try {
                     w.accept(2, 2);
                 } catch (const TooManyMappings&) {
                 }
                 opens_nothing = nullptr;
             }}};
}

std::vector<Operation> grant_that_cannot_close(World& w) {
    settle_down(w, 3);
    const Extent e = w.alloc(1, 1);
    w.alloc(3, 1);
    return {{"1 grants in vain",
             [&, e] {
                 closes_nothing = &w.processes.at(1)->space();
                 std::vector<Extent> one{e};
                 try {
                     w.processes.at(1)->grant({2, 1}, one, "never");
                 } catch (const TooManyMappings&) {
                 }
                 closes_nothing = nullptr;
             }},
            {"3 grants to 2", [&] { w.grant(3, 2, {w.held(3)}); }},
            {"2 accepts", [&] { w.accept(2, 2); }}};
}

std::vector<Operation> grant_of_a_stale_extent(World& w) {
    settle_down(w, 2);
    const Extent a = w.alloc(1, 1), b = w.alloc(1, 1), c = w.alloc(1, 1);
    return {{"1 grants three, the second withdrawn", [&, a, b, c] { w.grant(1, 2, {a, b, c}); }},
            w.mmu("withdraws the second", [&, b] { w.withdraw(1, b); }),
            {"2 accepts", [&] { w.accept(2, 2); }}};
}

}  // namespace

std::vector<Scenario> grant_scenarios() {
    return {
        {"grant: one grants, one accepts", grant_and_accept},
        {"grant: two grant to one who accepts", two_grants_and_accept},
        {"grant: a batch, accepted while it comes", a_batch_and_accept},
        {"grant: both ways at once", grants_both_ways},
        {"grant: on to a third", grant_on_to_a_third},
        {"grant: a part of a region, split again and merged", grant_a_split_part},
        {"grant: the receiver has no mappings left", accept_that_cannot_open},
        {"grant: the sender has no mappings left", grant_that_cannot_close},
        {"grant: an extent is withdrawn from the middle of a batch", grant_of_a_stale_extent},
    };
}

}  // namespace bequest::tests
