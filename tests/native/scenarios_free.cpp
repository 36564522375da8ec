// Memory comes home: remote frees, return lists, and the descriptors that extents are made of.
#include "scenario.hpp"

namespace bequest::tests {

namespace {

// 1 at home, with a slab; the others hold one page of it each.
void lend(World& w, uint32_t processes) {
    for (uint32_t id = 1; id <= processes; id++) w.admit(id);
    w.add_slab(1, 1, 6);
    w.split_and_merge_once(1);
    for (uint32_t id = 2; id <= processes; id++) {
        w.grant(1, id, {w.alloc(1, 1)});
        w.accept(id, id);
    }
}

std::vector<Operation> free_and_alloc(World& w) {
    lend(w, 2);
    return {{"2 frees", [&] { w.free(2, w.held(2)); }},
            {"1 allocates twice", [&] { w.try_alloc(1, 1), w.try_alloc(1, 1); }}};
}

std::vector<Operation> frees_and_alloc(World& w) {
    lend(w, 3);
    return {{"2 frees", [&] { w.free(2, w.held(2)); }},
            {"3 frees", [&] { w.free(3, w.held(3)); }},
            {"1 allocates", [&] { w.try_alloc(1, 1); }}};
}

std::vector<Operation> three_frees(World& w) {
    lend(w, 4);
    return {{"2 frees", [&] { w.free(2, w.held(2)); }},
            {"3 frees", [&] { w.free(3, w.held(3)); }},
            {"4 frees", [&] { w.free(4, w.held(4)); }}};
}

// What comes home is merged with its neighbours when nothing fits.
std::vector<Operation> free_and_alloc_all(World& w) {
    lend(w, 3);
    w.free(3, w.held(3));
    return {{"2 frees", [&] { w.free(2, w.held(2)); }}, {"1 allocates all", [&] { w.try_alloc(1, 6); }}};
}

std::vector<Operation> free_and_lend_again(World& w) {
    lend(w, 3);
    return {{"2 frees", [&] { w.free(2, w.held(2)); }},
            {"1 allocates and grants to 3",
             [&] {
                 if (w.try_alloc(1, 1)) w.grant(1, 3, {w.held(1)});
             }},
            {"3 accepts and frees", [&] {
                 w.accept(3, 3);
                 while (w.holds(3) > 0) w.free(3, w.held(3));
             }}};
}

// A process has died that had taken it upon itself to send a page home, and 3, who owns the page now, frees
// it while its home looks for what was lost. (2 had linked it in an earlier life of the page.)
std::vector<Operation> free_beside_a_rescan(World& w) {
    for (uint32_t id = 1; id <= 3; id++) w.admit(id);
    w.add_slab(1, 1, 2);
    w.split_and_merge_once(1);
    w.grant(1, 3, {w.alloc(1, 1)});
    w.accept(3, 3);
    w.table.extent(w.held(3).descriptor).linked.store(2 + 1);
    w.bury(2);
    return {{"3 frees", [&] { w.free(3, w.held(3)); }}, {"1 allocates", [&] { w.try_alloc(1, 1); }}};
}

// Two processes split for the first time: each must find descriptors that nobody else takes.
std::vector<Operation> claim_blocks(World& w) {
    for (uint32_t id = 1; id <= 3; id++) {
        w.admit(id);
        w.add_slab(id, id, 2);
    }
    return {{"1 splits", [&] { w.try_alloc(1, 1); }},
            {"2 splits", [&] { w.try_alloc(2, 1); }},
            {"3 splits", [&] { w.try_alloc(3, 1); }}};
}

// 1 has used up its block of descriptors and looks which of them are empty again; 2 has emptied many, by
// merging what 1 had split, and needs one itself.
std::vector<Operation> descriptors_emptied_by_another(World& w) {
    constexpr uint64_t kParts = kExtentsPerBlock;
    w.admit(1);
    w.admit(2);
    w.add_slab(1, 1, 2 * kParts + 2);
    w.alloc(1, 2);
    Extent left = w.alloc(1, 2 * kParts);
    std::vector<Extent> parts;
    // From the end: the lowest descriptor gets the highest address.
    for (uint64_t n = kParts - 1; n > 0; n--) {
        parts.insert(parts.begin(), w.split(1, left, 2 * n));
        left = w.held(1, w.holds(1) - 2);
    }
    const auto give = [&](const Extent& e) { w.grant(1, 2, {e}), w.accept(2, 2); };
    give(left);
    for (const Extent& part : parts) {
        give(part);
        if (w.holds(1) > 1) left = w.merge(2, w.held(2, 0), w.held(2, 1));
    }
    const auto merge_and_split = [&] {
        w.merge(2, w.held(2, 0), w.held(2, 1));
        w.split(2, w.held(2), 1);
    };
    return {{"1 splits", [&] { w.split(1, w.held(1), 1); }}, {"2 merges and splits", merge_and_split}};
}

// 2 dies of it, having emptied a descriptor and not disarmed; 1 may be half-way through a split with the same
// one.
std::vector<Operation> descriptors_of_a_dead_merge(World& w) {
    std::vector<Operation> operations = descriptors_emptied_by_another(w);
    operations.push_back(w.burial(2, 1));
    return operations;
}

// Pages that are on their way home to 1 when their slabs go, and the descriptors when a slab of 3 comes: the
// Rack MMU has no others at hand.
std::vector<Operation> descriptors_on_a_list(World& w) {
    for (uint32_t id = 1; id <= 3; id++) w.admit(id);
    for (uint32_t slab = 0; slab < kExtentsPerBlock; slab++) w.add_slab(slab, slab < 2 ? 1 : 2, 1);
    for (uint32_t slab = 0; slab < 2; slab++) w.steward->take_slab(slab);
    return {w.mmu("adds a slab for 3", [&] { w.add_slab(1000, 3, 1); }),
            {"1 allocates", [&] { w.try_alloc(1, 1); }},
            {"3 allocates", [&] { w.try_alloc(3, 1); }}};
}

}  // namespace

std::vector<Scenario> free_scenarios() {
    return {
        {"free: from afar, while the home allocates", free_and_alloc},
        {"free: two from afar, while the home allocates", frees_and_alloc},
        {"free: three push on one list", three_frees},
        {"free: from afar, while the home merges all it has", free_and_alloc_all},
        {"free: what comes home is lent again at once", free_and_lend_again},
        {"free: beside a rescan after a death", free_beside_a_rescan},
        {"descriptors: three processes claim their first block", claim_blocks},
        {"descriptors: emptied by another process", descriptors_emptied_by_another},
        {"descriptors: emptied by another process, which dies", descriptors_of_a_dead_merge, {1}},
        {"descriptors: emptied while on a return list", descriptors_on_a_list},
    };
}

}  // namespace bequest::tests
